"""The plots of the report and of the consistency table, each returned as PNG bytes."""

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

TRAIN, TEST, MUTED, TARGET = "#d95f02", "#1f5fa8", "#8a8a8a", "#2a9d5c"
COLOURS = ("#d95f02", "#7570b3", "#1f5fa8", "#1b9e77", "#e7298a", "#a6761d", "#666666")  # one per model, repeated
plt.rc("figure", dpi=110)
plt.rc("font", size=10)
plt.rc("axes", grid=True, axisbelow=True, titlelocation="left")
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", color="#e6e6e6")
plt.rc("legend", frameon=False)


def training_curves(name: str, history: list[Epoch], target: float) -> bytes:
    """Plot loss, accuracy and the gap between training and test accuracy of one training, by epoch."""
    epochs = [epoch.epoch for epoch in history]
    figure, (losses, accuracies, gaps) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    losses.plot(epochs, [epoch.train_loss for epoch in history], color=TRAIN, marker=".", label="training (running)")
    losses.plot(epochs, [epoch.test_loss for epoch in history], color=TEST, marker=".", label="test")
    losses.set(title=f"{name}: loss", yscale="log", ylabel="cross-entropy, nats")
    losses.legend()
    train = 100 * np.array([epoch.train_accuracy for epoch in history])
    test = 100 * np.array([epoch.test_accuracy for epoch in history])
    accuracies.plot(epochs, train, color=TRAIN, marker=".", label="training (running)")
    accuracies.plot(epochs, test, color=TEST, marker=".", label="test")
    _target_line(accuracies, target)
    # Without the first epoch, whose low accuracy would compress the rest of the plot.
    low = min(train[1:].min(), test[1:].min()) if len(history) > 2 else min(train.min(), test.min())
    accuracies.set(title=f"{name}: accuracy", ylabel="%", ylim=(max(0, low - 0.3), 100.05))
    accuracies.legend(loc="lower right")
    gap = train - test
    gaps.bar(epochs, gap, color=[TRAIN if value > 0 else TEST for value in gap])
    gaps.axhline(0, color="black", linewidth=0.8)
    if len(history) > 2:
        limit = 1.15 * np.abs(gap[1:]).max() + 0.05
        gaps.set_ylim(-limit, limit)
    gaps.set(title="training − test", ylabel="percentage points")
    for axes in (losses, accuracies, gaps):
        _epoch_axis(axes, len(history))
    return _png(figure)


def accuracy_curves(histories: dict[str, list[Epoch]], target: float) -> bytes:
    """Plot the test accuracy of every model by epoch in one figure."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    lows = []
    for (name, history), colour in zip(histories.items(), cycle(COLOURS), strict=False):
        test = 100 * np.array([epoch.test_accuracy for epoch in history])
        axes.plot([epoch.epoch for epoch in history], test, color=colour, marker=".", linewidth=1.8)
        axes.annotate(
            f" {name} {test[-1]:.2f}", (history[-1].epoch, test[-1]), color=colour, va="center", fontweight="bold"
        )
        lows.append(test[1 if len(test) > 2 else 0 :].min())
    _target_line(axes, target)
    axes.set(title="Test accuracy by epoch", ylabel="%", ylim=(max(0, min(lows) - 0.2), None))
    epochs = max(len(history) for history in histories.values())
    _epoch_axis(axes, epochs)
    axes.set_xlim(0.5, 1.2 * epochs + 0.5)
    return _png(figure)


def confusion(matrix: NDArray[np.int64]) -> bytes:
    """Plot a confusion matrix [10, 10]: rows are true digits, columns predicted ones; only errors are coloured."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    figure, axes = plt.subplots(figsize=(5.6, 5.2), layout="constrained")
    axes.imshow(errors, cmap="Oranges", vmax=max(1, errors.max()) * 1.4)
    for true in range(10):
        for predicted in range(10):
            if count := matrix[true, predicted]:
                style: dict[str, Any] = (
                    {"color": MUTED} if true == predicted else {"color": "black", "fontweight": "bold"}
                )
                axes.text(predicted, true, str(count), ha="center", va="center", **style)
    axes.set(xticks=range(10), yticks=range(10))
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix, test set")
    axes.grid(visible=False)
    return _png(figure)


