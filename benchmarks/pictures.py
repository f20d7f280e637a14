"""Accuracy on pictures: MNIST's test digits rendered into other forms, decoded and preprocessed as in the service.

Every picture is encoded (PNG or JPEG) and decoded. The baseline is a plain resize of the same bytes: greyscale by
Pillow, resized to 28×28. Writes docs/pictures.md, .json and .png.
"""

import argparse
import functools
import gzip
import io
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
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
from serve.pictures.preprocess import ImageError, prepare
from train.markdown import table
from train.paths import DATA, RELEASE

SEED = 28
TUNING = 5_000  # training images that `--train` measures on, the same at every call
CHUNK = 100  # images per task
IN_FORM = 1_000  # images already in MNIST's form, for timing

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """Pictures of one form as 28×28, uint8 [N, 28, 28], by a plain resize and by the service; seconds of decode."""

    resized: Pixels
    found: Pixels
    seconds: list[float]
    refused: int  # found to have no ink, or several digits: counted as wrong


@dataclass(frozen=True)
class Result:
    """A row of the table."""

    name: str
    images: int
    resize_accuracy: float  # percent
    accuracy: float  # percent
    refused: int
    median_ms: float


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
    results, examples = [], {}
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name, (numbers, digits, labels) in sources.items():
            if options.forms and name not in options.forms:
                continue
            starts = range(0, len(digits), CHUNK)
            tasks = [(name, numbers[start : start + CHUNK], digits[start : start + CHUNK]) for start in starts]
            result = _result(name, labels, pool.starmap(_sample, tasks))
            results.append(result)
            print(
                f"{result.name:18} resize {result.resize_accuracy:6.2f} %  the service {result.accuracy:6.2f} %  "
                f"n {result.images:6,}  refused {result.refused}  {result.median_ms:.2f} ms",
                flush=True,
            )
            examples[name] = numbers[:4], digits[:4]
    seconds = _seconds_in_form()
    print(f"prepare: {IN_FORM:,} images already in MNIST's form in {1000 * seconds:.2f} ms")
    if not options.train:
        command = "python -m benchmarks.pictures" + (f" --images {options.images}" if options.images else "")
        command += f" --forms {' '.join(options.forms)}" if options.forms else ""
        forms = [vars(result) for result in results]
        values = {"command": command, "seed": SEED, "in_form_ms": 1000 * seconds, "forms": forms}
        pages.write(options.out, "pictures.md", "pictures", values, figures(values), pictures=_picture(examples))


def _seconds_in_form() -> float:
    """Return the minimum seconds, of twenty calls, of `prepare` for images that are already in MNIST's form."""
    digits, seconds = _mnist("t10k")[0][:IN_FORM], []
    for _ in range(20):
        begin = time.perf_counter()
        prepare(digits)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def load_sources(train: bool, count: int | None) -> dict[str, tuple[list[int], Pixels, NDArray[Any]]]:
    """Return, by form, the digits to render: their numbers, images (uint8 [N, H, W], white on black) and labels."""
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


def _drawn(digits: Pixels, labels: NDArray[Any], count: int | None) -> tuple[list[int], Pixels, NDArray[Any]]:
    """Return all digits, or a random sample of `count` in their order, with the numbers that they have among all."""
    numbers = np.arange(len(digits))
    if count is not None and count < len(digits):
        numbers = np.sort(np.random.default_rng(SEED).choice(numbers, count, replace=False))
    return numbers.tolist(), digits[numbers], labels[numbers]


def _mnist(part: str) -> tuple[Pixels, Pixels]:
    images = gzip.decompress((DATA / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((DATA / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def _sample(name: str, numbers: list[int], digits: Pixels) -> Sample:
    """Render digits in a form, and bring them back to 28×28 by a plain resize and by the service."""
    resized, found = (np.zeros((len(digits), 28, 28), np.uint8) for _ in range(2))
    seconds, refused = [], 0
    for index, content in enumerate(render_all(name, numbers, digits)):
        resized[index] = Image.open(io.BytesIO(content)).convert("L").resize((28, 28))
        begin = time.process_time()
        try:
            found[index] = decode(content)
        except ImageError:
            refused += 1
        seconds.append(time.process_time() - begin)
    return Sample(resized, found, seconds, refused)


def render_all(name: str, numbers: list[int], digits: Pixels) -> list[bytes]:
    """Render digits, uint8 [N, H, W], in a form, each with the random generator of its number."""
    seeds = [np.random.default_rng([SEED, number]) for number in numbers]
    return [FORMS[name].render(Image.fromarray(digit), seed) for digit, seed in zip(digits, seeds, strict=True)]


def _result(name: str, labels: NDArray[Any], samples: list[Sample]) -> Result:
    resize_accuracy, accuracy = (
        100 * float(np.mean(predict_digits(np.concatenate(images)) == labels))
        for images in ([sample.resized for sample in samples], [sample.found for sample in samples])
    )
    seconds = [second for sample in samples for second in sample.seconds]
    refused = sum(sample.refused for sample in samples)
    return Result(name, len(labels), resize_accuracy, accuracy, refused, 1000 * statistics.median(seconds))


@functools.cache
def _session() -> Any:
    return onnxruntime.InferenceSession(RELEASE / "digits.onnx")


def predict_digits(images: Pixels) -> NDArray[np.int64]:
    """Return the digits, [N], that the released model predicts for images, uint8 [N, 28, 28]."""
    parts = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    return np.concatenate([_session().run(["digit"], {"image": part})[0] for part in parts])


def figures(values: dict[str, Any]) -> dict[str, str]:
    """Return the figures of docs/pictures.md from the content of docs/pictures.json."""
    results, rows = [Result(**form) for form in values["forms"]], []
    for result in results:
        accuracies = [f"{result.resize_accuracy:.2f} %", f"**{result.accuracy:.2f} %**"]
        rows.append([FORMS[result.name].title, *accuracies, f"{result.images:,}", f"{result.median_ms:.2f} ms"])
    sentence = (
        f"The time is the CPU time of `decode` alone. For {IN_FORM:,} images sent as pixels that are already in "
        f"MNIST's form, `prepare` takes {values['in_form_ms']:.2f} ms. Written by `{values['command']}`."
    )
    return {
        "accuracy": table(["form", "plain resize", "the service", "n", "median time per picture"], rows),
        "time": sentence,
        "forms": "\n".join(f"- **{FORMS[result.name].title}**: {FORMS[result.name].words}" for result in results),
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
