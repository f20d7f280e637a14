"""The plots of the report and of the tables over seeds and widths, each returned as PNG bytes."""

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.loop import Epoch

TARGET = "#2a9d5c"
plt.rc("figure", dpi=110)
plt.rc("figure.constrained_layout", use=True)
plt.rc("axes", grid=True, axisbelow=True, titlelocation="left")
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", color="#e6e6e6")
plt.rc("legend", frameon=False)


def training_curves(name: str, history: list[Epoch], target: float) -> bytes:
    """Plot loss and accuracy of one training, on the training and the test images, by epoch."""
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(10, 3.6))
    lines = {"training (running)": "train", "test": "test"}
    for label, split in lines.items():
        losses.plot(range(1, len(history) + 1), [getattr(epoch, f"{split}_loss") for epoch in history], label=label)
    losses.set(title=f"{name}: loss", yscale="log", xlabel="epoch", ylabel="cross-entropy, nats")
    found = {label: [getattr(epoch, f"{split}_accuracy") for epoch in history] for label, split in lines.items()}
    _accuracies(accuracies, found, target, f"{name}: accuracy")
    return _png(figure)


def accuracy_curves(histories: dict[str, list[Epoch]], target: float) -> bytes:
    """Plot the test accuracy of every model by epoch in one figure."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    lines = {
        f"{name}: {100 * history[-1].test_accuracy:.2f} % at the end": [epoch.test_accuracy for epoch in history]
        for name, history in histories.items()
    }
    _accuracies(axes, lines, target, "Test accuracy by epoch")
    return _png(figure)


def consistency(name: str, trials: list[dict[str, Any]], target: float) -> bytes:
    """Plot the test accuracy of every seed by epoch."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    lines = {  # matplotlib leaves out of the legend what begins with _
        f"_{trial['settings']['seed']}": [epoch["test_accuracy"] for epoch in trial["history"]] for trial in trials
    }
    _accuracies(axes, lines, target, f"{name}: test accuracy, {len(trials)} seeds")
    return _png(figure)


def frontier(figures: list[dict[str, Any]], published: list[tuple[int, float]], target: float) -> bytes:
    """Plot mean test accuracy by number of parameters: the widths of Model_3 as a line, other networks as points.

    `figures` are from studies.summarise; `published` are parameters and accuracies. Error bars span the worst and the
    best seed. The axis is the logarithm of the error, labelled as accuracy.
    """
    figure, axes = plt.subplots(figsize=(8.5, 4.8))
    family = sorted((one for one in figures if one["model"].startswith("Model_3")), key=lambda one: one["parameters"])
    others = [one for one in figures if one not in family]
    for label, group, style in (("Model_3 in several widths", family, "o-"), ("Model_1 and Model_2", others, "s")):
        mean, best, worst = (100 * (1 - np.array([one[key] for one in group])) for key in ("mean", "best", "worst"))
        x, spread = [one["parameters"] for one in group], (mean - best, worst - mean)
        axes.errorbar(x, mean, spread, fmt=style, capsize=3, label=label)
    parameters, accuracies = zip(*published, strict=True)
    axes.plot(parameters, [100 * (1 - accuracy) for accuracy in accuracies], "x", label="others, as published")
    axes.axhline(100 * (1 - target), color=TARGET, linewidth=1, linestyle="--", label=f"goal {100 * target:.2f}")
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="parameters", ylabel="test accuracy, %", title="Accuracy over parameters")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(lambda error, _: f"{100 - error:g}")
    axes.legend()
    return _png(figure)


def _accuracies(axes: Axes, lines: dict[str, list[float]], target: float, title: str) -> None:
    """Plot accuracies, fractions, in percent by epoch, and the goal. The first epochs may lie below the axis."""
    for label, accuracies in lines.items():
        axes.plot(range(1, len(accuracies) + 1), [100 * accuracy for accuracy in accuracies], marker=".", label=label)
    axes.axhline(100 * target, color=TARGET, linewidth=1, linestyle="--", label=f"goal {100 * target:.2f}")
    low = min(min(accuracies[1:] or accuracies) for accuracies in lines.values())
    axes.set(title=title, xlabel="epoch", ylabel="%", ylim=(100 * low - 0.2, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")


def _png(figure: Figure) -> bytes:
    figure.savefig(buffer := io.BytesIO(), format="png")
    plt.close(figure)
    return buffer.getvalue()
