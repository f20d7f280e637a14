"""Confidence calibration: reliability diagram, expected calibration error, and thresholds for a target accuracy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.classifier import DigitClassifier
from train import markdown
from train.data import Data, Split
from train.predict import predict

BINS = 15  # of equal width, as in Guo et al., "On Calibration of Modern Neural Networks", 2017
GOALS = (0.999, 0.9995)  # target accuracies of the accepted predictions


@dataclass(frozen=True)
class Predictions:
    """The confidence of each image's predicted digit, float [N], and whether it is correct, bool [N]."""

    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]

    def above(self, threshold: float) -> tuple[float, float]:
        """Return the coverage and the accuracy of the predictions with a confidence of at least `threshold`."""
        accepted = self.confidence >= threshold
        return float(accepted.mean()), float(self.correct[accepted].mean()) if accepted.any() else 1.0


@dataclass(frozen=True)
class Coverage:
    """Coverage and accuracy of the validation and test images if confidences from `threshold` on are accepted."""

    goal: float
    threshold: float | None  # None if no threshold reaches the goal
    validation: tuple[float, float] = (0.0, 1.0)
    test: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Calibration:
    """The calibration of a classifier on the test images. Thresholds are chosen on the validation images."""

    bins: list[tuple[float, float, int]]  # mean confidence, accuracy, number of images; without empty bins
    error: float  # expected calibration error: the mean gap between confidence and accuracy, weighted by images
    coverage: list[Coverage]


def calibrate(classifier: DigitClassifier, data: Data) -> Calibration:
    """Measure the calibration of `classifier` on `data`."""
    validation, test = (_predictions(classifier, split) for split in (data.validation, data.test))
    bins = reliability(test)
    error = sum(count * abs(confidence - accuracy) for confidence, accuracy, count in bins) / len(test.correct)
    coverage = []
    for goal in GOALS:
        threshold = choose_threshold(validation, goal)
        results = () if threshold is None else (validation.above(threshold), test.above(threshold))
        coverage.append(Coverage(goal, threshold, *results))
    return Calibration(bins, error, coverage)


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


def table(calibration: Calibration) -> str:
    """Return the coverage as a Markdown table."""
    columns = ["target accuracy", "confidence threshold"]
    columns += ["validation: coverage", "accuracy", "test: coverage", "accuracy"]
    rows = []
    for row in calibration.coverage:
        cells = [f"{100 * value:.2f} %" for value in (*row.validation, *row.test)]
        reached = ["not reached", "", "", "", ""] if row.threshold is None else [f"{row.threshold:.4f}", *cells]
        rows.append([f"{100 * row.goal:.2f} %", *reached])
    return markdown.table(columns, rows, left=0)


def _predictions(classifier: DigitClassifier, split: Split) -> Predictions:
    probabilities, digits, *_ = predict(classifier, split.images)
    return Predictions(probabilities.max(axis=1), digits == split.labels.cpu().numpy())
