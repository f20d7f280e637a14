"""Seconds per epoch of our training and of the two usual ways to train the same networks.

`python -m benchmarks.train` runs, interleaved and each in a process of its own, (a) the reference's way: torchvision's
transforms on one image at a time, a DataLoader, `loss.item()` at every step; (b) the same with a worker process, and
pinned memory on a GPU, as in pytorch/examples; and ours. Writes docs/benchmarks-train.json and the table in
docs/benchmarks.md.

Of (a) and (b), STEPS training steps and the whole test set are timed, and the steps scaled to an epoch. Of ours, whole
epochs are timed, including the evaluation of the validation set, which the others do not have. "All three" is an epoch
of each model: one after the other, but ours on a CPU in parallel, as `python -m train` trains them.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import pages
from model.classifier import MEAN, STD
from train import machine
from train.data import Data, Split, load
from train.loop import fit
from train.machine import source_revision
from train.markdown import table
from train.paths import ROOT
from train.progression import PROGRESSION, Experiment, with_settings
from train.trainings import Training, train_all

REFERENCE, WORKER, OURS = "the reference's way", "with a worker process", "ours"
ALL = "all three"
STEPS, BATCH_SIZE = 150, 64
DEVICE = machine.pick("auto")


class Pictures(Dataset[tuple[Tensor, int]]):
    """A split as in torchvision: one PIL image at a time, transformed when it is read."""

    def __init__(self, split: Split, augmented: bool) -> None:
        from torchvision import transforms  # not at the top: benchmarks.report imports this module

        self.images, self.labels = split.images.cpu().numpy(), split.labels.cpu().tolist()
        affine = [transforms.RandomAffine(8, translate=(0.04, 0.04), scale=(0.9, 1.1), shear=6)] if augmented else []
        steps = [transforms.ToPILImage(), *affine, transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def one_at_a_time(experiment: Experiment, workers: int) -> float:
    """Return the seconds per epoch of (a), without a worker process, or of (b), with one."""
    data = load()
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": workers > 0 and DEVICE.type == "cuda"}
    training = DataLoader(
        Pictures(data.train, experiment.recipe.augmentation is not None), BATCH_SIZE, shuffle=True, **options
    )
    test = DataLoader(Pictures(data.test, augmented=False), 1_000, **options)
    network = experiment.network().to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    steps = _train(network, optimizer, training) * batches(experiment, data) / STEPS
    return steps + _seconds(lambda: _test(network, test))


def batches(experiment: Experiment, data: Data) -> int:
    """Return the number of batches in an epoch of the experiment, its drawn digits included."""
    return round((1 + experiment.recipe.drawn_digits) * len(data.train)) // BATCH_SIZE


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any]) -> float:
    """Return the seconds of STEPS training steps; one step before them, which starts the worker, is not timed."""
    network.train()
    correct, start = 0, 0.0
    for number, (images, labels) in enumerate(loader):
        images, labels = images.to(DEVICE), labels.to(DEVICE)
        optimizer.zero_grad()
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss.item()
        correct += (logits.argmax(dim=1) == labels).sum().item()
        if number == 0:
            start = time.perf_counter()
        if number == STEPS:
            break
    return time.perf_counter() - start


@torch.no_grad()
def _test(network: nn.Module, loader: DataLoader[Any]) -> None:
    network.eval()
    for images, labels in loader:
        F.cross_entropy(network(images.to(DEVICE)), labels.to(DEVICE)).item()


def ours(experiment: Experiment) -> float:
    """Return the seconds per epoch of train.loop."""
    _, history = fit(with_settings(experiment, ["epochs=1"]), load(), seed=1, device=DEVICE)
    return history[-1].seconds


def ours_together() -> float:
    """Return the seconds of an epoch of each model in parallel, from the start of the first to the end of the last."""
    with tempfile.TemporaryDirectory() as folder:
        trainings = [
            Training(with_settings(experiment, ["epochs=1"]), 1, Path(folder) / name, DEVICE.type)
            for name, experiment in PROGRESSION.items()
        ]
        trained, _ = train_all(trainings, load())
        ends = [(training.folder / "checkpoint.json").stat().st_mtime for training in trainings]
    return max(ends) - min(end - one.history[0].seconds for end, one in zip(ends, trained, strict=True))


VARIANTS: dict[str, Callable[[Experiment], float]] = {
    REFERENCE: lambda experiment: one_at_a_time(experiment, 0),
    WORKER: lambda experiment: one_at_a_time(experiment, 1),
    OURS: ours,
}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _run_variant(variant: str) -> dict[str, float]:
    """Return the seconds per epoch of one variant by model, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train", "--variant", variant]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(printed.splitlines()[-1])  # after the lines of the trainings


def _measure_variant(variant: str) -> dict[str, float]:
    seconds = {experiment.name: VARIANTS[variant](experiment) for experiment in PROGRESSION.values()}
    in_parallel = variant == OURS and DEVICE.type == "cpu"
    return {**seconds, ALL: ours_together() if in_parallel else sum(seconds.values())}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=pages.DOCS)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(_measure_variant(options.variant)))
        return
    data = load()
    rounds = [{variant: _run_variant(variant) for variant in VARIANTS} for _ in range(options.rounds)]
    result = {
        "date": str(datetime.now(UTC).date()),
        "source_revision": source_revision(),
        "device": machine.describe(DEVICE),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rounds": options.rounds,
        "batches": {experiment.name: batches(experiment, data) for experiment in PROGRESSION.values()},
        "seconds": {
            name: {variant: pages.summary([one[variant][name] for one in rounds]) for variant in VARIANTS}
            for name in (*PROGRESSION, ALL)
        },
    }
    pages.write(options.out, "benchmarks.md", "benchmarks-train", result, figures(result))
    print(figures(result)["training"])


def figures(result: dict[str, Any]) -> dict[str, str]:
    """Return the figures of docs/benchmarks.md from the content of docs/benchmarks-train.json."""
    rows = []
    for name, seconds in result["seconds"].items():
        images = BATCH_SIZE * result["batches"].get(name, sum(result["batches"].values()))
        ratio = seconds[REFERENCE]["mean"] / seconds[OURS]["mean"]
        cells = [pages.plus_minus(seconds[variant], 1) for variant in VARIANTS]
        rows.append([name, *cells, f"{ratio:.2f} ×", f"{images / seconds[OURS]['mean']:,.0f}"])
    measured = (
        f"Measured on {result['date']} at revision {result['source_revision'][:7]}: {result['device']}; Python "
        f"{result['python']}, torch {result['torch']}; {result['rounds']} rounds. Batches of {BATCH_SIZE} in an epoch: "
        + ", ".join(f"{count} ({name})" for name, count in result["batches"].items())
        + "."
    )
    columns = ["seconds per epoch", REFERENCE, WORKER, "**ours**", "reference ÷ ours", "ours, images/s"]
    return {"training": f"{table(columns, rows)}\n\n{measured}"}


if __name__ == "__main__":
    main()
