"""Preprocessing: bring a grey picture of a digit into MNIST's form, 28×28, white ink on black.

docs/pictures.md lists the stages, docs/ablation.md has the effect of each. The last one is MNIST's own procedure: the
ink is scaled to fit 20×20, and its centre of mass is moved to the middle (LeCun, Bottou, Bengio & Haffner,
"Gradient-based learning applied to document recognition", 1998). The constants were chosen on renderings of MNIST's
training images.
"""

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Preprocess = Literal["auto", "none", "mnist"]
Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Sizes in pixels.
SIDE, BOX = 28, 20  # the result, and the box that the ink is scaled to fit
WORKING_SIDE = 80  # longer side of the picture in which the ink is searched
THUMBNAIL_SIDE = 40  # longer side of the picture from which background and polarity are estimated
SECOND_PASS_SIZE = 48  # a digit of this size or larger in the reduced picture has no second pass
MIN_SIZE = 6  # of a digit: with 8, 2 % are read wrong, with 6 14 %, with 5 30 %
FINE_SIDE, FINE_MARGIN = 80, 6  # the digit when its strokes are measured and redrawn, and the margin around it
MIN_STROKE, MAX_STROKE = 2.2, 2.8  # stroke width of the result; a third of MNIST's are thinner, a third thicker
MAX_EDGE = 4.2  # width of the strokes' edges; in a coarser picture, thin strokes are fainter than half the maximum

# Background. Differences in grey levels.
UNIFORM = 24  # largest difference between the corners of a uniform background
MIN_BORDER_CONTRAST = 60  # between ink that touches the border and the background
MAX_SHARE = 0.15  # largest part of the border that is ink, if the ink touches it in one place only
CLOSING_WINDOW = 0.3  # of the shorter side: ink is narrower than the closing's window, a shadow or a table is wider
MEDIAN_WINDOW = 7  # pixels of the thumbnail: wider than a stroke
FLAT_BORDER = 16  # largest difference along a border that no ink crosses
CONTRAST_OFFSET = 40  # added to the background before dividing, so that the texture of a dark table is not ink

# Ink. Contrast is 0 to 1.
LEVELS = 8  # thresholds of the decomposition
MIN_CONTRAST, MIN_RELATIVE_CONTRAST = 0.06, 0.2  # of ink: absolute, and relative to the strongest contrast
MIN_SIGNAL = 8  # the least contrast of ink, in standard deviations of the noise
NEARBY_WINDOW = 0.1  # of the digit's size: the window in which a pixel is compared with the strongest ink
MIN_NEARBY_CONTRAST = 0.3  # of the typical contrast: the least that a pixel is compared with

# Components, relative to the one with the most ink unless stated otherwise.
MIN_INK = 0.05  # a component with less is dirt
MIN_LIKENESS = 0.6  # contrast: a fainter component outside the digit's bounding box is texture or shadow
MIN_INNER_INK = 0.1  # if a component inside the picture has this much, those at the border are not the digit
MIN_FRAMED_SIZE = 0.25  # size relative to the component that encloses it: that one is a frame
MIN_CHOSEN_INK = 0.25  # of all ink: if the chosen components have less, the picture is noise
MIN_HEIGHT, MIN_GAP = 0.55, 0.015  # of another digit, and of the gap before it; relative to the tallest component
MARGIN = 0.35  # around the digit in the second pass, relative to its size
DOT_STROKE = 0.43  # stroke width of a dot relative to its size; a disc has 0.5

NO_INK = "expected a picture of a digit, found no ink in it"
EIGHT_CONNECTED = np.ones((3, 3), np.int8)
WITHIN_LEVELS = np.pad(EIGHT_CONNECTED[None], ((1, 1), (0, 0), (0, 0)))  # thresholds by rows by columns
_PLACES = np.arange(SIDE, dtype=np.float32) - SIDE / 2  # offsets of the pixels' upper or left edges from the middle
# [784, 3]: a flat image times this matrix is its mass and its vertical and horizontal moments about the middle.
_MOMENTS = np.stack(np.broadcast_arrays(np.float32(1), _PLACES[:, None], _PLACES), axis=-1).reshape(-1, 3)


class ImageError(ValueError):
    """The picture is unreadable or shows no digit; the message is one line with the expected and the found."""

    index: int | None = None  # of the image in a batch


