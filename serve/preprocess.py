"""Preprocessing: bring a grey picture of a digit into MNIST's form, 28×28, white ink on black. Arrays only.

The way of document imaging: background estimation, ink isolated from it, connected components, the choice of those that
are the digit; once in the whole picture and once more, finer, around the digit. Then stroke normalisation, and MNIST's
own procedure: the ink fitted into 20×20, its aspect ratio kept, its centre of mass in the middle of 28×28 (LeCun,
Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", 1998).

The constants were chosen on renderings of MNIST's training images (benchmarks/pictures.py --train).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Preprocess = Literal["auto", "none", "mnist"]
Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]  # top, bottom, left, right, in pixels

SIDE, BOX = 28, 20  # of the result, and of the box that the ink is fitted into
WORKING_SIDE = 96  # pixels: the ink is looked for in a picture reduced to this
THUMBNAIL_SIDE = 32  # pixels: enough to tell light ink from dark
LEVELS = 12  # thresholds of the decomposition
WINDOW = 0.3  # of the shorter side: what is darker and narrower is ink, what is wider is shadow or table
DARK = 40  # grey levels added to a background before it divides: a dark table's grain is not ink
ALIKE = 6  # grey levels between corners of one paper
OUTER = 0.4
UNSURE = 0.05
FAINT = 0.06  # contrast: less is no ink
MASK = 0.2  # of the strongest contrast: less is no ink
SPECK = 0.05  # of the largest component's ink: a smaller one is dirt
GRAIN = 5  # standard deviations of the noise: what stands out less is no ink
SMALLEST = 4  # pixels of the first look: a smaller digit could not be read
SCATTERED = 0.25  # of all ink: a choice of less is noise
INNER = 0.3  # of the largest component's ink: with so much inside, what touches the border is no digit
FRAME = 0.25  # of a component's size: if it encloses another so large, it is a frame
LONG = 1.2  # of the largest component's size: a longer one is a line
MARGIN = 0.35  # of the digit's size, around it, in the second look
BLOB = 0.43  # stroke width over size: a dot has 0.5
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
    """A connected component of ink: its label, its bounding box in pixels, and its ink (area times contrast)."""

    label: int
    top: int
    bottom: int
    left: int
    right: int
    ink: float

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

    Raises ImageError if the picture has no ink, only a dot, or several digits.
    """
    return _centred(_fitted(_ink(grey)))


def _ink(grey: Grey) -> Floats:
    """Return how much of each pixel around the digit its ink covers, float32 [H, W] of 0–1; all else is 0."""
    values = grey.astype(np.float32)
    height, width = values.shape
    thumbnail = _reduced(values, (0, height, 0, width), THUMBNAIL_SIDE)
    paper = _paper(thumbnail)
    if _ink_is_light(thumbnail, paper):
        values, paper = 255 - values, None if paper is None else 255 - paper
    box = (0.0, float(height), 0.0, float(width))
    looked = _reduced(values, box, WORKING_SIDE)
    contrast = _isolated(_flat(looked, paper), (paper,) * 4)
    labels, chosen = _digit(contrast)
    if chosen[0].size < SMALLEST or contrast[labels == chosen[0].label].max() <= GRAIN * _grain(looked):
        raise ImageError(NO_INK)
    _check_single(chosen, looked.shape[1])
    if max(grey.shape) > WORKING_SIDE:
        box = _around(chosen, box, height / looked.shape[0])
        looked = _reduced(values, box, WORKING_SIDE)
        at_edge = (box[0] == 0, box[1] == height, box[2] == 0, box[3] == width)
        contrast = _isolated(_flat(looked, paper), tuple(paper if edge else None for edge in at_edge))
        labels, chosen = _digit(contrast)
    return _cover(contrast, np.isin(labels, [component.label for component in chosen]))


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
    place = (border - border.min()) / np.ptp(border)
    sure = place[abs(place - 0.5) > 0.15] > 0.5
    light = place > 0.5
    if np.ptp(border) < 60 or (sure != np.roll(sure, 1)).sum() < 4 or OUTER < light.mean() < 1 - OUTER:
        return None
    return float(np.median(border[light == (light.mean() > 0.5)]))


def _ink_is_light(thumbnail: Floats, paper: float | None) -> bool:
    """Return whether the ink is lighter than the paper: ink is little, so that it is the long tail of the contrast.

    By the skewness of the contrast to the local median, and to the paper if that is known.
    """
    local = _skewness(thumbnail, ndimage.median_filter(thumbnail, 5 if paper is None else 7, mode="nearest"))
    if paper is not None:
        return local + _skewness(thumbnail, paper) > 0
    if abs(local) >= UNSURE:
        return local > 0
    light, dark = (_isolated(values, (None,) * 4).sum() for values in (255 - thumbnail, thumbnail))
    return bool(light > dark)


