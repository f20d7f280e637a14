"""Accuracy on pictures: MNIST's test digits rendered into other forms, decoded and preprocessed as in the service.

Every picture is encoded (PNG or JPEG) and decoded. The baseline is a plain resize of the same bytes: greyscale by
Pillow, resized to 28×28. Writes docs/pictures.md, .json and .png.
"""

import argparse
import functools
import gzip
import io
import itertools
import multiprocessing
import os
import statistics
import time
from contextlib import suppress
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the service

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from benchmarks import pages
from benchmarks.forms import FORMS
from serve.pictures.decode import decode
from serve.pictures.preprocess import ImageError
from train.markdown import table
from train.paths import DATA, RELEASE

SEED = 28
TUNING = 5_000  # training images that `--train` measures on, the same at every call
CHUNK = 100  # images per task

Pixels = NDArray[np.uint8]


Source = tuple[list[int], Pixels, NDArray[Any]]  # digits: their numbers, images (uint8 [N, H, W]) and labels


def main() -> None:
    """Measure every form; write the page, its examples and its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, help="of each form, a sample, the same at every call (default: all)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, metavar="FORM", help="(default: all)")
    parser.add_argument("--out", type=Path, default=pages.DOCS, help="the folder written to (default: docs)")
    parser.add_argument("--train", action="store_true", help="measure on training images, for tuning; write nothing")
    parser.add_argument("--processes", type=int, default=2, help="(default: 2)")
    options = parser.parse_args()
    sources = load_sources(options.train, options.images)
    if unknown := set(options.forms or ()) - sources.keys():
        other = "out" if options.train else ""
        parser.error(f"--forms {' '.join(sorted(unknown))}: expected a form measured with{other} --train")
    forms, examples = [], {}
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name, source in sources.items():
            if options.forms and name not in options.forms:
                continue
            forms.append(_measure(pool, name, source))
            print(forms[-1], flush=True)
            examples[name] = source[0][:4], source[1][:4]
    if not options.train:
        command = "python -m benchmarks.pictures" + (f" --images {options.images}" if options.images else "")
        command += f" --forms {' '.join(options.forms)}" if options.forms else ""
        values = {"command": command, "seed": SEED, "forms": forms}
        pages.write(options.out, "pictures.md", "pictures", values, figures(values), pictures=_picture(examples))


def _measure(pool: Pool, name: str, source: Source) -> dict[str, Any]:
    """Return a form's figures; accuracies are in percent."""
    resized, found, seconds = zip(*pool.starmap(_sample, chunks(name, source)), strict=True)
    accuracies = [100 * float(np.mean(predict_digits(np.concatenate(one)) == source[2])) for one in (resized, found)]
    return {
        "name": name,
        "images": len(source[2]),
        "resize_accuracy": accuracies[0],
        "accuracy": accuracies[1],
        "refused": sum(int((~images.any(axis=(1, 2))).sum()) for images in found),
        "median_ms": 1000 * statistics.median(itertools.chain(*seconds)),
    }


def chunks(name: str, source: Source) -> list[tuple[str, list[int], Pixels]]:
    """Return the name of a form, the numbers and the images of at most CHUNK digits, for each task."""
    numbers, digits, _ = source
    starts = range(0, len(digits), CHUNK)
    return [(name, numbers[start : start + CHUNK], digits[start : start + CHUNK]) for start in starts]


def load_sources(train: bool, count: int | None) -> dict[str, Source]:
    """Return, by form, the digits to render, white on black: all, or a sample of `count`, the same at every call."""
    if train:
        digits, labels = _mnist("train")
        chosen = np.random.default_rng(SEED).permutation(len(digits))[:TUNING]
        mnist = digits[chosen], labels[chosen]
    else:
        mnist = _mnist("t10k")
    sources: dict[str, tuple[Pixels, NDArray[Any]]] = {
        name: mnist for name in FORMS if name not in (("other_hands",) if train else ("coarse", "stretched"))
    }
    if not train:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        sources["other_hands"] = (images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8), labels
    return {name: _drawn(*source, count) for name, source in sources.items()}


def _drawn(digits: Pixels, labels: NDArray[Any], count: int | None) -> Source:
    """Return all digits, or a random sample of `count` in their order, with the numbers that they have among all."""
    numbers = np.arange(len(digits))
    if count is not None and count < len(digits):
        numbers = np.sort(np.random.default_rng(SEED).choice(numbers, count, replace=False))
    return numbers.tolist(), digits[numbers], labels[numbers]


def _mnist(part: str) -> tuple[Pixels, Pixels]:
    images = gzip.decompress((DATA / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((DATA / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def _sample(name: str, numbers: list[int], digits: Pixels) -> tuple[Pixels, Pixels, list[float]]:
    """Render digits in a form; return them as 28×28 by a plain resize and by the service, and its seconds.

    A picture that the service refuses stays black, and counts as wrong.
    """
    resized, found = (np.zeros((len(digits), 28, 28), np.uint8) for _ in range(2))
    seconds = []
    for index, content in enumerate(render_all(name, numbers, digits)):
        resized[index] = Image.open(io.BytesIO(content)).convert("L").resize((28, 28))
        begin = time.process_time()
        with suppress(ImageError):
            found[index] = decode(content)
        seconds.append(time.process_time() - begin)
    return resized, found, seconds


def render_all(name: str, numbers: list[int], digits: Pixels) -> list[bytes]:
    """Render digits, uint8 [N, H, W], in a form, each with the random generator of its number."""
    seeds = [np.random.default_rng([SEED, number]) for number in numbers]
    return [FORMS[name].render(Image.fromarray(digit), seed) for digit, seed in zip(digits, seeds, strict=True)]


@functools.cache
def _session() -> Any:
    return onnxruntime.InferenceSession(RELEASE / "digits.onnx")


def predict_digits(images: Pixels) -> NDArray[np.int64]:
    """Return the digits, [N], that the released model predicts for images, uint8 [N, 28, 28]."""
    parts = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    return np.concatenate([_session().run(["digit"], {"image": part})[0] for part in parts])


def figures(values: dict[str, Any]) -> dict[str, str]:
    """Return the figures of docs/pictures.md from the content of docs/pictures.json."""
    rows = []
    for one in values["forms"]:
        accuracies = [f"{one['resize_accuracy']:.2f} %", f"**{one['accuracy']:.2f} %**"]
        rows.append([FORMS[one["name"]].title, *accuracies, f"{one['images']:,}", f"{one['median_ms']:.2f} ms"])
    words = (f"- **{FORMS[one['name']].title}**: {FORMS[one['name']].words}" for one in values["forms"])
    return {
        "accuracy": table(["form", "plain resize", "the service", "n", "median time per picture"], rows),
        "command": f"Written by `{values['command']}`.",
        "forms": "\n".join(words),
    }


def _picture(examples: dict[str, tuple[list[int], Pixels]]) -> bytes:
    """Draw one row per form: its title, and four pictures, each beside its 28×28 after preprocessing."""
    rows: dict[str, list[Image.Image]] = {}
    for name, (numbers, digits) in examples.items():
        row = rows[FORMS[name].title] = []
        for content in render_all(name, numbers, digits):
            row.append(Image.open(io.BytesIO(content)))
            try:
                found = decode(content)
            except ImageError:  # a refused picture has no 28×28
                found = np.zeros((28, 28), np.uint8)
            row.append(Image.fromarray(found).resize((84, 84), Image.Resampling.NEAREST))
    return pages.contact_sheet(rows)


if __name__ == "__main__":
    main()
