"""Preprocessing: bring a grey picture of a digit into MNIST's form, 28×28, white ink on black. Arrays only.

The way of document imaging: background estimation, ink isolated from it, connected components, the choice of those that
are the digit; once in the whole picture and once more, finer, around the digit. Then stroke normalisation, and MNIST's
own procedure: the ink fitted into 20×20, its aspect ratio kept, its centre of mass in the middle of 28×28 (LeCun,
Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", 1998).

The constants were chosen on renderings of MNIST's training images (benchmarks/pictures.py --train).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Preprocess = Literal["auto", "none", "mnist"]
Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]

SIDE, BOX = 28, 20  # of the result, and of the box that the ink is fitted into
WORKING_SIDE = 80  # pixels: the ink is looked for in a picture reduced to this
THUMBNAIL_SIDE = 40  # pixels: enough to tell light ink from dark
LEVELS = 12  # thresholds of the decomposition
WINDOW = 0.3  # of the shorter side: what is darker and narrower is ink, what is wider is shadow or table
DARK = 40  # grey levels added to a background before it divides: a dark table's grain is not ink
ALIKE = 24  # grey levels between the corners of a paper that is evenly lit
OUTER = 0.45  # of the border: if both greys have more, neither is the paper around
FAINT = 0.06  # contrast: less is no ink
MASK = 0.2  # of the strongest contrast: less is no ink
SPECK = 0.05  # of the largest component's ink: a smaller one is dirt
GRAIN = 6  # standard deviations of the noise: what stands out less is no ink
SMALLEST = 4  # pixels of the first look: a smaller digit could not be read
SCATTERED = 0.25  # of all ink: a choice of less is noise
INNER = 0.1  # of the largest component's ink: with so much inside, what touches the border is no digit
FRAME = 0.25  # of a component's size: if it encloses another so large, it is a frame
LIKE = 0.6  # of the largest component's contrast: a fainter one is of another pen, grain or shadow
TALL, GAP = 0.55, 0.015  # of the tallest: marks of that height, so far apart, are several digits
LONG = 1.4  # of the largest component's size: a longer one is a line
NEARBY = 0.1  # of the digit's size: where the ink is that a pixel is compared with
FADED = 0.3  # of the ink's usual contrast: fainter than that, a pixel is not brought up to full ink
MARGIN = 0.35  # of the digit's size, around it, in the second look
THINNEST, THICKEST = 2.2, 2.8  # strokes of the result, in pixels: a third of MNIST's are thinner, a third thicker
FINE, AROUND = 80, 20  # pixels: the size at which strokes are measured and redrawn, and the room around

NO_INK = "expected a picture of a digit, found no ink in it"
TOUCHING = np.ones((3, 3), np.int8)  # neighbours at corners count
_PLACES = np.arange(SIDE, dtype=np.float32) - SIDE / 2  # of a pixel's upper or left edge, from the middle
# [784, 3]: a flat image times this is its mass, and its moments about the middle down and to the right.
_MOMENTS = np.stack(np.broadcast_arrays(np.float32(1), _PLACES[:, None], _PLACES), axis=-1).reshape(-1, 3)


class ImageError(ValueError):
    """A picture that cannot be read, or has no digit in it: what was expected and what was found, in one line."""

    index: int | None = None  # which image of a batch, if there is a batch


@dataclass(frozen=True)
class Component:
    """A connected component of ink: its label, its bounding box in pixels, its ink (area × contrast), its contrast."""

    label: int
    top: int
    bottom: int
    left: int
    right: int
    ink: float
    contrast: float

    @property
    def size(self) -> int:
        """The longer side of its box."""
        return max(self.bottom - self.top, self.right - self.left)

    def frames(self, other: "Component") -> bool:
        """Return whether it encloses `other`, and `other` is too large to be dirt in the hole of a digit."""
        return (
            self.top < other.top
            and self.left < other.left
            and self.bottom > other.bottom
            and self.right > other.right
            and other.size >= FRAME * self.size
            and other.ink >= 0.1 * self.ink
        )


def prepare(pixels: Grey, preprocess: Preprocess = "auto") -> Grey:
    """Return raw grey pixels, uint8 [N, 28, 28], as the model takes them, uint8 [N, 28, 28]; see images.decode.

    If nothing has to change, the same array is returned. Raises ImageError, its `index` the image's, if one has no
    ink; without an index if `pixels` are not uint8 [N, 28, 28].
    """
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (SIDE, SIDE):
        raise ImageError(f"expected pixels uint8 [N, 28, 28], found {pixels.dtype} {list(pixels.shape)}")
    if preprocess == "none":
        return pixels
    todo = range(len(pixels)) if preprocess == "mnist" else [i for i, fits in enumerate(in_form(pixels)) if not fits]
    if not todo:
        return pixels
    result = pixels.copy()
    for index in todo:
        try:
            result[index] = to_mnist(pixels[index])
        except ImageError as error:
            error.index = index
            raise
    return result


def in_form(pixels: Grey) -> list[bool]:
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


def to_mnist(grey: Grey) -> Grey:
    """Return the digit in a picture, uint8 [H, W], in MNIST's form, uint8 [28, 28].

    Raises ImageError if the picture has no ink or several digits.
    """
    return _centred(_fitted(_ink(grey)))


def _ink(grey: Grey) -> Floats:
    """Return how much of each pixel around the digit its ink covers, float32 [H, W] of 0–1; all else is 0.

    Looks twice: at the whole picture, for where the digit is, and at the digit with its surroundings.
    """
    look = _reduced(grey.astype(np.float32), WORKING_SIDE)
    thumbnail = _reduced(look, THUMBNAIL_SIDE)
    paper = _paper(thumbnail)
    if _ink_is_light(thumbnail, paper):
        grey, look, paper = 255 - grey, 255 - look, None if paper is None else 255 - paper
    contrast = _isolated(_flat(look, paper), (paper,) * 4)
    labels, chosen = _digit(contrast)
    if chosen[0].size < SMALLEST or contrast[labels == chosen[0].label].max() <= GRAIN * _grain(look):
        raise ImageError(NO_INK)
    _check_single(chosen, look.shape[1])
    if look.shape != grey.shape:
        height, width = grey.shape
        top, bottom, left, right = _around(chosen, height / look.shape[0])
        look = _reduced(grey[top:bottom, left:right].astype(np.float32), WORKING_SIDE)
        at_border = (top == 0, bottom >= height, left == 0, right >= width)
        contrast = _isolated(_flat(look, paper), tuple(paper if border else None for border in at_border))
        labels, chosen = _digit(contrast)
    return _cover(contrast, np.isin(labels, [component.label for component in chosen]), chosen[0].size)


# The background, and whether the ink is lighter than it.


def _perimeter(values: Floats) -> Floats:
    """Return the pixels of the border, in their order around the picture."""
    return np.concatenate([values[0], values[1:, -1], values[-1, -2::-1], values[-2:0:-1, 0]])


def _paper(thumbnail: Floats) -> float | None:
    """Return the grey of the paper if it surrounds the ink: one grey in all corners, or ink that crosses the border.

    Shadows and tables meet the border once; a digit that is cropped to its ink meets it at several places.
    """
    corners = [thumbnail[y, x].mean() for y in (slice(2), slice(-2, None)) for x in (slice(2), slice(-2, None))]
    if np.ptp(corners) <= ALIKE:
        return float(np.median(corners))
    border = _perimeter(thumbnail)
    place = (border - border.min()) / max(float(np.ptp(border)), 1)
    sure = place[abs(place - 0.5) > 0.15] > 0.5
    light = place > 0.5
    if np.ptp(border) < 60 or (sure != np.roll(sure, 1)).sum() < 4 or OUTER < light.mean() < 1 - OUTER:
        return None
    return float(np.median(border[light == (light.mean() > 0.5)]))


def _ink_is_light(thumbnail: Floats, paper: float | None) -> bool:
    """Return whether the ink is lighter than the paper, by the skewness of the contrast: ink is little, a long tail.

    If the paper is not known, dark contrasts count more: most pictures of uneven light are of dark ink.
    """
    local = ndimage.median_filter(thumbnail, 5, mode="nearest")
    if paper is None:
        return _skewness((thumbnail - local) / (thumbnail + 120)) > 0
    to_local, to_paper = ((thumbnail - level) / (np.maximum(thumbnail, level) + 20) for level in (local, paper))
    return _skewness(to_local) + 2 * _skewness(to_paper) > 0


def _skewness(contrast: Floats) -> float:
    return float((contrast**3).sum() / (float((contrast**2).sum()) ** 1.5 + 1e-9))


def _flat(values: Floats, paper: float | None) -> Floats:
    """Return the picture, dark ink on light, with its light evened out, by a morphological closing, if it is uneven."""
    if paper is not None:
        return values
    side = max(3, int(WINDOW * min(values.shape))) | 1
    background = ndimage.grey_closing(values, (side, side), mode="nearest")
    return np.asarray(values / np.maximum(background, 1) * 255, np.float32)


def _grain(values: Floats) -> float:
    """Return the standard deviation of the noise, as contrast, from second differences along rows: few are strokes."""
    bends = abs(np.diff(values, 2, axis=1))
    if not bends.size:
        return 0.0
    return float(np.percentile(bends, 25)) / (0.3186 * 6**0.5 * 255)  # 25 % of a normal distribution is within 0.3186 σ


# The ink.


def _isolated(values: Floats, outside: tuple[float | None, ...]) -> Floats:
    """Return the contrast, 0–1, of dark regions to the light that surrounds them; 0 for what reaches the border.

    By threshold decomposition: of the components darker than each of LEVELS thresholds, those that do not touch the
    border. `outside` is the paper beyond the top, bottom, left and right border; None: unknown.
    """
    padded: Floats = np.pad(values, 1, mode="edge")
    edges: tuple[Any, ...] = (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])
    for edge, paper in zip(edges, outside, strict=True):
        if paper is not None:
            padded[edge] = paper
    depth = np.zeros(padded.shape, np.float32)
    steps = np.linspace(padded.min(), padded.max(), LEVELS + 1)
    for low, high in pairwise(steps):
        labels, count = ndimage.label(padded < (low + high) / 2, TOUCHING)
        depths = np.full(count + 1, high - low, np.float32)
        depths[0] = 0
        depths[_perimeter(labels)] = 0
        depth += depths[labels]
    return np.asarray((depth / (padded + depth + DARK))[1:-1, 1:-1], np.float32)


def _components(contrast: Floats) -> tuple[NDArray[np.int32], list[Component]]:
    """Return the labels of connected ink, [H, W], and the components, the largest first."""
    rank = min(max(3, contrast.size // 1_000), contrast.size)
    top = float(np.partition(contrast, -rank, axis=None)[-rank])
    labels, count = ndimage.label(contrast > max(MASK * top, FAINT), TOUCHING)
    inks = np.bincount(labels.ravel(), contrast.ravel(), count + 1)[1:]
    contrasts = inks / np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes = ndimage.find_objects(labels)
    found = [
        Component(number, y.start, y.stop, x.start, x.stop, *of_it)
        for number, ((y, x), *of_it) in enumerate(zip(boxes, inks.tolist(), contrasts.tolist(), strict=True), start=1)
    ]
    return labels, sorted(found, key=lambda component: -component.ink)


def _digit(contrast: Floats) -> tuple[NDArray[np.int32], list[Component]]:
    """Return the labels of connected ink, [H, W], and the components that are the digit: no frame, no line, no dirt.

    Raises ImageError if there are none.
    """
    labels, found = _components(contrast)
    height, width = labels.shape
    inner = [c for c in found if c.top > 0 and c.left > 0 and c.bottom < height and c.right < width]
    found = inner if inner and inner[0].ink >= INNER * found[0].ink else found
    large = found[:50]
    frames = [component for component in large if any(component.frames(other) for other in large)]
    marks = [component for component in found if component not in frames]
    chosen = [
        component
        for component in marks
        if component.ink >= SPECK * marks[0].ink
        and component.size <= LONG * marks[0].size
        and component.contrast >= LIKE * marks[0].contrast
    ]
    if sum(component.ink for component in chosen) <= SCATTERED * sum(component.ink for component in marks):
        raise ImageError(NO_INK)
    return labels, chosen


def _check_single(chosen: list[Component], width: int) -> None:
    """Raise ImageError if the marks are plainly several digits: beside each other, apart, and alike in height."""
    tallest = max(component.bottom - component.top for component in chosen)
    marks = sorted((c for c in chosen if c.bottom - c.top >= TALL * tallest), key=lambda c: c.left)
    if len(marks) > 1 and all(b.left - a.right >= GAP * tallest for a, b in pairwise(marks)):
        places = " and ".join(f"{100 * c.left // width}–{100 * c.right // width} %" for c in marks)
        raise ImageError(f"expected one digit, found {len(marks)} separate marks, at {places} of the picture's width")


def _around(chosen: list[Component], scale: float) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of the digit and a margin; the picture's pixels are `scale` to the look's."""
    top, bottom = min(component.top for component in chosen), max(component.bottom for component in chosen)
    left, right = min(component.left for component in chosen), max(component.right for component in chosen)
    margin = MARGIN * max(bottom - top, right - left) + 1
    first = (max(0, math.floor((side - margin) * scale)) for side in (top, left))
    last = (math.ceil((side + margin) * scale) for side in (bottom, right))
    return next(first), next(last), next(first), next(last)


