"""Consistency: one model trained with many seeds, each a Ray task, and what they come to together.

Ray runs embedded on this machine, or on the cluster that RAY_ADDRESS names; the code and the data travel with the
tasks. A seed that is done is a file, and is not run again.
"""

import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import model
import train
from model.networks import parameter_count
from train import device as devices
from train import paths, plots
from train.checkpoint import check_settings, settings
from train.data import Data, load
from train.errors import SettingsError, TrainError
from train.files import locked, read_json, to_json, write_json, write_together
from train.loop import fit
from train.progression import TARGET_ACCURACY, Step, steps, with_epochs
from train.provenance import source_revision, versions

SHARED_MEMORY = 256 * 2**20  # bytes, for what Ray's tasks share: the data set is 55 million
GPU_SHARE = 0.1  # of a GPU, a trial: these networks leave most of one idle


def consistency(
    name: str, seeds: int, *, epochs: int | None, device_name: str, data_directory: Path, out: Path
) -> None:
    """Train model `name` with seeds 1 to `seeds` and write the table, the plot and every epoch's figures.

    They are consistency.md, .png and .json in `out`/consistency; each seed's own figures are in trials/ beside them.
    """
    (step,) = (with_epochs(step, epochs) for step in steps([name]))
    folder = out / "consistency"
    with locked(folder):
        data = load(data_directory)
        trials = _all_trials(step, data, seeds, device_name, folder / "trials")
        figures = summarise(trials, step)
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
        print(f"{sentence(figures)}\nTable: {folder / 'consistency.md'}", flush=True)


def _all_trials(step: Step, data: Data, seeds: int, device_name: str, folder: Path) -> list[dict[str, Any]]:
    """Return the trial of every seed, run where `folder` does not hold it yet."""
    paths = {seed: folder / f"{step.name}-seed-{seed:03d}.json" for seed in range(1, seeds + 1)}
    done = [seed for seed, path in paths.items() if path.exists()]
    for seed in done:
        check_settings(paths[seed], read_json(paths[seed]), settings(step, data, seed))
    if done:
        print(f"{len(done)} of {seeds} seeds were done before", flush=True)
    pending = [seed for seed in paths if seed not in done]
    for seed, result in _run_trials(step, data, pending, device_name) if pending else ():
        revision = {"source_revision": source_revision()}  # of this machine: a cluster's have no checkout
        write_json(paths[seed], {"settings": settings(step, data, seed), **revision, **result})
        last = result["history"][-1]
        print(f"seed {seed}: test {100 * last['test_accuracy']:.2f}% at epoch {last['epoch']}", flush=True)
    return [read_json(path) for path in paths.values()]


def summarise(trials: list[dict[str, Any]], step: Step) -> dict[str, Any]:
    """Return the statistics of `trials`' test accuracies at their last epoch, as shares of 1."""
    accuracies = [trial["history"][-1]["test_accuracy"] for trial in trials]
    return {
        "model": step.name,
        "parameters": parameter_count(step.network()),
        "epochs": step.recipe.epochs,
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
    return (
        f"{figures['model']} ({figures['parameters']:,} parameters, {figures['epochs']} epochs): test accuracy at the "
        f"last epoch {_percent(figures['mean'])} ± {_percent(figures['standard_deviation'])} "
        f"(mean ± standard deviation, n = {figures['seeds']} seeds), worst {_percent(figures['worst'])}, "
        f"best {_percent(figures['best'])}; {figures['reached_target']} of {figures['seeds']} reach "
        f"{_percent(figures['target'])}."
    )


def _run_trials(step: Step, data: Data, seeds: list[int], device_name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run a Ray task a seed and yield each seed's result as it arrives."""
    try:
        import ray
    except ImportError as error:
        raise SettingsError("consistency: expected Ray, found none; install the extra `sweep`") from error
    cluster = os.environ.get("RAY_ADDRESS")
    on_terminate = signal.getsignal(signal.SIGTERM)
    if not cluster:
        _note_shared_memory()
    try:
        _check_reachable(cluster)
        ray.init(
            address=cluster or "local",
            # A cluster's machines have the libraries, not this source.
            runtime_env={"py_modules": [model, train]} if cluster else None,
            object_store_memory=None if cluster else SHARED_MEMORY,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        if not cluster:
            raise
        raise SettingsError(f"RAY_ADDRESS: expected a Ray cluster at {cluster}, found none") from error
    signal.signal(signal.SIGTERM, on_terminate)  # ray.init has put its own there, which aborts
    try:
        on_gpu = device_name != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        # A node that dies takes its tasks with it: Ray runs them again on another.
        task = ray.remote(num_cpus=1, num_gpus=GPU_SHARE if on_gpu else 0, max_retries=3)(_trial)
        shared = ray.put(data)
        running = {task.remote(step, shared, seed, device_name): seed for seed in seeds}
        while running:
            (done,), _ = ray.wait(list(running))
            yield running.pop(done), ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TrainError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise TrainError(f"Ray: {' '.join(str(error).split())}") from error
    finally:
        ray.shutdown()


def _note_shared_memory() -> None:
    """Say so where Ray will keep what its tasks share on the disk: it does without a word."""
    free = shutil.disk_usage("/dev/shm").free
    if free < SHARED_MEMORY:
        print(
            f"note: expected {SHARED_MEMORY // 2**20} MiB free in /dev/shm, found {free // 2**20}: the data is "
            "shared by way of the disk, slower (in a container, --shm-size 512m gives it room)",
            file=sys.stderr,
        )


def _check_reachable(address: str | None) -> None:
    """Raise ConnectionError where nothing listens at `address`: Ray itself would go on trying for many minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConnectionError from error


def _trial(step: Step, data: Data, seed: int, device_name: str) -> dict[str, Any]:
    torch.set_num_threads(1)  # the task's share: seeds side by side use the cores better than threads do
    device = devices.pick(device_name)
    _, history = fit(step, data, seed=seed, device=device)
    history_values = [asdict(epoch) for epoch in history]
    return {"versions": versions(), "device": devices.describe(device), "history": history_values}


def _markdown(figures: dict[str, Any], trials: list[dict[str, Any]], data: Data, command: str) -> str:
    name, devices_used = figures["model"], sorted({trial["device"] for trial in trials})
    lines = [
        f"# {name} over {figures['seeds']} seeds",
        "",
        sentence(figures),
        "",
        "![Test accuracy of every seed by epoch, and at the last epoch](consistency.png)",
        "",
        "| seed | validation | test | test loss | seconds |",
        "|---:|---:|---:|---:|---:|",
    ]
    for trial in trials:
        last = trial["history"][-1]
        seconds = sum(epoch["seconds"] for epoch in trial["history"])
        lines.append(
            f"| {trial['settings']['seed']} | {_percent(last['validation_accuracy'])} "
            f"| {_percent(last['test_accuracy'])} | {last['test_loss']:.4f} | {seconds:.0f} |"
        )
    lines += [
        "",
        f"All at epoch {figures['epochs']}, the last: no epoch and no seed is selected. Trained on "
        f"{len(data.train):,} images of {data.name}; the {len(data.validation):,} validation images are held out, and "
        f"the {len(data.test):,} test images decide nothing.",
        "",
        f"Each seed on: {'; '.join(devices_used)}. Made by",
        "",
        f"    {command}",
        "",
        "Every epoch's figures are in [consistency.json](consistency.json).",
        "",
    ]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
