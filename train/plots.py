"""The plots of the report, the model card and the tables over seeds and widths, each returned as PNG bytes."""

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
from numpy.typing import NDArray

from train.checkpoint import Epoch
from train.data import Split
from train.verify import Outputs

TRAIN, TEST, MUTED, TARGET = "#d95f02", "#1f5fa8", "#8a8a8a", "#2a9d5c"
COLOURS = ("#d95f02", "#7570b3", "#1f5fa8", "#1b9e77", "#e7298a", "#a6761d", "#666666")  # one per model, repeated
plt.rc("figure", dpi=110)
plt.rc("figure.constrained_layout", use=True)
plt.rc("font", size=10)
plt.rc("axes", grid=True, axisbelow=True, titlelocation="left")
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", color="#e6e6e6")
plt.rc("legend", frameon=False)


def training_curves(name: str, history: list[Epoch], target: float) -> bytes:
    """Plot loss, accuracy and the gap between training and test accuracy of one training, by epoch."""
    figure, (losses, accuracies, gaps) = plt.subplots(1, 3, figsize=(12, 3.6))
    epochs = _metric(history, "epoch")
    for axes, metric, factor in ((losses, "loss", 1), (accuracies, "accuracy", 100)):
        for split, colour, label in (("train", TRAIN, "training (running)"), ("test", TEST, "test")):
            values = factor * _metric(history, f"{split}_{metric}")
            axes.plot(epochs, values, color=colour, marker=".", label=label)
    train, test = (100 * _metric(history, name) for name in ("train_accuracy", "test_accuracy"))
    gap = train - test
    gaps.bar(epochs, gap, color=[TRAIN if value > 0 else TEST for value in gap])
    gaps.axhline(0, color="black", linewidth=0.8)
    # Without the first epoch, whose low accuracy would compress the rest of the plot.
    scaled = slice(1 if len(history) > 2 else 0, None)
    if len(history) > 2:
        limit = 1.15 * np.abs(gap[scaled]).max() + 0.05
        gaps.set_ylim(-limit, limit)
    low = max(0, min(train[scaled].min(), test[scaled].min()) - 0.3)
    losses.set(title=f"{name}: loss", yscale="log", ylabel="cross-entropy, nats")
    losses.legend()
    accuracies.set(title=f"{name}: accuracy", ylabel="%", ylim=(low, 100.05))
    accuracies.legend(loc="lower right")
    gaps.set(title="training − test", ylabel="percentage points")
    _target_line(accuracies, target)
    for axes in (losses, accuracies, gaps):
        _epoch_axis(axes, len(history))
    return _png(figure)