def _cover(contrast: Floats, mark: NDArray[np.bool_], size: int) -> Floats:
    """Return how much of each pixel the ink covers, 0–1: its contrast over that of the ink nearby.

    Ink in a lamp's glare or of a light hand has less contrast than the rest. `size` is the digit's, in pixels.
    """
    side = max(3, int(NEARBY * size)) | 1
    level = float(np.percentile(contrast[mark], 75))
    nearby = ndimage.maximum_filter(np.where(mark, contrast, 0), side)
    nearby = ndimage.uniform_filter(nearby, side).clip(FADED * level, level)
    near = ndimage.maximum_filter(mark, 3)
    return np.where(near, (contrast / nearby).clip(0, 1), np.float32(0)).astype(np.float32, copy=False)


# MNIST's form.


def _reduced(values: Floats, side: int) -> Floats:
    """Return the picture with its longer side at most `side`."""
    factor = max(*values.shape, side) / side
    height, width = (max(1, round(length / factor)) for length in values.shape)
    return _resampled(values, height, width)


def _resampled(values: Floats, height: int, width: int) -> Floats:
    """Return the picture at another size: areas averaged where it shrinks, else bilinear."""
    return np.asarray(_weights(values.shape[0], height) @ values @ _weights(values.shape[1], width).T)


