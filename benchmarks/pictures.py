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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the service

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from benchmarks.forms import FORMS, as_png
from benchmarks.pages import wrap
from serve.pictures.decode import decode
from serve.pictures.preprocess import ImageError, prepare
from train.files import to_json, write_together
from train.markdown import table
from train.paths import DATA, RELEASE, ROOT

SEED = 28
TUNING = 5_000  # training images that `--train` measures on, the same at every call
CHUNK = 100  # images per task
IN_FORM = 1_000  # images already in MNIST's form, for timing

METHOD = """## How a picture is read

`serve.pictures.decode` decodes the bytes into an upright grey picture. `serve.pictures.preprocess` brings it into
MNIST's form, with the modules beside it:

1. If a sheet lies in view, remove what is around it (`sheet`).
2. Estimate the background, and decide by the skewness of the contrast whether the ink is light or dark.
3. Divide by a morphological closing if the light is uneven (2 and 3: `background`).
4. Isolate the ink by threshold decomposition, and choose the connected components that are the digit (`ink`).
5. If the digit is small in the picture, do 3 and 4 again on its surroundings, at a higher resolution.
6. Normalise the stroke width by a distance transform, unless the picture is so coarse that its edges are wide.
7. Fit the ink into 20×20 and put its centre of mass in the middle.

The effect of each stage: [ablation.md](ablation.md).

The library is `scipy.ndimage`. `opencv-python-headless` 5.0 was considered too: 153 MB unpacked, linked with FFmpeg and
an OpenBLAS of its own, which therefore cannot be removed. The serving image would be more than 200 MiB above its base;
SciPy, reduced to its image processing, adds 55 MB. OpenCV was not timed. SciPy has the BSD licence, OpenCV Apache's."""

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
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder written to (default: docs)")
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
        figures = {
            "command": command,
            "seed": SEED,
            "in_form_ms": 1000 * seconds,
            "forms": [vars(result) for result in results],
        }
        files = {
            "pictures.png": _picture(examples),
            "pictures.md": markdown(figures).encode(),
            "pictures.json": to_json(figures),
        }
        write_together(options.out, files)


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


def markdown(figures: dict[str, Any]) -> str:
    """Return docs/pictures.md from the content of docs/pictures.json."""
    results, rows = [Result(**form) for form in figures["forms"]], []
    for result in results:
        accuracies = [f"{result.resize_accuracy:.2f} %", f"**{result.accuracy:.2f} %**"]
        rows.append([FORMS[result.name].title, *accuracies, f"{result.images:,}", f"{result.median_ms:.2f} ms"])
    lines = [
        "# Pictures of other forms",
        "",
        "The model is trained on MNIST's form: 28×28, white on black, the ink in 20×20, centred. Real pictures differ. "
        "The table shows the accuracy on MNIST's test images, rendered into other forms, encoded, and decoded and "
        "preprocessed as in the service. The plain resize beside it only converts a picture to greyscale and resizes "
        "it to 28×28 with Pillow.",
        "",
        table(["form", "plain resize", "the service", "n", "median time per picture"], rows),
        "",
        "![One row per form: four pictures, each beside its 28×28 after preprocessing](pictures.png)",
        "",
        *METHOD.splitlines(),
        "",
        "## How the pictures were made",
        "",
        *(f"- **{FORMS[result.name].title}**: {FORMS[result.name].words}" for result in results),
        "",
        "The random parts are seeded by the image's number. A refused picture counts as wrong. The time is the CPU "
        f"time of `decode` alone. For {IN_FORM:,} images sent as pixels that are already in MNIST's form, `prepare` "
        f"takes {figures['in_form_ms']:.2f} ms.",
        "",
        "The renderings are ours. The constants of the preprocessing were chosen on renderings of MNIST's training "
        "images (`--train`), with training images reduced to 8×8 in place of load_digits. One exception: dark screens "
        "rendered from test images first showed that UNIFORM was too small; its new value was confirmed on training "
        "images.",
        "",
        f"Written by `{figures['command']}`.",
        "",
    ]
    return wrap("\n".join(lines))


def _picture(examples: dict[str, tuple[list[int], Pixels]]) -> bytes:
    """Draw one row per form: its title, and four pictures, each beside its 28×28 after preprocessing."""
    side, gap, text = 84, 10, 300
    font = ImageFont.load_default(size=17)
    width, row = text + 4 * (2 * side + 3 * gap), side + gap
    sheet = Image.new("RGB", (width, row * len(examples) + gap), (226, 228, 230))
    draw = ImageDraw.Draw(sheet)
    for line, (name, (numbers, digits)) in enumerate(examples.items()):
        top = gap + line * row
        title = FORMS[name].title.replace("×", "x")  # a sign that the font lacks
        draw.text((gap, top + side // 2), title, fill=(40, 40, 40), font=font, anchor="lm")
        for place, content in enumerate(render_all(name, numbers, digits)):
            left = text + place * (2 * side + 3 * gap)
            shown = Image.open(io.BytesIO(content)).convert("RGBA")
            shown = ImageOps.contain(shown, (side, side), Image.Resampling.LANCZOS)
            ground = Image.alpha_composite(_chequered(shown.size), shown).convert("RGB")
            sheet.paste(ground, (left + side - shown.width, top + (side - shown.height) // 2))
            with suppress(ImageError):  # a refused picture has no 28×28
                found = Image.fromarray(decode(content)).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(found, (left + side + gap // 2, top))
    return as_png(sheet)


def _chequered(size: tuple[int, int]) -> Image.Image:
    """Return a chequered background, which shows transparency."""
    squares = np.indices(size[::-1]) // 7
    grey = np.where(squares.sum(axis=0) % 2, np.uint8(255), np.uint8(225))
    return Image.fromarray(grey).convert("RGBA")


if __name__ == "__main__":
    main()
