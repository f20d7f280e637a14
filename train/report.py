"""The report of a run: what each model tried, what it reached, what that says; in Markdown, with pictures."""

from pathlib import Path

import numpy as np

from model.classifier import DigitClassifier
from model.contract import Doubt, Manifest
from model.networks import parameter_count
from train import calibration, plots
from train.data import Data
from train.files import write_bytes
from train.layer_table import layers
from train.markdown import table
from train.predict import predict
from train.progression import EPOCH_BUDGET, PARAMETER_BUDGET, TARGET_ACCURACY
from train.training import Trained

SHOWN_MISTAKES = 100


def write(out: Path, trained: list[Trained], data: Data, manifest: Manifest | None) -> Path:
    """Write `out`/report.md and its pictures in `out`/report, and return its path.

    `manifest` is that of the export; without one, the mistakes shown are the last model's.
    """
    pictures = out / "report"
    shown = next((model for model in trained if manifest and model.experiment.name == manifest.model), trained[-1])
    parts = [
        f"# The progression on {data.name}\n",
        f"The goal: {_percent(TARGET_ACCURACY)} test accuracy at the last epoch, in at most {EPOCH_BUDGET} epochs, "
        f"with at most {PARAMETER_BUDGET:,} parameters. {len(data.train):,} training images; "
        f"{len(data.validation):,} held out for validation; the {len(data.test):,} test images are reported on and "
        f"decide nothing. Seed {shown.seed}: one run, not a statement about all seeds, which is "
        "`python -m train consistency`'s.\n",
        _comparison(trained),
        _export(manifest),
        _picture(
            pictures / "progression.png",
            plots.side_by_side({model.experiment.name: model.history for model in trained}, TARGET_ACCURACY),
            "Test accuracy of each model by epoch",
        ),
    ]
    for model in trained:
        parts += _section(model, data, pictures)
    parts += _confidence(shown, data, pictures)
    if manifest and manifest.doubt:
        parts += ["## What the export doubts\n", doubt_table(manifest.doubt)]
    parts += _mistakes(shown, data, pictures)
    write_bytes(out / "report.md", "\n".join(parts).encode())
    return out / "report.md"


def _comparison(trained: list[Trained]) -> str:
    columns = ["parameters", "epochs", "validation, last epoch", "test, last epoch"]
    columns += ["best test (reference)", "best training (reference)"]
    rows = []
    for model in trained:
        experiment, last = model.experiment, model.history[-1]
        train, test = [f" ({accuracy:.2f})" for accuracy in experiment.reference or ()] or ["", ""]
        best_test, best_train = (
            _percent(max(getattr(epoch, name) for epoch in model.history))
            for name in ("test_accuracy", "train_accuracy")
        )
        row = [experiment.name, f"{parameter_count(model.network):,}", str(len(model.history))]
        row += [_percent(last.validation_accuracy), f"**{_percent(last.test_accuracy)}**"]
        rows.append([*row, best_test + test, best_train + train])
    best = "“Best” is the best of all epochs, as the reference reports it; nothing here is chosen by it."
    return f"{table(['', *columns], rows)}\n\n{best}\n"


def _export(manifest: Manifest | None) -> str:
    if manifest is None:
        return f"Nothing was exported: no model of this run is verified with at most {PARAMETER_BUDGET:,} parameters.\n"
    graph, parity = manifest.onnx, manifest.parity
    return (
        f"Exported: **{manifest.model}**, of this run's models with at most {PARAMETER_BUDGET:,} parameters the best "
        f"by validation accuracy ({_percent(manifest.validation_accuracy)}), to "
        f"[release/{graph.file}](release/{graph.file}) ({graph.bytes:,} bytes). ONNX Runtime gives PyTorch's label on "
        f"all {parity.images:,} test images; no probability differs by more than "
        f"{parity.max_abs_probability_difference:.1e}.\n"
    )


def _section(model: Trained, data: Data, pictures: Path) -> list[str]:
    experiment = model.experiment
    rows = [
        [layer.name, "×".join(map(str, layer.output_shape)), str(layer.parameters or ""), str(layer.receptive_field)]
        for layer in layers(experiment.network())
    ]
    return [
        f"## {experiment.name}\n",
        "**Target**\n",
        *(f"- {target}" for target in experiment.target),
        f"\n**Recipe**: {experiment.recipe}.\n",
        f"**Expected**: {experiment.expectation}.\n",
        "**Reached**\n",
        *(f"- {finding}" for finding in findings(model, len(data.test))),
        "",
        _picture(
            pictures / f"{experiment.name}.png",
            plots.curves(experiment.name, model.history, TARGET_ACCURACY),
            f"Loss, accuracy and gap of {experiment.name} by epoch",
        ),
        f"<details><summary>Layers of {experiment.name}, {parameter_count(model.network):,} parameters</summary>\n",
        table(["layer", "output", "parameters", "receptive field"], rows, left=2),
        "\n</details>\n",
    ]


