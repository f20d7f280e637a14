"""Ablation of the preprocessing: accuracy with all stages, without each stage, and of a short baseline.

The pictures are those of benchmarks.pictures. The stages of the preprocessing are replaced one at a time. Writes
docs/ablation.md and .json: the accuracy of each variant on each form, in percent.
"""

import argparse
import multiprocessing
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the service

import numpy as np
from scipy import ndimage

from benchmarks import pages
from benchmarks.forms import FORMS
from benchmarks.pictures import Pixels, chunks, load_sources, predict_digits, render_all
from serve.pictures import preprocess
from serve.pictures.background import reduced
from serve.pictures.decode import MAX_PIXELS, _read, _to_grey
from serve.pictures.ink import NO_INK, threshold_decomposition
from serve.pictures.preprocess import ImageError
from serve.pictures.sheet import Floats, perimeter
from train.machine import source_revision
from train.markdown import table


def _global_contrast(values: Floats, background: float | None) -> Floats:
    """Return the contrast to the border's median instead of to what surrounds each region."""
    return threshold_decomposition(values, float(np.median(perimeter(values))) if background is None else background)


# What switches each stage off: names in serve.pictures, and their values.
WITHOUT: dict[str, dict[str, Any]] = {
    "sheet": {"background.find_sheet": lambda values: None},
    "uniform background": {"background._uniform": lambda values: (None, False)},
    "ink at the border": {"background.MAX_SHARE": 1.0},
    "closing": {"preprocess.correct_illumination": lambda values, background: values},
    "threshold decomposition": {"preprocess.threshold_decomposition": _global_contrast},
    "frames": {"ink._is_frame": lambda frame, other, labels: False},
    "dirt and texture": {"ink.MIN_INK": 0.0, "ink.MIN_LIKENESS": 0.0},
    "inner components": {"ink.MIN_INNER_INK": np.inf},
    "noise": {"preprocess.MIN_SIGNAL": 0.0},
    "second pass": {"preprocess.SECOND_PASS_SIZE": 0},
    "edge width": {"preprocess.MAX_EDGE": np.inf},
    "stroke width": {"preprocess.MIN_STROKE": 0.0, "preprocess.MAX_STROKE": 20.0},
}


def baseline(picture: Pixels) -> Pixels:
    """Preprocess a picture, uint8 [H, W], in the usual short way; return uint8 [28, 28] in MNIST's form.

    The contrast is the distance to the border's median, Otsu's threshold separates ink from background, and the ink's
    bounding box is fitted into 20×20 and centred by its centre of mass.
    """
    values = reduced(picture, 160)
    border = float(np.median(perimeter(values)))
    contrast = abs(values - border)
    level = _otsu(contrast)
    if contrast.max() <= level:
        raise ImageError(NO_INK)
    ink = np.where(ndimage.binary_dilation(contrast > level), contrast / contrast.max(), 0).astype(np.float32)
    return preprocess._centred(preprocess._fit(ink, 0.2, preprocess.BOX, 0))


def _otsu(values: Floats) -> float:
    """Return Otsu's threshold: the variance between the values above it and the others is largest."""
    counts, edges = np.histogram(values, 256)
    below, mass = counts.cumsum(), (counts * edges[:-1]).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mass[-1] * below / below[-1] - mass) ** 2 / (below * (below[-1] - below))
    return float(edges[int(np.nan_to_num(between[:-1]).argmax()) + 1])


def main() -> None:
    """Measure every variant on every form and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, default=2_000, help="of each form, a sample (default: 2000)")
    parser.add_argument("--out", type=Path, default=pages.DOCS, help="the folder written to (default: docs)")
    parser.add_argument("--train", action="store_true", help="measure on training images, for tuning; write nothing")
    options = parser.parse_args()
    variants = ["baseline", "all stages", *WITHOUT]
    accuracies: dict[str, list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, source in load_sources(options.train, options.images).items():
            prepared = np.concatenate(pool.starmap(_prepared, chunks(name, source)), axis=1)  # [variants, N, 28, 28]
            accuracies[name] = [100 * float(np.mean(predict_digits(images) == source[2])) for images in prepared]
            shown = (f"{variant} {value:.2f}" for variant, value in zip(variants, accuracies[name], strict=True))
            print(name, *shown, flush=True)
    if not options.train:
        values = {
            "command": f"python -m benchmarks.ablation --images {options.images}",
            "source_revision": source_revision(),
            "images": options.images,
            "variants": variants,
            "accuracies": accuracies,
        }
        pages.write(options.out, "ablation.md", "ablation", values, figures(values))


def _prepared(name: str, numbers: list[int], digits: Pixels) -> Pixels:
    """Preprocess renderings with each variant; return uint8 [variants, N, 28, 28], zeros for a refused picture."""
    pictures = [np.asarray(_to_grey(_read(content, None, MAX_PIXELS))) for content in render_all(name, numbers, digits)]
    ways: list[Callable[[Pixels], Pixels]] = [baseline, preprocess.to_mnist]
    ways += [partial(_without, changes) for changes in WITHOUT.values()]
    result = np.zeros((len(ways), len(pictures), 28, 28), np.uint8)
    for row, way in zip(result, ways, strict=True):
        for place, picture in zip(row, pictures, strict=True):
            try:
                place[:] = way(picture)
            except ImageError:
                continue
    return result


def _without(changes: dict[str, Any], picture: Pixels) -> Pixels:
    with ExitStack() as stack:
        for name, value in changes.items():
            stack.enter_context(patch(f"serve.pictures.{name}", value))
        return preprocess.to_mnist(picture)


def figures(values: dict[str, Any]) -> dict[str, str]:
    """Return the figures of docs/ablation.md from the content of docs/ablation.json."""
    titles = [FORMS[form].title for form in values["accuracies"]]
    accuracies = np.array(list(values["accuracies"].values()))  # [forms, variants]
    losses = accuracies[:, 1:2] - accuracies
    summaries = []
    for index, variant in enumerate(values["variants"]):
        worst = int(losses[:, index].argmax())
        found = [f"{accuracies[:, index].mean():.2f}", f"{accuracies[:, index].min():.2f}"]
        if index < 2:
            summaries.append([variant, *found, ""])
        else:
            summaries.append([f"without {variant}", *found, f"{losses[worst, index]:.2f} on *{titles[worst]}*"])
    rows = [
        [title, f"{row[0]:.2f}", f"**{row[1]:.2f}**", *(f"{value - row[1]:+.2f}" for value in row[2:])]
        for title, row in zip(titles, accuracies, strict=True)
    ]
    columns = ["form", *values["variants"][:2], *(f"−{variant}" for variant in values["variants"][2:])]
    sentence = (
        f"{values['images']:,} pictures of each form. Written by `{values['command']}` at source revision "
        f"{values['source_revision']}. If pictures.md has other figures for all stages, a later revision measured them."
    )
    return {
        "summary": table(["variant", "mean", "worst form", "largest loss"], summaries),
        "forms": table(columns, rows),
        "command": sentence,
    }


if __name__ == "__main__":
    main()
