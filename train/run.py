"""The command `python -m train`: train the progression, export the best model, write the report."""

import os
import sys
from pathlib import Path

from model.networks import parameter_count
from train import device as devices
from train import memory, report
from train.data import Data, load
from train.errors import SettingsError, VerificationError
from train.export import export
from train.lock import locked
from train.progression import PARAMETER_BUDGET, experiments
from train.training import Trained, Training, max_workers, train_all
from train.verify import Export


def run(
    models: list[str] | None, *, epochs: int | None, seed: int, device_name: str, data_directory: Path, out: Path
) -> None:
    """Train `models`, export the best within the parameter budget to `out`/release, and write `out`/report.md.

    None means all models of the progression. Checkpoints are in `out`/NAME; the same call resumes from them. Raises
    TrainError or a subclass for every error that the user can fix.
    """
    progress_interval = 0.5 if sys.stderr.isatty() else 60.0  # seconds: fewer lines in a log than on a terminal
    trainings = [
        Training(one, seed, out / one.name, device_name, progress_interval) for one in experiments(models, epochs)
    ]
    device = _describe_device(device_name, len(trainings))
    # Checked here: otherwise the kernel ends the run without a message when the export is verified, after all training.
    if (found := memory.available_memory()) < memory.REQUIRED:
        expected = f"{memory.REQUIRED // 2**20:,} MiB of memory"
        raise SettingsError(f"expected at least {expected}, found {found // 2**20:,} MiB")
    with locked(out):
        data = load(data_directory)
        print(f"Device: {device}")
        print(
            f"Data: {data.name}, {len(data.train)} training, {len(data.validation)} validation and "
            f"{len(data.test)} test images"
        )
        trained, errors = train_all(trainings, data, noun="models")
        for error in errors.values():
            raise error
        try:
            exported = _export(trained, data, out / "release")
        except VerificationError:
            report.write(out, trained, data, None)  # the training curves are still useful
            raise
        print(f"Report: {report.write(out, trained, data, exported)}")


def _describe_device(device_name: str, trainings: int) -> str:
    if address := os.environ.get("RAY_ADDRESS"):
        return f"the Ray cluster at {address}"
    device = devices.pick(device_name)
    notes = ["no GPU is used"] * (device.type == "cpu")
    notes += ["the models are trained in parallel"] * (max_workers(trainings, device_name) > 1)
    return "; ".join([devices.describe(device), *notes])


def _export(trained: list[Trained], data: Data, folder: Path) -> Export | None:
    best = best_within_budget(trained)
    if best is None:
        print(f"\nNothing exported: no model of this run has at most {PARAMETER_BUDGET:,} parameters")
        return None
    exported = export(best, data, folder)
    manifest, doubt = exported.manifest, exported.manifest.doubt
    print(
        f"\nExported {best.experiment.name}, the best model within {PARAMETER_BUDGET:,} parameters by validation "
        f"accuracy ({100 * best.history[-1].validation_accuracy:.2f}%): {folder / manifest.onnx.file}\n"
        f"Verified {exported.outcome()}\n"
        f"Doubt: {100 * sum(doubt.caught.values()) / len(doubt.caught):.1f}% of synthetic non-digits and "
        f"{100 * doubt.test_doubted:.2f}% of the test images are doubted; {doubt.parameters} parameters"
    )
    return exported


def best_within_budget(trained: list[Trained]) -> Trained | None:
    """Return the model to export: the best at its last epoch by validation accuracy, then validation loss."""
    small = [model for model in trained if parameter_count(model.network) <= PARAMETER_BUDGET]
    ranks = [(model.history[-1].validation_accuracy, -model.history[-1].validation_loss) for model in small]
    return small[ranks.index(max(ranks))] if small else None
