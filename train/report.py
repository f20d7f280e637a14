"""The report of a run, in Markdown: each model's target, recipe, results and plots. Templates: train/pages."""

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from model.classifier import DigitClassifier, Outputs, predict
from model.contract import CLASSES, Manifest
from model.networks import parameter_count
from train.checkpoint import Epoch
from train.data import Data
from train.export import Export
from train.files import write_bytes
from train.markdown import page, percent, table
from train.progression import EPOCH_BUDGET, PARAMETER_BUDGET, TARGET_ACCURACY, layer_table
from train.trainings import Trained

GOALS = (0.999, 0.9995)  # target accuracies of the accepted predictions
COLUMNS = ("target accuracy", "confidence threshold", "validation: coverage", "accuracy", "test: coverage", "accuracy")
GOAL: dict[str, Any] = {"color": "#2a9d5c", "linestyle": "--", "label": f"goal {percent(TARGET_ACCURACY)}"}
plt.rc("figure", dpi=110)
plt.rc("figure.constrained_layout", use=True)
plt.rc("axes", grid=True, axisbelow=True, titlelocation="left")
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", color="#e6e6e6")
plt.rc("legend", frameon=False)


def write(out: Path, trained: list[Trained], data: Data, export: Export | None) -> Path:
    """Write `out`/report.md and its plots in `out`/report, and return the path of report.md.

    The sections on confidence and errors describe the `export`, or the last model if nothing was exported.
    """
    classifier = export.classifier if export else DigitClassifier(trained[-1].network)
    validation, test = (predict(classifier, split.images) for split in (data.validation, data.test))
    confusion = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    np.add.at(confusion, (data.test.labels.numpy(), test[1]), 1)
    rows = [[f"**{digit}**", *map(str, counts)] for digit, counts in enumerate(confusion)]
    exported = f"Nothing was exported: this run has no verified model with at most {PARAMETER_BUDGET:,} parameters.\n"
    if export:
        manifest, accuracy = export.manifest, percent(export.manifest.validation_accuracy)
        exported = page("export", manifest=manifest, budget=PARAMETER_BUDGET, accuracy=accuracy, doubt=doubt(manifest))
    histories = {model.experiment.name: model.history for model in trained}
    write_bytes(out / "report" / "progression.png", accuracy_curves(histories))
    for name, history in histories.items():
        write_bytes(out / "report" / f"{name}.png", training_curves(name, history))
    text = page(
        "report",
        data=data.summary(),
        goal=percent(TARGET_ACCURACY),
        epochs=EPOCH_BUDGET,
        parameters=PARAMETER_BUDGET,
        seed=trained[-1].seed,
        comparison=_comparison(trained),
        export=exported,
        models="\n".join(section(model, len(data.test)) for model in trained),
        name=export.manifest.model if export else trained[-1].experiment.name,
        confidence=confidence(data, validation, test),
        wrong=len(data.test) - confusion.trace(),
        confusion=table(["", *map(str, range(CLASSES))], rows, left=0),
    )
    write_bytes(out / "report.md", text.encode())
    return out / "report.md"


def _comparison(trained: list[Trained]) -> str:
    columns = ["", "parameters", "epochs", "validation, last epoch", "test, last epoch"]
    columns += ["best test (reference)", "best training (reference)"]
    rows = []
    for model in trained:
        experiment, last = model.experiment, model.history[-1]
        train, test = [f" ({accuracy:.2f})" for accuracy in experiment.reference or ()] or ["", ""]
        row = [experiment.name, f"{parameter_count(model.network):,}", str(len(model.history))]
        row += [percent(last.validation_accuracy), f"**{percent(last.test_accuracy)}**"]
        for split, reference in (("test", test), ("train", train)):
            row.append(percent(max(getattr(epoch, f"{split}_accuracy") for epoch in model.history)) + reference)
        rows.append(row)
    return table(columns, rows)


def section(model: Trained, test_images: int) -> str:
    """Return a model's section: target, recipe, goal, over-fitting, time, layers. `test_images`: number of images."""
    history, last, parameters = model.history, model.history[-1], parameter_count(model.network)
    short = TARGET_ACCURACY - last.test_accuracy
    misses = [f"accuracy {100 * short:.2f} points too low"] * (short > 0)
    misses += [f"{parameters:,} parameters, more than {PARAMETER_BUDGET:,}"] * (parameters > PARAMETER_BUDGET)
    misses += [f"{len(history)} epochs, more than {EPOCH_BUDGET}"] * (len(history) > EPOCH_BUDGET)
    gap = last.train_accuracy - last.test_accuracy
    two_standard_errors = 2 * (last.test_accuracy * (1 - last.test_accuracy) / test_images) ** 0.5
    return page(
        "model",
        experiment=model.experiment,
        target="\n".join(f"- {line}" for line in model.experiment.target),
        test=percent(last.test_accuracy),
        train=percent(last.train_accuracy),
        epochs=len(history),
        goal=f"the goal is missed: {'; '.join(misses)}" if misses else "the goal is reached",
        gap=abs(100 * gap),
        side="above" if gap > 0 else "below",
        fit="over-fitting" if gap > two_standard_errors else "no sign of over-fitting",
        images=test_images,
        seconds=sum(epoch.seconds for epoch in history),
        parameters=parameters,
        layers=layer_table(model.experiment.network()),
    )