def reliability(bins: list[tuple[float, float, int]], error: float) -> bytes:
    """Plot a reliability diagram: the accuracy and the number of images of each bin by its mean confidence."""
    confidence, accuracy, count = (np.array(values) for values in zip(*bins, strict=True))
    figure, (accuracies, counts) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    accuracies.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", label="calibrated")
    spread = 2 * np.sqrt(accuracy * (1 - accuracy) / count)
    accuracies.errorbar(confidence, accuracy, spread, color=TEST, marker="o", linestyle="none", label="accuracy ± 2 SE")
    accuracies.set(
        title=f"Reliability, test set: error {100 * error:.2f} %", xlabel="mean confidence", ylabel="accuracy"
    )
    accuracies.legend(loc="upper left")
    counts.bar(confidence, count, width=0.04, color=TEST)
    counts.set(title="Images", xlabel="mean confidence", yscale="log", xlim=(0, 1.05))
    return _png(figure)


def errors(
    indices: NDArray[np.int64],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    digits: NDArray[np.int64],
    probabilities: NDArray[np.float32],
) -> bytes:
    """Plot misclassified images [N, 28, 28] with index, true and predicted digit, and the probabilities of both."""
    columns = 10
    rows = max(1, -(-len(images) // columns))
    figure, grid = plt.subplots(rows, columns, figsize=(12, 1.75 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, index, image, label, digit, row in zip(
        grid.flat, indices, images, labels, digits, probabilities, strict=False
    ):
        axes.imshow(image, cmap="gray_r", interpolation="nearest")
        axes.set_title(
            f"#{index}\n{label}, predicted {digit}\n{row[label]:.2f} · {row[digit]:.2f}", fontsize=8, loc="center"
        )
    return _png(figure)


def consistency(name: str, trials: list[dict[str, Any]], target: float) -> bytes:
    """Plot the test accuracy of every seed by epoch and, in a second plot, at the last epoch."""
    figure, (by_epoch, last) = plt.subplots(
        1, 2, figsize=(11, 4), layout="constrained", width_ratios=(2, 1), sharey=True
    )
    accuracies = [100 * np.array([epoch["test_accuracy"] for epoch in trial["history"]]) for trial in trials]
    for accuracy in accuracies:
        by_epoch.plot(range(1, len(accuracy) + 1), accuracy, color=TEST, alpha=0.45, linewidth=1.2)
    finals = np.array([accuracy[-1] for accuracy in accuracies])
    seeds = [trial["settings"]["seed"] for trial in trials]
    last.scatter(seeds, finals, color=TEST, zorder=3)
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
    figure, axes = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    family = sorted((one for one in figures if one["model"].startswith("Model_3")), key=lambda one: one["parameters"])
    others = [one for one in figures if one not in family]
    for colour, group, line in ((TEST, family, "-"), (TRAIN, others, "")):
        parameters = [one["parameters"] for one in group]
        errors = [100 * (1 - one["mean"]) for one in group]
        spread = [
            [100 * (one["best"] - one["mean"]) for one in group],
            [100 * (one["mean"] - one["worst"]) for one in group],
        ]
        axes.errorbar(parameters, errors, yerr=spread, color=colour, marker="o", linestyle=line, capsize=3)
        for one, x, y in zip(group, parameters, errors, strict=True):
            label = f"{100 * one['mean']:.2f}\n{x:,}" if line else one["model"]
            axes.annotate(label, (x, y), xytext=(8, -16), textcoords="offset points", color=colour, fontsize=8)
    for name, (x, accuracy) in published.items():
        axes.plot(x, 100 * (1 - accuracy), color=MUTED, marker="x", linestyle="")
        axes.annotate(
            name, (x, 100 * (1 - accuracy)), xytext=(4, 5), textcoords="offset points", color=MUTED, fontsize=8
        )
    axes.axhline(100 * (1 - target), color=TARGET, linewidth=1, linestyle="--")
    axes.set(
        xscale="log", yscale="log", xlabel="parameters", ylabel="test accuracy, %", title="Accuracy over parameters"
    )
    axes.invert_yaxis()
    ticks = [3, 2, 1, 0.8, 0.6, 0.5, 0.4, 0.3]
    axes.set_yticks(ticks, [f"{100 - tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([500, 1_000, 2_000, 4_000, 8_000], ["500", "1,000", "2,000", "4,000", "8,000"])
    axes.minorticks_off()
    return _png(figure)


def _epoch_axis(axes: Axes, epochs: int) -> None:
    axes.set_xlabel("epoch")
    axes.set_xticks(np.unique(np.linspace(1, epochs, min(epochs, 8)).round()))


def _target_line(axes: Axes, target: float) -> None:
    axes.axhline(100 * target, color=TARGET, linewidth=1, linestyle="--")
    axes.annotate(
        f"goal {100 * target:.2f}",
        (0.01, 100 * target),
        xycoords=("axes fraction", "data"),
        color=TARGET,
        va="bottom",
        fontsize=9,
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
