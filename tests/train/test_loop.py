"""The training loop: learning, determinism, checkpoints, resuming, divergence and evaluation."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from model.networks import Model_2
from train.checkpoint import CheckpointFolder, settings
from train.data import load
from train.errors import DivergenceError, SettingsError, TrainError
from train.loop import evaluate, fit
from train.progression import PROGRESSION, with_epochs

CPU = torch.device("cpu")
# Model_2 has dropout and a constant learning rate. Model_3 has augmentation, a one-cycle schedule and weight decay.
MODELS = ["Model_2", "Model_3"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
EPOCHS = 4  # the minimum for Model_3 on `tiny`, which has three batches per epoch
MODEL_2 = with_epochs(PROGRESSION["Model_2"], EPOCHS)


@pytest.fixture(scope="module")
def data(tiny):
    return load(tiny)


@pytest.fixture
def checkpoints(tmp_path, data):
    """Return the empty checkpoint folder of MODEL_2 with seed 1."""
    return CheckpointFolder(tmp_path / "Model_2", settings(MODEL_2, data, 1))


@pytest.fixture
def finished(checkpoints, data):
    """Return the same folder after all epochs."""
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
    _, history = fit(with_epochs(PROGRESSION[model], epochs), load(subset), seed=1, device=CPU)
    assert history[-1].test_accuracy > 0.85
    assert history[-1].train_loss < history[0].train_loss


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_weights_are_bitwise_equal_only_with_the_same_seed(model, data):
    experiment = with_epochs(PROGRESSION[model], EPOCHS)
    first, again, other = (weights(fit(experiment, data, seed=seed, device=CPU)[0]) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_resumed_training_is_bitwise_equal_to_an_uninterrupted_one(model, device, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # on a GPU
    experiment, device = with_epochs(PROGRESSION[model], EPOCHS), torch.device(device)
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


def test_folder_holds_one_checkpoint_and_no_pickle(finished):
    assert sorted(path.name for path in finished.path.iterdir()) == ["checkpoint.json", "epoch-04.safetensors"]


def test_checkpoint_of_another_seed_is_not_overwritten(finished, data):
    other = replace(finished, settings=settings(MODEL_2, data, 2))
    with pytest.raises(SettingsError, match="Model_2 holds a training with seed 1, this one has seed 2"):
        fit(MODEL_2, data, seed=2, device=CPU, checkpoints=other)


def test_checkpoint_of_another_network_of_the_same_name_is_not_overwritten(finished, data):
    class Smooth(Model_2):
        def __init__(self):
            super().__init__()
            self[2] = nn.SiLU()

    experiment = replace(MODEL_2, network=Smooth)
    other = replace(finished, settings=settings(experiment, data, 1))
    with pytest.raises(SettingsError, match="holds a training with network"):
        fit(experiment, data, seed=1, device=CPU, checkpoints=other)


def damage_weights(folder):
    path = folder / "epoch-04.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def delete_weights(folder):
    (folder / "epoch-04.safetensors").unlink()


def truncate_json(folder):
    path = folder / "checkpoint.json"
    path.write_text(path.read_text()[:100])


def nest_json(folder):
    (folder / "checkpoint.json").write_text("[" * 100_000)


def edit_json(change):
    """Return a function that applies `change` to the content of a folder's checkpoint.json."""

    def edit(folder):
        path = folder / "checkpoint.json"
        checkpoint = json.loads(path.read_text())
        change(checkpoint)
        path.write_text(json.dumps(checkpoint))

    return edit


# Each damage of a checkpoint, and the error message.
DAMAGES = {
    "weights damaged": (damage_weights, "expected SHA-256"),
    "weights deleted": (delete_weights, "cannot read .*epoch-04.safetensors"),
    "JSON truncated": (truncate_json, "checkpoint.json: expected JSON"),
    "JSON nested too deeply": (nest_json, "checkpoint.json: expected JSON"),
    "settings null": (edit_json(lambda found: found.update(settings=None)), "holds a training with model None"),
    "history missing": (edit_json(lambda found: found.pop("history")), "checkpoint.json: expected SHA-256"),
    "history empty": (edit_json(lambda found: found["history"].clear()), "checkpoint.json: expected SHA-256"),
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
    before = {path: path.read_bytes() for path in checkpoints.path.iterdir()}
    with pytest.raises(DivergenceError, match=r"became (nan|inf) in epoch 2, batch \d+; the checkpoint of epoch 1 is"):
        fit(MODEL_2, data, seed=1, device=CPU, checkpoints=checkpoints)
    assert {path: path.read_bytes() for path in checkpoints.path.iterdir()} == before


def test_data_set_smaller_than_a_batch_is_refused(data):
    few = replace(data, train=replace(data.train, images=data.train.images[:63], labels=data.train.labels[:63]))
    message = "expected 10 or more batches of 64 training images in all, found 0: 63 images"
    with pytest.raises(SettingsError, match=message):
        fit(PROGRESSION["Model_3"], few, seed=1, device=CPU)


def test_evaluation_returns_mean_cross_entropy_and_accuracy(data):
    network, _ = fit(with_epochs(PROGRESSION["Model_3"], EPOCHS), data, seed=1, device=CPU)
    pixels = (data.train.images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081
    with torch.inference_mode():
        logits = network.eval()(pixels)
    loss, accuracy = evaluate(network, data.train)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, data.train.labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(dim=1) == data.train.labels).double().mean().item()
