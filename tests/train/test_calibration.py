"""Calibration: reliability bins, and confidence thresholds for a target accuracy."""

import numpy as np
import pytest

from train.calibration import Predictions, choose_threshold, reliability


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
