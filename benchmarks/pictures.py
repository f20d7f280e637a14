"""How well pictures of digits are read: MNIST rendered into other forms, sent through `serve.images` to the model.

Every picture is really encoded (PNG or JPEG) and really decoded. Beside `serve.images` stands a plain resize of the
same bytes: Pillow's grey, resized to 28×28, nothing else.
"""

import argparse
import functools
import gzip
import io
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from serve.images import ImageError, decode, prepare
from train.files import to_json, write_together

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data" / "mnist"
MODEL = ROOT / "model" / "release" / "digits.onnx"
SEED = 28
TUNING = 5_000  # training images that `--train` measures on, the same at every call
TYPICAL_STROKE = 2.47  # of 28 pixels: the median of MNIST's training images, by _stroke
CHUNK = 100  # images a task
IN_FORM = 1_000  # images that are in MNIST's form already, and timed

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Form:
    """A form that pictures of digits have: its name, how it is rendered, in words and in code."""

    title: str
    words: str
    render: Callable[[Image.Image, np.random.Generator], bytes]


def _plain(digit: Image.Image, _random: np.random.Generator) -> bytes:
    return _as_png(digit)


def _enlarged(digit: Image.Image, _random: np.random.Generator) -> bytes:
    return _as_png(_enlarge(digit))


def _inverted(digit: Image.Image, _random: np.random.Generator) -> bytes:
    return _as_png(ImageOps.invert(digit))


def _inverted_enlarged(digit: Image.Image, _random: np.random.Generator) -> bytes:
    return _as_png(ImageOps.invert(_enlarge(digit)))


def _page(height: int, digit: Image.Image, random: np.random.Generator) -> bytes:
    ink = digit.crop(digit.getbbox())
    scale = min(height / ink.height, 280 / ink.width)  # a lying digit is at most as wide as the page
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BICUBIC)
    whole = Image.new("L", (300, 400), 255)
    left, top = (int(random.integers(0, room - side + 1)) for room, side in zip(whole.size, ink.size, strict=True))
    whole.paste(0, (left, top), ink)
    return _as_png(whole)


def _page_third(digit: Image.Image, random: np.random.Generator) -> bytes:
    return _page(133, digit, random)


def _page_tenth(digit: Image.Image, random: np.random.Generator) -> bytes:
    return _page(40, digit, random)


def _jpeg(digit: Image.Image, _random: np.random.Generator) -> bytes:
    return _as_jpeg(ImageOps.invert(_enlarge(digit)), quality=40)


def _thin(digit: Image.Image, _random: np.random.Generator) -> bytes:
    cover = np.asarray(_enlarge(digit)) > 127
    distance, reach = _outline_distance(cover), _stroke(cover) / 4
    while reach > 1 and _pieces(distance > reach) != _pieces(cover):
        reach *= 0.85
    return _bilevel(distance > reach)


def _torn(digit: Image.Image, _random: np.random.Generator) -> bytes:
    cover = np.asarray(_enlarge(digit)) > 127
    return _bilevel(_outline_distance(cover) > _stroke(cover) / 4)


def _thick(digit: Image.Image, _random: np.random.Generator) -> bytes:
    cover = np.asarray(_enlarge(digit)) > 127
    return _bilevel(_outline_distance(~cover) <= max(0, 1.8 * TYPICAL_STROKE * 10 - _stroke(cover)) / 2)


def _blotted(digit: Image.Image, _random: np.random.Generator) -> bytes:
    cover = np.asarray(_enlarge(digit)) > 127
    return _bilevel(_outline_distance(~cover) <= 0.4 * _stroke(cover))


def _transparent(digit: Image.Image, _random: np.random.Generator) -> bytes:
    picture = Image.new("RGBA", (280, 280), (0, 0, 0, 0))
    picture.putalpha(_enlarge(digit))
    return _as_png(picture)


def _photographed(digit: Image.Image, random: np.random.Generator) -> bytes:
    width, height = 360, 480
    side = int(random.integers(150, 301))
    left, top = (int(random.integers(0, room - side + 1)) for room in (width, height))
    cover = np.zeros((height, width, 1), np.float32)
    ink = digit.resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(side / 200))
    cover[top : top + side, left : left + side, 0] = np.asarray(ink, np.float32) / 255
    paper, pen = random.uniform(170, 250, 3).astype(np.float32), random.uniform(10, 90, 3).astype(np.float32)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle, fall, vignette = random.uniform(0, 2 * np.pi), random.uniform(0.2, 0.45), random.uniform(0, 0.15)
    light = 1 - fall * (1 + (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2)) / 2 - vignette * (x**2 + y**2)
    scene = (paper + (pen - paper) * cover) * light[..., None].astype(np.float32)
    scene += random.uniform(3, 10) * random.standard_normal(scene.shape, np.float32)
    return _as_jpeg(Image.fromarray(scene.clip(0, 255).astype(np.uint8)), quality=80)


