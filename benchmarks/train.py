"""Seconds an epoch: this package's training beside the two ways that people would train the same networks.

`python -m benchmarks.train` runs, interleaved and each in a process of its own, (a) the reference's way: torchvision's
transforms on one image at a time, a DataLoader, `loss.item()` at every step; (b) the same with a worker process, and
pinned memory where there is a GPU, which is where pytorch/examples has both; and ours. Writes
docs/benchmarks-train.json.

Of (a) and (b) a part of an epoch is timed and scaled: STEPS steps of training, and the test set whole; ours is timed
whole, its evaluation of the validation split, which the others do not have, included. "All three" is an epoch of each
model: one after the other, but ours on a CPU in parallel, as `python -m train` has it.
"""

import argparse
import io
import json
import platform
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.rounds import summary
from model.classifier import MEAN, STD, normalise, scale
from train import device as devices
from train.data import Data, Split, load
from train.files import write_json
from train.loop import evaluate, fit
from train.parallel import run_all
from train.progression import PROGRESSION, Experiment
from train.training import max_workers

ROOT = Path(__file__).resolve().parents[1]
ALL = "all three"
STEPS, BATCH, EPOCH = 150, 64, 859  # steps timed of (a) and (b), images a step, steps of a whole epoch
DEVICE = devices.pick("auto")


class Pictures(Dataset[tuple[Tensor, int]]):
    """A split as torchvision has it: a PIL image at a time, transformed when it is asked for."""

    def __init__(self, split: Split, augmented: bool) -> None:
        self.images, self.labels = split.images.cpu().numpy(), split.labels.cpu().tolist()
        affine = [transforms.RandomAffine(8, translate=(0.04, 0.04), scale=(0.9, 1.1), shear=6)] if augmented else []
        steps = [transforms.ToPILImage(), *affine, transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def one_at_a_time(experiment: Experiment, workers: int) -> float:
    """Return the seconds of an epoch by (a), with no worker, or by (b), with one."""
    data = load()
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": workers > 0 and DEVICE.type == "cuda"}
    training = DataLoader(
        Pictures(data.train, experiment.recipe.augmentation is not None), BATCH, shuffle=True, **options
    )
    test = DataLoader(Pictures(data.test, augmented=False), 1_000, **options)
    network = experiment.network().to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    return _train(network, optimizer, training) * EPOCH / STEPS + _timed(lambda: _test(network, test))


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any]) -> float:
    """Return the seconds of STEPS steps; the first, which a worker process starts in, is not among them."""
    network.train()
    correct, start = 0, 0.0
    for number, (images, labels) in enumerate(loader):
        if number == 1:
            start = time.perf_counter()
        images, labels = images.to(DEVICE), labels.to(DEVICE)
        optimizer.zero_grad()
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss.item()
        correct += (logits.argmax(dim=1) == labels).sum().item()
        if number == STEPS:
            break
    return time.perf_counter() - start


@torch.no_grad()
def _test(network: nn.Module, loader: DataLoader[Any]) -> None:
    network.eval()
    for images, labels in loader:
        F.cross_entropy(network(images.to(DEVICE)), labels.to(DEVICE)).item()


def ours(experiment: Experiment) -> float:
    """Return the seconds of an epoch by train.loop; on a GPU of its second, so that compiling is not in it."""
    epochs = 2 if DEVICE.type == "cuda" else 1
    _, history = fit(
        replace(experiment, recipe=replace(experiment.recipe, epochs=epochs)), load(), seed=1, device=DEVICE
    )
    return history[-1].seconds


def ours_together() -> float:
    """Return the seconds of an epoch of each model, all at once, from the first's beginning to the last's end."""
    with redirect_stdout(io.StringIO()) as said:
        tasks = [partial(_print_span, experiment) for experiment in PROGRESSION.values()]
        deque(run_all(tasks, load(), max_workers=max_workers(len(tasks), DEVICE.type)), maxlen=0)
    spans = [json.loads(line) for line in said.getvalue().splitlines()]
    return max(end for _, end in spans) - min(start for start, _ in spans)


def _print_span(experiment: Experiment, data: Data) -> None:
    start = time.monotonic()
    fit(replace(experiment, recipe=replace(experiment.recipe, epochs=1)), data, seed=1, device=DEVICE)
    print(json.dumps([start, time.monotonic()]))