def _skewness(values: Floats, background: Floats | float) -> float:
    contrast = (values - background) / (np.maximum(values, background) + DARK / 2)
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
    return (
        float(np.percentile(bends, 25)) / (0.3186 * 6**0.5 * 255) if bends.size else 0.0
    )  # 25 % of a normal: 0.3186 σ


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
    inks = ndimage.sum_labels(contrast, labels, range(1, count + 1)).tolist()
    boxes = ndimage.find_objects(labels)
    found = [
        Component(number, y.start, y.stop, x.start, x.stop, ink)
        for number, ((y, x), ink) in enumerate(zip(boxes, inks, strict=True), start=1)
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
    marks = [component for component in found if not any(component.frames(other) for other in large)]
    chosen = [
        component
        for component in marks
        if component.ink >= SPECK * marks[0].ink and component.size <= LONG * marks[0].size
    ]
    if sum(component.ink for component in chosen) <= SCATTERED * sum(component.ink for component in marks):
        raise ImageError(NO_INK)
    return labels, chosen


def _check_single(chosen: list[Component], width: int) -> None:
    """Raise ImageError if the marks are plainly several digits: beside each other, apart, and alike in height."""
    tallest = max(component.bottom - component.top for component in chosen)
    marks = sorted((c for c in chosen if c.bottom - c.top >= 0.55 * tallest), key=lambda c: c.left)
    if len(marks) > 1 and all(b.left - a.right >= 0.04 * tallest for a, b in pairwise(marks)):
        places = " and ".join(f"{100 * c.left // width}–{100 * c.right // width} %" for c in marks)
        raise ImageError(f"expected one digit, found {len(marks)} separate marks, at {places} of the picture's width")


def _bounds(chosen: list[Component]) -> tuple[int, int, int, int]:
    return (
        min(component.top for component in chosen),
        max(component.bottom for component in chosen),
        min(component.left for component in chosen),
        max(component.right for component in chosen),
    )


def _around(chosen: list[Component], whole: Box, scale: float) -> Box:
    """Return the box around the digit, with a margin, in pixels of the picture; a pixel of the look has `scale`."""
    top, bottom, left, right = _bounds(chosen)
    margin = MARGIN * max(bottom - top, right - left) + 1
    return (
        max(0, np.floor((top - margin) * scale)),
        min(whole[1], np.ceil((bottom + margin) * scale)),
        max(0, np.floor((left - margin) * scale)),
        min(whole[3], np.ceil((right + margin) * scale)),
    )


def _cover(contrast: Floats, mark: NDArray[np.bool_]) -> Floats:
    """Return how much of each pixel the ink covers, 0–1: its contrast over that of full ink."""
    level = float(np.percentile(contrast[mark], 75))
    near = ndimage.maximum_filter(mark, 3)
    return np.where(near, (contrast / level).clip(0, 1), np.float32(0)).astype(np.float32, copy=False)


# MNIST's form.


def _reduced(values: Floats, box: Box, side: int) -> Floats:
    """Return the box of the picture with its longer side at most `side`."""
    top, bottom, left, right = box
    factor = max(bottom - top, right - left, side) / side
    return _resampled(values, box, max(1, round((bottom - top) / factor)), max(1, round((right - left) / factor)))


def _resampled(values: Floats, box: Box, height: int, width: int) -> Floats:
    """Return the box of the picture at another size: areas averaged where it shrinks, else bilinear."""
    top, bottom, left, right = box
    rows, columns = values.shape
    return np.asarray(_weights(top, bottom, height, rows) @ values @ _weights(left, right, width, columns).T)


def _weights(start: float, stop: float, count: int, size: int) -> Floats:
    """Return what each of `size` pixels counts in each of `count` between start and stop, float32 [count, size]."""
    step = (stop - start) / count
    first = start + step * np.arange(count)[:, None]
    pixel = np.arange(size)
    if step >= 1:
        weights = (np.minimum(pixel + 1, first + step) - np.maximum(pixel, first)).clip(0)
    else:
        weights = (1 - abs(pixel + 0.5 - (first + step / 2).clip(0.5, size - 0.5))).clip(0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _fit(cover: Floats, level: float, side: int, margin: int) -> Floats:
    """Return what is covered by more than `level`, its longer side made `side`, amid a square of `side` + 2 margins."""
    rows, columns = (np.flatnonzero(cover.max(axis=axis) > level) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    scale = side / max(bottom - top, right - left)
    height, width = max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale))
    y, x = margin + (side - height) // 2, margin + (side - width) // 2
    result = np.zeros((side + 2 * margin, side + 2 * margin), np.float32)
    result[y : y + height, x : x + width] = _resampled(cover, (top, bottom, left, right), height, width)
    return result


def _fitted(cover: Floats) -> Floats:
    """Return the ink fitted into 20×20, 0–1, its strokes redrawn if they are far from MNIST's width."""
    large = _fit(cover, 0.2, FINE, AROUND)
    mask = large > large.max() / 2
    width = _stroke_width(mask)
    if width > BLOB * FINE:
        raise ImageError(NO_INK)
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
    values = (digit * 255).round().astype(np.uint8)
    places, mass = np.arange(BOX), max(int(values.sum()), 1)
    top, left = (
        min(max(round(SIDE / 2 - float(values.sum(axis=axis) @ places) / mass), 0), SIDE - BOX) for axis in (1, 0)
    )
    result = np.zeros((SIDE, SIDE), np.uint8)
    result[top : top + BOX, left : left + BOX] = values
    return result
