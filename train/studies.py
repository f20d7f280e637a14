"""Studies over many trainings: one model with many seeds (consistency), Model_3 in many widths (frontier)."""

import shlex
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from model.networks import Model_3, parameter_count
from train import DivergenceError, paths
from train.checkpoint import settings as checkpoint_settings
from train.data import Data, load
from train.files import locked, to_json, write_together
from train.markdown import page, percent, table
from train.progression import PROGRESSION, TARGET_ACCURACY, Experiment, experiments, with_settings
from train.report import GOAL, plot_accuracies, png
from train.trainings import Training, train_all

# Widths of Model_3. Key: the numbers of channels before and after the first pooling. Value: the number of seeds.
WIDTHS = {(3, 6): 2, (6, 8): 2, (8, 12): 2, (10, 16): 5, (12, 22): 10, (16, 32): 20}
# Other networks in the plot: parameters, published test accuracy (one seed each), and the page that published it.
PUBLISHED = {
    "Neural Golfing": (575, 0.98, "https://hexhowells.com/posts/neural-golfing.html"),
    "Parameter-Efficient-MNIST": (697, 0.99, "https://github.com/JoshWarn/Parameter-Efficient-MNIST"),
    "mnist-minimal-model": (4_862, 0.9907, "https://github.com/ruslangrimov/mnist-minimal-model"),
    "era-s7-ram": (8_900, 0.995, "https://github.com/The-School-of-AI/era-s7-ram"),
}


def consistency(
    name: str, seeds: int, *, settings: list[str], device_name: str, data_directory: Path, out: Path
) -> None:
    """Train model `name` with seeds 1 to `seeds` and write the table, the plot and the history of every seed.

    The files are consistency.md, .png and .json in `out`/consistency; the checkpoints are in its subfolder trials.
    If a seed diverged, the results of the other seeds are written, then DivergenceError is raised.
    """
    (experiment,) = experiments([name], settings)
    data, (trials,), diverged = _train_seeds([(experiment, seeds)], data_directory, out, device_name)
    figures = summarise(trials, experiment) | {
        "diverged": diverged,
        "data": data.summary(),
        "command": command_line(f"consistency --model {name} --seeds {seeds}", settings, data_directory),
        "trials": trials,
    }
    print(sentence(figures))
    _write_page(out / "consistency", figures, consistency_page(figures), consistency_plot(figures))


def frontier(*, settings: list[str], device_name: str, data_directory: Path, out: Path) -> None:
    """Train every width with its seeds, Model_1 and Model_2 with one seed, and write the table and the plot.

    The files are frontier.md, .png and .json in `out`/frontier. The checkpoints are shared with `consistency`, so seeds
    that `consistency` has trained are not trained again. If a training diverged, the results of the other trainings
    are written, then DivergenceError is raised.
    """
    networks = [(with_settings(experiment, settings), seeds) for experiment, seeds in _networks()]
    _, trials, diverged = _train_seeds(networks, data_directory, out, device_name)
    summaries = [summarise(some, experiment) for some, (experiment, _) in zip(trials, networks, strict=True) if some]
    figures = {
        "command": command_line("frontier", settings, data_directory),
        "source_revisions": sorted({trial["provenance"]["source_revision"] for some in trials for trial in some}),
        "networks": summaries,
        "diverged": diverged,
    }
    _write_page(out / "frontier", figures, frontier_page(figures), frontier_plot(figures))


def _networks() -> list[tuple[Experiment, int]]:
    """Return each experiment of the frontier and its number of seeds. Model_3's width is the experiment Model_3."""
    model_3 = PROGRESSION["Model_3"]
    entries = [(PROGRESSION[name], 1) for name in ("Model_1", "Model_2")]
    for channels, seeds in WIDTHS.items():
        width = replace(model_3, name=f"Model_3-{'-'.join(map(str, channels))}", network=partial(Model_3, channels))
        same = repr(width.network()) == repr(model_3.network())
        entries.append((model_3 if same else width, seeds))
    return entries


