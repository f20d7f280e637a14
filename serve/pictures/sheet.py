"""A sheet in view: find a sheet of paper, or a canvas, that lies on a surround, and remove the surround.

The sheet is a region, light or dark, that encloses marks of the other kind and has straight edges: it agrees with a
rectangle, as far as that is in the picture. The constants were chosen on renderings of MNIST's training images.
"""

from collections.abc import Iterator
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from serve.pictures.background import Floats, perimeter

MIN_AREA = 400  # of a sheet, in pixels of the reduced picture; in a coarser one, an 8 may look like a rectangle
MAX_BORDER = 0.95  # of the picture's border: a kind that covers more is the surround
MIN_TOUCH, MAX_SIDES = 0.1, 1  # a sheet has this share of a side of the picture, on so many sides at most
MARKS = 0.002, 0.25  # least and largest share of a sheet that marks cover; the loops of a printed 8 cover more
MIN_OVERLAP = 0.9  # intersection over union of a sheet and the rectangle; of an ellipse it is 0.785
STRIPE = 7  # pixels: what is narrower is a stripe of a cloth and no part of a sheet
ANGLES = np.deg2rad(np.arange(0, 90, 5, dtype=np.float32))  # of rectangles

Mask = NDArray[np.bool_]


def without_surround(grey: NDArray[np.uint8], reduced: Floats) -> NDArray[np.uint8] | None:
    """Return the picture, uint8 [H, W], cropped to the sheet in view, or None if there is none.

    The sheet is searched in the `reduced` picture. What remains of the surround is filled with the sheet's median.
    """
    sheet = _sheet(reduced)
    if sheet is None:
        return None
    inner = ndimage.binary_erosion(sheet, np.ones((3, 3)), border_value=1)  # without the blurred edge
    mask = np.asarray(Image.fromarray(inner).resize(grey.shape[::-1]))
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    cropped, mask = grey[box], mask[box]
    return np.where(mask, cropped, np.uint8(np.median(cropped[mask])))


def _sheet(values: Floats) -> Mask | None:
    """Return the mask of the sheet, [H, W], or None if there is none.

    A shadow divides the sheet at Otsu's threshold, so those of the darker and of the lighter pixels are tried as well.
    """
    level = otsu(values)
    light = values > level
    for threshold in (level, otsu(values[~light]), otsu(values[light])):
        sheets = [sheet for kind in (values > threshold, values <= threshold) for sheet in _sheets(kind)]
        overlap, sheet = max(((_overlap(sheet), sheet) for sheet in sheets), key=itemgetter(0), default=(0.0, None))
        if overlap > MIN_OVERLAP:
            return sheet
    return None


def _sheets(kind: Mask) -> Iterator[Mask]:
    """Yield, of the two largest connected components, those that may be a sheet, without marks and stripes."""
    if perimeter(kind).mean() > MAX_BORDER:
        return
    labels, count = ndimage.label(kind)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    for index in np.argsort(-areas)[:2]:
        part = labels == index + 1
        sides = part[0], part[-1], part[:, 0], part[:, -1]
        if areas[index] < MIN_AREA or sum(side.mean() > MIN_TOUCH for side in sides) > MAX_SIDES:
            continue
        filled = _filled(part)
        if areas[index] > (1 - MARKS[0]) * filled.sum():
            continue
        sheet = _without_stripes(filled)
        if sheet.sum() >= MIN_AREA and MARKS[0] < np.mean(~part[sheet]) < MARKS[1]:
            yield sheet


def otsu(values: Floats) -> float:
    """Return Otsu's threshold: the variance between the values above it and the others is largest."""
    counts, edges = np.histogram(values, 256)
    below, mass = counts.cumsum(), (counts * edges[:-1]).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mass[-1] * below / below[-1] - mass) ** 2 / (below * (below[-1] - below))
    return float(edges[int(np.nan_to_num(between[:-1]).argmax()) + 1])


def _filled(part: Mask) -> Mask:
    """Return the part with its holes filled; ndimage.binary_fill_holes takes longer."""
    holes, count = ndimage.label(~part)
    enclosed = np.ones(count + 1, np.bool_)
    enclosed[perimeter(holes)] = False
    return np.asarray(enclosed[holes] | part)


def _without_stripes(sheet: Mask) -> Mask:
    """Return the sheet without parts narrower than STRIPE; beyond the picture's border it goes on."""
    eroded = ndimage.minimum_filter(sheet.astype(np.uint8), STRIPE, mode="nearest")
    return np.asarray(ndimage.maximum_filter(eroded, STRIPE, mode="nearest") > 0)


def _overlap(sheet: Mask) -> float:
    """Return the largest intersection over union of the sheet and a rectangle around it, cut off by the picture."""
    y, x = (np.arange(side, dtype=np.float32) for side in sheet.shape)
    rows, columns = np.nonzero(sheet & ~ndimage.minimum_filter(sheet, 3, mode="constant"))  # the outline
    smallest = sheet.size
    for cos, sin in zip(np.cos(ANGLES), np.sin(ANGLES), strict=True):
        inside = np.ones(sheet.shape, np.bool_)
        for down, right in ((cos, sin), (-sin, cos)):
            across = (down * y)[:, None] + right * x
            outline = across[rows, columns]
            inside &= (across >= outline.min()) & (across <= outline.max())
        smallest = min(smallest, int(np.count_nonzero(inside)))
    return float(sheet.sum() / smallest)
