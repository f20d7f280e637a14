"""The command `python -m train`: train the progression, export the best model, write the report."""

import os
from pathlib import Path

from model.networks import parameter_count
from train import TrainError, machine, report
from train.data import load
from train.export import export
from train.files import locked
from train.progression import PARAMETER_BUDGET, experiments
from train.trainings import Trained, Training, max_workers, train_all


def run(
    models: list[str] | None, *, settings: list[str], seed: int, device_name: str, data_directory: Path, out: Path
) -> None:
    """Train `models`, export the best within the parameter budget to `out`/release, and write `out`/report.md.

    None means all models of the progression; `settings` change their recipes. Checkpoints are in `out`/NAME; the same
    call resumes from them. Raises TrainError or a subclass for every error that the user can fix.
    """
    trainings = [Training(one, seed, out / one.name, device_name) for one in experiments(models, settings)]
    print(f"Device: {_describe_device(device_name, len(trainings))}")
    # Checked here: otherwise the kernel ends the run without a message when the export is verified, after all training.
    if (memory := machine.available_memory()) < machine.REQUIRED_MEMORY:
        expected = f"{machine.REQUIRED_MEMORY // 2**20:,} MiB of memory"
        raise TrainError(f"expected at least {expected}, found {memory // 2**20:,} MiB")
    with locked(out):
        data = load(data_directory)
        counts = f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test images"
        print(f"Data: {data.name}, {counts}")
        trained, errors = train_all(trainings, data)
        for error in errors.values():
            raise error
        best = best_within_budget(trained)
        if best is None:
            print(f"\nNothing exported: no model of this run has at most {PARAMETER_BUDGET:,} parameters")
            print(f"Report: {report.write(out, trained, data, None)}")
            return
        try:
            exported = export(best, data, out / "release")
        except TrainError:
            report.write(out, trained, data, None)  # the training curves are still useful
            raise
        doubt = exported.manifest.doubt
        print(
            f"\nExported {best.experiment.name}, the best model within {PARAMETER_BUDGET:,} parameters by validation "
            f"accuracy ({best.history[-1].validation_accuracy:.2%}): {out / 'release' / exported.manifest.onnx.file}\n"
            f"Verified {exported.outcome()}\n"
            f"Doubt: {sum(doubt.caught.values()) / len(doubt.caught):.1%} of synthetic non-digits and "
            f"{doubt.test_doubted:.2%} of the test images are doubted; {doubt.parameters} parameters"
        )
        print(f"Report: {report.write(out, trained, data, exported)}")


def _describe_device(device_name: str, trainings: int) -> str:
    if address := os.environ.get("RAY_ADDRESS"):
        return f"the Ray cluster at {address}"
    device = machine.pick(device_name)
    notes = ["no GPU is used"] * (device.type == "cpu")
    notes += ["the models are trained in parallel"] * (max_workers(trainings, device_name) > 1)
    return "; ".join([machine.describe(device), *notes])


def best_within_budget(trained: list[Trained]) -> Trained | None:
    """Return the model to export: the best at its last epoch by validation accuracy, then validation loss."""
    small = [model for model in trained if parameter_count(model.network) <= PARAMETER_BUDGET]
    ranks = [(model.history[-1].validation_accuracy, -model.history[-1].validation_loss) for model in small]
    return small[ranks.index(max(ranks))] if small else None
