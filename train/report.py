"""The report of a run in Markdown with plots: target, recipe, results and findings of each model."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.classifier import DigitClassifier
from model.contract import Manifest
from model.networks import parameter_count
from train import plots
from train.data import Data, Split
from train.files import write_bytes
from train.markdown import percent, table
from train.progression import EPOCH_BUDGET, PARAMETER_BUDGET, TARGET_ACCURACY, layer_table
from train.trainings import Trained
from train.verify import Export, Outputs, predict

SHOWN_ERRORS = 100
BINS = 15  # of confidence, of equal width, as in Guo et al., "On Calibration of Modern Neural Networks", 2017
GOALS = (0.999, 0.9995)  # target accuracies of the accepted predictions
COLUMNS = ("target accuracy", "confidence threshold", "validation: coverage", "accuracy", "test: coverage", "accuracy")


def write(out: Path, trained: list[Trained], data: Data, export: Export | None) -> Path:
    """Write `out`/report.md and its plots in `out`/report, and return the path of report.md.

    Confidence and errors are those of the `export` or, without one, of the last model.
    """
    name = export.manifest.model if export else trained[-1].experiment.name
    classifier = export.classifier if export else DigitClassifier(trained[-1].network)
    validation, test = (predict(classifier, split.images) for split in (data.validation, data.test))
    folder = out / "report"
    histories = {model.experiment.name: model.history for model in trained}
    progression = plots.accuracy_curves(histories, TARGET_ACCURACY)
    text, diagram = confidence(data, validation, test, "report/reliability.png")
    write_bytes(folder / "reliability.png", diagram)
    parts = [
        f"# The progression on {data.name}\n",
        f"Goal: {percent(TARGET_ACCURACY)} test accuracy at the last epoch, with at most {EPOCH_BUDGET} epochs and "
        f"{PARAMETER_BUDGET:,} parameters. {len(data.train):,} training images, {len(data.validation):,} validation "
        f"images (held out), and {len(data.test):,} test images, which are only reported, never used. Seed "
        f"{trained[-1].seed}: this is one run; for many seeds, see `python -m train consistency`.\n",
        _comparison(trained),
        _export(export.manifest if export else None),
        _image(folder / "progression.png", progression, "Test accuracy of each model by epoch"),
        *(_section(model, data, folder) for model in trained),
        f"## Confidence of {name}\n\n{text}",
        *([f"## Doubt of the export\n\n{doubt_table(export.manifest)}"] if export else []),
        f"## Errors of {name}\n\n{_errors(data.test, test, folder)}",
    ]
    write_bytes(out / "report.md", "\n".join(parts).encode())
    return out / "report.md"


def _comparison(trained: list[Trained]) -> str:
    columns = ["", "parameters", "epochs", "validation, last epoch", "test, last epoch"]
    columns += ["best test (reference)", "best training (reference)"]
    rows = []
    for model in trained:
        experiment, last = model.experiment, model.history[-1]
        train, test = [f" ({accuracy:.2f})" for accuracy in experiment.reference or ()] or ["", ""]
        row = [experiment.name, f"{parameter_count(model.network):,}", str(len(model.history))]
        row += [percent(last.validation_accuracy), f"**{percent(last.test_accuracy)}**"]
        row += [percent(max(epoch.test_accuracy for epoch in model.history)) + test]
        row += [percent(max(epoch.train_accuracy for epoch in model.history)) + train]
        rows.append(row)
    best = "“Best” is the maximum of all epochs, as in the reference; it selects nothing."
    return f"{table(columns, rows)}\n\n{best}\n"


def _export(manifest: Manifest | None) -> str:
    if manifest is None:
        return f"Nothing was exported: this run has no verified model with at most {PARAMETER_BUDGET:,} parameters.\n"
    graph, parity = manifest.onnx, manifest.parity
    return (
        f"Exported: **{manifest.model}**, the best model of this run with at most {PARAMETER_BUDGET:,} parameters by "
        f"validation accuracy ({percent(manifest.validation_accuracy)}), to "
        f"[release/{graph.file}](release/{graph.file}) ({graph.bytes:,} bytes). ONNX Runtime gives the same label as "
        f"PyTorch on all {parity.images:,} test images; probabilities differ by at most "
        f"{parity.max_abs_probability_difference:.1e}.\n"
    )


def _section(model: Trained, data: Data, folder: Path) -> str:
    experiment, name = model.experiment, model.experiment.name
    curves = plots.training_curves(name, model.history, TARGET_ACCURACY)
    return f"""## {name}

