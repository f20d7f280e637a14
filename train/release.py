"""The release: a verified export promoted to model/release, with its model card."""

from pathlib import Path
from typing import Any

from train import paths, verify
from train.checkpoint import settings
from train.consistency import sentence
from train.data import Data, load
from train.errors import VerificationError
from train.files import read_json, to_json, write_together
from train.progression import PROGRESSION, with_epochs

CARD = "README.md"


def release(source: Path, *, data_directory: Path, destination: Path = paths.RELEASE) -> None:
    """Verify the export in `source` once more and copy it, with a model card, to `destination`.

    Raises VerificationError, or TrainError where a file cannot be read or written; then nothing was copied.
    """
    data = load(data_directory)
    export = verify.verify(source, data)
    try:
        card = model_card(export.manifest, data)
    except KeyError as error:
        raise VerificationError(f"{source / verify.MANIFEST}: expected {error}, found none") from error
    write_together(destination, {**export.files, CARD: card.encode(), verify.MANIFEST: to_json(export.manifest)})
    accuracy = 100 * export.manifest["test_accuracy"]
    print(f"Released {export.manifest['model']}, {accuracy:.2f}% on the test set: {destination}")


def model_card(manifest: dict[str, Any], data: Data) -> str:
    """Return the model card, in Markdown, of the export that `manifest` describes."""
    parity, onnx, weights = manifest["parity"], manifest["onnx"], manifest["weights"]
    right = f"{manifest['test_correct']} of {manifest['test_total']}"
    return f"""# {manifest["model"]}: handwritten digits, {manifest["parameters"]:,} parameters

Recognises one handwritten digit, 0–9, in a 28×28 picture. This folder holds the network as an ONNX graph
(`{onnx["file"]}`, opset {onnx["opset"]}, {onnx["bytes"]:,} bytes), its PyTorch weights (`{weights["file"]}`)
and `manifest.json`, which says how it was made and vouches for both by SHA-256.

## Use

Input `image`: uint8 [batch, 28, 28], white ink (255) on black (0), the digit within the middle 20×20 pixels and
centred by its mass, as in MNIST. Outputs `probabilities`: float32 [batch, 10], and `digit`: int64 [batch].
Normalisation is inside the graph.

    import numpy, onnxruntime
    session = onnxruntime.InferenceSession("model/release/digits.onnx")
    image = numpy.zeros((1, 28, 28), numpy.uint8)  # your picture
    probabilities, digit = session.run(None, {{"image": image}})

Intended for teaching, as a reference for putting a model behind an endpoint, and for reading digits that look like
MNIST's. Not for decisions about people or money without a test on pictures of your own.

## Data and recipe

{manifest["data"]["name"]}: {len(data.train):,} training images; {len(data.validation):,} held out for validation,
{len(data.test):,} for the test, which chose nothing. Seed {manifest["seed"]};
{manifest["recipe"]}.

## Accuracy

| | |
|---|---:|
| test accuracy of this network | {100 * manifest["test_accuracy"]:.2f} % ({right}) |
| validation accuracy of this network | {100 * manifest["validation_accuracy"]:.2f} % |
| images on which ONNX Runtime and PyTorch disagree | {parity["label_mismatches"]} of {parity["images"]} |
| largest difference of a probability | {parity["max_abs_probability_difference"]:.1e} |

{_over_seeds(manifest, data)}

## Limits

- It always answers with a digit: a letter, two digits or an empty picture get one too. Its confidence is not a test
  of whether there is a digit.
- MNIST's digits were written in the United States, by census employees and students. Other hands (a crossed seven,
  a one with a long upstroke) are rarer in it and read less well.
- What is turned, shifted or scaled further than the training images were (see the recipe), or has not been brought
  into MNIST's form, is read less well.

## Licence

The network and its weights: MIT, as this project. MNIST: CC BY-SA 3.0, Yann LeCun, Corinna Cortes and Christopher
J. C. Burges; another data set has its own licence and limits.
"""


def _over_seeds(manifest: dict[str, Any], data: Data) -> str:
    """Return what docs/consistency.json says of this recipe; that nothing is measured where it is of another."""
    step = with_epochs(PROGRESSION[manifest["model"]], manifest["epochs"])
    if paths.CONSISTENCY.exists() and str(step.recipe) == manifest["recipe"]:
        figures = read_json(paths.CONSISTENCY)
        measured = figures["trials"][0]["settings"]
        if measured == settings(step, data, measured["seed"]):
            return f"One network is an anecdote; over seeds (docs/consistency.md): {sentence(figures)}"
    return "Its accuracy over other seeds has not been measured."