class Component(NamedTuple):
    """A connected component of ink: label, bounding box in pixels, ink (area × mean contrast) and mean contrast."""

    label: int
    top: int
    bottom: int
    left: int
    right: int
    ink: float
    contrast: float

    @property
    def size(self) -> int:
        """The longer side of the bounding box."""
        return max(self.bottom - self.top, self.right - self.left)

    def is_part_of(self, main: "Component") -> bool:
        """Return whether this is a part of the digit whose component with the most ink is `main`."""
        if self.contrast >= MIN_LIKENESS * main.contrast:
            return self.ink >= MIN_INK * main.ink
        # Thin parts of a stroke are faint, and inside the digit.
        return min(self.top - main.top, main.bottom - self.bottom, self.left - main.left, main.right - self.right) >= 0


def prepare(pixels: Grey, preprocess: Preprocess = "auto") -> Grey:
    """Bring raw pixels, uint8 [N, 28, 28], into MNIST's form, uint8 [N, 28, 28]; see pictures.decode for `preprocess`.

    Returns the same array if nothing changes. Raises ImageError with `index` if an image shows no single digit, and
    without `index` if `pixels` has another shape or dtype.
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
    """Return for each image, [N, 28, 28], whether it already has MNIST's form: size, centre of mass, black background.

    In every training image of MNIST, the ink is 19 or 20 pixels long, the centre of mass is within half a pixel of the
    middle, and the maximum is 254 or 255. The limits here are wider, because other implementations round differently.
    """
    moments = (pixels.reshape(-1, SIDE * SIDE).astype(np.float32) @ _MOMENTS).tolist()
    # The size of the ink from bytes instead of arrays: for one image, that saves 5 % of a JSON request's CPU time.
    images, maxima = pixels.tobytes(), pixels.max(axis=1).tobytes()  # [N, 28, 28], [N, 28]: of each column
    result = []
    for i, (mass, y, x) in enumerate(moments):
        columns = maxima[i * SIDE : (i + 1) * SIDE]
        length = max(_ink_rows(images[i * SIDE**2 : (i + 1) * SIDE**2]), len(columns.strip(b"\0")))
        result.append(max(columns) >= 200 and abs(y) <= mass and abs(x) <= mass and abs(length - BOX) <= 2)
    return result


def _ink_rows(image: bytes) -> int:
    """Return the number of rows from the first with ink to the last, in an image with rows of SIDE bytes."""
    return math.ceil(len(image.rstrip(b"\0")) / SIDE) - (len(image) - len(image.lstrip(b"\0"))) // SIDE


def to_mnist(grey: Grey) -> Grey:
    """Return the digit in a picture, uint8 [H, W], in MNIST's form, uint8 [28, 28].

    Raises ImageError if the picture has no ink, several digits, or one that is too small to read.
    """
    return _centred(_fitted(_foreground(grey)))


def _foreground(grey: Grey) -> Floats:
    """Segment the digit: return its ink and surroundings, float32 [H, W] from 0 (background) to 1 (full ink).

    The first pass finds the digit in the whole picture. If it is small, the second segments it at a higher resolution.
    """
    reduced = _reduced(grey, WORKING_SIDE)
    thumbnail = _reduced(reduced, THUMBNAIL_SIDE)
    background = _uniform_background(thumbnail)
    light = _ink_is_light(thumbnail, background)
    if background is not None and light == (background > thumbnail.mean()):
        background = None  # the border shows the table, not the paper
    if light:
        grey, reduced = 255 - grey, 255 - reduced
        background = None if background is None else 255 - background
    contrast = _contrast(_correct_illumination(reduced, background), (background,) * 4)
    mask, chosen = _digit(contrast, MIN_SIGNAL * _noise(reduced))
    _check_single(chosen, reduced.shape[1])
    if reduced.shape != grey.shape and chosen[0].size < SECOND_PASS_SIZE:
        (top, bottom), (left, right) = _surroundings(mask, grey.shape)
        reduced = _reduced(grey[top:bottom, left:right], WORKING_SIDE)
        at_border = (top == 0, bottom == grey.shape[0], left == 0, right == grey.shape[1])
        outside = tuple(background if at else None for at in at_border)
        contrast = _contrast(_correct_illumination(reduced, background), outside)
        mask, chosen = _digit(contrast)
    if chosen[0].size < MIN_SIZE:
        raise ImageError(f"expected a digit of at least {MIN_SIZE} pixels, found {chosen[0].size}: crop closer")
    return _normalised(contrast, mask, chosen[0].size)


# Background and polarity.


def _perimeter(values: Floats) -> Floats:
    """Return the pixels of the border, clockwise."""
    return np.concatenate([values[0], values[1:, -1], values[-1, -2::-1], values[-2:0:-1, 0]])


def _uniform_background(thumbnail: Floats) -> float | None:
    """Background estimation: return its grey level if it is uniform and surrounds the ink, else None.

    It is uniform if all corners are similar, or if a digit that is cropped to its ink touches the border: in a short
    place, or in several that are no longer than a side. A shadow or a table touches the border in a longer place.
    """
    corners = [thumbnail[y, x].mean() for y in (slice(2), slice(-2, None)) for x in (slice(2), slice(-2, None))]
    if np.ptp(corners) <= UNIFORM:
        return float(np.median(corners))
    border = _perimeter(thumbnail)
    if np.ptp(border) < MIN_BORDER_CONTRAST:
        return None
    light = border > (border.min() + border.max()) / 2
    background = light == (light.mean() > 0.5)
    starts = np.flatnonzero(background != np.roll(background, 1))
    places = np.diff(starts, append=starts[0] + len(border))[~background[starts]]  # lengths
    longest = MAX_SHARE * len(border) if len(places) == 1 else min(thumbnail.shape)
    return float(np.median(border[background])) if places.max() <= longest else None


def _ink_is_light(thumbnail: Floats, background: float | None) -> bool:
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


def _correct_illumination(values: Floats, background: float | None) -> Floats:
    """Illumination correction: divide dark ink on light by the background, estimated by a morphological closing.

    A picture with a uniform background is returned unchanged.
    """
    if background is not None:
        return values
    side = max(3, int(CLOSING_WINDOW * min(values.shape))) | 1
    closing = ndimage.grey_closing(values, (side, side), mode="nearest")
    return np.asarray(values / np.maximum(closing, 1) * 255, np.float32)


def _noise(values: Floats) -> float:
    """Estimate the standard deviation of the noise, 0–1, from second differences along rows."""
    differences = abs(np.diff(values, 2, axis=1)).ravel()
    if not differences.size:
        return 0.0
    # A quarter of a normal distribution is within ±0.3186 σ; σ of a second difference is √6 times that of a pixel.
    return _quantile(differences, 0.25) / (0.3186 * 6**0.5 * 255)


def _quantile(values: Floats, share: float) -> float:
    """Return the value, of a flat array, below which that share of the values is; np.quantile takes longer."""
    rank = int(share * len(values))
    return float(np.partition(values, rank)[rank])


# Ink and its connected components.


def _contrast(values: Floats, outside: tuple[float | None, ...]) -> Floats:
    """Threshold decomposition: return the contrast, 0–1, of dark regions that a lighter region surrounds.

    For each of LEVELS thresholds, the connected components that are darker and do not touch the border are added up. If
    the border has one grey level, that equals the quantised difference from it. `outside` is the background beyond
    the top, bottom, left and right border, or None if it is unknown.
    """
    padded: Floats = np.pad(values, 1, mode="edge")
    for edge, background in zip((padded[0], padded[-1], padded[:, 0], padded[:, -1]), outside, strict=True):
        if background is not None:
            edge[:] = background
    border = _perimeter(padded)
    thresholds, step = np.linspace(padded.min(), padded.max(), LEVELS, endpoint=False, retstep=True)
    if np.ptp(border) <= FLAT_BORDER:
        depth = ((np.median(border) - padded) / max(step, 1e-3)).clip(0).round() * step
    else:
        labels, count = ndimage.label(padded < (thresholds + step / 2)[:, None, None], WITHIN_LEVELS)
        depths = np.full(count + 1, step, np.float32)
        depths[0] = 0
        depths[_perimeter(labels.transpose(1, 2, 0))] = 0
        depth = depths[labels].sum(axis=0)
    return np.asarray((depth / (padded + depth + CONTRAST_OFFSET))[1:-1, 1:-1], np.float32)


def _components(contrast: Floats) -> tuple[NDArray[np.int32], list[Component]]:
    """Return the labels of the ink's connected components, [H, W], and the components by decreasing ink."""
    rank = min(max(3, contrast.size // 1_000), contrast.size)
    top = float(np.sort(contrast, axis=None)[-rank])  # faster than np.partition, as most values are equal
    labels, count = ndimage.label(contrast > max(MIN_RELATIVE_CONTRAST * top, MIN_CONTRAST), EIGHT_CONNECTED)
    inks = np.bincount(labels.ravel(), contrast.ravel(), count + 1).tolist()
    areas = np.bincount(labels.ravel(), minlength=count + 1).tolist()
    found = [
        Component(label, y.start, y.stop, x.start, x.stop, inks[label], inks[label] / areas[label])
        for label, (y, x) in enumerate(ndimage.find_objects(labels), start=1)
    ]
    return labels, sorted(found, key=lambda component: -component.ink)


def _is_frame(frame: Component, other: Component, labels: NDArray[np.int32]) -> bool:
    """Return whether `frame` is on all four sides of `other` and `other` is too large to be dirt in a digit's hole."""
    if other.size < MIN_FRAMED_SIZE * frame.size or other.ink < 0.1 * frame.ink:
        return False
    y, x = (other.top + other.bottom) // 2, (other.left + other.right) // 2
    sides = labels[y, : other.left], labels[y, other.right :], labels[: other.top, x], labels[other.bottom :, x]
    return all(frame.label in side for side in sides)


def _digit(contrast: Floats, least: float = 0) -> tuple[NDArray[np.bool_], list[Component]]:
    """Return the digit's mask, [H, W], and its connected components by decreasing ink.

    Frames, dirt, texture and components at the border are excluded. Raises ImageError if too little ink remains, or
    if no pixel of the component with the most ink has a contrast above `least`.
    """
    labels, found = _components(contrast)
    height, width = labels.shape
    inner = [c for c in found if c.top > 0 and c.left > 0 and c.bottom < height and c.right < width]
    found = inner if inner and inner[0].ink >= MIN_INNER_INK * found[0].ink else found
    large = found[:50]
    frames = [component for component in large if any(_is_frame(component, other, labels) for other in large)]
    candidates = [component for component in found if component not in frames]
    chosen = [component for component in candidates if component.is_part_of(candidates[0])]
    if sum(component.ink for component in chosen) <= MIN_CHOSEN_INK * sum(component.ink for component in candidates):
        raise ImageError(NO_INK)
    if contrast[labels == chosen[0].label].max() <= least:
        raise ImageError(NO_INK)
    return np.isin(labels, [component.label for component in chosen]), chosen


def _check_single(chosen: list[Component], width: int) -> None:
    """Raise ImageError if the components are several digits: side by side, with gaps, of similar height."""
    tallest = max(component.bottom - component.top for component in chosen)
    digits = sorted((c for c in chosen if c.bottom - c.top >= MIN_HEIGHT * tallest), key=lambda c: c.left)
    if len(digits) > 1 and all(b.left - a.right >= MIN_GAP * tallest for a, b in pairwise(digits)):
        places = " and ".join(f"{100 * c.left // width}–{100 * c.right // width} %" for c in digits)
        raise ImageError(f"expected one digit, found {len(digits)} separate marks, at {places} of the picture's width")


def _surroundings(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the mask's bounding box with a margin, [[top, bottom], [left, right]], in a picture of that shape."""
    box = np.array([[side.start, side.stop] for side in ndimage.find_objects(mask.astype(np.int8))[0]])
    margin = MARGIN * np.ptp(box, axis=1).max() + 1
    lengths = np.array(shape)[:, None]
    scaled: Floats = (box + np.array([-margin, margin])) * lengths / np.array(mask.shape)[:, None]
    return scaled.round().clip(0, lengths).astype(np.intp)


def _normalised(contrast: Floats, mask: NDArray[np.bool_], size: int) -> Floats:
    """Local contrast normalisation: return the ink in `mask`, 0–1, divided by the strongest contrast nearby.

    Ink in glare or under light pressure has less contrast than the rest. `size` is that of the digit in pixels.
    """
    side = max(3, int(NEARBY_WINDOW * size)) | 1
    typical = _quantile(contrast[mask], 0.75)
    nearby = ndimage.maximum_filter(np.where(mask, contrast, 0), side)
    nearby = ndimage.uniform_filter(nearby, side).clip(MIN_NEARBY_CONTRAST * typical, typical)
    dilated = ndimage.maximum_filter(mask, 3)
    return np.where(dilated, (contrast / nearby).clip(0, 1), np.float32(0)).astype(np.float32, copy=False)


# MNIST's form.


def _reduced(values: Grey | Floats, side: int) -> Floats:
    """Return the picture, resampled if its longer side exceeds `side`."""
    picture = Image.fromarray(values)
    picture.thumbnail((side, side), Image.Resampling.HAMMING)
    return np.asarray(picture, np.float32)


def _resampled(values: Floats, height: int, width: int) -> Floats:
    """Resample the picture, with anti-aliasing if it shrinks."""
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.HAMMING))


def _fit(foreground: Floats, level: float, side: int, margin: int) -> Floats:
    """Crop to the bounding box of the values above `level`, scale its longer side to `side`, and add square margins."""
    ink = foreground[ndimage.find_objects((foreground > level).astype(np.int8))[0]]
    scale = side / max(ink.shape)
    height, width = (max(1, round(length * scale)) for length in ink.shape)
    y, x = margin + (side - height) // 2, margin + (side - width) // 2
    result = np.zeros((side + 2 * margin, side + 2 * margin), np.float32)
    result[y : y + height, x : x + width] = _resampled(ink, height, width)
    return result


def _fitted(foreground: Floats) -> Floats:
    """Return the ink scaled to 20×20, 0–1, with sharp strokes redrawn if they are thinner or thicker than MNIST's."""
    large = _fit(foreground, 0.2, FINE_SIDE, FINE_MARGIN)
    top = large.max()
    mask = large > top / 2
    width = _stroke_width(mask)
    if width > DOT_STROKE * FINE_SIDE:
        raise ImageError("expected a picture of a digit, found a dot")
    # Width of the strokes' edges: the area of the values between, divided by the length of the outline.
    edge = ((large > 0.2 * top) & (large < 0.8 * top)).sum() * width / (2 * mask.sum())
    goal = min(max(width * BOX / FINE_SIDE, MIN_STROKE), MAX_STROKE)
    # Moving the outline by r makes the digit FINE_SIDE + 2r long and its strokes width + 2r wide. Solved for r:
    offset = (goal * FINE_SIDE - width * BOX) / (2 * (BOX - goal))
    # Inwards, the part beyond 2 pixels is halved: strokes differ in width, and the thin ones must not vanish.
    offset = max(offset, offset / 2 - 1)
    if edge <= MAX_EDGE and abs(offset) > 0.01:
        return _fit(_redrawn(mask, offset), 0.5, BOX, 0)
    return _fit(foreground, 0.2, BOX, 0)


def _stroke_width(mask: NDArray[np.bool_]) -> float:
    """Return the mean stroke width: twice the area divided by the length of the outline."""
    outline = np.diff(mask, axis=0).sum() + np.diff(mask, axis=1).sum()  # in pixel edges: 4/π times the curve's length
    return 2 * float(mask.sum()) / max(float(outline) * np.pi / 4, 1)


def _redrawn(mask: NDArray[np.bool_], offset: float) -> Floats:
    """Return the mask with its outline moved outwards by `offset`, or inwards if negative."""
    inwards = offset < 0
    distance = ndimage.distance_transform_edt(mask if inwards else ~mask) - 0.5  # to the edge between the pixels
    return np.asarray((0.5 + offset + (distance if inwards else -distance)).clip(0, 1), np.float32)


def _centred(digit: Floats) -> Grey:
    """Return the digit, [20, 20] from 0 to 1, in uint8 [28, 28], its centre of mass as close to the middle as fits."""
    values = (digit * (255 / digit.max())).round().astype(np.uint8)
    centre = ndimage.center_of_mass(values)
    top, left = (min(max(round(SIDE / 2 - float(place)), 0), SIDE - BOX) for place in centre)
    result = np.zeros((SIDE, SIDE), np.uint8)
    result[top : top + BOX, left : left + BOX] = values
    return result
