"""Consistency: train one model with many seeds and compute statistics of their accuracies."""

import shlex
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from model.networks import parameter_count
from train import paths, plots
from train.checkpoint import settings
from train.data import Data, load
from train.errors import DivergenceError
from train.files import to_json, write_together
from train.lock import locked
from train.markdown import percent, table
from train.progression import TARGET_ACCURACY, Experiment, experiments
from train.training import Trained, Training, train_all


def consistency(
    name: str, seeds: int, *, epochs: int | None, device_name: str, data_directory: Path, out: Path
) -> None:
    """Train model `name` with seeds 1 to `seeds` and write the table, the plot and the history of every seed.

    These are consistency.md, .png and .json in `out`/consistency; the checkpoints are in its folder trials. Raises
    DivergenceError if a seed diverged, after writing the results of the others.
    """
    (experiment,) = experiments([name], epochs)
    folder = out / "consistency"
    with locked(folder):
        data = load(data_directory)
        trained, errors = train_seeds([(experiment, seeds)], data, folder, device_name, noun="seeds")
        diverged = {training.seed: error.epoch for training, error in errors.items()}
        trials = [trial_record(one, data) for one in trained]
        if not trials:
            raise DivergenceError(_completion(0, diverged))
        figures = summarise(trials, experiment) | {
            "diverged": diverged,
            "data": {"name": data.name, **{part: len(getattr(data, part)) for part in ("train", "validation", "test")}},
            "command": command_line(f"consistency --model {name} --seeds {seeds}", epochs, data_directory),
            "trials": trials,
        }
        print(sentence(figures))
        write_page(folder, figures, markdown(figures), plots.consistency(name, trials, TARGET_ACCURACY))
    if diverged:
        raise DivergenceError(_completion(len(trials), diverged))


def train_seeds(
    experiments: list[tuple[Experiment, int]], data: Data, folder: Path, device_name: str, *, noun: str
) -> tuple[list[Trained], dict[Training, DivergenceError]]:
    """Train each experiment with seeds 1 to its number; checkpoints are in `folder`/trials. See train_all."""
    trainings = [
        Training(experiment, seed, folder / "trials" / f"{experiment.name}-seed-{seed:03d}", device_name)
        for experiment, seeds in experiments
        for seed in range(1, seeds + 1)
    ]
    return train_all(trainings, data, noun=noun)


def write_page(folder: Path, figures: dict[str, Any], text: str, plot: bytes) -> None:
    """Write `figures` as JSON, the page in Markdown and its plot to `folder`; the files have the folder's name."""
    contents = {".png": plot, ".md": text.encode(), ".json": to_json(figures)}
    write_together(folder, {f"{folder.name}{suffix}": content for suffix, content in contents.items()})
    print(f"Table: {folder / folder.name}.md")


def command_line(command: str, epochs: int | None, data_directory: Path) -> str:
    """Return the command line that repeats a `command`; options that have their defaults are left out."""
    options = f" --epochs {epochs}" if epochs else ""
    options += f" --data {shlex.quote(str(data_directory))}" if data_directory != paths.DATA else ""
    return f"python -m train {command}{options}"


def trial_record(trained: Trained, data: Data) -> dict[str, Any]:
    """Return the entry of a finished training in consistency.json."""
    return {
        "settings": settings(trained.experiment, data, trained.seed),
        "provenance": trained.provenance,
        "history": [asdict(epoch) for epoch in trained.history],
    }


def summarise(trials: list[dict[str, Any]], experiment: Experiment) -> dict[str, Any]:
    """Return statistics of the test accuracies of `trials` at the last epoch, as fractions."""
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
    """Return the result of summarise as a sentence."""
    seeds, diverged = figures["seeds"], figures.get("diverged")  # missing in older files
    deviation = f"± {percent(figures['standard_deviation'])} (mean ± standard deviation, n = {seeds} seeds)"
    return (
        f"{figures['model']} ({figures['parameters']:,} parameters, {figures['epochs']} epochs): test accuracy at the "
        f"last epoch {percent(figures['mean'])} {deviation if seeds > 1 else '(n = 1 seed)'}, "
        f"worst {percent(figures['worst'])}, best {percent(figures['best'])}; {figures['reached_target']} of {seeds} "
        f"reach {percent(figures['target'])}." + (f" {_completion(seeds, diverged)}." if diverged else "")
    )


def _completion(finished: int, diverged: dict[int, int]) -> str:
    """Return as a sentence how many seeds finished, and in which epoch the others diverged."""
    others = "; ".join(f"seed {seed} diverged in epoch {epoch}" for seed, epoch in diverged.items())
    return f"{finished} of {finished + len(diverged)} seeds finished; {others}"


def markdown(figures: dict[str, Any]) -> str:
    """Return consistency.md from the content of consistency.json."""
    trials, data = figures["trials"], figures["data"]
    provenances = [trial["provenance"] for trial in trials]
    devices, revisions = (sorted({one[key] for one in provenances}) for key in ("device", "source_revision"))
    rows = []
    for trial in trials:
        last, seconds = trial["history"][-1], sum(epoch["seconds"] for epoch in trial["history"])
        accuracies = [percent(last[name]) for name in ("validation_accuracy", "test_accuracy")]
        rows.append([str(trial["settings"]["seed"]), *accuracies, f"{last['test_loss']:.4f}", f"{seconds:.0f}"])
    rows += [[str(seed), f"diverged in epoch {epoch}", "", "", ""] for seed, epoch in figures["diverged"].items()]
    return f"""# {figures["model"]} with {figures["seeds"]} seeds

{sentence(figures)}

![Test accuracy of every seed by epoch, and at the last epoch](consistency.png)

{table(["seed", "validation", "test", "test loss", "seconds"], rows, left=0)}

All values are of epoch {figures["epochs"]}, the last; no epoch or seed is selected. Each seed was trained on
{data["train"]:,} images of {data["name"]}. {data["validation"]:,} validation images are held out. The
{data["test"]:,} test images are only reported, never used.

Device: {"; ".join(devices)}. Source revision: {", ".join(revisions)}. Command:

    {figures["command"]}

The history of every seed is in [consistency.json](consistency.json).
"""
