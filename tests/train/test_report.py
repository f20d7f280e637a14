"""The report: its tables, plots and findings follow from the checkpoints and the manifest."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from model.networks import Model_1, Model_3
from train.checkpoint import Epoch
from train.data import load
from train.progression import PROGRESSION
from train.report import choose_threshold, confidence, section
from train.trainings import Trained

EPOCH = Epoch(
    epoch=15,
    train_loss=0.02,
    train_accuracy=0.993,
    validation_loss=0.02,
    validation_accuracy=0.994,
    test_loss=0.02,
    test_accuracy=0.9945,
    seconds=10,
)


def test_every_plot_exists_and_every_model_has_a_section(trained):
    report = (trained / "report.md").read_text()
    plots = re.findall(r"!\[.+?\]\((.+?)\)", report)
    assert plots == ["report/progression.png", "report/Model_2.png", "report/Model_3.png"]
    for plot in plots:
        assert (trained / plot).read_bytes().startswith(b"\x89PNG")
    assert re.findall(r"^## (\w+)$", report, re.MULTILINE) == ["Model_2", "Model_3"]


def test_figures_are_those_of_the_checkpoints_and_the_manifest(trained):
    report = (trained / "report.md").read_text()
    for name in ("Model_2", "Model_3"):
        last = json.loads((trained / name / "checkpoint.json").read_text())["history"][-1]
        row = next(line for line in report.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {100 * last['validation_accuracy']:.2f} % | **{100 * last['test_accuracy']:.2f} %** |" in row
    assert "(99.36)" in report  # the reference's test accuracy of Model_2
    manifest = json.loads((trained / "release" / "manifest.json").read_text())
    for kind, share in manifest["doubt"]["caught"].items():
        assert f"| {kind} | {100 * share:.1f} % |" in report
    errors = manifest["test_total"] - manifest["test_correct"]
    assert f"{errors} of 300 test images are misclassified" in report
    confusion = re.findall(r"^\| \*\*(\d)\*\* \| (.*) \|$", report, re.MULTILINE)
    counts = [(int(true), digit, int(n)) for true, row in confusion for digit, n in enumerate(row.split(" | "))]
    assert sum(n for true, digit, n in counts if true == digit) == manifest["test_correct"]
    assert sum(n for *_, n in counts) == 300


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, "at epoch 1, the last: the goal is reached."),
        ({"test_accuracy": 0.9921}, "the goal is missed: accuracy 0.19 points too low."),
        ({"train_accuracy": 0.9985}, "0.40 points above test accuracy: over-fitting\n  (judged"),
        ({"train_accuracy": 0.99}, "0.45 points below test accuracy: no sign of over-fitting\n  (judged"),
        ({"train_accuracy": 0.995}, "0.05 points above test accuracy: no sign of over-fitting\n  (judged"),
    ],
)
def test_findings_follow_from_the_metrics(changes, finding):
    assert finding in section(Trained(PROGRESSION["Model_3"], Model_3(), 1, [replace(EPOCH, **changes)], {}), 10_000)


def test_goal_is_missed_with_too_many_parameters_or_epochs():
    found = section(Trained(PROGRESSION["Model_1"], Model_1(), 1, [EPOCH] * 30, {}), 10_000)
    assert (
        "at epoch 30, the last: the goal is missed: 10,970 parameters, more than 8,000; 30 epochs, more than" in found
    )


def test_threshold_is_the_lowest_confidence_that_reaches_the_goal():
    confidences, correct = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, True, False, True, False])
    for goal, threshold in ((1.0, 0.8), (0.75, 0.6), (0.5, 0.5)):
        assert choose_threshold(confidences, correct, goal) == threshold
    # Predictions of equal confidence are accepted together.
    assert choose_threshold(np.array([0.9, 0.9, 0.8]), np.array([True, False, True]), 0.9) is None


def test_thresholds_are_chosen_on_the_validation_images_and_measured_on_both_sets(tiny):
    data = load(tiny)

    def outputs(split, wrong):
        digits = split.labels.numpy().copy()
        confidence = np.linspace(0.5, 0.99, len(split), dtype=np.float32)
        digits[:wrong] = (digits[:wrong] + 1) % 10  # the least confident predictions are wrong
        return np.eye(10, dtype=np.float32)[digits] * confidence[:, None], digits

    validation, test = outputs(data.validation, 2), outputs(data.test, 25)
    threshold = validation[0].max(axis=1)[2]
    coverage = np.mean(test[0].max(axis=1) >= threshold)
    row = f"| 99.90 % | {threshold:.4f} | 88.89 % | 100.00 % | {100 * coverage:.2f} % | {50 / coverage:.2f} % |"
    assert row in confidence(data, validation, test)
