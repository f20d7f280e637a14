"""PROGRESSION keeps to the goal's budgets; Model_1 and Model_2 have the reference's recipe."""

from dataclasses import replace

import pytest
from torch import nn

from model.networks import Model_1, Model_2, Model_3
from train.__main__ import main
from train.checkpoint import Epoch
from train.progression import PROGRESSION, Recipe, experiments, with_settings
from train.run import best_within_budget
from train.trainings import Trained


def test_the_three_models_come_in_order():
    assert list(PROGRESSION) == ["Model_1", "Model_2", "Model_3"]
    assert [experiment.network for experiment in experiments()] == [Model_1, Model_2, Model_3]
    assert [experiment.name for experiment in experiments(["Model_3", "Model_1"])] == ["Model_1", "Model_3"]


def test_first_two_train_by_the_references_recipe_and_none_more_than_fifteen_epochs():
    for name in ("Model_1", "Model_2"):
        assert PROGRESSION[name].recipe == Recipe(learning_rate=0.01, momentum=0.9, batch_size=64, epochs=15)
    assert PROGRESSION["Model_3"].recipe.epochs <= 15


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))


@pytest.mark.slow
def test_a_fourth_model_is_one_entry(subset, tmp_path, monkeypatch):
    experiment = replace(PROGRESSION["Model_3"], name="Model_4", network=Small)
    monkeypatch.setitem(PROGRESSION, "Model_4", experiment)
    assert experiments()[-1] is experiment  # a new model is trained by default
    options = ["--data", str(subset), "--out", str(tmp_path)]
    assert main(["--models", "Model_4", "--epochs", "2", *options]) == 0
    assert "## Model_4" in (tmp_path / "report.md").read_text()
    assert main(["verify", str(tmp_path / "release"), "--data", str(subset)]) == 0


EPOCH = Epoch(1, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 1.0)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"validation_accuracy": 0.98, "validation_loss": 0.2}, {"test_accuracy": 0.99, "test_loss": 0.01}),
        ({"validation_loss": 0.09}, {"test_accuracy": 0.99, "test_loss": 0.01, "train_loss": 0.01}),
    ],
)
def test_the_best_within_the_budget_by_validation_at_the_last_epoch_is_exported(better, worse):
    peak = replace(EPOCH, validation_accuracy=1.0, validation_loss=0.0, test_accuracy=1.0, test_loss=0.0)
    histories = [[peak, replace(EPOCH, **worse)], [EPOCH, replace(EPOCH, **better)], [peak, peak]]
    networks = (Model_2, Model_3, Model_1)  # Model_1 has too many parameters
    trained = [
        Trained(PROGRESSION[network.__name__], network(), 1, history, {})
        for network, history in zip(networks, histories, strict=True)
    ]
    for models in (trained, trained[::-1]):
        assert best_within_budget(models).experiment.name == "Model_3"


def test_settings_change_any_field_of_the_recipe():
    recipe = PROGRESSION["Model_3"].recipe
    some = ["learning_rate=1", "batch_size=32", "nesterov=false", "augmentation.degrees=3"]
    assert with_settings(PROGRESSION["Model_3"], some).recipe == replace(
        recipe, learning_rate=1.0, batch_size=32, nesterov=False, augmentation=replace(recipe.augmentation, degrees=3.0)
    )
    assert with_settings(PROGRESSION["Model_3"], ["augmentation=null"]).recipe.augmentation is None
    assert with_settings(PROGRESSION["Model_3"], []) is PROGRESSION["Model_3"]
