"""Seconds per epoch of our training and of the two usual ways to train the same networks.

`python -m benchmarks.train` runs, interleaved and each in a process of its own, (a) the reference's way: torchvision's
transforms on one image at a time, a DataLoader, `loss.item()` at every step; (b) the same with a worker process, and
pinned memory on a GPU, as in pytorch/examples; and ours. Writes docs/benchmarks-train.json.

Of (a) and (b), STEPS training steps and the whole test set are timed, and the steps scaled to an epoch. Of ours, whole
epochs are timed, including the evaluation of the validation set, which the others do not have. "All three" is an epoch
of each model: one after the other, but ours on a CPU in parallel, as `python -m train` trains them.
"""

import argparse
import io
import json
import platform
import resource
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.rounds import summary
from model.classifier import MEAN, STD
from train import device as devices
from train import loop
from train.data import Data, Split, load
from train.files import write_json
from train.loop import fit
from train.parallel import run_all
from train.paths import ROOT
from train.progression import PROGRESSION, Experiment, with_epochs
from train.training import max_workers

ALL = "all three"
STEPS, BATCH_SIZE, EPOCH_STEPS = 150, 64, 859
DEVICE = devices.pick("auto")


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
    return _train(network, optimizer, training) * EPOCH_STEPS / STEPS + _seconds(lambda: _test(network, test))


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
    _, history = fit(with_epochs(experiment, 1), load(), seed=1, device=DEVICE)
    return history[-1].seconds


def ours_together() -> float:
    """Return the seconds of an epoch of each model in parallel, from the start of the first to the end of the last."""
    with redirect_stdout(io.StringIO()) as printed:
        tasks = [partial(_print_span, experiment) for experiment in PROGRESSION.values()]
        deque(run_all(tasks, load(), max_workers=max_workers(len(tasks), DEVICE.type)), maxlen=0)
    spans = [json.loads(line) for line in printed.getvalue().splitlines()]
    return max(end for _, end in spans) - min(start for start, _ in spans)


def _print_span(experiment: Experiment, data: Data) -> None:
    start = time.monotonic()
    fit(with_epochs(experiment, 1), data, seed=1, device=DEVICE)
    print(json.dumps([start, time.monotonic()]))


VARIANTS: dict[str, Callable[[Experiment], float]] = {
    "the reference's way": lambda experiment: one_at_a_time(experiment, 0),
    "with a worker process": lambda experiment: one_at_a_time(experiment, 1),
    "ours": ours,
}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def operations(experiment: Experiment) -> float:
    """Return the floating-point operations of an epoch: forward, and twice as many backward; a multiply-add is two."""
    count = 0

    def hook(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal count
        if isinstance(module, nn.Conv2d | nn.Linear):
            count += 2 * output.numel() * module.weight[0].numel()

    network = experiment.network()
    for module in network.modules():
        module.register_forward_hook(hook)
    network(torch.zeros(1, 1, 28, 28))
    return 3.0 * count * EPOCH_STEPS * BATCH_SIZE


def matrix_rate() -> float:
    """Return the floating-point operations per second of a large matrix product on this device."""
    a, b = (torch.rand(2_048, 2_048, device=DEVICE) for _ in range(2))
    _seconds(lambda: a @ b)  # a warm-up
    return 10 * 2 * 2_048**3 / _seconds(lambda: [a @ b for _ in range(10)])


def shares(experiment: Experiment) -> dict[str, float]:
    """Return the share of each part of train.loop in the time of an epoch, from timers around its functions.

    An epoch of STEPS training steps is timed and these are scaled. On a GPU every timer waits for its kernels, and
    they are started one by one here, not as a CUDA graph.
    """
    data, spent = load(), Counter[str]()
    images = STEPS * experiment.recipe.batch_size
    data = replace(data, train=Split(data.train.images[:images], data.train.labels[:images]))
    timed = {
        "augmentation": (loop, "_prepare"),
        "forward": (loop, "batch_loss"),
        "backward": (Tensor, "backward"),
        "optimizer": (torch.optim.SGD, "step"),
        "evaluation": (loop, "evaluate"),
    }
    with ExitStack() as stack, patch.object(loop, "captured", lambda step, *_: step):
        for part, (owner, name) in timed.items():
            stack.enter_context(patch.object(owner, name, _timer(getattr(owner, name), part, spent)))
        fit(with_epochs(experiment, 1), data, seed=1, device=DEVICE)
    spent["forward"] -= spent["augmentation"]  # which batch_loss includes
    seconds = {part: spent[part] * (1 if part == "evaluation" else EPOCH_STEPS / STEPS) for part in timed}
    return {part: value / sum(seconds.values()) for part, value in seconds.items()}


def _timer(function: Callable[..., Any], part: str, spent: Counter[str]) -> Callable[..., Any]:
    """Return `function` with its seconds added to those of `part` in `spent`."""

    def timed(*arguments: Any, **options: Any) -> Any:
        results: list[Any] = []
        spent[part] += _seconds(lambda: results.append(function(*arguments, **options)))
        return results[0]

    return timed


def _run_variant(variant: str) -> dict[str, Any]:
    """Run one variant over the three models in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train", "--variant", variant]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _measure_variant(variant: str) -> dict[str, Any]:
    seconds = {experiment.name: VARIANTS[variant](experiment) for experiment in PROGRESSION.values()}
    in_parallel = variant == "ours" and DEVICE.type == "cpu"
    seconds[ALL] = ours_together() if in_parallel else sum(seconds.values())
    return {"seconds": seconds, "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _compare(rounds: list[dict[str, dict[str, Any]]], name: str) -> dict[str, Any]:
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
        print(json.dumps(_measure_variant(options.variant)))
        return
    rounds = [{variant: _run_variant(variant) for variant in VARIANTS} for _ in range(options.rounds)]
    rate = matrix_rate()
    models = {name: _compare(rounds, name) for name in (*PROGRESSION, ALL)}
    for experiment in PROGRESSION.values():
        models[experiment.name] |= {"floor": operations(experiment) / rate, "shares": shares(experiment)}
    models[ALL]["floor"] = sum(models[name]["floor"] for name in PROGRESSION)
    result = {
        "date": str(datetime.now(UTC).date()),
        "device": devices.describe(DEVICE),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rounds": options.rounds,
        "images": EPOCH_STEPS * BATCH_SIZE,
        "matrix_gflops": rate / 1e9,
        "MiB": {variant: max(one[variant]["MiB"] for one in rounds) for variant in VARIANTS},
        "models": models,
    }
    write_json(options.out / "benchmarks-train.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
