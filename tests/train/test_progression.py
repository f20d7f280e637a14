"""The table of the progression keeps to the goal's budgets and to the reference's recipe."""

import pytest

from model.networks import NETWORKS
from train.errors import SettingsError
from train.progression import PROGRESSION, Recipe, steps


def test_the_three_models_come_in_order():
    assert list(PROGRESSION) == ["Model_1", "Model_2", "Model_3"]
    assert {name: step.network for name, step in PROGRESSION.items()} == NETWORKS


@pytest.mark.parametrize("name", PROGRESSION)
def test_at_most_fifteen_epochs(name):
    assert PROGRESSION[name].recipe.epochs <= 15


@pytest.mark.parametrize("name", ["Model_1", "Model_2"])
def test_first_two_train_by_the_references_recipe(name):
    assert PROGRESSION[name].recipe == Recipe(rate=0.01, momentum=0.9, batch=64, epochs=15)


def test_named_steps_come_in_the_progressions_order():
    assert [step.name for step in steps(["Model_3", "Model_1"])] == ["Model_1", "Model_3"]


def test_unknown_name_is_refused():
    with pytest.raises(SettingsError, match="expected a model of Model_1, Model_2, Model_3; found Model_4"):
        steps(["Model_4"])