**Target**

{_bullets(experiment.target)}

**Recipe**: {experiment.recipe}.

**Expected**: {experiment.expectation}.

**Result**

{_bullets(findings(model, len(data.test)))}

{_image(folder / f"{name}.png", curves, f"Loss, accuracy and gap of {name} by epoch")}
<details><summary>Layers of {name}, {parameter_count(model.network):,} parameters</summary>

```
{layer_table(experiment.network())}
```

</details>
"""


def findings(model: Trained, test_images: int) -> list[str]:
    """Return the findings about a training, one sentence each: goal, over-fitting, stability, time."""
    history, last, parameters = model.history, model.history[-1], parameter_count(model.network)
    short = TARGET_ACCURACY - last.test_accuracy
    misses = [f"accuracy {100 * short:.2f} points too low"] * (short > 0)
    misses += [f"{parameters:,} parameters, more than {PARAMETER_BUDGET:,}"] * (parameters > PARAMETER_BUDGET)
    misses += [f"{len(history)} epochs, more than {EPOCH_BUDGET}"] * (len(history) > EPOCH_BUDGET)
    gap = last.train_accuracy - last.test_accuracy
    two_standard_errors = 2 * (last.test_accuracy * (1 - last.test_accuracy) / test_images) ** 0.5
    if abs(gap) <= two_standard_errors:
        fit = f"within two standard errors for {test_images:,} test images"
    else:
        fit = "over-fitting" if gap > 0 else "no sign of over-fitting"
    tail = [100 * epoch.test_accuracy for epoch in history[-5:]]
    spread = f"In the last {len(tail)} epochs test accuracy varies by {max(tail) - min(tail):.2f} points."
    return [
        f"Test accuracy {percent(last.test_accuracy)} at epoch {last.epoch}, the last: "
        f"{'the goal is missed: ' + '; '.join(misses) if misses else 'the goal is reached'}.",
        f"Training accuracy {percent(last.train_accuracy)} (mean over that epoch's batches), {abs(100 * gap):.2f} "
        f"points {'above' if gap > 0 else 'below'} test accuracy: {fit}.",
        *([spread] if len(tail) > 1 else []),
        f"{sum(epoch.seconds for epoch in history):.0f} seconds of training and evaluation.",
    ]


def _errors(test: Split, outputs: Outputs, folder: Path) -> str:
    probabilities, digits, *_ = outputs
    labels = test.labels.numpy()
    matrix = np.zeros((10, 10), dtype=np.int64)
    np.add.at(matrix, (labels, digits), 1)
    wrong = np.flatnonzero(digits != labels)
    # Highest confidence first: these errors tell most about the network.
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
    shown = wrong[:SHOWN_ERRORS]
    some = f"; the {len(shown)} with the highest confidence are shown" if len(shown) < len(wrong) else ""
    return f"""\
{len(wrong)} of {len(test):,} test images are misclassified{some}. Titles show the probabilities of the true and of the
predicted digit.

