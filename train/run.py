"""The run: train the progression's models, export the best one, write the report."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from model.contract import Manifest
from model.networks import parameter_count
from train import device as devices
from train import report
from train.checkpoint import CheckpointFolder, Epoch, settings
from train.data import Data, load
from train.errors import SettingsError, VerificationError
from train.export import Trained, export
from train.files import locked
from train.layer_table import table
from train.loop import fit
from train.progression import PARAMETER_BUDGET, Step, steps, with_epochs
from train.side_by_side import at_once, side_by_side


def run(
    models: list[str] | None, *, epochs: int | None, seed: int, device_name: str, data_directory: Path, out: Path
) -> None:
    """Train `models`, export the best within the parameter budget to `out`/release, and write `out`/report.md.

    None means all of the progression. Every model's checkpoints are in `out`/NAME: the same call after an interruption
    goes on from them. Raises TrainError, as one of its kinds, for all that a user can mend.
    """
    chosen = [with_epochs(step, epochs) for step in steps(models)]
    device = devices.pick(device_name)
    devices.check_memory()
    with locked(out):
        data = load(data_directory)
        # A thread a model does more than all threads for one after the other: the layers are too small to share.
        count = at_once(len(chosen)) if device.type == "cpu" else 1
        together = count > 1 and devices.memory() >= count * devices.MEMORY
        notes = ["no GPU is used"] * (device.type == "cpu") + ["the models are trained side by side"] * together
        _say("; ".join([f"Device: {devices.describe(device)}", *notes]))
        _say(
            f"Data: {data.name}, {len(data.train)} training, {len(data.validation)} validation and "
            f"{len(data.test)} test images"
        )
        bar = 0.5 if sys.stderr.isatty() else 60.0  # seconds: a log wants fewer lines than a terminal
        if together:
            side_by_side([partial(_load_and_train, step, data_directory, seed, device, out, bar) for step in chosen])
        else:
            for step in chosen:
                _train(step, data, seed, device, out, bar)
        trained = [_trained(step, data, seed, out) for step in chosen]
        try:
            manifest = _export(trained, data, out / "release")
        except VerificationError:
            report.write(out, trained, data, None)  # hours of training are worth their curves all the same
            raise
        _say(f"Report: {report.write(out, trained, data, manifest)}")


def _load_and_train(step: Step, data_directory: Path, seed: int, device: torch.device, out: Path, bar: float) -> None:
    """As _train, in another process: images are read again sooner than sent there."""
    _train(step, load(data_directory), seed, device, out, bar)


def _train(step: Step, data: Data, seed: int, device: torch.device, out: Path, bar: float) -> None:
    """Train `step`, or go on, and leave the result in its checkpoints."""
    _introduce(step)
    checkpoints = CheckpointFolder(out / step.name, settings(step, data, seed))
    try:
        _, history = fit(
            step, data, seed=seed, device=device, checkpoints=checkpoints, on_epoch=_results(data), bar=bar
        )
    except torch.OutOfMemoryError as error:
        raise SettingsError(f"the GPU has too little memory; --device cpu needs none: {error}") from error
    _say(f"--- Finished training for {step.name}: {100 * history[-1].test_accuracy:.2f}% at epoch {len(history)} ---")


def _trained(step: Step, data: Data, seed: int, out: Path) -> Trained:
    """Return what is in the checkpoints of a training that is finished."""
    checkpoints = CheckpointFolder(out / step.name, settings(step, data, seed))
    network = step.network()
    history, provenance = checkpoints.load_trained(network)
    return Trained(step, network, seed, history, provenance)


def _export(trained: list[Trained], data: Data, folder: Path) -> Manifest | None:
    best = best_within_budget(trained)
    if best is None:
        _say(f"\nNothing exported: no model trained here has at most {PARAMETER_BUDGET:,} parameters")
        return None
    manifest = export(best, data, folder)
    _say(
        f"\nExported {best.step.name}, the best within {PARAMETER_BUDGET:,} parameters by validation accuracy "
        f"({100 * best.history[-1].validation_accuracy:.2f}%): {folder / manifest.onnx.file}\n"
        f"Verified on {manifest.parity.images} test images: every label as PyTorch's, probabilities within "
        f"{manifest.parity.max_abs_probability_difference:.1e}; {manifest.test_correct} right"
    )
    return manifest


def best_within_budget(trained: list[Trained]) -> Trained | None:
    """Return the model to export: the best at its last epoch by validation accuracy, then validation loss."""
    small = [model for model in trained if parameter_count(model.network) <= PARAMETER_BUDGET]
    return max(small, key=_validation, default=None)


def _validation(model: Trained) -> tuple[float, float]:
    return model.history[-1].validation_accuracy, -model.history[-1].validation_loss


def _introduce(step: Step) -> None:
    _say(f"\n--- Starting training for {step.name} ---\nTarget:")
    for target in step.target:
        _say(f"  - {target}")
    _say(f"Expected: {step.expectation}\nRecipe: {step.recipe}")
    _say(table(step.network()))


def _results(data: Data) -> Callable[[Epoch], None]:
    def say(epoch: Epoch) -> None:
        for name, split, loss, accuracy in (
            ("Validation set", data.validation, epoch.validation_loss, epoch.validation_accuracy),
            ("Test set", data.test, epoch.test_loss, epoch.test_accuracy),
        ):
            correct = round(accuracy * len(split))
            _say(f"{name}: Average loss: {loss:.4f}, Accuracy: {correct}/{len(split)} ({100 * accuracy:.2f}%)")
        _say("")

    return say


def _say(text: str) -> None:
    print(text, flush=True)