VARIANTS: dict[str, Callable[[Experiment], float]] = {
    "the reference's way": lambda experiment: one_at_a_time(experiment, 0),
    "with a worker process": lambda experiment: one_at_a_time(experiment, 1),
    "ours": ours,
}


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def operations(experiment: Experiment) -> float:
    """Return the floating-point operations of an epoch: forward, and twice that backward, two a multiply-add."""
    count = 0

    def hook(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal count
        if isinstance(module, nn.Conv2d | nn.Linear):
            count += 2 * output.numel() * module.weight[0].numel()

    network = experiment.network()
    for module in network.modules():
        module.register_forward_hook(hook)
    network(torch.zeros(1, 1, 28, 28))
    return 3.0 * count * EPOCH * BATCH


def matrix_rate() -> float:
    """Return the floating-point operations a second of a large matrix product on this device."""
    a, b = (torch.rand(2_048, 2_048, device=DEVICE) for _ in range(2))
    a @ b

    def multiply() -> None:
        for _ in range(10):
            a @ b

    return 10 * 2 * 2_048**3 / _timed(multiply)


def shares(experiment: Experiment) -> dict[str, float]:
    """Return which share of an epoch's time is augmentation, forward, backward, optimizer and evaluation."""
    data = load().to(DEVICE)
    network = experiment.network().to(memory_format=torch.channels_last).to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=experiment.recipe.nesterov)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if DEVICE.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        for batch in torch.randperm(len(data.train), device=DEVICE)[: STEPS * BATCH].view(-1, BATCH):
            with record_function("augmentation"):
                images = scale(data.train.images[batch])
                images = normalise(experiment.recipe.augmentation(images) if experiment.recipe.augmentation else images)
            with record_function("forward"):
                loss = F.cross_entropy(network(images), data.train.labels[batch])
            with record_function("backward"):
                optimizer.zero_grad()
                loss.backward()
            with record_function("optimizer"):
                optimizer.step()
        with record_function("evaluation"):
            evaluate(network, data.validation)
            evaluate(network, data.test)
    spent = {event.key: event.cpu_time_total for event in profiler.key_averages()}
    parts = ("augmentation", "forward", "backward", "optimizer")
    whole = {part: spent[part] * EPOCH / STEPS for part in parts} | {"evaluation": spent["evaluation"]}
    return {part: value / sum(whole.values()) for part, value in whole.items()}


def _child(variant: str) -> dict[str, Any]:
    """Run one variant over the three models in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train", "--variant", variant]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _rounds(count: int) -> Iterator[dict[str, dict[str, Any]]]:
    for _ in range(count):
        yield {variant: _child(variant) for variant in VARIANTS}


def _compared(rounds: list[dict[str, dict[str, Any]]], name: str) -> dict[str, Any]:
    seconds = {variant: [one[variant]["seconds"][name] for one in rounds] for variant in VARIANTS}
    return {
        "seconds": {variant: summary(values) for variant, values in seconds.items()},
        "ratio": mean(seconds["the reference's way"]) / mean(seconds["ours"]),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        seconds = {experiment.name: VARIANTS[options.variant](experiment) for experiment in PROGRESSION.values()}
        together = options.variant == "ours" and DEVICE.type == "cpu"
        seconds[ALL] = ours_together() if together else sum(seconds.values())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "MiB": peak}))
        return
    rounds = list(_rounds(options.rounds))
    rate = matrix_rate()
    models = {name: _compared(rounds, name) for name in (*PROGRESSION, ALL)}
    for experiment in PROGRESSION.values():
        models[experiment.name] |= {"floor": operations(experiment) / rate, "shares": shares(experiment)}
    models[ALL]["floor"] = sum(models[name]["floor"] for name in PROGRESSION)
    result = {
        "device": devices.describe(DEVICE),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rounds": options.rounds,
        "images": EPOCH * BATCH,
        "matrix_gflops": rate / 1e9,
        "MiB": {variant: max(one[variant]["MiB"] for one in rounds) for variant in VARIANTS},
        "models": models,
    }
    write_json(options.out / "benchmarks-train.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