def _coarse(digit: Image.Image, _random: np.random.Generator) -> bytes:
    ink = digit.crop(digit.getbbox())
    scale = 32 / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BICUBIC)
    bitmap = np.zeros((32, 32), np.uint8)
    top, left = (32 - ink.height) // 2, (32 - ink.width) // 2
    bitmap[top : top + ink.height, left : left + ink.width] = np.asarray(ink) > 127
    counts = bitmap.reshape(8, 4, 8, 4).sum((1, 3))
    return _other_hands(Image.fromarray((counts * 255 / 16).astype(np.uint8)), _random)


def _other_hands(digit: Image.Image, _random: np.random.Generator) -> bytes:
    return _as_png(ImageOps.invert(digit.resize((160, 160), Image.Resampling.BICUBIC)))


FORMS = {
    "plain": Form(
        "28×28, as MNIST is",
        "A PNG of 28×28, white on black: MNIST's own form.",
        _plain,
    ),
    "enlarged": Form(
        "enlarged 10×",
        "Enlarged to 280×280 (bicubic), white on black.",
        _enlarged,
    ),
    "inverted": Form(
        "dark on light",
        "28×28, black on white.",
        _inverted,
    ),
    "inverted_enlarged": Form(
        "dark on light, enlarged 10×",
        "Enlarged to 280×280, black on white.",
        _inverted_enlarged,
    ),
    "page_third": Form(
        "on a page, a third of its height",
        "Black anywhere on a white page of 300×400, the ink 133 pixels high: a third of the page.",
        _page_third,
    ),
    "page_tenth": Form(
        "on a page, a tenth of its height",
        "Black anywhere on a white page of 300×400, the ink 40 pixels high: a tenth of the page.",
        _page_tenth,
    ),
    "jpeg": Form(
        "JPEG, quality 40",
        "280×280, black on white, as a JPEG of quality 40.",
        _jpeg,
    ),
    "thin": Form(
        "thin strokes, about half",
        "280×280, black on white, bilevel: the outline moved inwards by a quarter of the digit's mean "
        "stroke width, which leaves half; by less where that would tear the digit apart or lose a part of "
        "it, which no pen does.",
        _thin,
    ),
    "torn": Form(
        "thin strokes, torn",
        "As thin strokes, but by a quarter of the mean width whatever becomes of the digit: where its strokes are of "
        "unequal width, the thin ones vanish.",
        _torn,
    ),
    "thick": Form(
        "thick strokes, 1.8×",
        "280×280, black on white, bilevel: the outline moved outwards until the strokes are 4.4 of 28 pixels wide, 1.8 "
        "times as wide as MNIST's are at the median; the few digits that are wider stay so. Small holes close.",
        _thick,
    ),
    "blotted": Form(
        "thick strokes, blotted",
        "As thick strokes, but 1.8 times the digit's own mean width, however thick it was: some digits become blots.",
        _blotted,
    ),
    "transparent": Form(
        "black on transparent",
        "280×280, black ink on transparent.",
        _transparent,
    ),
    "photographed": Form(
        "gradient, noise, coloured paper",
        "Like a camera's: 360×480, dark coloured ink on light coloured paper, the digit's 28×28 frame "
        "150–300 pixels a side and anywhere on it, blurred; light that falls off by 20–45 % in some "
        "direction, a vignette of up to 15 % of it, noise of standard deviation 3–10 in each channel, a "
        "JPEG of quality 80.",
        _photographed,
    ),
    "coarse": Form(
        "MNIST at 8×8, enlarged",
        "MNIST brought down to 8×8 the way load_digits' were (4×4 blocks counted in a bitmap of 32×32 that "
        "the digit fills), and enlarged to 160×160: the stand-in for load_digits to tune on.",
        _coarse,
    ),
    "other_hands": Form(
        "other hands: load_digits, 8×8",
        "Digits that are not MNIST's: scikit-learn's load_digits, 8×8, enlarged to 160×160 (bicubic), black on white.",
        _other_hands,
    ),
}


@dataclass(frozen=True)
class Sample:
    """What became of some pictures of one form: each as 28×28 by either way, and how long serve.images took."""

    resized: Pixels
    found: Pixels
    seconds: list[float]
    refused: int  # no ink found: counted as wrong


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    name: str
    images: int
    resize_accuracy: float  # percent
    accuracy: float  # percent
    refused: int
    median_ms: float


