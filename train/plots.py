"""The plots of the report and of the tables over seeds and widths, each returned as PNG bytes."""

import io
from itertools import cycle
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.checkpoint import Epoch

TRAIN, TEST, MUTED, TARGET = "#d95f02", "#1f5fa8", "#8a8a8a", "#2a9d5c"
plt.rc("figure", dpi=110)
plt.rc("figure.constrained_layout", use=True)
plt.rc("font", size=10)
plt.rc("axes", grid=True, axisbelow=True, titlelocation="left")
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", color="#e6e6e6")
plt.rc("legend", frameon=False)


def training_curves(name: str, history: list[Epoch], target: float) -> bytes:
    """Plot loss and accuracy of one training, on the training and the test images, by epoch."""
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(10, 3.6))
    for split, colour, label in (("train", TRAIN, "training (running)"), ("test", TEST, "test")):
        loss, accuracy = ([getattr(epoch, f"{split}_{metric}") for epoch in history] for metric in ("loss", "accuracy"))
        losses.plot(range(1, len(history) + 1), loss, color=colour, marker=".", label=label)
        _plot_accuracy(accuracies, accuracy, color=colour, marker=".", label=label)
    losses.set(title=f"{name}: loss", yscale="log", xlabel="epoch", ylabel="cross-entropy, nats")
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(accuracies, target, f"{name}: accuracy")
    return _png(figure)


def accuracy_curves(histories: dict[str, list[Epoch]], target: float) -> bytes:
    """Plot the test accuracy of every model by epoch in one figure."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    for name, history in histories.items():
        label = f"{name}: {100 * history[-1].test_accuracy:.2f} % at the end"
        _plot_accuracy(axes, [epoch.test_accuracy for epoch in history], marker=".", label=label)
    _finish(axes, target, "Test accuracy by epoch")
    return _png(figure)


def consistency(name: str, trials: list[dict[str, Any]], target: float) -> bytes:
    """Plot the test accuracy of every seed by epoch and, in a second plot, at the last epoch."""
    figure, (by_epoch, last) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(2, 1), sharey=True)
    for trial in trials:
        accuracies = [epoch["test_accuracy"] for epoch in trial["history"]]
        _plot_accuracy(by_epoch, accuracies, color=TEST, alpha=0.45, linewidth=1.2)
    finals = [100 * trial["history"][-1]["test_accuracy"] for trial in trials]
    last.scatter([trial["settings"]["seed"] for trial in trials], finals, color=TEST, zorder=3)
    last.axhline(np.mean(finals), color=TEST, linewidth=1, linestyle=":", label=f"mean {np.mean(finals):.2f}")
    _finish(last, target, "at the last epoch", xlabel="seed")
    _finish(by_epoch, target, f"{name}: test accuracy, {len(trials)} seeds")
    return _png(figure)


def frontier(figures: list[dict[str, Any]], published: dict[str, tuple[int, float]], target: float) -> bytes:
    """Plot mean test accuracy by number of parameters: the widths of Model_3 as a line, other networks as points.

    `figures` are from studies.summarise; `published` has parameters and accuracy by label. Error bars span the worst
    and the best seed. The axis is the logarithm of the error, labelled as accuracy.
    """
    figure, axes = plt.subplots(figsize=(8.5, 4.8))
    family = sorted((one for one in figures if one["model"].startswith("Model_3")), key=lambda one: one["parameters"])
    groups = [("Model_3 in several widths", family, TEST)]
    groups += [(one["model"], [one], TRAIN) for one in figures if one not in family]
    groups += [
        (name, [{"parameters": parameters, "mean": accuracy, "best": accuracy, "worst": accuracy}], MUTED)
        for name, (parameters, accuracy) in published.items()
    ]
    for (name, group, colour), marker in zip(groups, cycle("osDx+*^v"), strict=False):
        mean, best, worst = (100 * (1 - np.array([one[key] for one in group])) for key in ("mean", "best", "worst"))
        x, spread = [one["parameters"] for one in group], (mean - best, worst - mean)
        axes.errorbar(x, mean, spread, color=colour, marker=marker, capsize=3, label=name)
    axes.axhline(100 * (1 - target), color=TARGET, linewidth=1, linestyle="--")
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="parameters", ylabel="test accuracy, %", title="Accuracy over parameters")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for level in ("major", "minor"):
        getattr(axes.yaxis, f"set_{level}_formatter")(lambda error, _: f"{100 - error:g}")
    axes.legend()
    return _png(figure)


def _plot_accuracy(axes: Axes, accuracies: list[float], **style: Any) -> None:
    """Plot `accuracies`, fractions, in percent by epoch."""
    axes.plot(range(1, len(accuracies) + 1), 100 * np.array(accuracies), **style)


def _finish(axes: Axes, target: float, title: str, xlabel: str = "epoch") -> None:
    """Label the axes, draw the goal, and begin at the lowest accuracy after the first epoch, which is much lower."""
    values = [np.asarray(line.get_ydata()) for line in axes.lines]
    axes.set(
        title=title, xlabel=xlabel, ylabel="%", ylim=(min(y[min(1, len(y) - 1) :].min() for y in values) - 0.2, None)
    )
    axes.axhline(100 * target, color=TARGET, linewidth=1, linestyle="--", label=f"goal {100 * target:.2f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