def _train_seeds(
    experiments: list[tuple[Experiment, int]], data_directory: Path, out: Path, device_name: str
) -> tuple[Data, list[list[dict[str, Any]]], str]:
    """Train each experiment with seeds 1 to N. Return the data, each experiment's trials, and a text on divergence.

    The text names diverged trainings. Checkpoints: `out`/consistency/trials. Raises DivergenceError if all diverged.
    """
    folder = out / "consistency"
    trainings = [
        Training(experiment, seed, folder / "trials" / f"{experiment.name}-seed-{seed:03d}", device_name)
        for experiment, seeds in experiments
        for seed in range(1, seeds + 1)
    ]
    with locked(folder):
        data = load(data_directory)
        trained, errors = train_all(trainings, data)
    diverged = "; ".join(map(str, errors.values()))
    text = f"{len(trained)} of {len(trainings)} trainings finished; diverged: {diverged}" if diverged else ""
    if not trained:
        raise DivergenceError(text)
    trials: dict[str, list[dict[str, Any]]] = {experiment.name: [] for experiment, _ in experiments}
    for one in trained:
        settings = checkpoint_settings(one.experiment, data, one.seed)
        history = [asdict(epoch) for epoch in one.history]
        trials[one.experiment.name].append({"settings": settings, "provenance": one.provenance, "history": history})
    return data, list(trials.values()), text


def _write_page(folder: Path, figures: dict[str, Any], text: str, plot: bytes) -> None:
    """Write `figures` as JSON, the page in Markdown and its plot to `folder`; the files have the folder's name.

    If a training diverged, raises DivergenceError after writing.
    """
    contents = {".png": plot, ".md": text.encode(), ".json": to_json(figures)}
    write_together(folder, {f"{folder.name}{suffix}": content for suffix, content in contents.items()})
    print(f"Table: {folder / folder.name}.md")
    if figures["diverged"]:
        raise DivergenceError(figures["diverged"])


def command_line(command: str, settings: list[str], data_directory: Path) -> str:
    """Return the command line that repeats a `command`; an option with its default value is left out."""
    options = "".join(f" --set {shlex.quote(setting)}" for setting in settings)
    options += f" --data {shlex.quote(str(data_directory))}" if data_directory != paths.DATA else ""
    return f"python -m train {command}{options}"


def summarise(trials: list[dict[str, Any]], experiment: Experiment) -> dict[str, Any]:
    """Return statistics of the accuracies of the `trials` of `experiment` at the last epoch, as fractions."""
    accuracies = [trial["history"][-1]["test_accuracy"] for trial in trials]
    return {
        "model": experiment.name,
        "parameters": parameter_count(experiment.network()),
        "epochs": experiment.recipe.epochs,
        "seeds": len(accuracies),
        "mean": mean(accuracies),
        "standard_deviation": stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "worst": min(accuracies),
        "best": max(accuracies),
        "target": TARGET_ACCURACY,
        "reached_target": sum(accuracy >= TARGET_ACCURACY for accuracy in accuracies),
        "validation_mean": mean(trial["history"][-1]["validation_accuracy"] for trial in trials),
    }


def sentence(figures: dict[str, Any]) -> str:
    """Return `figures`, a result of summarise, as a sentence, followed by the diverged trainings, if any."""
    seeds, diverged = figures["seeds"], figures.get("diverged")  # older files lack "diverged"
    deviation = f"± {percent(figures['standard_deviation'])} (mean ± standard deviation, n = {seeds} seeds)"
    return (
        f"{figures['model']} ({figures['parameters']:,} parameters, {figures['epochs']} epochs): test accuracy at the "
        f"last epoch {percent(figures['mean'])} {deviation if seeds > 1 else '(n = 1 seed)'}, "
        f"worst {percent(figures['worst'])}, best {percent(figures['best'])}; {figures['reached_target']} of {seeds} "
        f"reach {percent(figures['target'])}." + (f" {diverged}." if diverged else "")
    )