@lru_cache(maxsize=256)
def _weights(size: int, count: int) -> Floats:
    """Return what each of `size` pixels counts in each of `count` pixels in their place, float32 [count, size]."""
    step = size / count
    first, pixel = step * np.arange(count)[:, None], np.arange(size)
    if step >= 1:
        weights = (np.minimum(pixel + 1, first + step) - np.maximum(pixel, first)).clip(0)
    else:
        weights = (1 - abs(pixel + 0.5 - (first + step / 2).clip(0.5, size - 0.5))).clip(0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _fit(cover: Floats, level: float, side: int, margin: int) -> Floats:
    """Return what is covered by more than `level`, its longer side made `side`, amid a square of `side` + 2 margins."""
    rows, columns = (np.flatnonzero(cover.max(axis=axis) > level) for axis in (1, 0))
    ink = cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = side / max(ink.shape)
    height, width = (max(1, round(length * scale)) for length in ink.shape)
    y, x = margin + (side - height) // 2, margin + (side - width) // 2
    result = np.zeros((side + 2 * margin, side + 2 * margin), np.float32)
    result[y : y + height, x : x + width] = _resampled(ink, height, width)
    return result


def _fitted(cover: Floats) -> Floats:
    """Return the ink fitted into 20×20, 0–1, its strokes redrawn if they are far from MNIST's width."""
    large = _fit(cover, 0.2, FINE, AROUND)
    mask = large > large.max() / 2
    width = _stroke_width(mask)
    goal = min(max(width * BOX / FINE, THINNEST), THICKEST)
    # What moves the outline by r makes the digit FINE + 2r long and its strokes width + 2r wide: solved for r.
    reach = (goal * FINE - width * BOX) / (2 * (BOX - goal))
    if abs(reach) > 0.01:
        return _fit(_redrawn(mask, reach), 0.5, BOX, 0)
    return _fit(cover, 0.2, BOX, 0)


def _stroke_width(mask: NDArray[np.bool_]) -> float:
    """Return the mean width of the strokes: twice their area over their outline's length."""
    outline = np.diff(mask, axis=0).sum() + np.diff(mask, axis=1).sum()  # of steps: 4/π of the curve's length
    return 2 * float(mask.sum()) / max(float(outline) * np.pi / 4, 1)


def _redrawn(mask: NDArray[np.bool_], reach: float) -> Floats:
    """Return the mask with its outline moved outwards by `reach`, inwards if negative, but not so far as to lose it."""
    distance = ndimage.distance_transform_edt(mask if reach < 0 else ~mask) - 0.5  # to the edge between two pixels
    if reach > 0:
        return np.asarray((reach + 0.5 - distance).clip(0, 1), np.float32)
    return np.asarray((distance - min(-reach, 0.6 * float(distance.max())) + 0.5).clip(0, 1), np.float32)


def _centred(digit: Floats) -> Grey:
    """Return the digit, [20, 20] of 0–1, as grey in 28×28, its centre of mass in the middle as far as it fits."""
    values = (digit * (255 / digit.max())).round().astype(np.uint8)
    places, mass = np.arange(BOX), max(int(values.sum()), 1)
    top, left = (
        min(max(round(SIDE / 2 - float(values.sum(axis=axis) @ places) / mass), 0), SIDE - BOX) for axis in (1, 0)
    )
    result = np.zeros((SIDE, SIDE), np.uint8)
    result[top : top + BOX, left : left + BOX] = values
    return result
