"""Training learns, repeats itself bit for bit, goes on from a checkpoint, and stops when it diverges."""

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
# Between them: dropout and a constant rate; augmentation, one-cycle and weight decay.
MODELS = ["Model_2", "Model_3"]
EPOCHS = 4  # the fewest that Model_3 can be trained for on `tiny`, whose epochs have three batches


@pytest.fixture(scope="module")
def data(tiny):
    return load(tiny)


@pytest.fixture
def checkpoints(tmp_path, data):
    experiment = with_epochs(PROGRESSION["Model_2"], EPOCHS)
    return CheckpointFolder(tmp_path / "Model_2", settings(experiment, data, 1))


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "epochs"), [("Model_2", 10), ("Model_3", 5)])
def test_learns_digits_from_a_small_part_of_mnist(model, epochs, subset):
    _, history = fit(with_epochs(PROGRESSION[model], epochs), load(subset), seed=1, device=CPU)
    assert history[-1].test_accuracy > 0.85
    assert history[-1].train_loss < history[0].train_loss


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_same_seed_gives_the_same_bits_and_another_seed_others(model, data):
    experiment = with_epochs(PROGRESSION[model], EPOCHS)
    first, again, other = (weights(fit(experiment, data, seed=seed, device=CPU)[0]) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


class InterruptionError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_resumed_training_ends_with_the_bits_of_one_never_interrupted(model, data, tmp_path):
    experiment = with_epochs(PROGRESSION[model], EPOCHS)
    straight, history = fit(experiment, data, seed=1, device=CPU)
    folder = CheckpointFolder(tmp_path / model, settings(experiment, data, 1))

    def interrupt(epoch):
        if epoch.epoch == 2:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        fit(experiment, data, seed=1, device=CPU, checkpoints=folder, on_epoch=interrupt)
    resumed_epochs = []
    resumed, resumed_history = fit(
        experiment,
        data,
        seed=1,
        device=CPU,
        checkpoints=folder,
        on_epoch=lambda epoch: resumed_epochs.append(epoch.epoch),
    )
    assert resumed_epochs == [3, 4]
    assert same(weights(straight), weights(resumed))
    assert [replace(epoch, seconds=0) for epoch in history] == [replace(epoch, seconds=0) for epoch in resumed_history]


def test_folder_holds_one_checkpoint_and_no_pickle(checkpoints, data):
    fit(with_epochs(PROGRESSION["Model_2"], EPOCHS), data, seed=1, device=CPU, checkpoints=checkpoints)
    assert sorted(path.name for path in checkpoints.path.iterdir()) == ["checkpoint.json", "epoch-04.safetensors"]


def test_training_of_other_settings_is_not_overwritten(checkpoints, data):
    experiment = with_epochs(PROGRESSION["Model_2"], EPOCHS)
    folder = replace(checkpoints, settings=settings(experiment, data, 1))
    fit(experiment, data, seed=1, device=CPU, checkpoints=folder)
    other = replace(checkpoints, settings=settings(experiment, data, 2))
    with pytest.raises(SettingsError, match="Model_2 holds a training with seed 1, this one has seed 2"):
        fit(experiment, data, seed=2, device=CPU, checkpoints=other)


def test_training_of_another_network_of_the_same_name_is_not_overwritten(tmp_path, data):
    experiment = with_epochs(PROGRESSION["Model_2"], EPOCHS)
    fit(experiment, data, seed=1, device=CPU, checkpoints=CheckpointFolder(tmp_path, settings(experiment, data, 1)))

    class Smooth(Model_2):
        def __init__(self):
            super().__init__()
            self[2] = nn.SiLU()

    other = replace(experiment, network=Smooth)
    with pytest.raises(SettingsError, match="holds a training with network"):
        fit(other, data, seed=1, device=CPU, checkpoints=CheckpointFolder(tmp_path, settings(other, data, 1)))


def damage_weights(folder):
    path = folder / "epoch-04.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    return "expected SHA-256"


def delete_weights(folder):
    (folder / "epoch-04.safetensors").unlink()
    return "cannot read .*epoch-04.safetensors"


def cut_json(folder):
    path = folder / "checkpoint.json"
    path.write_text(path.read_text()[:100])
    return "checkpoint.json: expected JSON"


def edit(folder, change):
    path = folder / "checkpoint.json"
    checkpoint = json.loads(path.read_text())
    change(checkpoint)
    path.write_text(json.dumps(checkpoint))


def unsettle(folder):
    edit(folder, lambda checkpoint: checkpoint.update(settings=None))
    return "holds a training with model None"


def drop_history(folder):
    edit(folder, lambda checkpoint: checkpoint.pop("history"))
    return "checkpoint.json: expected SHA-256"


def cut_history(folder):
    edit(folder, lambda checkpoint: checkpoint["history"].clear())
    return "checkpoint.json: expected SHA-256"


def improve_history(folder):
    edit(folder, lambda checkpoint: checkpoint["history"][0].update(validation_accuracy=1.0))
    return "checkpoint.json: expected SHA-256"


def drop_hash(folder):
    edit(folder, lambda checkpoint: checkpoint.pop("sha256"))
    return "checkpoint.json: expected SHA-256 None"


DAMAGES = [damage_weights, delete_weights, cut_json, unsettle, drop_history, cut_history, improve_history, drop_hash]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_refused_by_name(damage, checkpoints, data):
    experiment = with_epochs(PROGRESSION["Model_2"], EPOCHS)
    folder = replace(checkpoints, settings=settings(experiment, data, 1))
    fit(experiment, data, seed=1, device=CPU, checkpoints=folder)
    message = damage(folder.path)
    with pytest.raises(TrainError, match=message) as refused:
        fit(experiment, data, seed=1, device=CPU, checkpoints=folder)
    assert "\n" not in str(refused.value)
    with pytest.raises(TrainError, match=message):
        folder.load(Model_2())


def test_finished_training_is_loaded_as_it_ended(checkpoints, data):
    trained, history = fit(
        with_epochs(PROGRESSION["Model_2"], EPOCHS), data, seed=1, device=CPU, checkpoints=checkpoints
    )
    network = Model_2()
    found, provenance = checkpoints.load(network)
    assert same(weights(network), weights(trained))
    assert found == history
    assert provenance["versions"]["torch"]


def stopped_after_one_epoch(checkpoints, data):
    """Leave the checkpoint of the first epoch."""

    def interrupt(_):
        raise InterruptionError

    experiment = with_epochs(PROGRESSION["Model_2"], EPOCHS)
    with pytest.raises(InterruptionError):
        fit(experiment, data, seed=1, device=CPU, checkpoints=checkpoints, on_epoch=interrupt)
    return experiment


def test_infinite_loss_stops_with_epoch_and_batch_and_the_checkpoint_intact(checkpoints, data, monkeypatch):
    experiment = stopped_after_one_epoch(checkpoints, data)
    load_checkpoint = CheckpointFolder.load

    def load_with_a_rate_that_no_training_survives(folder, network, optimizer, scheduler):
        history = load_checkpoint(folder, network, optimizer, scheduler)
        optimizer.param_groups[0]["lr"] = 1e30
        return history

    monkeypatch.setattr(CheckpointFolder, "load", load_with_a_rate_that_no_training_survives)
    before = {path: path.read_bytes() for path in checkpoints.path.iterdir()}
    with pytest.raises(DivergenceError, match=r"became (nan|inf) in epoch 2, batch \d+; the checkpoint of epoch 1 is"):
        fit(experiment, data, seed=1, device=CPU, checkpoints=checkpoints)
    assert {path: path.read_bytes() for path in checkpoints.path.iterdir()} == before


def test_fewer_images_than_a_batch_are_refused(data):
    few = replace(data, train=replace(data.train, images=data.train.images[:63], labels=data.train.labels[:63]))
    with pytest.raises(
        SettingsError, match="expected 10 or more batches of 64 training images in all, found 0: 63 images"
    ):
        fit(PROGRESSION["Model_3"], few, seed=1, device=CPU)


def test_evaluation_is_that_of_the_whole_split_at_once(data):
    network, _ = fit(with_epochs(PROGRESSION["Model_3"], EPOCHS), data, seed=1, device=CPU)
    pixels = (data.train.images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081
    with torch.inference_mode():
        logits = network.eval()(pixels)
    loss, accuracy = evaluate(network, data.train)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, data.train.labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(dim=1) == data.train.labels).double().mean().item()
