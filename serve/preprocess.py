"""Preprocessing: bring a grey picture of a digit into MNIST's form, 28×28, white ink on black. Arrays only.

The steps are those of document imaging: background estimation, isolation of the ink, connected components, and the
choice of the components that are the digit. They run on the whole picture, and again on the digit's surroundings at a
higher resolution. Stroke width normalisation follows, and MNIST's own procedure: the ink is fitted into 20×20, its
aspect ratio is kept, and its centre of mass is put in the middle of 28×28 (LeCun, Bottou, Bengio & Haffner,
"Gradient-based learning applied to document recognition", 1998).

The constants were chosen on renderings of MNIST's training images.
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

SIDE, BOX = 28, 20  # pixels: of the result, and of the box that the ink is fitted into
WORKING_SIDE = 80  # pixels: the longer side of the picture that the ink is searched in
THUMBNAIL_SIDE = 40  # pixels: of the picture that the background and the polarity are estimated from
LEVELS = 8  # thresholds of the decomposition
CLEAN = 16  # grey levels: the largest difference along a border that nothing crosses
WINDOW = 0.3  # of the shorter side: the window of the closing; ink is narrower, a shadow or a table is wider
DARK = 40  # grey levels added to the background before dividing, so that the texture of a dark table is not ink
ALIKE = 24  # grey levels: the largest difference within a uniform background
OUTER = 0.45  # of the border's pixels: if light and dark both have more, neither is the background
FAINT = 0.06  # contrast: the least that ink has
MASK = 0.2  # of the strongest contrast: the least that ink has
DIRT = 0.05  # of the largest component's ink: a component with less is dirt
NOISE = 6  # standard deviations of the noise: the least contrast that ink has
SMALLEST = 4  # pixels of the reduced picture: the size of the smallest digit that can be read
SCATTERED = 0.25  # of all ink: if the chosen components have less, the picture is noise
INNER = 0.1  # of the largest component's ink: if a component inside has so much, those at the border are not the digit
FRAME = 0.25  # of a component's size: if it encloses another component so large, it is a frame
LIKE = 0.6  # of the largest component's contrast: a fainter component is texture or shadow
TALL, GAP = 0.55, 0.015  # of the tallest component's height: the height of another digit, and the gap before it
NEARBY = 0.1  # of the digit's size: the window in which a pixel is compared with the strongest ink
FADED = 0.3  # of the ink's typical contrast: the least that a pixel is compared with
MARGIN = 0.35  # of the digit's size: the margin around it in the second pass
THINNEST, THICKEST = 2.2, 2.8  # pixels: stroke width of the result; a third of MNIST's are thinner, a third thicker
DOT = 0.43  # of the ink's size: the least stroke width of a dot; a disc has 0.5
FINE, AROUND = 80, 20  # pixels: the size at which strokes are measured and redrawn, and the margin there

NO_INK = "expected a picture of a digit, found no ink in it"
EIGHT_CONNECTED = np.ones((3, 3), np.int8)
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
    return _centred(_fitted(_foreground(grey)))


def _foreground(grey: Grey) -> Floats:
    """Return the digit's ink, float32 [H, W] of 0 (background) to 1 (full ink), of the digit's surroundings alone.

    Two passes: the first finds the digit in the whole picture, the second reads it at a higher resolution.
    """
    reduced = _reduced(grey.astype(np.float32), WORKING_SIDE)
    thumbnail = _reduced(reduced, THUMBNAIL_SIDE)
    background = _uniform_background(thumbnail)
    light = _ink_is_light(thumbnail, background)
    if background is not None and light == (background > thumbnail.mean()):
        background = None  # it is not the paper: the picture's border is a table
    if light:
        grey, reduced = 255 - grey, 255 - reduced
        background = None if background is None else 255 - background
    contrast = _contrast(_evenly_lit(reduced, background), (background,) * 4)
    labels, chosen = _digit(contrast)
    if chosen[0].size < SMALLEST or contrast[labels == chosen[0].label].max() <= NOISE * _noise(reduced):
        raise ImageError(NO_INK)
    _check_single(chosen, reduced.shape[1])
    if reduced.shape != grey.shape:
        height, width = grey.shape
        top, bottom, left, right = _surroundings(chosen, height / reduced.shape[0])
        reduced = _reduced(grey[top:bottom, left:right].astype(np.float32), WORKING_SIDE)
        at_border = (top == 0, bottom >= height, left == 0, right >= width)
        contrast = _contrast(_evenly_lit(reduced, background), tuple(background if at else None for at in at_border))
        labels, chosen = _digit(contrast)
    mask = np.isin(labels, [component.label for component in chosen])
    return _normalised(contrast, mask, chosen[0].size)


# Background and polarity.


def _perimeter(values: Floats) -> Floats:
    """Return the pixels of the border, in their order around the picture."""
    return np.concatenate([values[0], values[1:, -1], values[-1, -2::-1], values[-2:0:-1, 0]])


def _uniform_background(thumbnail: Floats) -> float | None:
    """Return the grey level of the background if it is uniform and surrounds the ink, else None.

    It is if all corners are alike, or if the border changes between light and dark four times or more: a digit that is
    cropped to its ink touches the border at several places, a shadow or a table touches it once.
    """
    corners = [thumbnail[y, x].mean() for y in (slice(2), slice(-2, None)) for x in (slice(2), slice(-2, None))]
    if np.ptp(corners) <= ALIKE:
        return float(np.median(corners))
    border = _perimeter(thumbnail)
    level = (border - border.min()) / max(float(np.ptp(border)), 1)
    clear = level[abs(level - 0.5) > 0.15] > 0.5
    light = level > 0.5
    if np.ptp(border) < 60 or (clear != np.roll(clear, 1)).sum() < 4 or OUTER < light.mean() < 1 - OUTER:
        return None
    return float(np.median(border[light == (light.mean() > 0.5)]))


def _ink_is_light(thumbnail: Floats, background: float | None) -> bool:
    """Return whether the ink is lighter than the background (polarity), by the skewness of the contrast.

    Ink covers less of the picture than the background, so that its contrast is the long tail of the distribution. If
    the background is not uniform, dark contrasts count more: most such pictures have dark ink.
    """
    if background is not None and background > 127 and thumbnail.max() <= background + CLEAN:
        return False  # also if the strokes are so thick that what they enclose looks like ink
    median = ndimage.median_filter(thumbnail, 7, mode="nearest")
    if background is None:
        return _skewness((thumbnail - median) / (thumbnail + 120)) > 0
    local, uniform = ((thumbnail - level) / (np.maximum(thumbnail, level) + 20) for level in (median, background))
    return _skewness(local) + 2 * _skewness(uniform) > 0


def _skewness(contrast: Floats) -> float:
    """Return the skewness about zero, times a factor that depends on the number of values alone."""
    return float((contrast**3).sum() / (float((contrast**2).sum()) ** 1.5 + 1e-9))


def _evenly_lit(values: Floats, background: float | None) -> Floats:
    """Return the picture, dark ink on light, divided by its background: a morphological closing removes the ink.

    A picture of uniform background is returned as it is.
    """
    if background is not None:
        return values
    side = max(3, int(WINDOW * min(values.shape))) | 1
    closing = ndimage.grey_closing(values, (side, side), mode="nearest")
    return np.asarray(values / np.maximum(closing, 1) * 255, np.float32)


def _noise(values: Floats) -> float:
    """Return the standard deviation of the noise, 0–1, estimated from second differences along rows."""
    differences = abs(np.diff(values, 2, axis=1))
    if not differences.size:
        return 0.0
    # A quarter of a normal distribution lies within 0.3186 σ; a second difference has √6 times the σ of a pixel.
    return float(np.percentile(differences, 25)) / (0.3186 * 6**0.5 * 255)


# Ink and its connected components.


def _contrast(values: Floats, outside: tuple[float | None, ...]) -> Floats:
    """Return the contrast, 0–1, of dark regions to the light that surrounds them; 0 for regions at the border.

    By threshold decomposition: for each of LEVELS thresholds, the connected components that are darker and do not touch
    the border are added up. If the border is of one grey, that is the difference from it, in steps. `outside` is the
    background beyond the top, bottom, left and right border, or None if that is unknown.
    """
    padded: Floats = np.pad(values, 1, mode="edge")
    edges: tuple[Any, ...] = (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])
    for edge, background in zip(edges, outside, strict=True):
        if background is not None:
            padded[edge] = background
    border = _perimeter(padded)
    thresholds, step = np.linspace(padded.min(), padded.max(), LEVELS, endpoint=False, retstep=True)
    if np.ptp(border) <= CLEAN:
        depth = ((np.median(border) - padded) / max(step, 1e-3)).clip(0).round() * step
    else:
        depth = np.zeros(padded.shape, np.float32)
        for threshold in thresholds + step / 2:
            labels, count = ndimage.label(padded < threshold, EIGHT_CONNECTED)
            depths = np.full(count + 1, step, np.float32)
            depths[0] = 0
            depths[_perimeter(labels)] = 0
            depth += depths[labels]
    return np.asarray((depth / (padded + depth + DARK))[1:-1, 1:-1], np.float32)


def _components(contrast: Floats) -> tuple[NDArray[np.int32], list[Component]]:
    """Return the labels of the ink's connected components, [H, W], and the components, the largest first."""
    rank = min(max(3, contrast.size // 1_000), contrast.size)
    top = float(np.partition(contrast, -rank, axis=None)[-rank])
    labels, count = ndimage.label(contrast > max(MASK * top, FAINT), EIGHT_CONNECTED)
    inks = np.bincount(labels.ravel(), contrast.ravel(), count + 1)[1:]
    contrasts = inks / np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes = ndimage.find_objects(labels)
    found = [
        Component(number, y.start, y.stop, x.start, x.stop, *of_it)
        for number, ((y, x), *of_it) in enumerate(zip(boxes, inks.tolist(), contrasts.tolist(), strict=True), start=1)
    ]
    return labels, sorted(found, key=lambda component: -component.ink)


def _frames(frame: Component, other: Component, labels: NDArray[np.int32]) -> bool:
    """Return whether `frame` is on all four sides of `other`, and `other` is too large to be dirt in a digit's hole."""
    if other.size < FRAME * frame.size or other.ink < 0.1 * frame.ink:
        return False
    y, x = (other.top + other.bottom) // 2, (other.left + other.right) // 2
    sides = labels[y, : other.left], labels[y, other.right :], labels[: other.top, x], labels[other.bottom :, x]
    return all(frame.label in side for side in sides)


def _digit(contrast: Floats) -> tuple[NDArray[np.int32], list[Component]]:
    """Return the labels of the ink's connected components, [H, W], and the components that are the digit.

    Frames, dirt, texture and what touches the border are left out. Raises ImageError if nothing is left.
    """
    labels, found = _components(contrast)
    height, width = labels.shape
    inner = [c for c in found if c.top > 0 and c.left > 0 and c.bottom < height and c.right < width]
    found = inner if inner and inner[0].ink >= INNER * found[0].ink else found
    large = found[:50]
    frames = [component for component in large if any(_frames(component, other, labels) for other in large)]
    candidates = [component for component in found if component not in frames]
    chosen = [
        component
        for component in candidates
        if component.ink >= DIRT * candidates[0].ink and component.contrast >= LIKE * candidates[0].contrast
    ]
    if sum(component.ink for component in chosen) <= SCATTERED * sum(component.ink for component in candidates):
        raise ImageError(NO_INK)
    return labels, chosen


def _check_single(chosen: list[Component], width: int) -> None:
    """Raise ImageError if the components are several digits: beside each other, with gaps, of similar height."""
    tallest = max(component.bottom - component.top for component in chosen)
    digits = sorted((c for c in chosen if c.bottom - c.top >= TALL * tallest), key=lambda c: c.left)
    if len(digits) > 1 and all(b.left - a.right >= GAP * tallest for a, b in pairwise(digits)):
        places = " and ".join(f"{100 * c.left // width}–{100 * c.right // width} %" for c in digits)
        raise ImageError(f"expected one digit, found {len(digits)} separate marks, at {places} of the picture's width")


def _surroundings(chosen: list[Component], scale: float) -> tuple[int, int, int, int]:
    """Return the bounding box of the digit with a margin: top, bottom, left, right, in pixels of the whole picture.

    `scale` is the size of a pixel of the reduced picture in pixels of the whole one.
    """
    top, bottom = min(component.top for component in chosen), max(component.bottom for component in chosen)
    left, right = min(component.left for component in chosen), max(component.right for component in chosen)
    margin = MARGIN * max(bottom - top, right - left) + 1
    return (
        max(0, math.floor((top - margin) * scale)),
        math.ceil((bottom + margin) * scale),
        max(0, math.floor((left - margin) * scale)),
        math.ceil((right + margin) * scale),
    )


def _normalised(contrast: Floats, mask: NDArray[np.bool_], size: int) -> Floats:
    """Return the ink in `mask`, 0–1: its contrast divided by that of the strongest ink nearby.

    Ink in glare, or of a light hand, has less contrast than the rest. `size` is the digit's, in pixels.
    """
    side = max(3, int(NEARBY * size)) | 1
    typical = float(np.percentile(contrast[mask], 75))
    nearby = ndimage.maximum_filter(np.where(mask, contrast, 0), side)
    nearby = ndimage.uniform_filter(nearby, side).clip(FADED * typical, typical)
    dilated = ndimage.maximum_filter(mask, 3)
    return np.where(dilated, (contrast / nearby).clip(0, 1), np.float32(0)).astype(np.float32, copy=False)


# MNIST's form.


def _reduced(values: Floats, side: int) -> Floats:
    """Return the picture with its longer side at most `side`."""
    factor = max(*values.shape, side) / side
    height, width = (max(1, round(length / factor)) for length in values.shape)
    return _resampled(values, height, width)


def _resampled(values: Floats, height: int, width: int) -> Floats:
    """Return the picture at another size: area averages if it shrinks, else bilinear interpolation."""
    return np.asarray(_weights(values.shape[0], height) @ values @ _weights(values.shape[1], width).T)


@lru_cache(maxsize=64)  # at most 10 MiB: 80 × 512 weights each
def _weights(size: int, count: int) -> Floats:
    """Return the weights that resample `size` pixels to `count`, float32 [count, size]; each row sums to 1."""
    step = size / count
    first, pixel = step * np.arange(count)[:, None], np.arange(size)
    if step >= 1:
        weights = (np.minimum(pixel + 1, first + step) - np.maximum(pixel, first)).clip(0)
    else:
        weights = (1 - abs(pixel + 0.5 - (first + step / 2).clip(0.5, size - 0.5))).clip(0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _fit(foreground: Floats, level: float, side: int, margin: int) -> Floats:
    """Return the bounding box of what exceeds `level`, its longer side scaled to `side`, in a square with margins."""
    rows, columns = (np.flatnonzero(foreground.max(axis=axis) > level) for axis in (1, 0))
    ink = foreground[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = side / max(ink.shape)
    height, width = (max(1, round(length * scale)) for length in ink.shape)
    y, x = margin + (side - height) // 2, margin + (side - width) // 2
    result = np.zeros((side + 2 * margin, side + 2 * margin), np.float32)
    result[y : y + height, x : x + width] = _resampled(ink, height, width)
    return result


def _fitted(foreground: Floats) -> Floats:
    """Return the ink fitted into 20×20, 0–1, its strokes redrawn if they are far from MNIST's width."""
    large = _fit(foreground, 0.2, FINE, AROUND)
    mask = large > large.max() / 2
    width = _stroke_width(mask)
    if width > DOT * FINE:
        raise ImageError("expected a picture of a digit, found a dot")
    goal = min(max(width * BOX / FINE, THINNEST), THICKEST)
    # Moving the outline by r makes the digit FINE + 2r long and its strokes width + 2r wide: solved for r.
    offset = (goal * FINE - width * BOX) / (2 * (BOX - goal))
    if abs(offset) > 0.01:
        return _fit(_redrawn(mask, offset), 0.5, BOX, 0)
    return _fit(foreground, 0.2, BOX, 0)


def _stroke_width(mask: NDArray[np.bool_]) -> float:
    """Return the mean width of the strokes: twice their area over their outline's length."""
    outline = np.diff(mask, axis=0).sum() + np.diff(mask, axis=1).sum()  # of steps: 4/π of the curve's length
    return 2 * float(mask.sum()) / max(float(outline) * np.pi / 4, 1)


def _redrawn(mask: NDArray[np.bool_], offset: float) -> Floats:
    """Return the mask, its outline moved outwards by `offset`; inwards if negative, but not so far that it is lost."""
    distance = ndimage.distance_transform_edt(mask if offset < 0 else ~mask) - 0.5  # to the edge between two pixels
    if offset > 0:
        return np.asarray((offset + 0.5 - distance).clip(0, 1), np.float32)
    return np.asarray((distance - min(-offset, 0.6 * float(distance.max())) + 0.5).clip(0, 1), np.float32)


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
