"""From any picture of a digit to what the model knows: 28×28, white ink on black, in the form of MNIST.

MNIST's own procedure fits a digit's ink into 20×20 pixels, its aspect kept, and puts its centre of mass in the middle
of 28×28 (LeCun, Cortes & Burges, "The MNIST database of handwritten digits"; LeCun, Bottou, Bengio & Haffner,
"Gradient-based learning applied to document recognition", 1998). Before that can be done here, the ink has to be told
from paper, light and noise; after it, a pen far thinner or thicker than MNIST's is brought near to it.
"""

import io
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Preprocess = Literal["auto", "none", "mnist"]
Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]

MAX_PIXELS = 25_000_000
MAX_BYTES = 8 * 2**20  # of an encoded picture: a phone's photo has 2 to 6 MB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
SIDE, BOX = 28, 20  # of the picture, and of the box that the ink is fitted into
WORKING_SIDE = 512  # a larger picture is reduced to this before anything is looked for in it
BAND = 64  # rows, once reduced, that are converted at a time
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue; as Pillow has it
ORIENTATION = 0x0112  # Exif
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Chosen on renderings of MNIST's training images (benchmarks/pictures.py --train).
FAINT = 0.08  # of full contrast: less is no ink
MASK = 0.25  # of the strongest contrast: less is not followed as ink
GRAIN = 4  # standard deviations of the noise: what stands out less is no ink
SCATTERED = 0.25  # of all that looks like ink: where the largest part is smaller, none of it is a digit
SPECK = 0.05  # of the largest part: a smaller one is dirt
OUTLINE = 0.2  # of a pixel: where ink covers less, it does not count to the digit's extent
THINNEST, THICKEST = 2.2, 2.8  # strokes of the result, in pixels: a third of MNIST's are thinner, a third thicker
QUADRATIC = [0, 1, 2, 3, 4, 6]  # of the products of 1, y, y² with 1, x, x²: those of no more than two factors
EVEN = 0.2  # of the picture, its corners counting most: where so much is of one grey, that is the paper everywhere
FINE, MARGIN = 80, 20  # the size at which strokes are measured and redrawn, and the room around

_PLACES = np.arange(SIDE, dtype=np.float32) - SIDE / 2  # of a pixel's upper or left edge, from the middle
# [784, 3]: a flat image times this is its mass, and its moments about the middle down and to the right.
_MOMENTS = np.stack(np.broadcast_arrays(np.float32(1), _PLACES[:, None], _PLACES), axis=-1).reshape(-1, 3)


class ImageError(ValueError):
    """A picture that cannot be read, or has no digit in it: what was expected and what was found, in one line."""

    index: int | None = None  # which image of a batch, where there is a batch


def decode(content: bytes, preprocess: Preprocess = "auto", max_pixels: int = MAX_PIXELS) -> Grey:
    """Return the picture in an encoded PNG, JPEG, WebP or GIF as the model takes it, uint8 [28, 28].

    `none` takes a picture of 28×28 as it is, in grey; `mnist` takes any through the whole procedure; `auto` leaves one
    alone that is in MNIST's form already, and takes every other through it. Of an animation, the first frame counts.
    Raises ImageError where the content is not such a picture, is damaged, has more than MAX_BYTES or `max_pixels`, has
    no ink (`auto`, `mnist`) or is not 28×28 (`none`); MemoryError where a limit of memory is set and too low for it.
    The time and memory of a hostile picture are limited by the process that calls this: see serve.decoder.
    """
    picture = _read(content, (SIDE, SIDE) if preprocess == "none" else None, max_pixels)
    grey = np.asarray(picture.convert("L"))
    if preprocess == "none" or (preprocess == "auto" and grey.shape == (SIDE, SIDE) and _in_form(grey[None])[0]):
        return grey
    return _procedure(np.asarray(_in_grey(picture)))


