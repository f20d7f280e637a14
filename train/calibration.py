"""Calibration: how often a digit read with so much confidence is right, and from which confidence on to believe it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.classifier import DigitClassifier
from train import markdown
from train.data import Data, Split
from train.predict import predict

BINS = 15  # of equal width, as Guo et al., "On Calibration of Modern Neural Networks", 2017, have them
GOALS = (0.999, 0.9995)  # shares of the answers that are to be right


@dataclass(frozen=True)
class Answers:
    """The confidence in each image's digit, float [N], and whether it is right, bool [N]."""

    confidence: NDArray[np.float32]
    right: NDArray[np.bool_]

    def above(self, threshold: float) -> tuple[float, float]:
        """Return the share answered where only confidences of `threshold` or more are, and the share of those right."""
        answered = self.confidence >= threshold
        return float(answered.mean()), float(self.right[answered].mean()) if answered.any() else 1.0


@dataclass(frozen=True)
class Coverage:
    """Answer only from `threshold` on: the share answered, and of those right, of the validation and test images."""

    goal: float
    threshold: float | None  # None where no confidence reaches the goal
    validation: tuple[float, float] = (0.0, 1.0)
    test: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Calibration:
    """What the confidence of a classifier is worth: on the test images; thresholds are from the validation images."""

    bins: list[tuple[float, float, int]]  # mean confidence, share right, images; bins without images left out
    error: float  # expected calibration error: the mean gap between the two, weighted by images
    coverage: list[Coverage]


def calibrate(classifier: DigitClassifier, data: Data) -> Calibration:
    """Return the calibration of `classifier` on `data`."""
    validation, test = (_answers(classifier, split) for split in (data.validation, data.test))
    bins = reliability(test)
    error = sum(count * abs(confidence - right) for confidence, right, count in bins) / len(test.right)
    coverage = []
    for goal in GOALS:
        threshold = choose_threshold(validation, goal)
        shares = () if threshold is None else (validation.above(threshold), test.above(threshold))
        coverage.append(Coverage(goal, threshold, *shares))
    return Calibration(bins, error, coverage)


def reliability(answers: Answers) -> list[tuple[float, float, int]]:
    """Return the mean confidence, the share right and the number of images of each of BINS bins that has any."""
    number = np.minimum((answers.confidence * BINS).astype(int), BINS - 1)
    chosen = [number == one for one in np.unique(number)]
    return [
        (float(answers.confidence[images].mean()), float(answers.right[images].mean()), int(images.sum()))
        for images in chosen
    ]


def choose_threshold(answers: Answers, goal: float) -> float | None:
    """Return the least confidence from which on a share `goal` of the answers is right; None where there is none."""
    order = np.argsort(-answers.confidence, kind="stable")
    confidence, right = answers.confidence[order], answers.right[order]
    share = right.cumsum() / np.arange(1, len(right) + 1)
    ends = np.append(confidence[1:] < confidence[:-1], True)  # answers of the same confidence are given together
    enough = np.flatnonzero((share >= goal) & ends)
    return float(confidence[enough[-1]]) if enough.size else None


def table(calibration: Calibration) -> str:
    """Return the coverage as a table in Markdown."""
    columns = ["goal: right", "answer only from this confidence on"]
    columns += ["validation: answered", "right", "test: answered", "right"]
    rows = []
    for row in calibration.coverage:
        shares = [f"{100 * share:.2f} %" for share in (*row.validation, *row.test)]
        reached = ["not reached", "", "", "", ""] if row.threshold is None else [f"{row.threshold:.4f}", *shares]
        rows.append([f"{100 * row.goal:.2f} %", *reached])
    return markdown.table(columns, rows, left=0)


def _answers(classifier: DigitClassifier, split: Split) -> Answers:
    probabilities, digits, *_ = predict(classifier, split.images)
    return Answers(probabilities.max(axis=1), digits == split.labels.cpu().numpy())
