"""Accuracy over parameters: every width is trained with its seeds, once."""

import json

import pytest

from model.networks import Model_3, parameter_count
from train import frontier
from train.__main__ import main
from train.errors import DivergenceError
from train.loop import fit


def test_widths_keep_to_the_budgets():
    parameters = [parameter_count(Model_3(channels)) for channels in frontier.WIDTHS]
    assert parameters == sorted(parameters)
    assert parameters[0] < 650
    assert parameters[-1] == parameter_count(Model_3()) <= 8_000
    assert any(2_000 < count <= 2_500 for count in parameters)
    assert any(3_500 < count <= 4_000 for count in parameters)


@pytest.mark.slow
def test_trains_every_width_and_goes_on_from_what_consistency_trained(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(frontier, "WIDTHS", {(3, 6): 2, (16, 32): 1})
    options = ["--epochs", "4", "--device", "cpu", "--data", str(tiny), "--out", str(tmp_path)]
    assert main(["consistency", "--seeds", "1", *options]) == 0
    assert main(["frontier", *options]) == 0
    output = capfd.readouterr().out
    assert "1 of 5 trainings were finished before" in output
    assert "seed 2: Model_3-3-6, test " in output
    folder = tmp_path / "frontier"
    figures = {one["model"]: one for one in json.loads((folder / "frontier.json").read_text())["networks"]}
    assert {name: (one["parameters"], one["seeds"]) for name, one in figures.items()} == {
        "Model_1": (10_970, 1),
        "Model_2": (6_664, 1),
        "Model_3-3-6": (610, 2),
        "Model_3": (7_162, 1),
    }
    table = (folder / "frontier.md").read_text()
    for one in figures.values():
        assert f"| {one['model']} | {one['parameters']:,} | {one['seeds']} |" in table
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_divergence_is_in_the_table_and_in_the_exit_status(tiny, tmp_path, capfd, monkeypatch):
    def diverge(experiment, data, *, seed, **options):
        if experiment.name == "Model_1" or (experiment.name == "Model_3-3-6" and seed == 2):
            raise DivergenceError(f"{experiment.name}, seed {seed}: the loss became nan in epoch 3", epoch=3)
        return fit(experiment, data, seed=seed, **options)

    monkeypatch.setattr(frontier, "WIDTHS", {(3, 6): 2})
    monkeypatch.setattr("train.training.max_workers", lambda *_: 1)
    monkeypatch.setattr("train.training.fit", diverge)
    options = ["--epochs", "4", "--device", "cpu", "--data", str(tiny), "--out", str(tmp_path)]
    assert main(["frontier", *options]) == 1
    message = (
        "2 of 4 trainings finished; Model_1, seed 1, diverged in epoch 3; Model_3-3-6, seed 2, diverged in epoch 3"
    )
    assert capfd.readouterr().err == f"error: {message}\n"
    table = (tmp_path / "frontier" / "frontier.md").read_text()
    assert f"{message}." in table
    assert "| Model_3-3-6 | 610 | 1 |" in table
    assert "| Model_1 |" not in table
