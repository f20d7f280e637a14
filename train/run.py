"""The command `python -m train`: train the progression, export the best model, write the report."""

import os
from pathlib import Path

from model.networks import parameter_count
from train import TrainError, machine, report
from train.data import load
from train.export import export
from train.files import locked
from train.progression import PARAMETER_BUDGET, experiments
from train.trainings import Trained, Training, train_all


def run(
    models: list[str] | None, *, settings: list[str], seed: int, device_name: str, data_directory: Path, out: Path
) -> None:
    """Train `models`, export the best within the parameter budget to `out`/release, and write `out`/report.md.

    None means all models of the progression; `settings` change their recipes. Checkpoints are in `out`/NAME; the same
    call resumes from them. Raises TrainError for every error that the user can fix.
    """
    trainings = [Training(one, seed, out / one.name, device_name) for one in experiments(models, settings)]
    if address := os.environ.get("RAY_ADDRESS"):
        print(f"Device: the Ray cluster at {address}")
    else:
        device = machine.pick(device_name)
        print(f"Device: {machine.describe(device)}" + "; no GPU is used" * (device.type == "cpu"))
    # Checked here: otherwise the kernel ends the run without a message when the export is verified, after all training.
    if (memory := machine.available_memory()) < machine.REQUIRED_MEMORY:
        expected = f"{machine.REQUIRED_MEMORY // 2**20:,} MiB of memory"
        raise TrainError(f"expected at least {expected}, found {memory // 2**20:,} MiB")
    with locked(out):
        data = load(data_directory)
        counts = f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test images"
        print(f"Data: {data.name}, {counts}")
        trained, errors = train_all(trainings, data)
        if errors:
            raise next(iter(errors.values()))
        best, exported = best_within_budget(trained), None
        try:
            exported = export(best, data, out / "release") if best else None
        finally:  # without an export too: the training curves are still useful
            written = report.write(out, trained, data, exported)
    if exported:
        model, graph = exported.manifest.model, out / "release" / exported.manifest.onnx.file
        accuracy = f"{exported.manifest.validation_accuracy:.2%}"
        within = f"within {PARAMETER_BUDGET:,} parameters by validation accuracy ({accuracy})"
        print(f"\nExported {model}, the best model {within}: {graph}\nVerified {exported.outcome()}")
    else:
        print(f"\nNothing exported: no model of this run has at most {PARAMETER_BUDGET:,} parameters")
    print(f"Report: {written}")


def best_within_budget(trained: list[Trained]) -> Trained | None:
    """Return the model to export: the best at its last epoch by validation accuracy, then validation loss."""
    small = [model for model in trained if parameter_count(model.network) <= PARAMETER_BUDGET]
    ranks = [(model.history[-1].validation_accuracy, -model.history[-1].validation_loss) for model in small]
    return small[ranks.index(max(ranks))] if small else None
