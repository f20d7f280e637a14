"""Train experiments with one or several seeds, resume them from their checkpoints, and print their progress.

Used by `python -m train` (several models), `consistency` (several seeds) and `frontier` (both).
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
from train import memory
from train.checkpoint import CheckpointFolder, Epoch, settings
from train.data import Data
from train.errors import DivergenceError, SettingsError
from train.files import write_together
from train.layer_table import summary
from train.loop import fit
from train.parallel import run_all
from train.progression import Experiment

Result = tuple[DivergenceError | None, dict[str, bytes]]  # the error, and the checkpoint's files if trained elsewhere


@dataclass(frozen=True)
class Trained:
    """A trained network with its history. Before the first epoch the network is untrained and the history empty."""

    experiment: Experiment
    network: nn.Module
    seed: int
    history: list[Epoch]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Training:
    """An experiment to train with a seed, and its checkpoint folder."""

    experiment: Experiment
    seed: int
    folder: Path
    device_name: str  # as in devices.pick
    progress_interval: float | None = None  # seconds between progress bar updates; None: print only the final result

    def checkpoints(self, data: Data) -> CheckpointFolder:
        """Return the checkpoint folder of this training on `data`."""
        return CheckpointFolder(self.folder, settings(self.experiment, data, self.seed))

    def restore(self, data: Data) -> Trained:
        """Load the last checkpoint, on the CPU. Raises the errors of CheckpointFolder.load."""
        network = self.experiment.network().eval()
        return Trained(self.experiment, network, self.seed, *self.checkpoints(data).load(network))


def train_all(
    trainings: list[Training], data: Data, *, noun: str
) -> tuple[list[Trained], dict[Training, DivergenceError]]:
    """Train all `trainings` to the last epoch; return those that finished and the errors of those that diverged.

    Finished trainings are not repeated; interrupted ones resume after their last epoch. `noun` is "models" or "seeds",
    for messages. Raises SettingsError or TrainError if a training cannot start or resume, before any is trained, or
    fails otherwise than by divergence.
    """
    pending = [one for one in trainings if len(one.restore(data).history) < one.experiment.recipe.epochs]
    if len(pending) < len(trainings):
        print(f"{len(trainings) - len(pending)} of {len(trainings)} {noun} were finished before")
    device_name, remote = trainings[0].device_name, bool(os.environ.get("RAY_ADDRESS"))
    results = run_all(
        [partial(_train_remotely, one, _read_files(one.folder)) if remote else partial(_train, one) for one in pending],
        data,
        # From all trainings, not the pending ones: another number of threads per training changes the last bits.
        max_workers=1 if remote else max_workers(len(trainings), device_name),
        gpu=device_name != "cpu",
    )
    errors = {}
    for number, (error, files) in results if pending else ():
        if error:
            errors[pending[number]] = error
        _write_files(pending[number].folder, files)
    finished = [one.restore(data) for one in trainings if one not in errors]
    return finished, {one: errors[one] for one in trainings if one in errors}


def max_workers(trainings: int, device_name: str) -> int:
    """Return how many `trainings` to run in parallel on this machine, within its threads and memory; one on a GPU.

    One thread per training in parallel is faster than all threads on one training: the layers are small. On a GPU,
    processes take turns: on an H100 ten of them took 46 s, their start included, for 30 epochs of 0.9 s each.
    """
    if devices.pick(device_name).type == "cuda":
        return 1
    return max(1, min(trainings, torch.get_num_threads(), memory.available_memory() // memory.REQUIRED))


def _train(training: Training, data: Data) -> Result:
    """Train to the last epoch. If the training diverges, print and return the error."""
    experiment, verbose = training.experiment, training.progress_interval is not None
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
            progress_interval=training.progress_interval,
        )
    except DivergenceError as error:
        print(error)
        return error, {}
    except torch.OutOfMemoryError as error:
        raise SettingsError(f"the GPU has too little memory; use --device cpu: {error}") from error
    result = f"{100 * history[-1].test_accuracy:.2f}% at epoch {len(history)}"
    ended = f"--- Finished training for {experiment.name}: {result} ---"
    print(ended if verbose else f"seed {training.seed}: {experiment.name}, test {result}")
    return None, {}


def _train_remotely(training: Training, files: dict[str, bytes], data: Data) -> Result:
    """Train on another machine: resume from the checkpoint's `files` and return the new ones."""
    with tempfile.TemporaryDirectory() as folder:
        training = replace(training, folder=Path(folder) / training.folder.name)
        _write_files(training.folder, files)
        error, _ = _train(training, data)
        return error, _read_files(training.folder)


def _read_files(folder: Path) -> dict[str, bytes]:
    """Return the files of the checkpoint in `folder`, checkpoint.json last."""
    return {path.name: path.read_bytes() for name in ("epoch-*", "checkpoint.json") for path in folder.glob(name)}


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write a checkpoint's `files`, if any, and delete the weights of an earlier one."""
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
