"""Calibration: reliability bins, and confidence thresholds for a target accuracy."""

import numpy as np
import pytest

from train.data import load
from train.report import Predictions, choose_threshold, confidence, reliability


def predictions(*pairs):
    confidence, correct = zip(*pairs, strict=True)
    return Predictions(np.array(confidence, np.float32), np.array(correct, bool))


def test_reliability_has_a_bin_for_each_confidence_level_that_occurs():
    bins = reliability(predictions((1.0, True), (0.98, False), (0.5, True), (0.5, False)))
    assert bins == [(0.5, 0.5, 2), (pytest.approx(0.99), 0.5, 2)]


def test_threshold_is_the_lowest_confidence_that_reaches_the_goal():
    some = predictions((0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, False))
    assert choose_threshold(some, 1.0) == pytest.approx(0.8)
    assert choose_threshold(some, 0.75) == pytest.approx(0.6)
    assert choose_threshold(some, 0.5) == pytest.approx(0.5)
    assert some.above(choose_threshold(some, 0.75)) == (0.8, 0.75)


def test_predictions_of_equal_confidence_are_accepted_together():
    assert choose_threshold(predictions((0.9, True), (0.9, False), (0.8, True)), 0.9) is None


def test_thresholds_are_chosen_on_the_validation_images_and_measured_on_both_sets(tiny):
    data = load(tiny)

    def outputs(split, wrong):
        digits = split.labels.numpy().copy()
        confidence = np.linspace(0.5, 0.99, len(split), dtype=np.float32)
        digits[:wrong] = (digits[:wrong] + 1) % 10  # the least confident are wrong
        return np.eye(10, dtype=np.float32)[digits] * confidence[:, None], digits

    validation, test = outputs(data.validation, 2), outputs(data.test, 25)
    text, _ = confidence(data, validation, test, "picture.png")
    threshold = validation[0].max(axis=1)[2]
    coverage = np.mean(test[0].max(axis=1) >= threshold)
    assert (
        f"| 99.90 % | {threshold:.4f} | 88.89 % | 100.00 % | {100 * coverage:.2f} % | {50 / coverage:.2f} % |" in text
    )
