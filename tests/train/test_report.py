"""The report says what happened, shows it, and judges by the figures."""

import json
import re
from dataclasses import replace

import pytest

from model.networks import Model_1, Model_3
from train.checkpoint import Epoch
from train.layer_table import layers
from train.progression import PROGRESSION
from train.report import findings
from train.training import Trained

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
    assert len(pictures) == 6
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


def test_confidence_and_doubt_have_their_tables(trained):
    report = (trained / "report.md").read_text()
    doubt = json.loads((trained / "release" / "manifest.json").read_text())["doubt"]
    assert "Expected calibration error on the test images: " in report
    assert "| 99.95 % |" in report
    for kind, share in doubt["caught"].items():
        assert f"| {kind} | {100 * share:.1f} % |" in report


def test_mistakes_are_counted(trained):
    manifest = json.loads((trained / "release" / "manifest.json").read_text())
    wrong = manifest["test_total"] - manifest["test_correct"]
    assert f"{wrong} of 300 test images" in (trained / "report.md").read_text()


def said(*history: Epoch, network: type = Model_3, test_images: int = 10_000) -> str:
    model = Trained(PROGRESSION["Model_3"], network(), 1, list(history), {})
    return " ".join(findings(model, test_images))


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({}, "the last: the goal is reached."),
        ({"test_accuracy": 0.9921}, "the goal is missed: 0.19 points short of its accuracy."),
        ({"train_accuracy": 0.9985}, "0.40 points above test: it does better on its training images than on new ones"),
        ({"train_accuracy": 0.99}, "0.45 points below test: no sign of over-fitting"),
        ({"train_accuracy": 0.995}, "0.05 points above test: no more than chance would explain on 10,000 test images"),
    ],
)
def test_findings_follow_from_the_figures(changes, saying):
    assert saying in said(replace(EPOCH, **changes))


def test_goal_is_not_reached_by_more_parameters_or_epochs_than_it_allows():
    assert "the goal is missed: 10,970 parameters, more than its 8,000." in said(EPOCH, network=Model_1)
    long = said(*(replace(EPOCH, epoch=number) for number in range(1, 31)))
    assert "at epoch 30, the last: the goal is missed: 30 epochs, more than its 15." in long


def test_one_epoch_says_nothing_of_stability_and_few_images_nothing_of_a_gap():
    early = said(replace(EPOCH, epoch=1, train_accuracy=0.36, test_accuracy=0.33), test_images=300)
    assert "no more than chance would explain on 300 test images" in early
    assert "Over the last" not in early
    assert "heart" not in early


def test_stability_is_said_in_figures():
    steady = [replace(EPOCH, test_accuracy=accuracy) for accuracy in (0.1, 0.992, 0.9945, 0.9945, 0.993, 0.9935)]
    assert "Over the last 5 epochs test accuracy moves within 0.25 points." in said(*steady)


def test_network_that_learned_nothing_is_not_praised():
    """It diverged to large but finite numbers: the same digit for every image, in every epoch."""
    stuck = said(*[replace(EPOCH, train_loss=1e9, train_accuracy=0.1, test_loss=1e9, test_accuracy=0.098)] * 3)
    assert "the goal is missed: 89.60 points short of its accuracy." in stuck
    assert "settled" not in stuck


def test_receptive_field_grows_to_the_whole_image():
    fields = [layer.receptive_field for layer in layers(Model_1()) if layer.name.startswith(("Conv", "MaxPool"))]
    # 3×3, 3×3, 3×3, pool, 1×1, 3×3, 3×3, 1×1, 7×7: from here on a step is two pixels.
    assert fields == [3, 5, 7, 8, 8, 12, 16, 16, 28]
    assert layers(Model_3())[-1].receptive_field >= 28
