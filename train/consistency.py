"""Consistency: one model trained with many seeds, and what they come to together."""

from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from model.networks import parameter_count
from train import paths, plots
from train.checkpoint import settings
from train.data import Data, load
from train.errors import DivergenceError
from train.files import locked, to_json, write_together
from train.markdown import table
from train.progression import TARGET_ACCURACY, Experiment, experiments
from train.training import Trained, Training, train_all

PER_GPU = 10  # seeds at once: these networks leave most of a GPU idle


def consistency(
    name: str, seeds: int, *, epochs: int | None, device_name: str, data_directory: Path, out: Path
) -> None:
    """Train model `name` with seeds 1 to `seeds` and write the table, the plot and every epoch's figures.

    They are consistency.md, .png and .json in `out`/consistency; each seed's checkpoints are in trials/ beside them.
    Raises DivergenceError, with what was trained to the end written all the same, where a seed diverged.
    """
    (experiment,) = experiments([name], epochs)
    folder = out / "consistency"
    trainings = [seed_training(experiment, seed, folder, device_name) for seed in range(1, seeds + 1)]
    with locked(folder):
        data = load(data_directory)
        ends = train_all(trainings, data, noun="seeds", per_gpu=PER_GPU)
        errors = {one.seed: end for one, end in zip(trainings, ends, strict=True) if isinstance(end, DivergenceError)}
        diverged = {seed: error.epoch for seed, error in errors.items()}
        trials = [trial(end, data) for end in ends if isinstance(end, Trained)]
        if not trials:
            raise DivergenceError(_completion(0, diverged))
        figures = summarise(trials, experiment) | {"diverged": diverged}
        command = f"python -m train consistency --model {name} --seeds {seeds}"
        command += f" --epochs {epochs}" if epochs else ""
        command += f" --data {data_directory}" if data_directory != paths.DATA else ""
        write_together(
            folder,
            {
                "consistency.png": plots.consistency(name, trials, TARGET_ACCURACY),
                "consistency.md": _markdown(figures, trials, data, command).encode(),
                "consistency.json": to_json(figures | {"trials": trials}),
            },
        )
        print(f"{sentence(figures)}\nTable: {folder / 'consistency.md'}")
    if diverged:
        raise DivergenceError(_completion(len(trials), diverged))


def seed_training(experiment: Experiment, seed: int, folder: Path, device_name: str) -> Training:
    """Return the training of `experiment` with `seed`; its checkpoints are below `folder`."""
    return Training(experiment, seed, folder / "trials" / f"{experiment.name}-seed-{seed:03d}", device_name)


def trial(trained: Trained, data: Data) -> dict[str, Any]:
    """Return what consistency.json records of a finished training."""
    return {
        "settings": settings(trained.experiment, data, trained.seed),
        "provenance": trained.provenance,
        "history": [asdict(epoch) for epoch in trained.history],
    }


def summarise(trials: list[dict[str, Any]], experiment: Experiment) -> dict[str, Any]:
    """Return the statistics of `trials`' test accuracies at their last epoch, as shares of 1."""
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
    """Return `figures`, from summarise, in a sentence."""
    diverged = figures.get("diverged")  # unknown to older files
    return (
        f"{figures['model']} ({figures['parameters']:,} parameters, {figures['epochs']} epochs): test accuracy at the "
        f"last epoch {percent(figures['mean'])} ± {percent(figures['standard_deviation'])} "
        f"(mean ± standard deviation, n = {figures['seeds']} seeds), worst {percent(figures['worst'])}, "
        f"best {percent(figures['best'])}; {figures['reached_target']} of {figures['seeds']} reach "
        f"{percent(figures['target'])}." + (f" {_completion(figures['seeds'], diverged)}." if diverged else "")
    )


def _completion(finished: int, diverged: dict[int, int]) -> str:
    """Return how many seeds were trained to the end, and where each of the others `diverged`, in words."""
    seeds = "; ".join(f"seed {seed} diverged in epoch {epoch}" for seed, epoch in diverged.items())
    return f"{finished} of {finished + len(diverged)} seeds finished; {seeds}"


def _markdown(figures: dict[str, Any], trials: list[dict[str, Any]], data: Data, command: str) -> str:
    provenances = [trial["provenance"] for trial in trials]
    devices, revisions = (sorted({one[key] for one in provenances}) for key in ("device", "source_revision"))
    rows = []
    for trial in trials:
        last, seconds = trial["history"][-1], sum(epoch["seconds"] for epoch in trial["history"])
        accuracies = [percent(last[name]) for name in ("validation_accuracy", "test_accuracy")]
        rows.append([str(trial["settings"]["seed"]), *accuracies, f"{last['test_loss']:.4f}", f"{seconds:.0f}"])
    rows += [[str(seed), f"diverged in epoch {epoch}", "", "", ""] for seed, epoch in figures["diverged"].items()]
    return f"""# {figures["model"]} over {figures["seeds"]} seeds

{sentence(figures)}

![Test accuracy of every seed by epoch, and at the last epoch](consistency.png)

{table(["seed", "validation", "test", "test loss", "seconds"], rows, left=0)}

All at epoch {figures["epochs"]}, the last: no epoch and no seed is selected. Trained on {len(data.train):,} images of
{data.name}; the {len(data.validation):,} validation images are held out, and the {len(data.test):,} test images decide
nothing.

Each seed on: {"; ".join(devices)}; source revision {", ".join(revisions)}. Made by

    {command}

Every epoch's figures are in [consistency.json](consistency.json).
"""


def percent(share: float) -> str:
    """Return a share of 1 as a percentage in words."""
    return f"{100 * share:.2f} %"