{_image(folder / "confusion.png", plots.confusion(matrix), "Confusion matrix")}
{_image(folder / "mistakes.png", plots.errors(shown, test, outputs), "Misclassified test images")}"""


def doubt_table(manifest: Manifest) -> str:
    """Return the quality of the output `doubt` in Markdown: the threshold, and a table by kind of non-digit."""
    doubt = manifest.doubt
    rows = [[kind, f"{100 * fraction:.1f} %"] for kind, fraction in doubt.caught.items()]
    return (
        f"An image is doubted, that is, unlike a digit, if `doubt` is above {doubt.threshold:.4f}. This threshold "
        f"doubts {percent(doubt.validation_doubted)} of the validation images, on which it was chosen, and "
        f"{percent(doubt.test_doubted)} of the test images. The doubt head has {doubt.parameters} parameters. "
        "Fraction of synthetic non-digits that are doubted (the same kinds as in fitting, other images):\n\n"
        f"{table(['kind of non-digit', 'doubted'], rows)}\n"
    )


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _image(path: Path, png: bytes, description: str) -> str:
    """Write the PNG and return the Markdown that shows it."""
    write_bytes(path, png)
    return f"![{description}]({path.parent.name}/{path.name})\n"


@dataclass(frozen=True)
class Predictions:
    """The confidence of each image's predicted digit, float [N], and whether it is correct, bool [N]."""

    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]

    def above(self, threshold: float) -> tuple[float, float]:
        """Return the coverage and the accuracy of the predictions with a confidence of at least `threshold`."""
        accepted = self.confidence >= threshold
        return float(accepted.mean()), float(self.correct[accepted].mean()) if accepted.any() else 1.0


def confidence(data: Data, validation: Outputs, test: Outputs, picture: str) -> tuple[str, bytes]:
    """Return how far to trust the confidences, in Markdown, and the PNG that the text shows from the path `picture`.

    `validation`, on which the thresholds are chosen, and `test` are a classifier's outputs on these sets of `data`.
    """
    chosen_on, measured = _predictions(data.validation, validation), _predictions(data.test, test)
    bins = reliability(measured)
    # The expected calibration error: the mean gap between confidence and accuracy, weighted by images.
    error = sum(count * abs(confidence - accuracy) for confidence, accuracy, count in bins) / len(data.test)
    rows = []
    for goal in GOALS:
        threshold = choose_threshold(chosen_on, goal)
        if threshold is None:
            rows.append([percent(goal), "not reached", "", "", "", ""])
        else:
            coverages = map(percent, (*chosen_on.above(threshold), *measured.above(threshold)))
            rows.append([percent(goal), f"{threshold:.4f}", *coverages])
    text = f"""\
Expected calibration error on the test images: {percent(error)}, with {BINS} bins. For a higher
accuracy, accept only predictions from a confidence threshold on. The thresholds are chosen on the validation images:

{table(COLUMNS, rows, left=0)}

![Accuracy by mean confidence]({picture})
"""
    return text, plots.reliability(bins, error)


def reliability(predictions: Predictions) -> list[tuple[float, float, int]]:
    """Return the mean confidence, the accuracy and the number of images of each non-empty bin of BINS."""
    bins = np.minimum((predictions.confidence * BINS).astype(int), BINS - 1)
    members = [bins == number for number in np.unique(bins)]
    return [
        (float(predictions.confidence[images].mean()), float(predictions.correct[images].mean()), int(images.sum()))
        for images in members
    ]


def choose_threshold(predictions: Predictions, goal: float) -> float | None:
    """Return the lowest confidence threshold with an accuracy of at least `goal`; None if there is none."""
    order = np.argsort(-predictions.confidence, kind="stable")
    confidence, correct = predictions.confidence[order], predictions.correct[order]
    accuracy = correct.cumsum() / np.arange(1, len(correct) + 1)
    ends = np.append(confidence[1:] < confidence[:-1], True)  # equal confidences are accepted together
    enough = np.flatnonzero((accuracy >= goal) & ends)
    return float(confidence[enough[-1]]) if enough.size else None


def _predictions(split: Split, outputs: Outputs) -> Predictions:
    probabilities, digits, *_ = outputs
    return Predictions(probabilities.max(axis=1), digits == split.labels.numpy())