def prepare(pixels: Grey, preprocess: Preprocess = "auto") -> Grey:
    """Return raw grey pixels, uint8 [N, 28, 28], as the model takes them, uint8 [N, 28, 28]; see decode.

    Where nothing has to change, the same array is returned. Raises ImageError, its `index` the image's, where one has
    no ink; without an index where `pixels` are not uint8 [N, 28, 28].
    """
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (SIDE, SIDE):
        raise ImageError(f"expected pixels uint8 [N, 28, 28], found {pixels.dtype} {list(pixels.shape)}")
    if preprocess == "none":
        return pixels
    todo = range(len(pixels)) if preprocess == "mnist" else [i for i, fits in enumerate(_in_form(pixels)) if not fits]
    if not todo:
        return pixels
    result = pixels.copy()
    for index in todo:
        try:
            result[index] = _procedure(pixels[index])
        except ImageError as error:
            error.index = index
            raise
    return result


def _in_form(pixels: Grey) -> list[bool]:
    """Return which of the images, [N, 28, 28], are in MNIST's form: centred, of its size, on clean black.

    Every training image of MNIST has ink 19 or 20 pixels long, its centre of mass within half a pixel of the middle,
    and a peak of 254 or 255. A little more is let through: others follow the procedure with other roundings.
    """
    moments = (pixels.reshape(-1, SIDE * SIDE).astype(np.float32) @ _MOMENTS).tolist()
    rows, columns = pixels.max(axis=2), pixels.max(axis=1)  # the strongest of each: [N, 28]
    peaks = rows.max(axis=1).tolist()
    # No NumPy from here: for one image, and most requests have one, that takes half the time.
    down, across = rows.tobytes(), columns.tobytes()
    places = range(0, len(down), SIDE)
    lengths = [max(len(down[i : i + SIDE].strip(b"\0")), len(across[i : i + SIDE].strip(b"\0"))) for i in places]
    return [
        peak >= 200 and abs(y) <= mass and abs(x) <= mass and abs(length - BOX) <= 2
        for peak, (mass, y, x), length in zip(peaks, moments, lengths, strict=True)
    ]


# Reading: from bytes to an upright, opaque picture of at most 512 pixels a side, in grey or colour.