def accuracy_curves(histories: dict[str, list[Epoch]], target: float) -> bytes:
    """Plot the test accuracy of every model by epoch in one figure."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    lows = []
    for (name, history), colour in zip(histories.items(), cycle(COLOURS), strict=False):
        test = 100 * _metric(history, "test_accuracy")
        label = f"{name}: {test[-1]:.2f} % at the end"
        axes.plot(_metric(history, "epoch"), test, color=colour, marker=".", linewidth=1.8, label=label)
        lows.append(test[1 if len(test) > 2 else 0 :].min())
    _target_line(axes, target)
    axes.set(title="Test accuracy by epoch", ylabel="%", ylim=(max(0, min(lows) - 0.2), None))
    axes.legend(loc="lower right")
    _epoch_axis(axes, max(len(history) for history in histories.values()))
    return _png(figure)


def confusion(matrix: NDArray[np.int64]) -> bytes:
    """Plot a confusion matrix [10, 10]: rows are true digits, columns predicted ones; only errors are coloured."""
    figure, axes = plt.subplots(figsize=(5.6, 5.2))
    errors = matrix * ~np.eye(10, dtype=bool)
    axes.imshow(errors, cmap="Oranges", vmax=max(1, errors.max()) * 1.4)
    for true, predicted in np.argwhere(matrix):
        colour, weight = (MUTED, "normal") if true == predicted else ("black", "bold")
        count = str(matrix[true, predicted])
        axes.text(predicted, true, count, ha="center", va="center", color=colour, fontweight=weight)
    axes.set(xticks=range(10), yticks=range(10), xlabel="predicted", ylabel="true", title="Confusion matrix, test set")
    axes.grid(visible=False)
    return _png(figure)


def reliability(bins: list[tuple[float, float, int]], error: float) -> bytes:
    """Plot a reliability diagram: the accuracy and the number of images of each bin by its mean confidence."""
    figure, (accuracies, counts) = plt.subplots(1, 2, figsize=(10, 4))
    confidence, accuracy, count = (np.array(values) for values in zip(*bins, strict=True))
    accuracies.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", label="calibrated")
    spread = 2 * np.sqrt(accuracy * (1 - accuracy) / count)
    accuracies.errorbar(confidence, accuracy, spread, color=TEST, marker="o", linestyle="none", label="accuracy ± 2 SE")
    title = f"Reliability, test set: error {100 * error:.2f} %"
    accuracies.set(title=title, xlabel="mean confidence", ylabel="accuracy")
    accuracies.legend(loc="upper left")
    counts.bar(confidence, count, width=0.04, color=TEST)
    counts.set(title="Images", xlabel="mean confidence", yscale="log", xlim=(0, 1.05))
    return _png(figure)


def errors(wrong: NDArray[np.int64], test: Split, outputs: Outputs) -> bytes:
    """Plot the `wrong` images of the test set with index, true and predicted digit, and the probabilities of both."""
    probabilities, digits, *_ = outputs
    columns = 10
    rows = max(1, -(-len(wrong) // columns))
    figure, grid = plt.subplots(rows, columns, figsize=(12, 1.75 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, index in zip(grid.flat, wrong, strict=False):
        axes.imshow(test.images[index].numpy(), cmap="gray_r", interpolation="nearest")
        label, digit, row = int(test.labels[index]), digits[index], probabilities[index]
        title = f"#{index}\n{label}, predicted {digit}\n{row[label]:.2f} · {row[digit]:.2f}"
        axes.set_title(title, fontsize=8, loc="center")
    return _png(figure)


def consistency(name: str, trials: list[dict[str, Any]], target: float) -> bytes:
    """Plot the test accuracy of every seed by epoch and, in a second plot, at the last epoch."""
    figure, (by_epoch, last) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(2, 1), sharey=True)
    accuracies = [100 * np.array([epoch["test_accuracy"] for epoch in trial["history"]]) for trial in trials]
    for accuracy in accuracies:
        by_epoch.plot(range(1, len(accuracy) + 1), accuracy, color=TEST, alpha=0.45, linewidth=1.2)
    finals = np.array([accuracy[-1] for accuracy in accuracies])
    last.scatter([trial["settings"]["seed"] for trial in trials], finals, color=TEST, zorder=3)
    last.axhline(finals.mean(), color=TEST, linewidth=1, linestyle=":", label=f"mean {finals.mean():.2f}")
    for axes in (by_epoch, last):
        _target_line(axes, target)
    _epoch_axis(by_epoch, max(map(len, accuracies)))
    last.xaxis.set_major_locator(MaxNLocator(integer=True))
    low = min(accuracy[len(accuracy) // 3 :].min() for accuracy in accuracies)
    by_epoch.set(title=f"{name}: test accuracy, {len(trials)} seeds", ylabel="%", ylim=(low - 0.1, None))
    last.set(title="at the last epoch", xlabel="seed")
    last.legend(loc="lower right")
    return _png(figure)


def frontier(figures: list[dict[str, Any]], published: dict[str, tuple[int, float]], target: float) -> bytes:
    """Plot mean test accuracy by number of parameters: the widths of Model_3 as a line, other networks as points.

    `figures` are from consistency.summarise; `published` has parameters and accuracy by label. Error bars span the
    worst and the best seed. The axis is the logarithm of the error, labelled as accuracy.
    """
    figure, axes = plt.subplots(figsize=(8.5, 4.8))
    family = sorted((one for one in figures if one["model"].startswith("Model_3")), key=lambda one: one["parameters"])
    others = [one for one in figures if one not in family]

    def label(text: str, point: tuple[int, float], colour: str, side: str) -> None:
        offset = (6, -4 if side == "top" else 4)
        axes.annotate(text, point, xytext=offset, textcoords="offset points", color=colour, fontsize=8, va=side)

    for colour, group, line, side in ((TEST, family, "-", "top"), (TRAIN, others, "", "bottom")):
        parameters = [one["parameters"] for one in group]
        mean, best, worst = (100 * (1 - np.array([one[key] for one in group])) for key in ("mean", "best", "worst"))
        axes.errorbar(
            parameters, mean, (mean - best, worst - mean), color=colour, marker="o", linestyle=line, capsize=3
        )
        for one, x, y in zip(group, parameters, mean, strict=True):
            label(f"{100 * one['mean']:.2f}\n{x:,}" if line else one["model"], (x, y), colour, side)
    for name, (x, accuracy) in published.items():
        axes.plot(x, 100 * (1 - accuracy), color=MUTED, marker="x", linestyle="")
        label(name, (x, 100 * (1 - accuracy)), MUTED, "bottom")
    axes.axhline(100 * (1 - target), color=TARGET, linewidth=1, linestyle="--")
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="parameters", ylabel="test accuracy, %", title="Accuracy over parameters")
    axes.invert_yaxis()
    ticks = [3, 2, 1, 0.8, 0.6, 0.5, 0.4, 0.3]
    axes.set_yticks(ticks, [f"{100 - tick:g}" for tick in ticks], minor=False)
    ticks = [500, 1_000, 2_000, 4_000, 8_000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    return _png(figure)


def _metric(history: list[Epoch], name: str) -> NDArray[Any]:
    return np.array([getattr(epoch, name) for epoch in history])


def _epoch_axis(axes: Axes, epochs: int) -> None:
    axes.set_xlabel("epoch")
    axes.set_xticks(np.unique(np.linspace(1, epochs, min(epochs, 8)).round()))


def _target_line(axes: Axes, target: float) -> None:
    axes.axhline(100 * target, color=TARGET, linewidth=1, linestyle="--")
    left, label = axes.get_yaxis_transform(), f"goal {100 * target:.2f}"
    axes.text(0.01, 100 * target, label, transform=left, color=TARGET, va="bottom", fontsize=9)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
