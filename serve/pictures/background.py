"""The background of a grey picture: a sheet of paper in view, the grey level, and uneven illumination.

A sheet of paper, or a drawing canvas, is a light region that encloses dark marks, or a dark region that encloses light
marks. It nearly fills a rectangle, which the picture may cut off. The constants were chosen on renderings of MNIST's
training images.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Floats = NDArray[np.float32]
Grey = NDArray[np.uint8]
Mask = NDArray[np.bool_]

WORKING_SIDE = 80  # pixels: longer side of the reduced picture in which the ink is searched for
UNIFORM = 24  # grey levels: border pixels that differ from the border's median by at most this are no ink
MAX_SHARE = 0.1  # fraction of the border: the longest place where ink may cross it; _uniform states an exception
CLOSING_WINDOW = 0.17  # fraction of the shorter side: ink is narrower than this window, a shadow or a table is wider

# Limits for sheets, in the reduced picture.
THRESHOLDS = 4  # number of thresholds between light and dark
MIN_AREA = 400  # pixels: a smaller region is no sheet, for example an 8 with its holes filled
MIN_TOUCH = 0.1  # fraction of a side: a region that covers more than this of two opposite sides is not a sheet
MARKS = 0.002, 0.25  # least and largest fraction of a sheet that marks cover. An 8 is no sheet: its holes cover more
MIN_OVERLAP = 0.9  # least intersection over union of a sheet and its rectangle; an ellipse is no sheet and has 0.785
ANGLES = np.deg2rad(np.arange(0, 180, 5, dtype=np.float32))  # possible directions of a rectangle's sides
DIRECTIONS = np.stack([np.sin(ANGLES), np.cos(ANGLES)])


def reduced(grey: Grey, side: int) -> Floats:
    """Return the picture as float32. If its longer side exceeds `side` pixels, it is reduced to `side` pixels."""
    picture = Image.fromarray(grey)
    picture.thumbnail((side, side), Image.Resampling.HAMMING)
    return np.asarray(picture, np.float32)


def perimeter(values: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels of the border, clockwise."""
    return np.concatenate([values[0], values[1:, -1], values[-1, -2::-1], values[-2:0:-1, 0]])


def closing(values: Floats) -> Floats:
    """Return the light without the ink: a morphological closing removes what is dark and narrower than its window."""
    side = max(3, int(CLOSING_WINDOW * min(values.shape))) | 1
    return np.asarray(ndimage.grey_closing(values, (side, side), mode="nearest"), np.float32)


def dark_on_light(grey: Grey) -> tuple[Grey, float | None]:
    """Return the picture with dark ink on a light background, and the background's grey level if it is uniform.

    If a sheet of paper is in view, the picture is cropped to the sheet, and the rest outside the sheet becomes black.
    """
    values = reduced(grey, WORKING_SIDE)
    sheet = _find_sheet(values)
    level, is_light = (None, sheet[1]) if sheet else _uniform(values)
    if is_light:
        grey, level = 255 - grey, None if level is None else 255 - level
    return (_cropped(grey, sheet[0]) if sheet else grey), level


def _uniform(values: Floats) -> tuple[float | None, bool]:
    """Return the background's grey level, the median of the border, and whether the ink is lighter.

    On a uniform background, ink may cross the border in short places (MAX_SHARE). If the picture is cropped to the
    digit, each place may be as long as the shorter side. The background is not uniform if a longer part of the border
    looks like ink (a table, a shadow), if the border differs more from its median in the other direction (uneven light)
    or if the ink seems lighter but has softer edges than darker pixels (glare). Then the level is None, the ink dark.
    """
    level = float(np.median(perimeter(values)))
    is_light = level < (float(values.min()) + float(values.max())) / 2
    # The closing removes dark ink from the light part, because ink that crosses glare has steep edges.
    parts = [closing(values).clip(level), values.clip(None, level)] if is_light else []
    steepest = [float(ndimage.morphological_gradient(part, 3).max()) for part in parts]
    border = perimeter(values - level if is_light else level - values)
    is_ink = border > max(border.max() / 2, UNIFORM)
    places = np.bincount(ndimage.label(np.roll(is_ink, -is_ink.argmin()))[0])[1:]  # length of each run of ink
    longest = max(MAX_SHARE * len(border), min(values.shape) if len(places) > 1 else 0)
    is_uniform = places.max(initial=0) <= longest and max(border.max(), UNIFORM) >= -border.min()
    return (level, is_light) if is_uniform and not (is_light and steepest[0] < steepest[1]) else (None, False)


def _find_sheet(values: Floats) -> tuple[Mask, bool] | None:
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
    """Return the largest connected component of `kind`, [H, W], with its holes filled; None if it is no sheet."""
    labels, _ = ndimage.label(kind)
    part = labels == np.bincount(labels[kind], minlength=1).argmax()
    top, bottom, left, right = (side.mean() > MIN_TOUCH for side in (part[0], part[-1], part[:, 0], part[:, -1]))
    if (top and bottom) or (left and right):
        return None
    sheet = ndimage.binary_fill_holes(part)
    marked = float(np.mean(~part[sheet]))
    return sheet if sheet.sum() >= MIN_AREA and MARKS[0] < marked < MARKS[1] else None


def _overlap(sheet: Mask) -> float:
    """Return the intersection over union of the sheet and the visible part of the smallest rectangle around it."""
    outline = np.argwhere(sheet & ~ndimage.minimum_filter(sheet, 3, mode="constant")) @ DIRECTIONS
    extents = np.ptp(outline, axis=0)
    half = len(ANGLES) // 2
    sides = int((extents[:half] * extents[half:]).argmin()) + np.array([0, half])
    grid = np.indices(sheet.shape).transpose(1, 2, 0) @ DIRECTIONS[:, sides]
    inside = ((grid >= outline[:, sides].min(axis=0)) & (grid <= outline[:, sides].max(axis=0))).all(axis=-1)
    return float(sheet.sum() / inside.sum())


def _cropped(grey: Grey, sheet: Mask) -> Grey:
    """Crop `grey` to the `sheet`, a mask of the reduced picture, and set the pixels outside the sheet to black."""
    inner = ndimage.minimum_filter(sheet, 3, mode="nearest")  # leaves out the sheet's blurred edge
    mask = np.asarray(Image.fromarray(inner).resize(grey.shape[::-1]))
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    return np.where(mask[box], grey[box], np.uint8(0))
