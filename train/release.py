"""The command `python -m train release`: copy a verified export to model/release, with a model card."""

from pathlib import Path

from model import contract
from model.classifier import predict
from model.version import VERSION
from train import TrainError, paths
from train.data import Data, load
from train.export import Export, verify
from train.files import write_together
from train.markdown import page, percent
from train.progression import TARGET_ACCURACY
from train.report import confidence, doubt


def release(out: Path, *, data_directory: Path, destination: Path = paths.RELEASE, force: bool = False) -> None:
    """Verify the export in `out`/release again and copy it, with a model card, to `destination`.

    Raises TrainError if its test accuracy misses the target and `force` is false, if it does not verify, or if a file
    cannot be read or written; then nothing is copied.
    """
    source, data = out / "release", load(data_directory)
    export = verify(source, data)
    accuracy = percent(export.manifest.test_accuracy)
    if export.manifest.test_accuracy < TARGET_ACCURACY and not force:
        expected = f"expected {percent(TARGET_ACCURACY)} or more on the test set, found {accuracy}"
        raise TrainError(f"{source}: {expected}: use --force to release it anyway")
    write_together(destination, {"README.md": model_card(export, data).encode(), **export.files})
    print(f"Released {export.manifest.model}, {accuracy} on the test set: {destination}")


def model_card(export: Export, data: Data) -> str:
    """Return the model card of a verified `export`, in Markdown."""
    validation, test = (predict(export.classifier, split.images) for split in (data.validation, data.test))
    return page(
        "model_card",
        manifest=export.manifest,
        parity=export.parity,
        contract=contract,
        outputs=", ".join(map(str, contract.OUTPUTS)),
        version=VERSION,
        data=data,
        train=len(data.train),
        validation=len(data.validation),
        test=len(data.test),
        test_accuracy=percent(export.manifest.test_accuracy),
        validation_accuracy=percent(export.manifest.validation_accuracy),
        confidence=confidence(data, validation, test),
        doubt=doubt(export.manifest),
    )
