"""The ink of a digit: contrast by threshold decomposition, and the connected components that are the digit."""

from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from serve.pictures.background import Floats, Mask, closing, perimeter

CONTRAST_OFFSET = 40  # added to the divisor of the contrast, so that the texture of a dark table does not count as ink
LEVELS = 8  # number of thresholds of the decomposition
MIN_CONTRAST, MIN_RELATIVE_CONTRAST = 0.06, 0.2  # least contrast of ink: absolute, and relative to the highest contrast
FULL = 0.75  # quantile of the digit's contrast that counts as full contrast

# Limits for components of ink. Unless a comment says otherwise, each is relative to the component with the most ink.
MIN_INK = 0.05  # a component with less ink is dirt
MIN_LIKENESS = 0.6  # a component with less contrast is texture or shadow
MIN_INNER_INK = 0.1  # least ink of a component inside a frame, relative to the frame; see also find_digit
MIN_FRAMED_SIZE = 0.25  # least size of a component inside a frame, relative to the frame
MIN_CHOSEN_INK = 0.25  # fraction of all ink: if the chosen components have less ink, the picture is noise
MIN_HEIGHT, MIN_GAP = 0.55, 0.015  # least height of a digit and least gap between two digits, relative to the tallest

EIGHT_CONNECTED = np.ones((3, 3), np.int8)
WITHIN_LEVELS = np.pad(EIGHT_CONNECTED[None], ((1, 1), (0, 0), (0, 0)))  # axes: thresholds, rows, columns


class ImageError(ValueError):
    """The picture is unreadable or shows no digit. The message is one line: what was expected and what was found."""


class Component(NamedTuple):
    """A connected component of ink: label, bounding box in pixels, ink (area × mean contrast) and mean contrast."""

    label: int
    y: slice
    x: slice
    ink: float
    contrast: float

    @property
    def size(self) -> int:
        """The longer side of the bounding box."""
        return int(max(self.y.stop - self.y.start, self.x.stop - self.x.start))


def measure_contrast(values: Floats, background: float | None) -> Floats:
    """Return the contrast, 0–1, of dark ink. `background`: the background's grey level, or None if it is not uniform.

    If `background` is None, the values are divided by their closing, which corrects uneven light. Then threshold
    decomposition finds ink as dark regions inside lighter ones. At each of LEVELS thresholds, it finds the darker
    connected components that do not touch the border. Each adds one step to the depth of its pixels.
    """
    if background is not None:
        depth = (background - values).clip(0)
    else:
        values = np.asarray(values / np.maximum(closing(values), 1) * 255, np.float32)
        thresholds, step = np.linspace(values.min(), values.max(), LEVELS, endpoint=False, retstep=True)
        labels, count = ndimage.label(values < (thresholds + step / 2)[:, None, None], WITHIN_LEVELS)
        depths = np.full(count + 1, step, np.float32)
        depths[0] = 0
        depths[perimeter(labels.transpose(1, 2, 0))] = 0
        depth = depths[labels].sum(axis=0)
    return np.asarray(depth / (values + depth + CONTRAST_OFFSET), np.float32)


def _components(contrast: Floats) -> tuple[NDArray[np.int32], list[Component]]:
    """Return the labels of the ink's connected components, [H, W], and the components by decreasing ink."""
    # A quantile near the maximum. np.sort is faster than np.partition, because most values are equal.
    top = float(np.sort(contrast, axis=None)[-max(3, contrast.size // 1_000) :][0])
    labels, count = ndimage.label(contrast > max(MIN_RELATIVE_CONTRAST * top, MIN_CONTRAST), EIGHT_CONNECTED)
    inks = np.bincount(labels.ravel(), contrast.ravel(), count + 1).tolist()
    areas = np.bincount(labels.ravel(), minlength=count + 1).tolist()
    boxes = enumerate(ndimage.find_objects(labels), start=1)
    found = [Component(label, y, x, inks[label], inks[label] / areas[label]) for label, (y, x) in boxes]
    return labels, sorted(found, key=lambda component: -component.ink)


def _is_frame(frame: Component, other: Component, labels: NDArray[np.int32]) -> bool:
    """Return whether `frame` is on all four sides of `other` and `other` is too large to be dirt in a digit's hole."""
    if other.size < MIN_FRAMED_SIZE * frame.size or other.ink < MIN_INNER_INK * frame.ink:
        return False
    row, column = labels[(other.y.start + other.y.stop) // 2], labels[:, (other.x.start + other.x.stop) // 2]
    sides = row[: other.x.start], row[other.x.stop :], column[: other.y.start], column[other.y.stop :]
    return all(frame.label in side for side in sides)


def find_digit(contrast: Floats) -> tuple[Mask, list[Component]]:
    """Return the digit's mask, [H, W], and its connected components by decreasing ink.

    Frames, dirt and texture are excluded. Components at the border are excluded if a component elsewhere has at least
    MIN_INNER_INK of the largest component's ink. Raises ImageError if too little ink remains.
    """
    labels, found = _components(contrast)
    at_border = set(perimeter(labels).tolist())
    inner = [component for component in found if component.label not in at_border]
    found = inner if inner and inner[0].ink >= MIN_INNER_INK * found[0].ink else found
    large = found[:50]
    frames = [component for component in large if any(_is_frame(component, other, labels) for other in large)]
    found = [component for component in found if component not in frames]
    chosen = [c for c in found if c.ink >= MIN_INK * found[0].ink and c.contrast >= MIN_LIKENESS * found[0].contrast]
    if sum(component.ink for component in chosen) <= MIN_CHOSEN_INK * sum(component.ink for component in found):
        raise ImageError("expected a picture of a digit, found no ink in it")
    return np.isin(labels, [component.label for component in chosen]), chosen


def check_single(chosen: list[Component], width: int) -> None:
    """Raise ImageError if the components are several digits: side by side, with gaps, of similar height."""
    tallest = max(component.y.stop - component.y.start for component in chosen)
    digits = [component.x for component in chosen if component.y.stop - component.y.start >= MIN_HEIGHT * tallest]
    digits.sort(key=attrgetter("start"))
    if len(digits) > 1 and all(b.start - a.stop >= MIN_GAP * tallest for a, b in pairwise(digits)):
        places = " and ".join(f"{100 * x.start // width}–{100 * x.stop // width} %" for x in digits)
        raise ImageError(f"expected one digit, found {len(digits)} separate marks, at {places} of the width")


def foreground(contrast: Floats, mask: Mask) -> Floats:
    """Return the contrast, 0–1, of the ink in `mask` and of its edges. All other pixels are 0."""
    full = np.quantile(contrast[mask], FULL)
    return np.where(ndimage.maximum_filter(mask, 3), (contrast / full).clip(0, 1), 0).astype(np.float32)
