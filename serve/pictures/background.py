"""Estimate a grey picture's background and noise, find out whether its ink is light, and correct the illumination."""

import numpy as np
from PIL import Image
from scipy import ndimage

from serve.pictures.sheet import Floats, Grey, Mask, find_sheet, perimeter

WORKING_SIDE = 80  # pixels: longer side of the reduced picture in which the ink is searched for
UNIFORM = 24  # a uniform border differs from its median by at most this, in grey levels
MIN_CROSSING = 0.65  # fraction of the largest contrast: in a picture cropped to the digit, ink at the border has more
MAX_SHARE = 0.1  # fraction of the border: longest place where ink crosses it; in a cropped picture, it may be longer
CLOSING_WINDOW = 0.2  # fraction of the shorter side: ink is narrower than this window, a shadow or a table is wider


def reduced(grey: Grey, side: int) -> Floats:
    """Return the picture, reduced if its longer side exceeds `side`."""
    picture = Image.fromarray(grey)
    picture.thumbnail((side, side), Image.Resampling.HAMMING)
    return np.asarray(picture, np.float32)


def dark_on_light(grey: Grey) -> tuple[Grey, float | None]:
    """Return the picture with dark ink on a light background, and the background's grey level if it is uniform.

    If the picture shows a sheet of paper, everything outside the sheet is removed.
    """
    values = reduced(grey, WORKING_SIDE)
    if sheet := find_sheet(values):
        mask, is_light = sheet
        grey, level = _cropped(grey, mask), None
    else:
        level, is_light = _uniform(values)
    return (255 - grey, None if level is None else 255 - level) if is_light else (grey, level)


def _uniform(values: Floats) -> tuple[float | None, bool]:
    """Return the background's grey level, the median of the border, and whether the ink is lighter.

    On a uniform background, ink may cross the border in short places (MAX_SHARE). If the picture is cropped to the
    digit, each place may be as long as the shorter side. The background is not uniform if a longer part of the border
    looks like ink (a table, a shadow), or if the border differs more from its median in the other direction (uneven
    light). Then the level is None, and the ink is assumed to be darker.
    """
    level = float(np.median(perimeter(values)))
    is_light = level < (float(values.min()) + float(values.max())) / 2
    contrast = values - level if is_light else level - values
    border = perimeter(contrast)
    if abs(border).max() <= UNIFORM:
        return level, is_light
    is_ink = border > border.max() / 2
    places = np.bincount(ndimage.label(np.roll(is_ink, -is_ink.argmin()))[0])[1:]  # the length of each
    is_cropped = len(places) > 1 and border.max() > MIN_CROSSING * contrast.max()
    longest = max(MAX_SHARE * len(border), min(values.shape) if is_cropped else 0)
    is_uniform = border.max() >= -border.min() and places.max(initial=0) <= longest
    return (level, is_light) if is_uniform else (None, False)


def _cropped(grey: Grey, sheet: Mask) -> Grey:
    """Crop to the sheet, and fill the pixels that are not part of the sheet with its median."""
    inner = ndimage.minimum_filter(sheet, 3, mode="nearest")  # leaves out the sheet's blurred edge
    mask = np.asarray(Image.fromarray(inner).resize(grey.shape[::-1]))
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    cropped, mask = grey[box], mask[box]
    return np.where(mask, cropped, np.uint8(np.median(cropped[mask])))


def correct_illumination(values: Floats, background: float | None) -> Floats:
    """Correct the illumination: divide by the background, which a morphological closing estimates. The ink is dark.

    A picture with a uniform background is returned unchanged.
    """
    if background is not None:
        return values
    side = max(3, int(CLOSING_WINDOW * min(values.shape))) | 1
    closing = ndimage.grey_closing(values, (side, side), mode="nearest")
    return np.asarray(values / np.maximum(closing, 1) * 255, np.float32)


def noise(values: Floats) -> float:
    """Estimate the standard deviation of the noise, 0–1, from second differences along rows."""
    differences = abs(np.diff(values, 2, axis=1)).ravel()
    if not differences.size:
        return 0.0
    # A quarter of a normal distribution is within ±0.3186 σ; σ of a second difference is √6 times that of a pixel.
    return float(np.quantile(differences, 0.25)) / (0.3186 * 6**0.5 * 255)
