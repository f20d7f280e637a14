"""Measure the seconds per epoch of our training and of usual ways to train the same networks; see docs/benchmarks.md.

For the usual ways, the time of an epoch is the time of STEPS training steps, scaled to all steps of an epoch, plus the
evaluation of the test set. For our training, a whole epoch is timed, including the evaluation of the validation set.
"""

import argparse
import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks import pages
from model.classifier import MEAN, STD
from train import machine
from train.data import Split, load
from train.loop import fit
from train.markdown import table
from train.progression import PROGRESSION, Experiment, with_settings

REFERENCE, WORKER, OURS = VARIANTS = "the reference's way", "with a worker process", "ours"
STEPS, BATCH_SIZE = 150, 64
DEVICE = machine.pick("auto")


class Pictures(Dataset[tuple[Tensor, int]]):
    """A split as a PyTorch data set. Loading an image converts it to PIL, warps it if `augmented`, normalises it."""

    def __init__(self, split: Split, augmented: bool) -> None:
        self.images, self.labels = split.images.cpu().numpy(), split.labels.cpu().tolist()
        affine = [transforms.RandomAffine(8, translate=(0.04, 0.04), scale=(0.9, 1.1), shear=6)] if augmented else []
        steps = [transforms.ToPILImage(), *affine, transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def batches(experiment: Experiment) -> int:
    """Return the number of batches in an epoch of the experiment, its drawn digits included."""
    return round((1 + experiment.recipe.drawn_digits) * len(load().train)) // BATCH_SIZE


def _one_at_a_time(experiment: Experiment, workers: int) -> float:
    """Return the seconds per epoch of `experiment` in the reference's way, with `workers` worker processes (0 or 1)."""
    data = load()
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": workers > 0 and DEVICE.type == "cuda"}
    pictures = Pictures(data.train, experiment.recipe.augmentation is not None)
    network = experiment.network().to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    seconds = _train(network, optimizer, DataLoader(pictures, BATCH_SIZE, shuffle=True, **options))
    test = DataLoader(Pictures(data.test, augmented=False), 1_000, **options)
    network.eval()
    start = time.perf_counter()
    with torch.no_grad():
        for images, labels in test:
            F.cross_entropy(network(images.to(DEVICE)), labels.to(DEVICE)).item()
    return time.perf_counter() - start + seconds * batches(experiment) / STEPS


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any]) -> float:
    """Return the seconds of STEPS training steps. The step before them, which starts any worker, is not timed."""
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


def _measure(variant: str) -> dict[str, float]:
    """Return the seconds per epoch of each model, trained in one of the VARIANTS."""
    experiments = [with_settings(experiment, ["epochs=1"]) for experiment in PROGRESSION.values()]
    if variant == OURS:
        return {one.name: fit(one, load(), seed=1, device=DEVICE)[1][-1].seconds for one in experiments}
    return {one.name: _one_at_a_time(one, int(variant == WORKER)) for one in experiments}


def main() -> None:
    """Measure every variant, print the table and write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=pages.DOCS, help="output folder (default: docs)")
    options = parser.parse_args()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        measured = list(pool.map(_measure, VARIANTS * options.rounds))
    result = {
        "date": str(datetime.now(UTC).date()),
        "source_revision": machine.source_revision(),
        "device": machine.describe(DEVICE),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rounds": options.rounds,
        "batches": {name: batches(experiment) for name, experiment in PROGRESSION.items()},
        "seconds": {
            name: {
                variant: pages.summary([one[name] for one in measured[number :: len(VARIANTS)]])
                for number, variant in enumerate(VARIANTS)
            }
            for name in PROGRESSION
        },
    }
    pages.write(options.out, "benchmarks.md", "benchmarks-train", result, figures(result))


def figures(result: dict[str, Any]) -> dict[str, str]:
    """Return the figures of docs/benchmarks.md from the content of docs/benchmarks-train.json."""
    rows = []
    for name, seconds in result["seconds"].items():
        images = BATCH_SIZE * result["batches"][name]
        ratio = seconds[REFERENCE]["mean"] / seconds[OURS]["mean"]
        cells = [pages.plus_minus(seconds[variant], 1) for variant in VARIANTS]
        rows.append([name, *cells, f"{ratio:.2f} ×", f"{images / seconds[OURS]['mean']:,.0f}"])
    counts = ", ".join(f"{count} ({name})" for name, count in result["batches"].items())
    measured = (
        f"Measured on {result['date']} at revision {result['source_revision'][:7]}: {result['device']}; Python "
        f"{result['python']}, torch {result['torch']}; {result['rounds']} rounds. Batches in an epoch: {counts}."
    )
    columns = ["seconds per epoch", REFERENCE, WORKER, "**ours**", "reference ÷ ours", "ours, images/s"]
    return {"training": f"{table(columns, rows)}\n\n{measured}"}


if __name__ == "__main__":
    main()
