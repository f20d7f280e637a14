"""The release: a verified export promoted to model/release, with its model card."""

from pathlib import Path

from model import contract
from model.contract import SIDE
from train import calibration, paths, plots, verify
from train.consistency import sentence
from train.data import Data, load
from train.errors import SettingsError, VerificationError
from train.files import read_json, write_together
from train.markdown import table
from train.progression import TARGET_ACCURACY
from train.report import doubt_table

CARD, RELIABILITY = "README.md", "reliability.png"


def release(source: Path, *, data_directory: Path, destination: Path = paths.RELEASE, force: bool = False) -> None:
    """Verify the export in `source` once more and copy it, with a model card, to `destination`.

    Raises SettingsError where it is under the goal's accuracy and not forced, VerificationError, or TrainError where a
    file cannot be read or written; then nothing was copied.
    """
    data = load(data_directory)
    export = verify.verify(source, data)
    manifest = export.manifest
    if manifest.settings is None:
        raise VerificationError(f"{source / contract.MANIFEST}: expected settings, found none: run the training again")
    accuracy = f"{100 * manifest.test_accuracy:.2f} %"
    if manifest.test_accuracy < TARGET_ACCURACY and not force:
        raise SettingsError(
            f"{source}: expected {100 * TARGET_ACCURACY:.2f} % or more on the test set, found {accuracy}: "
            "--force releases it all the same"
        )
    found = calibration.calibrate(export.classifier, data)
    files = {CARD: model_card(export, data, found).encode(), RELIABILITY: plots.reliability(found.bins, found.error)}
    write_together(destination, {**files, **export.files})
    print(f"Released {manifest.model}, {accuracy} on the test set: {destination}")


def model_card(export: verify.Export, data: Data, found: calibration.Calibration) -> str:
    """Return the model card, in Markdown, of a verified `export` with the calibration that was `found`."""
    manifest, parity = export.manifest, export.parity
    graph, weights = manifest.onnx, manifest.weights
    outputs = contract.OUTPUTS if manifest.doubt else contract.OUTPUTS_WITHOUT_DOUBT
    right = f"{manifest.test_correct} of {manifest.test_total}"
    accuracy = [
        ["test accuracy of this network", f"{100 * manifest.test_accuracy:.2f} % ({right})"],
        ["validation accuracy of this network", f"{100 * manifest.validation_accuracy:.2f} %"],
        ["images on which ONNX Runtime and PyTorch disagree", f"{parity.label_mismatches} of {parity.images}"],
        ["largest difference of a probability", f"{parity.max_abs_probability_difference:.1e}"],
    ]
    return f"""# {manifest.model}: handwritten digits, {manifest.parameters:,} parameters

Recognises one handwritten digit, 0–9, in a {SIDE}×{SIDE} picture. This folder holds the network as an ONNX graph
(`{graph.file}`, opset {graph.opset}, {graph.bytes:,} bytes), its PyTorch weights (`{weights.file}`)
and `{contract.MANIFEST}`, which says how it was made and vouches for both by SHA-256.

## Use

Input {contract.IMAGE}, white ink (255) on black (0), the digit within the middle 20×20 pixels and
centred by its mass, as in MNIST. Outputs {", ".join(map(str, outputs))}.
Normalisation is inside the graph.

    import numpy, onnxruntime
    session = onnxruntime.InferenceSession("model/release/{graph.file}")
    image = numpy.zeros((1, {SIDE}, {SIDE}), numpy.uint8)  # your picture
    probabilities, digit = session.run(["probabilities", "digit"], {{"image": image}})

Intended for teaching, as a reference for putting a model behind an endpoint, and for reading digits that look like
MNIST's. Not for decisions about people or money without a test on pictures of your own.

## Data and recipe

{data.name}: {len(data.train):,} training images; {len(data.validation):,} held out for validation,
{len(data.test):,} for the test, which chose nothing. Seed {manifest.seed};
{manifest.recipe}. Source revision {manifest.source_revision}.

## Accuracy

{table(["", ""], accuracy)}

{_over_seeds(manifest)}

## Confidence

Expected calibration error on the test images: {100 * found.error:.2f} %, over {calibration.BINS} bins. Whoever needs
more of the answers to be right answers only from a confidence on, chosen on the validation images:

{calibration.table(found)}

![Share right by mean confidence]({RELIABILITY})

{_doubt(manifest)}
## Limits

- It always answers with a digit: a letter, two digits or an empty picture get one too. Its confidence is not a test
  of whether there is a digit{"; `doubt` is, and misses some" if manifest.doubt else ""}.
- MNIST's digits were written in the United States, by census employees and students. Other hands (a crossed seven,
  a one with a long upstroke) are rarer in it and read less well.
- What is turned, shifted or scaled further than the training images were (see the recipe), or has not been brought
  into MNIST's form, is read less well.

## Licence

The network and its weights: MIT, as this project. MNIST: CC BY-SA 3.0, Yann LeCun, Corinna Cortes and Christopher
J. C. Burges; another data set has its own licence and limits.
"""


def _doubt(manifest: contract.Manifest) -> str:
    if manifest.doubt is None:
        return ""
    return f"## Doubt\n\n{doubt_table(manifest.doubt)}\nOther kinds, which nothing was fitted to: docs/doubt.md.\n"


def _over_seeds(manifest: contract.Manifest) -> str:
    """Return what docs/consistency.json says of trainings that differ from this one in the seed alone."""
    figures = read_json(paths.CONSISTENCY) if paths.CONSISTENCY.exists() else {"trials": []}
    trials = figures["trials"]
    if not trials or {**trials[0]["settings"], "seed": manifest.seed} != manifest.settings:
        return "Its accuracy over other seeds has not been measured."
    revisions = {trial["provenance"]["source_revision"] for trial in trials}
    other = (
        "" if revisions == {manifest.source_revision} else f", by other code, revision {', '.join(sorted(revisions))}"
    )
    return f"One network is an anecdote; over seeds (docs/consistency.md{other}): {sentence(figures)}"