def consistency_page(figures: dict[str, Any]) -> str:
    """Return consistency.md from the content of consistency.json."""
    trials, data = figures["trials"], figures["data"]
    provenances = [trial["provenance"] for trial in trials]
    devices, revisions = (sorted({one[key] for one in provenances}) for key in ("device", "source_revision"))
    rows = []
    for trial in trials:
        last, seconds = trial["history"][-1], sum(epoch["seconds"] for epoch in trial["history"])
        accuracies = [percent(last[name]) for name in ("validation_accuracy", "test_accuracy")]
        rows.append([str(trial["settings"]["seed"]), *accuracies, f"{last['test_loss']:.4f}", f"{seconds:.0f}"])
    return page(
        "consistency",
        figures=figures,
        data=data,
        sentence=sentence(figures),
        table=table(["seed", "validation", "test", "test loss", "seconds"], rows, left=0),
        devices="; ".join(devices),
        revisions=", ".join(revisions),
    )


def frontier_page(figures: dict[str, Any]) -> str:
    """Return frontier.md from the content of frontier.json."""
    columns = ["network", "parameters", "seeds", "validation, mean", "test, mean", "standard deviation", "worst seed"]
    rows = []
    for one in sorted(figures["networks"], key=lambda one: one["parameters"]):
        accuracies = [percent(one["validation_mean"]), f"**{percent(one['mean'])}**"]
        accuracies += [percent(one["standard_deviation"]) if one["seeds"] > 1 else "", percent(one["worst"])]
        rows.append([one["model"], f"{one['parameters']:,}", str(one["seeds"]), *accuracies])
    for name, (parameters, accuracy, source) in PUBLISHED.items():
        rows.append([f"[{name}]({source})", f"{parameters:,}", "1", "", percent(accuracy), "", ""])
    diverged = f"\n{figures['diverged']}.\n" if figures.get("diverged") else ""
    revisions = ", ".join(figures["source_revisions"])
    return page("frontier", figures=figures, table=table(columns, rows), diverged=diverged, revisions=revisions)


def consistency_plot(figures: dict[str, Any]) -> bytes:
    """Plot the test accuracy of every seed by epoch, from the content of consistency.json."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    lines = {  # no legend for the seeds: matplotlib leaves out labels that begin with _
        f"_{trial['settings']['seed']}": [epoch["test_accuracy"] for epoch in trial["history"]]
        for trial in figures["trials"]
    }
    plot_accuracies(axes, lines, f"{figures['model']}: test accuracy, {figures['seeds']} seeds")
    return png(figure)


def frontier_plot(figures: dict[str, Any]) -> bytes:
    """Plot mean test accuracy by number of parameters, from the content of frontier.json.

    A line connects the widths of Model_3; other networks are points. Each error bar reaches from the worst to the best
    seed. The y axis shows the error on a logarithmic scale; its labels are accuracies.
    """
    figure, axes = plt.subplots(figsize=(8.5, 4.8))
    networks = sorted(figures["networks"], key=lambda one: one["parameters"])
    family = [one for one in networks if one["model"].startswith("Model_3")]
    others = [one for one in networks if one not in family]
    for label, group, style in (("Model_3 in several widths", family, "o-"), ("Model_1 and Model_2", others, "s")):
        mean, best, worst = (100 * (1 - np.array([one[key] for one in group])) for key in ("mean", "best", "worst"))
        x, spread = [one["parameters"] for one in group], (mean - best, worst - mean)
        axes.errorbar(x, mean, spread, fmt=style, capsize=3, label=label)
    parameters, accuracies, _ = zip(*PUBLISHED.values(), strict=True)
    axes.plot(parameters, [100 * (1 - accuracy) for accuracy in accuracies], "x", label="others, as published")
    axes.axhline(100 * (1 - TARGET_ACCURACY), **GOAL)
    axes.set(title="Accuracy over parameters", xlabel="parameters", ylabel="test accuracy, %")
    axes.set(xscale="log", yscale="log")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(lambda error, _: f"{100 - error:g}")
    axes.legend()
    return png(figure)