def main() -> None:
    """Measure every form and write the table, its picture and its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, help="of each form, a sample, the same at every call (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder written to (default: docs)")
    parser.add_argument("--train", action="store_true", help="measure on training images, for tuning; write nothing")
    parser.add_argument("--processes", type=int, default=2, help="(default: 2)")
    options = parser.parse_args()
    sources = _sources(options.train, options.images)
    results, examples = [], {}
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name, (numbers, digits, labels) in sources.items():
            starts = range(0, len(digits), CHUNK)
            tasks = [(name, numbers[start : start + CHUNK], digits[start : start + CHUNK]) for start in starts]
            result = _result(name, labels, pool.starmap(_sample, tasks))
            results.append(result)
            print(
                f"{result.name:18} resize {result.resize_accuracy:6.2f} %  serve.images {result.accuracy:6.2f} %  "
                f"n {result.images:6,}  refused {result.refused}  {result.median_ms:.2f} ms",
                flush=True,
            )
            examples[name] = numbers[:4], digits[:4]
    seconds = _seconds_in_form()
    print(f"{IN_FORM:,} images as pixels, in MNIST's form already: found to be so in {1000 * seconds:.2f} ms")
    if not options.train:
        command = "python -m benchmarks.pictures" + (f" --images {options.images}" if options.images else "")
        forms = {
            "command": command,
            "seed": SEED,
            "in_form_ms": 1000 * seconds,
            "forms": [vars(result) for result in results],
        }
        files = {
            "pictures.png": _picture(examples),
            "pictures.md": _table(results, command, seconds).encode(),
            "pictures.json": to_json(forms),
        }
        write_together(options.out, files)


def _seconds_in_form() -> float:
    """Return the least time of twenty that `prepare` took for images that need nothing."""
    digits, seconds = _mnist("t10k")[0][:IN_FORM], []
    for _ in range(20):
        begin = time.perf_counter()
        prepare(digits)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _sources(train: bool, count: int | None) -> dict[str, tuple[list[int], Pixels, NDArray[Any]]]:
    """Return, by form, the digits to render, uint8 [N, H, W], white on black: their numbers, they, their labels."""
    if train:
        digits, labels = _mnist("train")
        chosen = np.random.default_rng(SEED).permutation(len(digits))[:TUNING]
        mnist = digits[chosen], labels[chosen]
    else:
        mnist = _mnist("t10k")
    sources: dict[str, tuple[Pixels, NDArray[Any]]] = {
        name: mnist for name in FORMS if name != ("other_hands" if train else "coarse")
    }
    if not train:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        sources["other_hands"] = (images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8), labels
    return {name: _drawn(*source, count) for name, source in sources.items()}


def _drawn(digits: Pixels, labels: NDArray[Any], count: int | None) -> tuple[list[int], Pixels, NDArray[Any]]:
    """Return all digits, or `count` drawn at random, in their order; a digit has its number in either case."""
    numbers = np.arange(len(digits))
    if count is not None and count < len(digits):
        numbers = np.sort(np.random.default_rng(SEED).choice(numbers, count, replace=False))
    return numbers.tolist(), digits[numbers], labels[numbers]


def _mnist(part: str) -> tuple[Pixels, Pixels]:
    images = gzip.decompress((DATA / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((DATA / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def _sample(name: str, numbers: list[int], digits: Pixels) -> Sample:
    """Render the digits of these numbers, and bring them back to 28×28 in either way."""
    resized, found = (np.zeros((len(digits), 28, 28), np.uint8) for _ in range(2))
    seconds, refused = [], 0
    for index, content in enumerate(_rendered(name, numbers, digits)):
        resized[index] = Image.open(io.BytesIO(content)).convert("L").resize((28, 28))
        begin = time.perf_counter()
        try:
            found[index] = decode(content)
        except ImageError:
            refused += 1
        seconds.append(time.perf_counter() - begin)
    return Sample(resized, found, seconds, refused)


def _rendered(name: str, numbers: list[int], digits: Pixels) -> list[bytes]:
    seeds = [np.random.default_rng([SEED, number]) for number in numbers]
    return [FORMS[name].render(Image.fromarray(digit), seed) for digit, seed in zip(digits, seeds, strict=True)]


def _result(name: str, labels: NDArray[Any], samples: list[Sample]) -> Result:
    resize_accuracy, accuracy = (
        100 * float(np.mean(_predict(np.concatenate(images)) == labels))
        for images in ([sample.resized for sample in samples], [sample.found for sample in samples])
    )
    seconds = [second for sample in samples for second in sample.seconds]
    refused = sum(sample.refused for sample in samples)
    return Result(name, len(labels), resize_accuracy, accuracy, refused, 1000 * statistics.median(seconds))


@functools.cache
def _session() -> Any:
    return onnxruntime.InferenceSession(MODEL)


def _predict(images: Pixels) -> NDArray[np.int64]:
    parts = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    return np.concatenate([_session().run(["digit"], {"image": part})[0] for part in parts])


def _table(results: list[Result], command: str, seconds: float) -> str:
    lines = [
        "# Pictures of other forms",
        "",
        "The model knows MNIST's form: 28×28, white on black, the ink in 20×20, centred. What people send is not that.",
        "This is how many digits are read right where MNIST's test images are rendered into other forms, encoded, and",
        "decoded by `serve.images`; beside it, what the same model reads where a picture is merely turned grey and",
        "resized to 28×28 by Pillow.",
        "",
        "| form | plain resize | serve.images | n | median time a picture |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {FORMS[result.name].title} | {result.resize_accuracy:.2f} % | **{result.accuracy:.2f} %** "
            f"| {result.images:,} | {result.median_ms:.2f} ms |"
            for result in results
        ),
        "",
        "![A row a form: four pictures, each beside the 28×28 that comes out](pictures.png)",
        "",
        "## How the pictures were made",
        "",
        *(f"- **{FORMS[result.name].title}**: {FORMS[result.name].words}" for result in results),
        "",
        "Every picture is encoded and decoded for real; the random parts are seeded by the image's number. A picture",
        "in which no ink is found counts as wrong. The time is of `decode` alone, on one core.",
        f"That {IN_FORM:,} images sent as pixels are in MNIST's form already is found in {1000 * seconds:.2f} ms, of "
        "`prepare` alone.",
        "",
        "The renderings are ours, and kinder than life: no table's edge, ruled line or hand's shadow is in them. The",
        "constants of `serve.images` were chosen on renderings of MNIST's training images (`--train`), some by",
        "reasoning alone, with training images brought down to 8×8 standing in for load_digits; MNIST's test images",
        "and load_digits chose none.",
        "",
        f"Written by `{command}`.",
        "",
    ]
    return "\n".join(lines)


def _picture(examples: dict[str, tuple[list[int], Pixels]]) -> bytes:
    """Draw a row a form: its name, and four pictures, each beside the 28×28 that comes out of it."""
    side, gap, text = 84, 10, 300
    font = ImageFont.load_default(size=17)
    width, row = text + 4 * (2 * side + 3 * gap), side + gap
    sheet = Image.new("RGB", (width, row * len(examples) + gap), (226, 228, 230))
    draw = ImageDraw.Draw(sheet)
    for line, (name, (numbers, digits)) in enumerate(examples.items()):
        top = gap + line * row
        title = FORMS[name].title.replace("×", "x")  # a sign that the font lacks
        draw.text((gap, top + side // 2), title, fill=(40, 40, 40), font=font, anchor="lm")
        for place, content in enumerate(_rendered(name, numbers, digits)):
            left = text + place * (2 * side + 3 * gap)
            shown = Image.open(io.BytesIO(content)).convert("RGBA")
            shown = ImageOps.contain(shown, (side, side), Image.Resampling.LANCZOS)
            ground = Image.alpha_composite(_chequered(shown.size), shown).convert("RGB")
            sheet.paste(ground, (left + side - shown.width, top + (side - shown.height) // 2))
            found = Image.fromarray(decode(content)).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(found, (left + side + gap // 2, top))
    return _as_png(sheet)


def _chequered(size: tuple[int, int]) -> Image.Image:
    """Return the chequered ground that stands for transparency."""
    squares = np.indices(size[::-1]) // 7
    grey = np.where(squares.sum(axis=0) % 2, np.uint8(255), np.uint8(225))
    return Image.fromarray(grey).convert("RGBA")


def _enlarge(digit: Image.Image) -> Image.Image:
    return digit.resize((280, 280), Image.Resampling.BICUBIC)


def _stroke(cover: NDArray[np.bool_]) -> float:
    """Return how wide the strokes are, in pixels: twice their area over their outline's length."""
    steps = np.diff(cover, axis=0).sum() + np.diff(cover, axis=1).sum()  # 4/π of a curve's length
    return 2 * float(cover.sum()) / (float(steps) * np.pi / 4)


def _bilevel(cover: NDArray[np.bool_]) -> bytes:
    return _as_png(Image.fromarray(np.where(cover, np.uint8(0), np.uint8(255))))


def _outline_distance(cover: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how far each pixel is from the nearest that is not covered."""
    from scipy.ndimage import distance_transform_edt  # comes with scikit-learn

    return np.asarray(distance_transform_edt(cover))


def _pieces(cover: NDArray[np.bool_]) -> int:
    from scipy.ndimage import label

    return int(label(cover, np.ones((3, 3)))[1])


def _as_png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=1)
    return content.getvalue()


def _as_jpeg(picture: Image.Image, quality: int) -> bytes:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return content.getvalue()


if __name__ == "__main__":
    main()
