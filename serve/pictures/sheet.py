"""Find a sheet of paper, or a drawing canvas, in a picture that also shows its surroundings.

A sheet is a light region that encloses dark marks, or a dark region that encloses light marks. It nearly fills a
rectangle, which the picture may cut off. The constants were chosen on renderings of MNIST's training images.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
Grey = NDArray[np.uint8]
Mask = NDArray[np.bool_]

THRESHOLDS = 4  # number of thresholds between light and dark
MIN_AREA = 400  # of a sheet, in pixels of the reduced picture: a small 8 with its holes filled is no sheet
MAX_BORDER = 0.6  # fraction of the border: light or dark pixels that cover more of it are the surroundings
MIN_TOUCH = 0.1  # fraction of a side: a region that covers more than this of two opposite sides is not a sheet
MARKS = 0.002, 0.25  # least and largest fraction of a sheet that marks cover; the holes of a printed 8 cover more
MIN_OVERLAP = 0.9  # least intersection over union of a sheet and its rectangle; an ellipse has 0.785
STRIPE = 7  # pixels: a part that is narrower is a stripe of a cloth, not part of the sheet
ANGLES = np.deg2rad(np.arange(0, 180, 5, dtype=np.float32))  # possible directions of a rectangle's sides
DIRECTIONS = np.stack([np.sin(ANGLES), np.cos(ANGLES)])


def perimeter(values: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels of the border, clockwise."""
    return np.concatenate([values[0], values[1:, -1], values[-1, -2::-1], values[-2:0:-1, 0]])


def find_sheet(values: Floats) -> tuple[Mask, bool] | None:
    """Return the mask of the sheet, [H, W], and whether the marks on it are lighter; None if no sheet is in view.

    Several thresholds between light and dark are tried, because a shadow on the sheet may be darker than the table.
    """
    best, found = MIN_OVERLAP, None
    for threshold in np.linspace(values.min(), values.max(), THRESHOLDS + 2)[1:-1]:
        light = values > threshold
        for kind, marks_are_light in ((light, False), (~light, True)):
            sheet = _sheet(kind)
            if sheet is not None and (overlap := _overlap(sheet)) > best:
                best, found = overlap, (sheet, marks_are_light)
    return found


def _sheet(kind: Mask) -> Mask | None:
    """Return the largest connected component with its holes filled and without stripes; None if it is no sheet."""
    if kind.sum() < MIN_AREA or perimeter(kind).mean() > MAX_BORDER:
        return None
    labels, _ = ndimage.label(kind)
    part = labels == np.bincount(labels[kind]).argmax()
    top, bottom, left, right = (side.mean() > MIN_TOUCH for side in (part[0], part[-1], part[:, 0], part[:, -1]))
    if (top and bottom) or (left and right):
        return None
    holes, count = ndimage.label(~part)
    enclosed = np.ones(count + 1, np.bool_)
    enclosed[perimeter(holes)] = False
    enclosed[0] = False
    marks = enclosed[holes]
    sheet = part | marks
    if not MIN_AREA <= sheet.sum() < marks.sum() / MARKS[0]:
        return None
    sheet = ndimage.maximum_filter(ndimage.minimum_filter(sheet, STRIPE, mode="nearest"), STRIPE, mode="nearest")
    marked = float(np.mean(~part[sheet])) if sheet.sum() >= MIN_AREA else 0
    return sheet if MARKS[0] < marked < MARKS[1] else None


def _overlap(sheet: Mask) -> float:
    """Return the intersection over union of the sheet and the visible part of its smallest rectangle."""
    outline = np.argwhere(sheet & ~ndimage.minimum_filter(sheet, 3, mode="constant")) @ DIRECTIONS
    extents = np.ptp(outline, axis=0)
    half = len(ANGLES) // 2
    sides = int((extents[:half] * extents[half:]).argmin()) + np.array([0, half])
    grid = np.indices(sheet.shape).transpose(1, 2, 0) @ DIRECTIONS[:, sides]
    inside = ((grid >= outline[:, sides].min(axis=0)) & (grid <= outline[:, sides].max(axis=0))).all(axis=-1)
    return float(sheet.sum() / inside.sum())
