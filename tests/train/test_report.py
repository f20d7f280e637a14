"""The report says what happened, shows it, and judges by the figures."""

import json
import re
from dataclasses import replace

import pytest

from model.networks import Model_1, Model_3
from train.checkpoint import Epoch
from train.layer_table import layers
from train.report import findings

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


def test_every_picture_is_there_and_every_model_has_its_section(trained):
    report = (trained / "report.md").read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", report)
    assert len(pictures) == 5
    for picture in pictures:
        assert (trained / picture).read_bytes().startswith(b"\x89PNG")
    assert re.findall(r"^## (\w+)$", report, re.MULTILINE) == ["Model_2", "Model_3"]


def test_figures_are_those_of_the_checkpoints(trained):
    report = (trained / "report.md").read_text()
    for name in ("Model_2", "Model_3"):
        last = json.loads((trained / name / "checkpoint.json").read_text())["history"][-1]
        row = next(line for line in report.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {100 * last['validation_accuracy']:.2f} % | **{100 * last['test_accuracy']:.2f} %** |" in row
    assert "(99.36)" in report  # the reference's, beside ours


def test_mistakes_are_counted(trained):
    manifest = json.loads((trained / "release" / "manifest.json").read_text())
    wrong = manifest["test_total"] - manifest["test_correct"]
    assert f"{wrong} of 300 test images" in (trained / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({}, "the goal is reached"),
        ({"test_accuracy": 0.9921}, "0.19 points short of the goal"),
        ({"train_accuracy": 0.9985}, "0.40 points above test: it over-fits"),
        ({"train_accuracy": 0.99}, "0.45 points below test: no over-fitting"),
        ({"train_accuracy": 0.995}, "training and test go together"),
    ],
)
def test_findings_follow_from_the_figures(changes, saying):
    assert saying in " ".join(findings([replace(EPOCH, **changes)]))


def test_findings_tell_a_settled_training_from_an_unsettled_one():
    steady = [replace(EPOCH, test_accuracy=accuracy) for accuracy in (0.9944, 0.9945, 0.9945)]
    assert "it has settled" in " ".join(findings(steady))
    unsteady = [replace(EPOCH, test_accuracy=accuracy) for accuracy in (0.992, 0.9945, 0.993)]
    assert "which epoch one stops at matters" in " ".join(findings(unsteady))


def test_receptive_field_grows_to_the_whole_image():
    fields = [layer.receptive_field for layer in layers(Model_1()) if layer.name.startswith(("Conv", "MaxPool"))]
    # 3×3, 3×3, 3×3, pool, 1×1, 3×3, 3×3, 1×1, 7×7: from here on a step is two pixels.
    assert fields == [3, 5, 7, 8, 8, 12, 16, 16, 28]
    assert layers(Model_3())[-1].receptive_field == 28