def findings(model: Trained, test_images: int) -> list[str]:
    """Return what a training's figures say, a sentence each: goal, over-fitting, stability, time."""
    history, last, parameters = model.history, model.history[-1], parameter_count(model.network)
    short = TARGET_ACCURACY - last.test_accuracy
    misses = [f"{100 * short:.2f} points short of its accuracy"] * (short > 0)
    misses += [f"{parameters:,} parameters, more than its {PARAMETER_BUDGET:,}"] * (parameters > PARAMETER_BUDGET)
    misses += [f"{len(history)} epochs, more than its {EPOCH_BUDGET}"] * (len(history) > EPOCH_BUDGET)
    gap = last.train_accuracy - last.test_accuracy
    chance = 2 * (last.test_accuracy * (1 - last.test_accuracy) / test_images) ** 0.5  # two standard errors
    if abs(gap) <= chance:
        fit = f"no more than chance would explain on {test_images:,} test images"
    else:
        fit = "it does better on its training images than on new ones" if gap > 0 else "no sign of over-fitting"
    tail = [100 * epoch.test_accuracy for epoch in history[-5:]]
    spread = f"Over the last {len(tail)} epochs test accuracy moves within {max(tail) - min(tail):.2f} points."
    return [
        f"Test accuracy {_percent(last.test_accuracy)} at epoch {last.epoch}, the last: "
        f"{'the goal is missed: ' + '; '.join(misses) if misses else 'the goal is reached'}.",
        f"Training accuracy {_percent(last.train_accuracy)}, the mean over that epoch's batches, {abs(100 * gap):.2f} "
        f"points {'above' if gap > 0 else 'below'} test: {fit}.",
        *([spread] if len(tail) > 1 else []),
        f"{sum(epoch.seconds for epoch in history):.0f} seconds of training and evaluation.",
    ]


def _mistakes(model: Trained, data: Data, pictures: Path) -> list[str]:
    test = data.test
    probabilities, digits = predict(DigitClassifier(model.network), test.images)
    labels = test.labels.numpy()
    matrix = np.zeros((10, 10), dtype=np.int64)
    np.add.at(matrix, (labels, digits), 1)
    wrong = np.flatnonzero(digits != labels)
    # The surest mistakes first: they say most of what the network takes for what.
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
    shown = wrong[:SHOWN_MISTAKES]
    return [
        f"## What {model.experiment.name} gets wrong\n",
        f"{len(wrong)} of {len(test):,} test images"
        + (f", the surest {len(shown)} shown" if len(shown) < len(wrong) else "")
        + "; under each title, the probability it gave the true digit and the one it read.\n",
        _picture(pictures / "confusion.png", plots.confusion(matrix), "Confusion matrix"),
        _picture(
            pictures / "mistakes.png",
            plots.mistakes(shown, test.images.numpy()[shown], labels[shown], digits[shown], probabilities[shown]),
            "The test images it gets wrong",
        ),
    ]


def _confidence(model: Trained, data: Data, pictures: Path) -> list[str]:
    found = calibration.calibrate(DigitClassifier(model.network), data)
    return [
        f"## How far the confidence of {model.experiment.name} goes\n",
        f"Expected calibration error on the test images: {_percent(found.error)}, over {calibration.BINS} bins.\n",
        _picture(
            pictures / "reliability.png", plots.reliability(found.bins, found.error), "Share right by mean confidence"
        ),
        "Answer only from a confidence on, chosen on the validation images:\n",
        calibration.table(found) + "\n",
    ]


def doubt_table(doubt: Doubt) -> str:
    """Return in Markdown what the output `doubt` reaches, by kind of non-digit."""
    rows = [[kind, f"{100 * share:.1f} %"] for kind, share in doubt.caught.items()]
    return (
        f"An image is doubtful, unlike a digit, where `doubt` is above {doubt.threshold:.4f}: chosen so that "
        f"{_percent(doubt.validation_doubted)} of the validation digits are, {_percent(doubt.test_doubted)} of the "
        f"test digits. It costs {doubt.parameters} parameters. Of synthetic non-digits, kinds it was fitted to but "
        "images it was not, it doubts:\n\n"
        f"{table(['not a digit', 'doubted'], rows)}\n"
    )


def _picture(path: Path, png: bytes, description: str) -> str:
    """Write the picture and return the Markdown that shows it."""
    write_bytes(path, png)
    return f"![{description}]({path.parent.name}/{path.name})\n"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
