"""The report: its tables, plots and findings follow from the checkpoints and the manifest."""

import json
import re
from dataclasses import replace

import pytest

from model.networks import Model_1, Model_3
from train.checkpoint import Epoch
from train.progression import PROGRESSION
from train.report import findings
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
    assert len(plots) == 6
    for plot in plots:
        assert (trained / plot).read_bytes().startswith(b"\x89PNG")
    assert re.findall(r"^## (\w+)$", report, re.MULTILINE) == ["Model_2", "Model_3"]


def test_accuracies_are_those_of_the_checkpoints(trained):
    report = (trained / "report.md").read_text()
    for name in ("Model_2", "Model_3"):
        last = json.loads((trained / name / "checkpoint.json").read_text())["history"][-1]
        row = next(line for line in report.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {100 * last['validation_accuracy']:.2f} % | **{100 * last['test_accuracy']:.2f} %** |" in row
    assert "(99.36)" in report  # the reference's accuracy


def test_confidence_and_doubt_have_tables(trained):
    report = (trained / "report.md").read_text()
    doubt = json.loads((trained / "release" / "manifest.json").read_text())["doubt"]
    assert "Expected calibration error on the test images: " in report
    assert "| 99.95 % |" in report
    for kind, share in doubt["caught"].items():
        assert f"| {kind} | {100 * share:.1f} % |" in report


def test_layer_table_and_errors(trained):
    manifest = json.loads((trained / "release" / "manifest.json").read_text())
    errors = manifest["test_total"] - manifest["test_correct"]
    assert f"{errors} of 300 test images are misclassified" in (trained / "report.md").read_text()


def findings_of(*history: Epoch, network: type = Model_3, test_images: int = 10_000) -> str:
    model = Trained(PROGRESSION["Model_3"], network(), 1, list(history), {})
    return " ".join(findings(model, test_images))


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, "the last: the goal is reached."),
        ({"test_accuracy": 0.9921}, "the goal is missed: accuracy 0.19 points too low."),
        ({"train_accuracy": 0.9985}, "0.40 points above test accuracy: over-fitting."),
        ({"train_accuracy": 0.99}, "0.45 points below test accuracy: no sign of over-fitting."),
        (
            {"train_accuracy": 0.995},
            "0.05 points above test accuracy: within two standard errors for 10,000 test images.",
        ),
    ],
)
def test_findings_follow_from_the_metrics(changes, finding):
    assert finding in findings_of(replace(EPOCH, **changes))


def test_goal_is_missed_with_too_many_parameters_or_epochs():
    assert "the goal is missed: 10,970 parameters, more than 8,000." in findings_of(EPOCH, network=Model_1)
    long = findings_of(*(replace(EPOCH, epoch=number) for number in range(1, 31)))
    assert "at epoch 30, the last: the goal is missed: 30 epochs, more than 15." in long


def test_one_epoch_shows_no_stability_and_few_images_show_no_gap():
    early = findings_of(replace(EPOCH, epoch=1, train_accuracy=0.36, test_accuracy=0.33), test_images=300)
    assert "within two standard errors for 300 test images" in early
    assert "In the last" not in early


def test_stability_is_the_range_of_the_last_five_epochs():
    steady = [replace(EPOCH, test_accuracy=accuracy) for accuracy in (0.1, 0.992, 0.9945, 0.9945, 0.993, 0.9935)]
    assert "In the last 5 epochs test accuracy varies by 0.25 points." in findings_of(*steady)


def test_network_that_learned_nothing_is_not_praised():
    """The loss is large but finite, and the network predicts the same digit for every image in every epoch."""
    stuck = findings_of(*[replace(EPOCH, train_loss=1e9, train_accuracy=0.1, test_loss=1e9, test_accuracy=0.098)] * 3)
    assert "the goal is missed: accuracy 89.60 points too low." in stuck
    assert "over-fitting" not in stuck
