"""Confidence calibration: reliability diagram, expected calibration error, and thresholds for a target accuracy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train import plots
from train.data import Data, Split
from train.markdown import percent, table
from train.predict import Outputs

BINS = 15  # of equal width, as in Guo et al., "On Calibration of Modern Neural Networks", 2017
GOALS = (0.999, 0.9995)  # target accuracies of the accepted predictions
COLUMNS = ("target accuracy", "confidence threshold", "validation: coverage", "accuracy", "test: coverage", "accuracy")


@dataclass(frozen=True)
class Predictions:
    """The confidence of each image's predicted digit, float [N], and whether it is correct, bool [N]."""

    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]

    def above(self, threshold: float) -> tuple[float, float]:
        """Return the coverage and the accuracy of the predictions with a confidence of at least `threshold`."""
        accepted = self.confidence >= threshold
        return float(accepted.mean()), float(self.correct[accepted].mean()) if accepted.any() else 1.0


def calibration(data: Data, validation: Outputs, test: Outputs, picture: str) -> tuple[str, bytes]:
    """Return the calibration on the test images in Markdown, and the PNG that the text shows from the path `picture`.

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
