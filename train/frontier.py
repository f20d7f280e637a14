"""Accuracy over parameters: Model_3's family in several widths, each trained with several seeds."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from model.networks import Model_3
from train import plots
from train.consistency import PER_GPU, percent, seed_training, summarise, trial
from train.data import load
from train.errors import DivergenceError
from train.files import to_json, write_together
from train.lock import locked
from train.markdown import table
from train.progression import PROGRESSION, TARGET_ACCURACY, Experiment, with_epochs
from train.training import train_all

# The channels of Model_3's five convolutions, and how many seeds each width is trained with.
WIDTHS = {
    (2, 3, 4, 4, 4): 1,
    (3, 4, 5, 6, 6): 1,
    (4, 5, 6, 8, 8): 1,
    (4, 6, 8, 10, 10): 2,
    (6, 8, 10, 12, 13): 2,
    (8, 12, 16, 16, 16): 20,
}
# Beside them in the plot, as published: parameters and test accuracy, each of one seed.
PUBLISHED = {"published, 575": (575, 0.98), "published, 7,000–8,900": (7_950, 0.9945)}


def frontier(*, epochs: int | None, device_name: str, data_directory: Path, out: Path) -> None:
    """Train every width with its seeds, Model_1 and Model_2 with one, and write the table and the plot.

    They are frontier.md, .png and .json in `out`/frontier. The checkpoints are those of `consistency`: what it has
    trained is not trained again. Raises DivergenceError if a training diverges, after the others are finished.
    """
    shared = out / "consistency"
    family = {one.name: (one, seeds) for one, seeds in _family(epochs)}
    trainings = [
        seed_training(experiment, seed, shared, device_name)
        for experiment, seeds in family.values()
        for seed in range(1, seeds + 1)
    ]
    with locked(shared):
        data = load(data_directory)
        ends = train_all(trainings, data, noun="trainings", per_gpu=PER_GPU)
    trained = []
    for end in ends:
        if isinstance(end, DivergenceError):
            raise end
        trained.append(end)
    figures = [
        summarise([trial(end, data) for end in trained if end.experiment == experiment], experiment)
        for experiment, _ in family.values()
    ]
    revisions = sorted({end.provenance["source_revision"] for end in trained})
    folder = out / "frontier"
    write_together(
        folder,
        {
            "frontier.png": plots.frontier(figures, PUBLISHED, TARGET_ACCURACY),
            "frontier.md": _markdown(figures, revisions).encode(),
            "frontier.json": to_json(figures),
        },
    )
    print(f"Table: {folder / 'frontier.md'}")


def _family(epochs: int | None) -> list[tuple[Experiment, int]]:
    """Return each network to train, and with how many seeds."""
    model_3 = PROGRESSION["Model_3"]
    entries = [(PROGRESSION[name], 1) for name in ("Model_1", "Model_2")]
    for channels, seeds in WIDTHS.items():
        network = partial(Model_3, channels)
        same = repr(network()) == repr(model_3.network())
        width = replace(model_3, name=f"Model_3-{'-'.join(map(str, channels))}", network=network)
        entries.append((model_3 if same else width, seeds))
    return [(with_epochs(experiment, epochs), seeds) for experiment, seeds in entries]


def _markdown(figures: list[dict[str, Any]], revisions: list[str]) -> str:
    columns = ["network", "parameters", "seeds", "validation, mean", "test, mean", "standard deviation", "worst seed"]
    rows = []
    for one in sorted(figures, key=lambda one: one["parameters"]):
        accuracies = [percent(one["validation_mean"]), f"**{percent(one['mean'])}**"]
        accuracies += [percent(one["standard_deviation"]) if one["seeds"] > 1 else "", percent(one["worst"])]
        rows.append([one["model"], f"{one['parameters']:,}", str(one["seeds"]), *accuracies])
    for name, (parameters, accuracy) in PUBLISHED.items():
        rows.append([name, f"{parameters:,}", "1", "", percent(accuracy), "", ""])
    return f"""# Accuracy over parameters

![Test accuracy over the number of parameters](frontier.png)

{table(columns, rows)}

Every accuracy is that of the last epoch. No epoch and no seed is selected, and the test images decide nothing. A name
such as Model_3-4-6-8-10-10 gives the channels of the five convolutions; the layers and the recipe are those of Model_3.
Model_1 and Model_2 are trained by the reference's recipe.

Source revision {", ".join(revisions)}. Made by

    python -m train frontier

(`make frontier`). The same figures are in [frontier.json](frontier.json).
"""
