"""Train experiments, each with a seed, in parallel; go on from their checkpoints; print how they do.

The one way in which `python -m train` trains its models and `python -m train consistency` its seeds.
"""

import os
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train import device as devices
from train.checkpoint import CheckpointFolder, Epoch, settings
from train.data import Data
from train.errors import DivergenceError, SettingsError
from train.files import write_together
from train.layer_table import summary
from train.loop import fit
from train.parallel import run_all
from train.progression import Experiment

Result = tuple[DivergenceError | None, dict[str, bytes]]  # with the files of a checkpoint that was made elsewhere


@dataclass(frozen=True)
class Trained:
    """An experiment's network as its training left it; untrained, with no history, where that has not begun."""

    experiment: Experiment
    network: nn.Module
    seed: int
    history: list[Epoch]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Training:
    """An experiment to train with a seed, and the folder of its checkpoints."""

    experiment: Experiment
    seed: int
    folder: Path
    device_name: str  # as devices.pick takes it
    bar: float | None = None  # seconds between two drawings of a progress bar; None: print a line at the end alone

    def checkpoints(self, data: Data) -> CheckpointFolder:
        """Return the checkpoints of this training on `data`."""
        return CheckpointFolder(self.folder, settings(self.experiment, data, self.seed))

    def restore(self, data: Data) -> Trained:
        """Return what the last checkpoint holds, on the CPU. Raises what CheckpointFolder.load does."""
        network = self.experiment.network().eval()
        return Trained(self.experiment, network, self.seed, *self.checkpoints(data).load(network))


def train_all(trainings: list[Training], data: Data, *, noun: str, per_gpu: int = 1) -> list[Trained | DivergenceError]:
    """Train all `trainings` to their ends, and return how each ended.

    One that is finished is not trained again, one that was interrupted goes on after its last epoch. `noun` is what the
    trainings are called; a GPU takes `per_gpu` at once. Raises SettingsError or TrainError where one cannot go on,
    before any is trained, or fails otherwise than by diverging.
    """
    pending = [one for one in trainings if len(one.restore(data).history) < one.experiment.recipe.epochs]
    if len(pending) < len(trainings):
        print(f"{len(trainings) - len(pending)} of {len(trainings)} {noun} were done before")
    device_name, remote = trainings[0].device_name, bool(os.environ.get("RAY_ADDRESS"))
    results = run_all(
        [partial(_train_remotely, one, _files(one.folder)) if remote else partial(_train, one) for one in pending],
        data,
        # As if none were done yet: on another number of threads, one that goes on would end with other bits.
        at_once=1 if remote else at_once(len(trainings), device_name, per_gpu),
        gpu_share=0 if device_name == "cpu" else 1 / per_gpu,
    )
    errors = {}
    for number, (error, files) in results if pending else ():
        if error:
            errors[pending[number]] = error
        _write_files(pending[number].folder, files)
    return [errors.get(one) or one.restore(data) for one in trainings]


def at_once(trainings: int, device_name: str, per_gpu: int = 1) -> int:
    """Return how many of so many `trainings` run at the same time on this machine, each on one thread or more.

    A thread a training does more than all threads for one after the other: the layers are too small to share.
    """
    if devices.pick(device_name).type == "cuda":
        trainings = min(trainings, per_gpu)
    return max(1, min(trainings, torch.get_num_threads(), devices.memory() // devices.MEMORY))


def _train(training: Training, data: Data) -> Result:
    """Train to the end, and return the error where it diverges, which it prints as well."""
    experiment, verbose = training.experiment, training.bar is not None
    if verbose:
        print(f"\n--- Starting training for {experiment.name} ---\nTarget:", *experiment.target, sep="\n  - ")
        print(f"Expected: {experiment.expectation}\nRecipe: {experiment.recipe}\n{summary(experiment.network())}")
    try:
        _, history = fit(
            experiment,
            data,
            seed=training.seed,
            device=devices.pick(training.device_name),
            checkpoints=training.checkpoints(data),
            on_epoch=partial(_print_epoch, data) if verbose else lambda _: None,
            bar=training.bar,
        )
    except DivergenceError as error:
        print(error)
        return error, {}
    except torch.OutOfMemoryError as error:
        raise SettingsError(f"the GPU has too little memory; --device cpu needs none: {error}") from error
    result = f"{100 * history[-1].test_accuracy:.2f}% at epoch {len(history)}"
    ended = f"--- Finished training for {experiment.name}: {result} ---"
    print(ended if verbose else f"seed {training.seed}: test {result}")
    return None, {}


def _train_remotely(training: Training, files: dict[str, bytes], data: Data) -> Result:
    """As _train, on another machine: go on from the checkpoint's `files`, and return the new ones."""
    with tempfile.TemporaryDirectory() as folder:
        training = replace(training, folder=Path(folder) / training.folder.name)
        _write_files(training.folder, files)
        error, _ = _train(training, data)
        return error, _files(training.folder)


def _files(folder: Path) -> dict[str, bytes]:
    """Return the files of the checkpoint in `folder`, the one that vouches for the others last."""
    return {path.name: path.read_bytes() for name in ("epoch-*", "checkpoint.json") for path in folder.glob(name)}


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write a checkpoint's `files`, if there are any, and delete what is left of an earlier one."""
    if files:
        write_together(folder, files)
        for path in {*folder.glob("epoch-*")} - {folder / name for name in files}:
            path.unlink()


def _print_epoch(data: Data, epoch: Epoch) -> None:
    for name, split, loss, accuracy in (
        ("Validation set", data.validation, epoch.validation_loss, epoch.validation_accuracy),
        ("Test set", data.test, epoch.test_loss, epoch.test_accuracy),
    ):
        correct = round(accuracy * len(split))
        print(f"{name}: Average loss: {loss:.4f}, Accuracy: {correct}/{len(split)} ({100 * accuracy:.2f}%)")
    print()