def doubt(manifest: Manifest) -> str:
    """Return the quality of the output `doubt` in Markdown: the threshold, and a table by kind of non-digit."""
    found = manifest.doubt
    shares = [[kind, f"{100 * fraction:.1f} %"] for kind, fraction in found.caught.items()]
    validation, test = percent(found.validation_doubted), percent(found.test_doubted)
    kinds = table(["kind of non-digit", "doubted"], shares)
    return page("doubt", doubt=found, validation=validation, test=test, table=kinds)


def confidence(data: Data, validation: Outputs, test: Outputs) -> str:
    """Return, in Markdown, the confidence thresholds for the GOALS. They are chosen on the validation images.

    `validation` and `test` are a classifier's outputs on these sets of `data`.
    """
    sets = [
        (probabilities.max(axis=1), digits == split.labels.numpy())
        for split, (probabilities, digits, *_) in ((data.validation, validation), (data.test, test))
    ]
    rows = []
    for goal in GOALS:
        threshold = choose_threshold(*sets[0], goal)
        cells = ["not reached", "", "", "", ""]
        if threshold is not None:
            accepted = [(confidence >= threshold, correct) for confidence, correct in sets]
            cells = [f"{threshold:.4f}"]
            cells += [
                percent(part)
                for mask, correct in accepted
                for part in (mask.mean(), (correct & mask).sum() / max(1, mask.sum()))
            ]
        rows.append([percent(goal), *cells])
    return page("confidence", table=table(COLUMNS, rows, left=0))


def choose_threshold(confidence: NDArray[np.float32], correct: NDArray[np.bool_], goal: float) -> float | None:
    """Return the lowest threshold whose accepted predictions reach the accuracy `goal`, or None if no threshold does.

    Both arrays have a value per image. `correct` states whether the predicted digit is the label.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence, correct = confidence[order], correct[order]
    accuracy = correct.cumsum() / np.arange(1, len(correct) + 1)
    ends = np.append(confidence[1:] < confidence[:-1], True)  # a threshold accepts all predictions of equal confidence
    enough = np.flatnonzero((accuracy >= goal) & ends)
    return float(confidence[enough[-1]]) if enough.size else None


def training_curves(name: str, history: list[Epoch]) -> bytes:
    """Plot loss and accuracy of one training, on the training and the test images, by epoch."""
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(10, 3.6))
    lines = {"training (running)": "train", "test": "test"}
    for label, split in lines.items():
        losses.plot(range(1, len(history) + 1), [getattr(epoch, f"{split}_loss") for epoch in history], label=label)
    losses.set(title=f"{name}: loss", yscale="log", xlabel="epoch", ylabel="cross-entropy, nats")
    found = {label: [getattr(epoch, f"{split}_accuracy") for epoch in history] for label, split in lines.items()}
    plot_accuracies(accuracies, found, f"{name}: accuracy")
    return png(figure)


def accuracy_curves(histories: dict[str, list[Epoch]]) -> bytes:
    """Plot the test accuracy of every model by epoch in one figure."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    lines = {
        f"{name}: {100 * history[-1].test_accuracy:.2f} % at the end": [epoch.test_accuracy for epoch in history]
        for name, history in histories.items()
    }
    plot_accuracies(axes, lines, "Test accuracy by epoch")
    return png(figure)


def plot_accuracies(axes: Axes, lines: dict[str, list[float]], title: str) -> None:
    """Plot accuracies (fractions) in percent by epoch, and the goal. The y axis may exclude the first epoch."""
    for label, accuracies in lines.items():
        axes.plot(range(1, len(accuracies) + 1), [100 * accuracy for accuracy in accuracies], marker=".", label=label)
    axes.axhline(100 * TARGET_ACCURACY, **GOAL)
    low = min(min(accuracies[1:] or accuracies) for accuracies in lines.values())
    axes.set(title=title, xlabel="epoch", ylabel="%", ylim=(100 * low - 0.2, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")


def png(figure: Figure) -> bytes:
    """Return `figure` as a PNG, and close it."""
    figure.savefig(buffer := io.BytesIO(), format="png")
    plt.close(figure)
    return buffer.getvalue()
