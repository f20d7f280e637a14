"""Confidence is compared with the share that is right, and thresholds answer for the share that they promise."""

import numpy as np
import pytest

from train.calibration import Answers, choose_threshold, reliability


def answers(*pairs):
    confidence, right = zip(*pairs, strict=True)
    return Answers(np.array(confidence, np.float32), np.array(right, bool))


def test_reliability_has_a_bin_for_each_level_of_confidence_that_occurs():
    bins = reliability(answers((1.0, True), (0.98, False), (0.5, True), (0.5, False)))
    assert bins == [(0.5, 0.5, 2), (pytest.approx(0.99), 0.5, 2)]


def test_threshold_is_the_least_confidence_that_reaches_the_goal():
    some = answers((0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, False))
    assert choose_threshold(some, 1.0) == pytest.approx(0.8)
    assert choose_threshold(some, 0.75) == pytest.approx(0.6)
    assert choose_threshold(some, 0.5) == pytest.approx(0.5)
    assert some.above(choose_threshold(some, 0.75)) == (0.8, 0.75)


def test_answers_of_one_confidence_are_given_together():
    assert choose_threshold(answers((0.9, True), (0.9, False), (0.8, True)), 0.9) is None
