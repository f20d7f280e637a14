"""Accuracy over parameters: Model_3's family in several widths, each trained with several seeds."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from model.networks import Model_3
from train import plots
from train.consistency import command_line, summarise, train_seeds, trial_record, write_page
from train.data import load
from train.errors import DivergenceError
from train.lock import locked
from train.markdown import percent, table
from train.progression import PROGRESSION, TARGET_ACCURACY, Experiment, with_epochs
from train.training import Training

# The channels of Model_3 before and after its first pooling, and the number of seeds of each width.
WIDTHS = {
    (3, 6): 2,
    (6, 8): 2,
    (8, 12): 2,
    (10, 16): 5,
    (12, 22): 10,
    (16, 32): 20,
}
# Other networks in the plot: parameters, test accuracy as published (one seed each) and its source.
PUBLISHED = {
    "Neural Golfing": (575, 0.98, "https://hexhowells.com/posts/neural-golfing.html"),
    "Parameter-Efficient-MNIST": (697, 0.99, "https://github.com/JoshWarn/Parameter-Efficient-MNIST"),
    "mnist-minimal-model": (4_862, 0.9907, "https://github.com/ruslangrimov/mnist-minimal-model"),
    "era-s7-ram": (8_900, 0.995, "https://github.com/The-School-of-AI/era-s7-ram"),
}


def frontier(*, epochs: int | None, device_name: str, data_directory: Path, out: Path) -> None:
    """Train every width with its seeds, Model_1 and Model_2 with one seed, and write the table and the plot.

    These are frontier.md, .png and .json in `out`/frontier. The checkpoints are shared with `consistency`, so a seed
    that it has trained is not trained again. Raises DivergenceError if a training diverged, after writing the
    results of the others.
    """
    shared = out / "consistency"
    networks = _networks(epochs)
    with locked(shared):
        data = load(data_directory)
        trained, errors = train_seeds(networks, data, shared, device_name, noun="trainings")
    diverged = _diverged(len(trained), errors)
    trials = {experiment: [one for one in trained if one.experiment is experiment] for experiment, _ in networks}
    summaries = [
        summarise([trial_record(one, data) for one in finished], experiment)
        for experiment, finished in trials.items()
        if finished
    ]
    if not summaries:
        raise DivergenceError(diverged)
    figures = {
        "command": command_line("frontier", epochs, data_directory),
        "source_revisions": sorted({one.provenance["source_revision"] for one in trained}),
        "networks": summaries,
        **({"diverged": diverged} if errors else {}),
    }
    plot = plots.frontier(summaries, {name: one[:2] for name, one in PUBLISHED.items()}, TARGET_ACCURACY)
    write_page(out / "frontier", figures, markdown(figures), plot)
    if errors:
        raise DivergenceError(diverged)


def _diverged(finished: int, errors: dict[Training, DivergenceError]) -> str:
    """Return as a sentence how many trainings finished, and in which epoch the others diverged."""
    others = [
        f"{one.experiment.name}, seed {one.seed}, diverged in epoch {error.epoch}" for one, error in errors.items()
    ]
    return "; ".join([f"{finished} of {finished + len(errors)} trainings finished", *others])


def _networks(epochs: int | None) -> list[tuple[Experiment, int]]:
    """Return the experiments to train and their numbers of seeds. The width of Model_3 itself keeps its name."""
    model_3 = PROGRESSION["Model_3"]
    entries = [(PROGRESSION[name], 1) for name in ("Model_1", "Model_2")]
    for channels, seeds in WIDTHS.items():
        width = replace(model_3, name=f"Model_3-{'-'.join(map(str, channels))}", network=partial(Model_3, channels))
        same = repr(width.network()) == repr(model_3.network())
        entries.append((model_3 if same else width, seeds))
    return [(with_epochs(experiment, epochs), seeds) for experiment, seeds in entries]


def markdown(figures: dict[str, Any]) -> str:
    """Return frontier.md from the content of frontier.json."""
    columns = ["network", "parameters", "seeds", "validation, mean", "test, mean", "standard deviation", "worst seed"]
    rows = []
    for one in sorted(figures["networks"], key=lambda one: one["parameters"]):
        accuracies = [percent(one["validation_mean"]), f"**{percent(one['mean'])}**"]
        accuracies += [percent(one["standard_deviation"]) if one["seeds"] > 1 else "", percent(one["worst"])]
        rows.append([one["model"], f"{one['parameters']:,}", str(one["seeds"]), *accuracies])
    for name, (parameters, accuracy, source) in PUBLISHED.items():
        rows.append([f"[{name}]({source})", f"{parameters:,}", "1", "", percent(accuracy), "", ""])
    diverged = f"\n{figures['diverged']}.\n" if "diverged" in figures else ""
    return f"""# Accuracy over parameters

![Test accuracy over the number of parameters](frontier.png)

{table(columns, rows)}
{diverged}
All values are of the last epoch; no epoch or seed is selected. The test images are only reported, never used. A name
such as Model_3-10-16 gives the channels before and after the first pooling. These networks have the layers and the
recipe of Model_3; Model_1 and Model_2 are trained by the reference's recipe. The figures with a link are as published
there, not measured here; some are of the epoch with the best test accuracy, and of many more epochs than 15.

Source revision: {", ".join(figures["source_revisions"])}. Command:

    {figures["command"]}

`make frontier` runs it and copies its results to docs/. The figures are also in [frontier.json](frontier.json).
"""