def _read(content: bytes, expected: tuple[int, int] | None, max_pixels: int) -> Image.Image:
    """Return the first frame, upright, opaque, L or RGB, at most WORKING_SIDE a side; or of the `expected` size."""
    if len(content) > MAX_BYTES:
        raise ImageError(f"expected a picture of at most {MAX_BYTES:,} bytes, found {len(content):,}")
    try:
        # Pillow warns of bombs, which are refused below, and of metadata, which is not used.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError(f"expected at most {max_pixels:,} pixels, found far more") from None
    except MemoryError:
        raise
    except Exception:  # Pillow's parsers raise what comes their way
        if content[8:12] == b"WEBP":  # libwebp reserves the memory for the whole picture when it is opened
            raise ImageError("expected a whole WebP picture, small enough for a decoder, found another") from None
        raise ImageError(
            f"expected a PNG, JPEG, WebP or GIF picture, found {len(content):,} bytes that are none"
        ) from None
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise ImageError(f"expected at most {max_pixels:,} pixels, found {width:,}×{height:,}")
    if expected and image.size != expected:
        raise ImageError(f"expected {expected[0]}×{expected[1]} pixels, found {width}×{height}")
    try:
        image.draft(None, (WORKING_SIDE, WORKING_SIDE))
        image.load()
        return _upright(_reduced(image), image)
    except MemoryError:
        raise
    except Exception:
        raise ImageError(f"expected a whole {image.format} picture, found it cut short or damaged") from None


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Turn the picture as its source's Exif says; damaged metadata does not damage a picture."""
    try:
        turn = TURNS.get(int(source.getexif().get(ORIENTATION, 1)))
    except Exception:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _reduced(image: Image.Image) -> Image.Image:
    """Return the picture opaque, L or RGB, with a side of at most WORKING_SIDE; a band at a time, to spare memory."""
    width, height = image.size
    factor = -(-max(width, height) // WORKING_SIDE)
    if factor == 1:
        result = _plain(image)
    else:
        rows = BAND * factor
        crops = (image.crop((0, top, width, min(height, top + rows))) for top in range(0, height, rows))
        bands = [_plain(crop).reduce(factor) for crop in crops]
        result = Image.new(bands[0].mode, (bands[0].width, sum(band.height for band in bands)))
        for index, band in enumerate(bands):
            result.paste(band, (0, index * BAND))
    if result.mode == "F":
        return _eight_bit(result)
    return _opaque(result) if result.mode == "RGBA" else result


def _plain(band: Image.Image) -> Image.Image:
    """Return the band in one of four modes: F where it has more than 8 bits, RGBA, L or RGB."""
    if band.mode[0] in "IF":  # I;16 and its kin are not converted by Pillow, but cut off at 255
        return Image.fromarray(np.asarray(band, np.float32))
    if band.has_transparency_data:
        return band.convert("RGBA")
    return band.convert("L" if band.mode in ("1", "L") else "RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Scale to 0–255 by the white that the values suggest: 1, 8, 12 or 16 bits."""
    values = np.asarray(picture)
    white = next(white for white in (1, 255, 4095, 65535) if values.max() <= white)
    return Image.fromarray((values / white * 255).round().astype(np.uint8))


def _opaque(picture: Image.Image) -> Image.Image:
    """Put what is behind a transparent picture: more of its paper, or else black or white, whichever its ink is not."""
    alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
    shades = np.asarray(picture.convert("L"), np.float32)
    if alpha.mean() > 0.5:
        fill = round(float(np.median(shades[alpha > 0.5])))
    else:
        fill = 255 if float((alpha * (shades - 127.5)).sum()) < 0 else 0
    behind = Image.new("RGBA", picture.size, (fill, fill, fill, 255))
    return Image.alpha_composite(behind, picture).convert("RGB")


def _in_grey(picture: Image.Image) -> Image.Image:
    """Return the picture in grey: its luminance, or where that tells too little apart, its leading colour difference.

    Yellow on white, blue on black, red on green: there the principal axis of the colours is taken.
    """
    if picture.mode == "L":
        return picture
    grey = picture.convert("L")
    sample = np.asarray(picture.resize((32, 32), Image.Resampling.BOX), np.float32).reshape(-1, 3)
    variances, axes = np.linalg.eigh(np.cov(sample.T))
    if float((sample @ LUMINANCE).var()) >= variances[-1] / 8:
        return grey
    values = np.asarray(picture, np.float32) @ axes[:, -1].astype(np.float32)
    return Image.fromarray(((values - values.min()) * (255 / max(float(np.ptp(values)), 1))).astype(np.uint8))


# The procedure: ink told from paper, fitted into 20×20 with MNIST's stroke width, centred in 28×28.


def _procedure(grey: Grey) -> Grey:
    """Return the digit in a picture, uint8 [H, W], in MNIST's form. Raises ImageError where it has no ink."""
    return _centred(_fitted(_ink(grey)))


def _ink(grey: Grey) -> Floats:
    """Return how much of each pixel the digit's ink covers, [H, W] of 0–1; all else is 0."""
    contrast = _contrast(grey)
    reach = max(grey.shape) / 256
    smooth = _blurred(contrast, reach)
    mark = _mark(smooth > max(MASK * float(smooth.max()), FAINT))
    level = float(np.percentile(contrast[mark], 75)) if mark.any() else 0
    if level <= GRAIN * _noise(contrast):
        raise ImageError("expected a picture of a digit, found no ink in it")
    near = _blurred(mark, 1 + 2 * reach) > 0
    return np.where(near, (contrast / level).clip(0, 1), np.float32(0))


def _contrast(grey: Grey) -> Floats:
    """Return how far each pixel is from the paper towards the ink: 0 the paper, 1 black on white or white on black."""
    paper, values = _paper(grey), grey.astype(np.float32)
    away = (values - paper).ravel()
    if away @ (away * away) > 0:  # the ink is the long tail; here it is the lighter
        values, paper = 255 - values, 255 - paper
    # Divided, for light falls on ink and paper alike.
    return ((paper - values) / np.maximum(paper, 1)).astype(np.float32, copy=False)


def _paper(grey: Grey) -> Floats:
    """Return the paper's grey behind each pixel, [H, W] or, where it is the same everywhere, [1, 1]."""
    height, width = grey.shape
    small = Image.fromarray(grey).resize((min(width, 32), min(height, 32)), Image.Resampling.BOX)
    values = np.asarray(small, np.float32)
    across, down = _powers(small.width), _powers(small.height)
    outer_x, outer_y = (abs(powers[:, 1]) >= 0.85 * powers[-1, 1] for powers in (across, down))
    corner, edge = outer_y[:, None] & outer_x, outer_y[:, None] | outer_x
    votes = np.bincount(values.round().astype(int).ravel(), (1 + 8 * corner).ravel(), minlength=256)
    shares = np.convolve(votes / votes.sum(), np.ones(3), "same")
    if shares.max() >= EVEN:
        return np.full((1, 1), values[abs(values - shares.argmax()) <= 1.5].mean(), np.float32)
    level = float(np.median(values[corner]))
    terms = (down[:, None, :, None] * across[:, None, :]).reshape(-1, 9)[:, QUADRATIC]
    surface = np.zeros(9, np.float32)
    surface[QUADRATIC] = _surface(terms, values, level, edge.ravel())
    return (_powers(height) @ surface.reshape(3, 3) @ _powers(width).T).astype(np.float32, copy=False)


def _surface(terms: Floats, values: Floats, level: float, edge: NDArray[np.bool_]) -> Floats:
    """Return the coefficients of the quadratic surface that most of `values` lie on, starting from a level one.

    By iteratively reweighted least squares with Cauchy's weights, first of the edges alone, where there is least ink.
    Their scale comes from what lies on the other side of the surface than the ink: there is nothing but grain.
    """
    values = values.ravel()
    side = 1 if values.mean() < level else -1
    surface = np.array([level, 0, 0, 0, 0, 0], np.float32)
    for step in range(10):
        residual = values - terms @ surface
        beyond = abs(residual[residual * side > 0])
        scale = max(1.0, 1.5 * float(np.median(beyond))) if beyond.size else 1.0
        weights = 1 / (1 + (residual / scale) ** 2)
        weights = np.sqrt(weights) * edge if step < 4 else weights  # at first less strict
        damped = terms.T @ (terms * weights[:, None]) + 0.01 * weights.sum() * np.eye(6, dtype=np.float32)
        surface += np.linalg.solve(damped, terms.T @ (weights * residual))
    return surface


def _powers(side: int) -> Floats:
    """Return 1, x and x² of where along a side, which spans −1 to 1, the middles of its pixels are: [side, 3]."""
    return np.vander(np.linspace(1 / side - 1, 1 - 1 / side, side, dtype=np.float32), 3, increasing=True)


def _noise(values: Floats) -> float:
    """Return the standard deviation of the grain, from second differences along rows: of strokes, few are in it."""
    bends = abs(values[::4, :-2] - 2 * values[::4, 1:-1] + values[::4, 2:])
    return float(np.percentile(bends, 25)) / (0.3186 * 6**0.5) if bends.size else 0.0  # 25 % of a normal: 0.3186 σ


def _blurred(values: NDArray[Any], reach: float) -> Floats:
    """Return values of 0–1 averaged over a square of `reach` pixels each way, in steps of 1/255."""
    picture = Image.fromarray((values.clip(0, 1) * np.float32(255)).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.BoxBlur(reach)), np.float32) / np.float32(255)


def _mark(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask less specks, parts small beside the largest; all False where it is nothing but specks."""
    height, width = mask.shape
    flat = np.zeros(height * (width + 1) + 1, np.bool_)  # a blank after each row keeps its runs from the next row's
    flat[:-1].reshape(height, width + 1)[:, :width] = mask
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    starts, ends = edges[::2], edges[1::2]
    labels = _connected(starts, ends, width + 1)
    areas = np.bincount(labels, weights=ends - starts, minlength=1)
    if areas.max() < max(SCATTERED * areas.sum(), 1):
        return np.zeros_like(mask)
    kept = areas[labels] >= SPECK * areas.max()
    steps = np.zeros(flat.shape, np.int8)
    steps[starts[kept]], steps[ends[kept]] = 1, -1
    return steps.cumsum(dtype=np.int8)[:-1].reshape(height, width + 1)[:, :width] > 0


def _connected(starts: NDArray[np.intp], ends: NDArray[np.intp], row: int) -> NDArray[np.intp]:
    """Return a label a run of ink, shared by all that touch, corners included; runs are places in rows of `row`."""
    first = np.searchsorted(ends, starts + row)  # of the runs a row below: the first that is not wholly left of it
    counts = np.maximum(np.searchsorted(starts, ends + row, side="right") - first, 0)
    above = np.repeat(np.arange(len(starts)), counts)
    below = np.arange(len(above)) + np.repeat(first - counts.cumsum() + counts, counts)
    labels, before = np.arange(len(starts)), np.empty(0, np.intp)
    while not np.array_equal(labels, before):  # each takes the lowest of its neighbours', and of its label's
        before = labels.copy()
        lowest = np.minimum(before[above], before[below])
        np.minimum.at(labels, before[above], lowest)
        np.minimum.at(labels, before[below], lowest)
        labels = labels[labels]
    return labels


def _box(cover: Floats, level: float) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of what is covered by more than `level`."""
    rows, columns = np.flatnonzero(cover.max(axis=1) > level), np.flatnonzero(cover.max(axis=0) > level)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _fit(cover: Floats, box: tuple[int, int, int, int], side: int, margin: int, resample: Image.Resampling) -> Floats:
    """Return the box of `cover`, its longer side made `side`, aspect kept, amid a square of `side` + 2 margins."""
    left, top, right, bottom = box
    scale = side / max(right - left, bottom - top)
    width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    small = Image.fromarray(cover).resize((width, height), resample, box=box)
    result = np.zeros((side + 2 * margin, side + 2 * margin), np.float32)
    y, x = margin + (side - height) // 2, margin + (side - width) // 2
    result[y : y + height, x : x + width] = np.asarray(small)
    return result


def _fitted(cover: Floats) -> Floats:
    """Return the ink fitted into 20×20, 0–1, its strokes redrawn where they are far from MNIST's width."""
    box = _box(cover, OUTLINE)
    large = _fit(cover, box, FINE, MARGIN, Image.Resampling.BICUBIC)
    mask = large > large.max() / 2
    width = _stroke(mask)
    goal = min(max(width * BOX / FINE, THINNEST), THICKEST)
    # What moves the outline by r makes the digit FINE + 2r long and its strokes width + 2r wide: solved for r.
    reach = (goal * FINE - width * BOX) / (2 * (BOX - goal))
    if abs(reach) > 0.01:
        cover = _redrawn(mask, reach)
        box = _box(cover, 0.5)
    return _fit(cover, box, BOX, 0, Image.Resampling.BOX)


def _stroke(mask: NDArray[np.bool_]) -> float:
    """Return the mean width of the strokes: twice their area over their outline's length."""
    outline = np.diff(mask, axis=0).sum() + np.diff(mask, axis=1).sum()  # of steps: 4/π of the curve's length
    return 2 * float(mask.sum()) / max(float(outline) * np.pi / 4, 1)


def _redrawn(mask: NDArray[np.bool_], reach: float) -> Floats:
    """Return the mask with its outline moved outwards by `reach`, inwards where negative, but not so far as to lose it.

    By the Euclidean distance to the outline, found axis by axis and no farther than needed.
    """
    source = mask if reach < 0 else ~mask
    span = int(abs(reach)) + 3
    squares = np.where(source, np.float32(span * span), np.float32(0))
    for turned in (squares.T, squares):  # views: what is written to one is in the other
        lines = turned.copy()
        for step in range(1, span):
            np.minimum(turned[step:], lines[:-step] + step * step, out=turned[step:])
            np.minimum(turned[:-step], lines[step:] + step * step, out=turned[:-step])
    distance = np.sqrt(squares) - 0.5  # to the edge between two pixels
    if reach > 0:
        return (reach + 0.5 - distance).clip(0, 1)
    return (distance - min(-reach, 0.6 * float(distance.max())) + 0.5).clip(0, 1)


def _centred(digit: Floats) -> Grey:
    """Return the digit, [20, 20] of 0–1, as grey in 28×28, its centre of mass in the middle as far as it fits."""
    values = (digit * 255).round().astype(np.uint8)
    places, mass = np.arange(BOX), max(int(values.sum()), 1)
    top, left = (
        min(max(round(SIDE / 2 - float(values.sum(axis=axis) @ places) / mass), 0), SIDE - BOX) for axis in (1, 0)
    )
    result = np.zeros((SIDE, SIDE), np.uint8)
    result[top : top + BOX, left : left + BOX] = values
    return result
