"""Measure accuracy on pictures: MNIST's test digits rendered in other forms, then preprocessed as in the service.

Every picture is encoded (PNG or JPEG) and decoded. The baseline is a plain resize of the same bytes: greyscale by
Pillow, resized to 28×28. Writes docs/pictures.md, .json and .png.
"""

import argparse
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
from model.cores import available_cores
from serve.pictures.decode import decode
from serve.pictures.preprocess import ImageError
from train.markdown import table
from train.paths import DATA, RELEASE

SEED = 28
TUNING = 5_000  # number of training images that `--train` measures on; the same images at every call
CHUNK = 100  # images per task

Pixels = NDArray[np.uint8]

# The indices of the digits, from which the pictures' random seeds are made; the digits, white on black,
# uint8 [N, H, W]; their labels.
Source = tuple[NDArray[Any], Pixels, NDArray[Any]]


def main() -> None:
    """Measure every form, or those of --forms. Without --train, write the page, its examples and its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, help="digits per form: a sample, the same at every call (default: all)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, metavar="FORM", help="(default: all)")
    parser.add_argument("--out", type=Path, default=pages.DOCS, help="output folder (default: docs)")
    parser.add_argument("--train", action="store_true", help="measure on training images, for tuning; write nothing")
    options = parser.parse_args()
    sources = load_sources(options.train, options.images)
    names = options.forms or sources
    if unknown := set(names) - sources.keys():
        how = "without" if options.train else "with"
        parser.error(f"--forms {' '.join(sorted(unknown))}: can be measured only {how} --train")
    with multiprocessing.get_context("spawn").Pool(available_cores()) as pool:
        forms = [_measure(pool, name, sources[name]) for name in names]
    if not options.train:
        command = "python -m benchmarks.pictures" + (f" --images {options.images}" if options.images else "")
        command += f" --forms {' '.join(options.forms)}" if options.forms else ""
        values = {"command": command, "seed": SEED, "forms": forms}
        examples = _examples({name: sources[name] for name in names})
        pages.write(options.out, "pictures.md", "pictures", values, figures(values), pictures=examples)


def _measure(pool: Pool, name: str, source: Source) -> dict[str, Any]:
    """Measure the form `name` on the digits of `source`, and return its figures; accuracies are in percent."""
    numbers, images, labels = source
    chunks = [slice(start, start + CHUNK) for start in range(0, len(images), CHUNK)]
    samples = pool.starmap(_sample, [(name, numbers[chunk], images[chunk]) for chunk in chunks])
    resized, found, seconds = zip(*samples, strict=True)
    right = [(predict_digits(one) == labels) & one.any(axis=(1, 2)) for one in map(np.concatenate, (resized, found))]
    measured = {
        "name": name,
        "images": len(labels),
        "resize_accuracy": 100 * float(right[0].mean()),
        "accuracy": 100 * float(right[1].mean()),
        "refused": sum(int((~images.any(axis=(1, 2))).sum()) for images in found),
        "median_ms": 1000 * statistics.median(itertools.chain(*seconds)),
    }
    print(measured, flush=True)
    return measured


def load_sources(train: bool, count: int | None) -> dict[str, Source]:
    """Return, by form, test digits or (`train`) TUNING training digits: all, or a fixed sample of `count`."""
    if train:
        digits, labels = mnist("train")
        chosen = np.random.default_rng(SEED).permutation(len(digits))[:TUNING]
        tuning = _drawn(digits[chosen], labels[chosen], count)
        return {name: tuning for name in FORMS if name != "other_hands"}
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    other_hands = _drawn((images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8), labels, count)
    test = dict.fromkeys(FORMS, _drawn(*mnist("t10k"), count)) | {"other_hands": other_hands}
    return {name: source for name, source in test.items() if name not in ("coarse", "stretched")}


def _drawn(digits: Pixels, labels: NDArray[Any], count: int | None) -> Source:
    """Return all digits, or a random sample of `count` in their order, with their indices among all digits."""
    count = min(count or len(digits), len(digits))
    numbers = np.sort(np.random.default_rng(SEED).choice(len(digits), count, replace=False))
    return numbers, digits[numbers], labels[numbers]


def mnist(part: str) -> tuple[Pixels, Pixels]:
    """Return the images, uint8 [N, 28, 28], and the labels, [N], of a `part` of MNIST: `train` or `t10k`."""
    images = gzip.decompress((DATA / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((DATA / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def _sample(name: str, numbers: NDArray[Any], digits: Pixels) -> tuple[Pixels, Pixels, list[float]]:
    """Render digits in a form; return their 28×28 by a plain resize and by the service, and the service's CPU seconds.

    If the service refuses a picture, its 28×28 is black and counts as wrong.
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


def render_all(name: str, numbers: NDArray[Any], digits: Pixels) -> list[bytes]:
    """Render digits, uint8 [N, H, W], in the form `name`. Their indices, `numbers`, seed the random generators."""
    seeds = [np.random.default_rng([SEED, number]) for number in numbers]
    return [FORMS[name].render(Image.fromarray(digit), seed) for digit, seed in zip(digits, seeds, strict=True)]


def predict_digits(images: Pixels) -> NDArray[np.int64]:
    """Return the digits, [N], that the released model predicts for images, uint8 [N, 28, 28]."""
    session = onnxruntime.InferenceSession(RELEASE / "digits.onnx")
    starts = range(0, len(images), CHUNK)
    return np.concatenate([session.run(["digit"], {"image": images[start : start + CHUNK]})[0] for start in starts])


def figures(values: dict[str, Any]) -> dict[str, str]:
    """Return the figures of docs/pictures.md from the content of docs/pictures.json."""
    rows = []
    for one in values["forms"]:
        accuracies = [f"{one['resize_accuracy']:.2f} %", f"**{one['accuracy']:.2f} %**"]
        rows.append([FORMS[one["name"]].title, *accuracies, f"{one['images']:,}", f"{one['median_ms']:.2f} ms"])
    columns = ["form", "plain resize", "the service", "n", "median time per picture"]
    return {"accuracy": table(columns, rows), "command": f"Written by `{values['command']}`."}


def _examples(sources: dict[str, Source]) -> bytes:
    """Draw one row per form: its title, and four pictures, each followed by its 28×28 after preprocessing."""
    rows: dict[str, list[Image.Image]] = {}
    for name, (numbers, digits, _) in sources.items():
        row = rows[FORMS[name].title] = []
        for content in render_all(name, numbers[:4], digits[:4]):
            found = np.zeros((28, 28), np.uint8)  # stays black if the picture is refused
            with suppress(ImageError):
                found = decode(content)
            row += [Image.open(io.BytesIO(content)), Image.fromarray(found).resize((84, 84), Image.Resampling.NEAREST)]
    return pages.contact_sheet(rows)


if __name__ == "__main__":
    main()
