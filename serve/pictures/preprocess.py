"""Preprocessing: bring a grey picture of a digit into MNIST's form, 28×28, white ink on black.

docs/pictures.md lists the stages, docs/search.md the effect of each. The last stage is MNIST's own procedure: the ink
is scaled to fit 20×20, and its centre of mass is moved to the middle (LeCun, Bottou, Bengio & Haffner,
"Gradient-based learning applied to document recognition", 1998). The constants were chosen on renderings of MNIST's
training images.
"""

from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from serve.pictures.background import WORKING_SIDE, Floats, Mask, dark_on_light, reduced
from serve.pictures.background import Grey as Grey
from serve.pictures.ink import ImageError as ImageError
from serve.pictures.ink import check_single, find_digit, foreground, measure_contrast

Preprocess = Literal["auto", "none", "mnist"]

# Sizes in pixels.
SIDE, BOX = 28, 20  # the result, and the box that the ink is scaled to fit
MIN_SIZE = 6  # least size of a digit. Share of wrong predictions: 2 % at 8 pixels, 14 % at 6, 30 % at 5
FINE_SIDE, FINE_MARGIN = 80, 3  # size of a digit while its stroke width is changed; the margin limits the change
MIN_STROKE, MAX_STROKE = 2.2, 3.2  # limits of the result's stroke width; a third of MNIST is thinner, a third thicker
SECOND_PASS_SIZE, MARGIN = 20, 0.35  # a smaller digit is cut out, with a margin (× its size), and segmented again
INK_LEVEL, STROKE_LEVEL = 0.2, 0.4  # ink: pixels above the first; strokes: pixels above the second × the maximum

SQUARES = (np.mgrid[-FINE_MARGIN : FINE_MARGIN + 1, -FINE_MARGIN : FINE_MARGIN + 1] ** 2).sum(axis=0)  # distance²
_PLACES = np.arange(SIDE, dtype=np.float32) - SIDE / 2  # offsets of the pixels' upper or left edges from the middle
# [784, 3]: a flattened image times this matrix gives its mass, and its vertical and horizontal moment about the middle.
_MOMENTS = np.stack(np.broadcast_arrays(np.float32(1), _PLACES[:, None], _PLACES), axis=-1).reshape(-1, 3)


def prepare(pixels: Grey, preprocess: Preprocess = "auto") -> Grey:
    """Bring raw pixels, uint8 [28, 28], into MNIST's form; see pictures.decode for `preprocess`.

    Returns the same array if nothing changes. Raises ImageError if the pixels do not show exactly one digit.
    """
    if preprocess == "none" or (preprocess == "auto" and in_form(pixels)):
        return pixels
    return to_mnist(pixels)


def in_form(pixels: Grey) -> bool:
    """Return whether an image, [28, 28], already has MNIST's form: size, centre of mass, black background.

    In every training image of MNIST, the ink is 19 or 20 pixels long, the centre of mass is within half a pixel of the
    middle, and the maximum is 254 or 255. The limits here are wider, because other implementations round differently.
    """
    mass, y, x = (pixels.reshape(-1).astype(np.float32) @ _MOMENTS).tolist()
    maxima = [pixels.max(axis=axis).tobytes() for axis in (0, 1)]  # the maximum of each column, then of each row
    length = max(len(values.strip(b"\0")) for values in maxima)
    return max(maxima[0]) >= 200 and abs(y) <= mass and abs(x) <= mass and abs(length - BOX) <= 2


def to_mnist(grey: Grey) -> Grey:
    """Return the digit in a picture, uint8 [H, W], in MNIST's form, uint8 [28, 28].

    Raises ImageError if the picture has no ink, several digits, or one that is too small to read.
    """
    grey, background = dark_on_light(grey)
    contrast, mask, size = _segmented(grey, background)
    if size < SECOND_PASS_SIZE and max(grey.shape) > WORKING_SIDE:  # segment again, at a higher resolution
        contrast, mask, size = _segmented(grey[_surroundings(mask, grey.shape)], background)
    if size < MIN_SIZE:
        raise ImageError(f"expected a digit of at least {MIN_SIZE} pixels, found {size}: crop closer")
    return _centred(_fitted(foreground(contrast, mask)))


def _segmented(grey: Grey, background: float | None) -> tuple[Floats, Mask, int]:
    """Return the contrast of dark ink, 0–1 [H, W], the digit's mask, and its main component's size in pixels."""
    values = reduced(grey, WORKING_SIDE)
    contrast = measure_contrast(values, background)
    mask, chosen = find_digit(contrast)
    check_single(chosen, values.shape[1])
    return contrast, mask, chosen[0].size


def _surroundings(mask: Mask, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the mask's bounding box with a margin, as slices of the original picture, which has `shape`."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    margin = MARGIN * max(side.stop - side.start for side in box) + 1
    return tuple(
        slice(max(0, round((side.start - margin) * length / short)), round((side.stop + margin) * length / short))
        for side, length, short in zip(box, shape, mask.shape, strict=True)
    )


def _fit(foreground: Floats, side: int, margin: int = 0) -> Floats:
    """Crop to the ink's bounding box, scale its longer side to `side`, pad to a square of `side` + 2 × `margin`."""
    ink = foreground[ndimage.find_objects((foreground > INK_LEVEL).astype(np.int8))[0]]
    height, width = (max(1, round(length * side / max(ink.shape))) for length in ink.shape)
    y, x = margin + (side - height) // 2, margin + (side - width) // 2
    result = np.zeros((side + 2 * margin, side + 2 * margin), np.float32)
    resampled = Image.fromarray(ink).resize((width, height), Image.Resampling.HAMMING)  # anti-aliased when reduced
    result[y : y + height, x : x + width] = np.asarray(resampled)
    return result


def _fitted(foreground: Floats) -> Floats:
    """Return the ink scaled to 20×20, 0–1; dilated if its strokes are below MIN_STROKE, eroded if above MAX_STROKE."""
    large = _fit(foreground, FINE_SIDE, FINE_MARGIN)
    mask = large > STROKE_LEVEL * large.max()
    outline = np.diff(mask, axis=0).sum() + np.diff(mask, axis=1).sum()  # pixel edges: 4/π times the true length
    width = 2 * float(mask.sum()) / max(float(outline) * np.pi / 4, 1)
    if width > 0.43 * FINE_SIDE:  # for a disc, this formula gives half of its size
        raise ImageError("expected a picture of a digit, found a dot")
    goal = min(max(width * BOX / FINE_SIDE, MIN_STROKE), MAX_STROKE)
    # With an outline moved by r, (width + 2r) / (FINE_SIDE + 2r) must be goal / BOX. Solved for r:
    offset = (goal * FINE_SIDE - width * BOX) / (2 * (BOX - goal))
    change = ndimage.grey_dilation if offset > 0 else ndimage.grey_erosion
    changed = change(large, footprint=offset**2 + 0.5 >= SQUARES)
    return _fit(changed if changed.max() > INK_LEVEL else large, BOX)  # if erosion removes all ink, do not erode


def _centred(digit: Floats) -> Grey:
    """Return the digit, [20, 20] from 0 to 1, as uint8 [28, 28], its centre of mass as near the middle as possible."""
    values = (digit * (255 / digit.max())).round().astype(np.uint8)
    centre = ndimage.center_of_mass(values)
    top, left = (min(max(round(SIDE / 2 - float(place)), 0), SIDE - BOX) for place in centre)
    result = np.zeros((SIDE, SIDE), np.uint8)
    result[top : top + BOX, left : left + BOX] = values
    return result
