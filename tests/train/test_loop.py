"""The training loop: learning, determinism, checkpoints, resuming, divergence and evaluation."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from model.networks import Model_2
from train import DivergenceError, TrainError
from train.augment import Warp
from train.checkpoint import CheckpointFolder, settings
from train.data import Split, load
from train.loop import evaluate, fit
from train.progression import PROGRESSION, Recipe, with_settings

CPU = torch.device("cpu")
# Model_2 has dropout and a constant learning rate. Model_3 has augmentation, a one-cycle schedule and weight decay.
MODELS = ["Model_2", "Model_3"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
WEIGHTS = "epoch-04.safetensors"
EPOCHS = 4  # the minimum for Model_3 on `tiny`, which has three batches per epoch
MODEL_2 = with_settings(PROGRESSION["Model_2"], [f"epochs={EPOCHS}"])


@pytest.fixture(scope="module")
def data(tiny):
    return load(tiny)


@pytest.fixture
def checkpoints(tmp_path, data):
    """Return the empty checkpoint folder of MODEL_2 with seed 1."""
    return CheckpointFolder(tmp_path / "Model_2", settings(MODEL_2, data, 1))


@pytest.fixture
def finished(checkpoints, data):
    """Return the checkpoint folder of MODEL_2 after all epochs."""
    fit(MODEL_2, data, seed=1, device=CPU, checkpoints=checkpoints)
    return checkpoints


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class InterruptionError(Exception):
    pass


def interrupt(experiment, data, folder, *, after, device=CPU):
    """Train with seed 1 and stop by an exception after the checkpoint of epoch `after`."""

    def stop(epoch):
        if epoch.epoch == after:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        fit(experiment, data, seed=1, device=device, checkpoints=folder, on_epoch=stop)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "epochs"), [("Model_2", 10), ("Model_3", 5)])
def test_learns_digits_from_a_small_part_of_mnist(model, epochs, subset):
    _, history = fit(with_settings(PROGRESSION[model], [f"epochs={epochs}"]), load(subset), seed=1, device=CPU)
    assert history[-1].test_accuracy > 0.85
    assert history[-1].train_loss < history[0].train_loss


@pytest.fixture
def steps():
    """Return a list to which each training step appends the optimizer's settings."""
    recorded = []

    def record(optimizer, *_):
        (group,) = optimizer.param_groups
        recorded.append([group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")])

    hook = register_optimizer_step_pre_hook(record)
    yield recorded
    hook.remove()


def cosine(start, end, part):
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def test_every_step_has_the_settings_of_the_recipe(steps, data):
    fit(MODEL_2, data, seed=1, device=CPU)
    assert steps == [[0.01, 0.9, False, 0.0]] * 12
    steps.clear()
    fit(with_settings(PROGRESSION["Model_3"], ["epochs=5"]), data, seed=1, device=CPU)
    assert [others for _, *others in steps] == [[0.9, True, 5e-4]] * 15
    # One cycle: from 1/25 of the peak up to the peak in a fifth of the 15 steps, then down to 1/250,000 of the peak.
    rates = [cosine(0.08 / 25, 0.08, step / 2) for step in range(3)]
    rates += [cosine(0.08, 0.08 / 250_000, step / 12) for step in range(1, 13)]
    assert [rate for rate, *_ in steps] == pytest.approx(rates)


def without_learning(data, layers, seed, batch_size, augmentation=None):
    """Return the training losses, by epoch, of a network whose weights never change and are the same for every seed."""

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(784, 10))

    recipe = Recipe(learning_rate=0.0, batch_size=batch_size, epochs=10, augmentation=augmentation)
    experiment = replace(MODEL_2, network=network, recipe=recipe)
    return [epoch.train_loss for epoch in fit(experiment, data, seed=seed, device=CPU)[1]]


@pytest.mark.parametrize(
    ("layers", "batch_size", "augmentation"),
    [
        ([nn.BatchNorm1d(784)], 64, None),
        ([], 198, Warp(degrees=8, pixels=1, scale=0.1, shear=0.1, elastic=0.7)),  # all images in one batch
        ([nn.Dropout(0.1)], 198, None),
    ],
    ids=["order", "augmentation", "dropout"],
)
def test_every_seed_and_epoch_draws_its_own(layers, batch_size, augmentation, data):
    one, again, other = (without_learning(data, layers, seed, batch_size, augmentation) for seed in (1, 1, 2))
    assert one == again
    ordered = sorted(one + other)
    assert min(after - before for before, after in pairwise(ordered)) > 1e-6


@pytest.mark.parametrize("model", MODELS)
def test_the_seed_decides_the_first_weights(model, data):
    experiment = replace(PROGRESSION[model], recipe=Recipe(learning_rate=0.0, epochs=4))
    first, again, other = (fit(experiment, data, seed=seed, device=CPU)[0][0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_training_images_decide_the_weights_and_each_set_has_its_own_figures(data):
    network, history = fit(MODEL_2, data, seed=1, device=CPU)
    empty = Split(torch.zeros_like(data.test.images), data.test.labels.flip(0))
    other, _ = fit(MODEL_2, replace(data, validation=empty, test=empty), seed=1, device=CPU)
    assert same(weights(network), weights(other))
    last = history[-1]
    assert (last.validation_loss, last.validation_accuracy) == evaluate(network, data.validation)
    assert (last.test_loss, last.test_accuracy) == evaluate(network, data.test)


def test_training_figures_are_the_means_of_the_steps(data):
    experiment = replace(MODEL_2, network=lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    experiment = replace(experiment, recipe=Recipe(learning_rate=0.0, batch_size=198, epochs=10))
    network, history = fit(experiment, data, seed=1, device=CPU)
    assert (history[0].train_loss, history[0].train_accuracy) == pytest.approx(evaluate(network, data.train), rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_resumed_training_is_bitwise_equal_to_an_uninterrupted_one(model, device, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # has an effect on a GPU only
    experiment, device = with_settings(PROGRESSION[model], [f"epochs={EPOCHS}"]), torch.device(device)
    uninterrupted, history = fit(experiment, data, seed=1, device=device)
    folder = CheckpointFolder(tmp_path / model, settings(experiment, data, 1))
    interrupt(experiment, data, folder, after=2, device=device)
    epochs = []
    resumed, resumed_history = fit(
        experiment, data, seed=1, device=device, checkpoints=folder, on_epoch=lambda epoch: epochs.append(epoch.epoch)
    )
    assert epochs == [3, 4]
    assert same(weights(uninterrupted), weights(resumed))
    assert [replace(epoch, seconds=0) for epoch in history] == [replace(epoch, seconds=0) for epoch in resumed_history]


class Smooth(Model_2):
    def __init__(self):
        super().__init__()
        self[2] = nn.SiLU()


RECIPE = MODEL_2.recipe
OTHERS = {
    "seed": {"seed": 2},
    "model": {"experiment": replace(MODEL_2, name="Model_4")},
    "network": {"experiment": replace(MODEL_2, network=Smooth)},
    "epochs": {"experiment": with_settings(MODEL_2, ["epochs=5"])},
    "recipe": {"experiment": replace(MODEL_2, recipe=replace(RECIPE, learning_rate=0.02))},
    "data": {"data": {"sha256": {}}},
}


@pytest.mark.parametrize(("name", "change"), OTHERS.items())
def test_checkpoint_of_another_training_is_neither_resumed_nor_overwritten(name, change, finished, data):
    experiment, seed = change.get("experiment", MODEL_2), change.get("seed", 1)
    other = replace(finished, settings=settings(experiment, replace(data, **change.get("data", {})), seed))
    before = contents(finished.path)
    with pytest.raises(TrainError, match=f"Model_2 holds a training with {name} .*, but this training has {name} "):
        fit(experiment, data, seed=seed, device=CPU, checkpoints=other)
    assert contents(finished.path) == before


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_json(change):
    """Return a function that applies `change` to the content of a folder's checkpoint.json."""

    def edit(folder):
        path = folder / "checkpoint.json"
        checkpoint = json.loads(path.read_text())
        change(checkpoint)
        path.write_text(json.dumps(checkpoint))

    return edit


# Key: a name. Value: a function that damages the checkpoint in a folder, and the expected error message.
DAMAGES = {
    "weights damaged": (lambda folder: (folder / WEIGHTS).write_bytes(b"others"), f"{WEIGHTS}: expected SHA-256"),
    "weights deleted": (lambda folder: (folder / WEIGHTS).unlink(), f"cannot read .*{WEIGHTS}"),
    "JSON truncated": (lambda folder: (folder / "checkpoint.json").write_text("{"), "checkpoint.json: expected JSON"),
    "accuracy changed": (
        edit_json(lambda found: found["history"][0].update(validation_accuracy=1.0)),
        "checkpoint.json: expected SHA-256",
    ),
    "hash missing": (edit_json(lambda found: found.pop("sha256")), "checkpoint.json: expected SHA-256 None"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoint_is_refused_with_a_message_of_one_line(damage, message, finished, data):
    damage(finished.path)
    with pytest.raises(TrainError, match=message) as refused:
        fit(MODEL_2, data, seed=1, device=CPU, checkpoints=finished)
    assert "\n" not in str(refused.value)
    with pytest.raises(TrainError, match=message):
        finished.load(Model_2())


def test_loaded_checkpoint_has_the_final_weights_history_and_provenance(checkpoints, data):
    trained, history = fit(MODEL_2, data, seed=1, device=CPU, checkpoints=checkpoints)
    network = Model_2()
    found, provenance = checkpoints.load(network)
    assert set(contents(checkpoints.path)) == {"checkpoint.json", "epoch-04.safetensors"}
    assert same(weights(network), weights(trained))
    assert found == history
    assert provenance["versions"]["torch"]


def test_divergence_names_epoch_and_batch_and_keeps_the_checkpoint(checkpoints, data, monkeypatch):
    interrupt(MODEL_2, data, checkpoints, after=1)
    load_checkpoint = CheckpointFolder.load

    def load_with_a_huge_learning_rate(folder, network, optimizer, scheduler):
        history = load_checkpoint(folder, network, optimizer, scheduler)
        optimizer.param_groups[0]["lr"] = 1e30
        return history

    monkeypatch.setattr(CheckpointFolder, "load", load_with_a_huge_learning_rate)
    before = contents(checkpoints.path)
    with pytest.raises(DivergenceError, match=r"became (nan|inf) in epoch 2, batch \d+$"):
        fit(MODEL_2, data, seed=1, device=CPU, checkpoints=checkpoints)
    assert contents(checkpoints.path) == before


def test_divergence_that_only_the_evaluation_shows_is_an_error(data):
    class Broken(Model_2):
        def forward(self, images):
            return super().forward(images) / self.training

    with pytest.raises(DivergenceError, match="Model_2, seed 1: the loss became nan in epoch 1, during the evaluation"):
        fit(replace(MODEL_2, network=Broken), data, seed=1, device=CPU)


def test_data_set_smaller_than_a_batch_is_refused(data):
    few = replace(data, train=replace(data.train, images=data.train.images[:58], labels=data.train.labels[:58]))
    message = "expected 10 or more batches of 64 training images, found 0 in all: 63 images"
    with pytest.raises(TrainError, match=message):
        fit(PROGRESSION["Model_3"], few, seed=1, device=CPU)


def test_evaluation_returns_mean_cross_entropy_and_accuracy(data):
    network, _ = fit(with_settings(PROGRESSION["Model_3"], [f"epochs={EPOCHS}"]), data, seed=1, device=CPU)
    pixels = (data.train.images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081
    with torch.inference_mode():
        logits = network.eval()(pixels)
    loss, accuracy = evaluate(network, data.train)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, data.train.labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(dim=1) == data.train.labels).double().mean().item()
