"""The background of a grey picture of a digit, whether the ink is lighter or darker, the illumination and the noise."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]

# Differences in grey levels.
THUMBNAIL_SIDE = 40  # longer side of the picture from which background and polarity are estimated
UNIFORM = 24  # largest difference between the corners of a uniform background
MIN_BORDER_CONTRAST = 60  # between ink that touches the border and the background
MAX_SHARE = 0.15  # largest part of the border that is ink, if the ink touches it in one place only
SHADOW_WINDOW, MIN_SHADOW = 7, 80  # width and area, in pixels of the thumbnail, of a region that may be a shadow
MAX_SHADOW, MIN_STEP = 0.8, 0.4  # of the ink's contrast: that of a shadow, and that between neighbours of sharp ink
CLOSING_WINDOW = 0.2  # of the shorter side: ink is narrower than the closing's window, a shadow or a table is wider
MEDIAN_WINDOW = 7  # pixels of the thumbnail: wider than a stroke
FLAT_BORDER = 16  # largest difference along a border that no ink crosses


def perimeter(values: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels of the border, clockwise."""
    return np.concatenate([values[0], values[1:, -1], values[-1, -2::-1], values[-2:0:-1, 0]])


def uniform_background(thumbnail: Floats) -> float | None:
    """Background estimation: return its grey level if it is uniform and surrounds the ink, else None.

    It is uniform if all corners are similar, or if a digit that is cropped to its ink touches the border: in a short
    place, or in several that are no longer than a side. A shadow or a table touches the border in a longer place.
    """
    corners = [thumbnail[y, x].mean() for y in (slice(2), slice(-2, None)) for x in (slice(2), slice(-2, None))]
    if np.ptp(corners) <= UNIFORM:
        return float(np.median(corners))
    border = perimeter(thumbnail)
    if np.ptp(border) < MIN_BORDER_CONTRAST:
        return None
    light = border > (border.min() + border.max()) / 2
    background = light == (light.mean() > 0.5)
    starts = np.flatnonzero(background != np.roll(background, 1))
    places = np.diff(starts, append=starts[0] + len(border))[~background[starts]]  # lengths
    longest = MAX_SHARE * len(border) if len(places) == 1 else min(thumbnail.shape)
    return float(np.median(border[background])) if places.max() <= longest else None


def ink_is_light(thumbnail: Floats, background: float | None) -> bool:
    """Polarity estimation: return whether the ink is lighter than the background, by the skewness of the contrast.

    Ink covers a smaller area than the background, so its contrast is the long tail of the distribution. If the
    background is not uniform, dark contrasts count more, because most such pictures have dark ink.
    """
    if background is not None and background > 127 and thumbnail.max() <= background + FLAT_BORDER:
        return False  # also if strokes are so thick that the area they enclose looks like ink
    windows = sliding_window_view(np.pad(thumbnail, MEDIAN_WINDOW // 2, mode="edge"), (MEDIAN_WINDOW, MEDIAN_WINDOW))
    middle = MEDIAN_WINDOW**2 // 2
    # A third of the time of ndimage.median_filter.
    median = np.partition(windows.reshape(*thumbnail.shape, -1), middle)[..., middle]
    if background is None:
        return _skewness((thumbnail - median) / (thumbnail + 120)) > 0
    local, uniform = ((thumbnail - level) / (np.maximum(thumbnail, level) + 20) for level in (median, background))
    return _skewness(local) + 2 * _skewness(uniform) > 0


def _skewness(contrast: Floats) -> float:
    """Return the skewness about zero, up to a factor that depends only on the number of values."""
    return float((contrast**3).sum() / (float((contrast**2).sum()) ** 1.5 + 1e-9))


def has_shadow(thumbnail: Floats, background: float) -> bool:
    """Return whether a shadow is on the uniform background: a region wider than strokes, less dark than the ink.

    A picture smaller than a thumbnail, or without sharp ink, is no photograph of a sheet.
    """
    if max(thumbnail.shape) < THUMBNAIL_SIDE:
        return False
    wide = thumbnail[background - _closing(thumbnail, SHADOW_WINDOW) > UNIFORM]
    if wide.size <= MIN_SHADOW:
        return False
    ink = background - float(thumbnail.min())
    step = max(float(abs(np.diff(thumbnail, axis=axis)).max(initial=0)) for axis in (0, 1))
    return background - float(np.median(wide)) < MAX_SHADOW * ink and step > MIN_STEP * ink


def correct_illumination(values: Floats, background: float | None) -> Floats:
    """Illumination correction: divide dark ink on light by the background, estimated by a morphological closing.

    A picture with a uniform background is returned unchanged.
    """
    if background is not None:
        return values
    side = max(3, int(CLOSING_WINDOW * min(values.shape))) | 1
    return np.asarray(values / np.maximum(_closing(values, side), 1) * 255, np.float32)


def _closing(values: Floats, side: int) -> Floats:
    """Return the picture without its dark regions that are narrower than the window, of side × side pixels."""
    return np.asarray(ndimage.grey_closing(values, (side, side), mode="nearest"))


def noise(values: Floats) -> float:
    """Estimate the standard deviation of the noise, 0–1, from second differences along rows."""
    differences = abs(np.diff(values, 2, axis=1)).ravel()
    if not differences.size:
        return 0.0
    # A quarter of a normal distribution is within ±0.3186 σ; σ of a second difference is √6 times that of a pixel.
    return quantile(differences, 0.25) / (0.3186 * 6**0.5 * 255)


def quantile(values: Floats, share: float) -> float:
    """Return the value, of a flat array, below which that share of the values is; np.quantile takes longer."""
    rank = int(share * len(values))
    return float(np.partition(values, rank)[rank])
