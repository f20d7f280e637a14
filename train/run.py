"""From the data to a release: train the progression, export the best model, write the report, release the model."""

import os
from pathlib import Path

from model import contract
from model.classifier import predict
from model.networks import parameter_count
from model.version import VERSION
from train import TrainError, export, machine, paths, report
from train.data import Data, load
from train.files import locked, write_together
from train.markdown import page, percent
from train.progression import PARAMETER_BUDGET, TARGET_ACCURACY, experiments
from train.trainings import Trained, Training, train_all


def run(
    models: list[str] | None, *, settings: list[str], seed: int, device_name: str, data_directory: Path, out: Path
) -> None:
    """Train `models`, export the best within the parameter budget to `out`/release, and write `out`/report.md.

    If `models` is None, all models are trained; `settings` change the recipes. Each model has its checkpoints in
    `out`/NAME; a repeated call resumes from them. Raises TrainError for every error that the user can fix.
    """
    trainings = [Training(one, seed, out / one.name, device_name) for one in experiments(models, settings)]
    if address := os.environ.get("RAY_ADDRESS"):
        print(f"Device: the Ray cluster at {address}")
    else:
        device = machine.pick(device_name)
        print(f"Device: {machine.describe(device)}" + "; no GPU is used" * (device.type == "cpu"))
    # Checked before training: with too little memory, the kernel would kill the run without a message at the export.
    if (memory := machine.available_memory()) < machine.REQUIRED_MEMORY:
        expected = f"{machine.REQUIRED_MEMORY // 2**20:,} MiB of memory"
        raise TrainError(f"expected at least {expected}, found {memory // 2**20:,} MiB")
    with locked(out):
        data = load(data_directory)
        print("Data: {name}, {train} training, {validation} validation and {test} test images".format(**data.summary()))
        trained, errors = train_all(trainings, data)
        if errors:
            raise next(iter(errors.values()))
        best, exported = best_within_budget(trained), None
        try:
            exported = export.export(best, data, out / "release") if best else None
        finally:  # write the report even if the export fails: the training curves are useful
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
    """Return the best model within the parameter budget by the last validation accuracy, then the validation loss."""
    small = [model for model in trained if parameter_count(model.network) <= PARAMETER_BUDGET]
    ranks = [(model.history[-1].validation_accuracy, -model.history[-1].validation_loss) for model in small]
    return small[ranks.index(max(ranks))] if small else None


def verify(folder: Path, data_directory: Path) -> None:
    """Verify the export in `folder`, and print the outcome. Raises the errors of train.export.verify."""
    print(f"{folder}: verified {export.verify(folder, load(data_directory)).outcome()}")


def release(out: Path, *, data_directory: Path, destination: Path = paths.RELEASE, force: bool = False) -> None:
    """Verify the export in `out`/release again and copy it, with a model card, to `destination`.

    Raises TrainError if the test accuracy misses the target and `force` is false, if the verification fails, or if a
    file cannot be read or written. In these cases nothing is copied.
    """
    source, data = out / "release", load(data_directory)
    found = export.verify(source, data)
    accuracy = percent(found.manifest.test_accuracy)
    if found.manifest.test_accuracy < TARGET_ACCURACY and not force:
        expected = f"expected {percent(TARGET_ACCURACY)} or more on the test set, found {accuracy}"
        raise TrainError(f"{source}: {expected}: use --force to release it anyway")
    write_together(destination, {"README.md": model_card(found, data).encode(), **found.files})
    print(f"Released {found.manifest.model}, {accuracy} on the test set: {destination}")


def model_card(found: export.Export, data: Data) -> str:
    """Return the model card of a verified export, in Markdown."""
    validation, test = (predict(found.classifier, split.images) for split in (data.validation, data.test))
    return page(
        "model_card",
        manifest=found.manifest,
        parity=found.parity,
        contract=contract,
        outputs=", ".join(map(str, contract.OUTPUTS)),
        version=VERSION,
        data=data.summary(),
        test_accuracy=percent(found.manifest.test_accuracy),
        validation_accuracy=percent(found.manifest.validation_accuracy),
        confidence=report.confidence(data, validation, test),
        doubt=report.doubt(found.manifest),
    )
