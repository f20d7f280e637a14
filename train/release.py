"""The command `python -m train release`: copy a verified export to model/release, with a model card."""

from pathlib import Path

from model import contract
from model.version import VERSION
from train import SettingsError, paths
from train.data import Data, load
from train.files import read_json, write_together
from train.markdown import percent, table
from train.progression import TARGET_ACCURACY
from train.report import confidence, doubt_table
from train.studies import sentence
from train.verify import Export, predict, verify

CARD, RELIABILITY = "README.md", "reliability.png"


def release(source: Path, *, data_directory: Path, destination: Path = paths.RELEASE, force: bool = False) -> None:
    """Verify the export in `source` again and copy it, with a model card, to `destination`.

    Raises SettingsError if its test accuracy misses the target and `force` is false, VerificationError, or TrainError
    if a file cannot be read or written; then nothing is copied.
    """
    data = load(data_directory)
    export = verify(source, data)
    manifest = export.manifest
    accuracy = percent(manifest.test_accuracy)
    if manifest.test_accuracy < TARGET_ACCURACY and not force:
        raise SettingsError(
            f"{source}: expected {percent(TARGET_ACCURACY)} or more on the test set, found {accuracy}: "
            "use --force to release it anyway"
        )
    validation, test = (predict(export.classifier, split.images) for split in (data.validation, data.test))
    text, diagram = confidence(data, validation, test, RELIABILITY)
    card = model_card(export, data, text).encode()
    write_together(destination, {CARD: card, RELIABILITY: diagram, **export.files})
    print(f"Released {manifest.model}, {accuracy} on the test set: {destination}")


def model_card(export: Export, data: Data, trust: str) -> str:
    """Return the model card of a verified `export`, in Markdown. `trust` is the text on its confidences."""
    manifest, parity = export.manifest, export.parity
    graph, weights = manifest.onnx, manifest.weights
    correct = f"({manifest.test_correct} of {manifest.test_total})"
    different = f"{parity.label_mismatches} of {parity.images}"
    accuracy = [
        ["test accuracy of this network", f"{percent(manifest.test_accuracy)} {correct}"],
        ["validation accuracy of this network", percent(manifest.validation_accuracy)],
        ["test images with different labels in ONNX Runtime and PyTorch", different],
        ["largest difference of a probability", f"{parity.max_abs_probability_difference:.1e}"],
    ]
    return f"""# {manifest.model}: handwritten digit classifier, {manifest.parameters:,} parameters

Classifies a {contract.SIDE}×{contract.SIDE} image of one handwritten digit, 0–9. This folder contains the ONNX graph
(`{graph.file}`, opset {graph.opset}, {graph.bytes:,} bytes), the PyTorch weights (`{weights.file}`) and
`{contract.MANIFEST}`: how the model was trained, and the SHA-256 of both files. Released with version {VERSION} of this
project.

## Use

Input {contract.IMAGE}, white ink (255) on black (0). As in MNIST, the digit fits into the
middle 20×20 pixels, with its centre of mass in the middle of the image.
Outputs {", ".join(map(str, contract.OUTPUTS))}.
Normalisation is part of the graph.

    import numpy, onnxruntime
    session = onnxruntime.InferenceSession("model/release/{graph.file}")
    image = numpy.zeros((1, {contract.SIDE}, {contract.SIDE}), numpy.uint8)  # your image
    probabilities, digit = session.run(["probabilities", "digit"], {{"image": image}})

Intended use: teaching, a reference for serving a model over HTTP, and reading digits similar to MNIST's.
Test it on your own images before any decision about people or money depends on it.

## Data and recipe

{data.name}: {len(data.train):,} training images, {len(data.validation):,} validation images (held out), and
{len(data.test):,} test images, which were only reported, never used. Seed {manifest.seed};
{manifest.recipe}. Source revision {manifest.source_revision}.

## Accuracy

{table(["", ""], accuracy)}

{_over_seeds(manifest)}

## Confidence

{trust}
## Doubt

{doubt_table(manifest)}
Results on other kinds, which were not used for fitting: docs/doubt.md.

## Limits

- The model returns a digit for every image, also for a letter, two digits or an empty image. The confidence does not
  detect these; `doubt` does, but misses some.
- MNIST's digits were written in the United States by census employees and students. The model knows other handwriting
  from drawn digits only, if its recipe has any: see docs/training.md. Styles that neither has are recognised less well.
- Digits that are rotated, shifted or scaled further than the training images (see the recipe), or images not in
  MNIST's format, are recognised less well.

## Licence

The network and its weights: MIT, as this project. MNIST: CC BY-SA 3.0, Yann LeCun, Corinna Cortes and Christopher
J. C. Burges. Another data set has its own licence and limits.
"""


def _over_seeds(manifest: contract.Manifest) -> str:
    """Return the result in docs/consistency.json if its trainings differ from this one only in the seed."""
    figures = read_json(paths.CONSISTENCY) if paths.CONSISTENCY.exists() else {"trials": []}
    trials = figures["trials"]
    if not trials or {**trials[0]["settings"], "seed": manifest.seed} != manifest.settings:
        return "The accuracy with other seeds has not been measured."
    revisions = {trial["provenance"]["source_revision"] for trial in trials}
    other = "" if revisions == {manifest.source_revision} else f", source revision {', '.join(sorted(revisions))}"
    return f"The accuracy depends on the seed (docs/consistency.md{other}): {sentence(figures)}"
