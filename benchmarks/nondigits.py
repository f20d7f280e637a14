"""Pictures of non-digits, to measure `doubt`: each kind is a function of a random generator and of MNIST's digits.

The kinds in FITTED resemble the kinds of train.doubt, but are drawn by other code with other fonts and other digits.
Nothing is trained or tuned on the kinds in HELD_OUT.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from PIL.Image import Resampling

SIDE = 280  # pixels
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
# Fonts that train.doubt does not use: train.doubt draws its letters with DejaVu.
LETTER_FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10", "cmb10")
LETTERS = "ABCDEFGHJKLMNPQRTUVWXYacdefhijkmnprtuvwxy"
LOOKALIKES = "IOSZbglqosz"  # letters that look like 1, 0, 5, 2, 6 or 9; they are measured separately

# Handwritten letters as strokes through points, x and y of 0–1, y downwards.
HAND: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "A": (((0, 1), (0.5, 0), (1, 1)), ((0.2, 0.6), (0.8, 0.6))),
    "E": (((0.9, 0), (0, 0), (0, 1), (0.9, 1)), ((0, 0.5), (0.7, 0.5))),
    "F": (((0.9, 0), (0, 0), (0, 1)), ((0, 0.5), (0.7, 0.5))),
    "H": (((0, 0), (0, 1)), ((0.9, 0), (0.9, 1)), ((0, 0.5), (0.9, 0.5))),
    "K": (((0, 0), (0, 1)), ((0.8, 0), (0, 0.55), (0.8, 1))),
    "M": (((0, 1), (0, 0), (0.5, 0.6), (1, 0), (1, 1)),),
    "N": (((0, 1), (0, 0), (0.8, 1), (0.8, 0)),),
    "P": (((0, 1), (0, 0), (0.6, 0), (0.8, 0.25), (0.6, 0.5), (0, 0.5)),),
    "R": (((0, 1), (0, 0), (0.6, 0), (0.8, 0.25), (0.6, 0.5), (0, 0.5), (0.8, 1)),),
    "T": (((0, 0), (1, 0)), ((0.5, 0), (0.5, 1))),
    "V": (((0, 0), (0.45, 1), (0.9, 0)),),
    "W": (((0, 0), (0.25, 1), (0.5, 0.3), (0.75, 1), (1, 0)),),
    "X": (((0, 0), (0.9, 1)), ((0.9, 0), (0, 1))),
    "Y": (((0, 0), (0.45, 0.5), (0.9, 0)), ((0.45, 0.5), (0.45, 1))),
    "h": (((0, 0), (0, 1)), ((0, 0.6), (0.35, 0.4), (0.6, 0.6), (0.6, 1))),
    "m": (((0, 0.3), (0, 1)), ((0, 0.5), (0.3, 0.3), (0.5, 0.5), (0.5, 1)), ((0.5, 0.5), (0.8, 0.3), (1, 0.5), (1, 1))),
    "k": (((0, 0), (0, 1)), ((0.6, 0.35), (0, 0.7), (0.65, 1))),
    "e": (((0.05, 0.55), (0.9, 0.5), (0.8, 0.15), (0.4, 0), (0.05, 0.4), (0.2, 0.9), (0.6, 1), (0.9, 0.85)),),
    "a": (((0.8, 0.1), (0.3, 0.05), (0, 0.5), (0.3, 0.95), (0.75, 0.6), (0.8, 0.05), (0.8, 0.7), (1, 1)),),
    "u": (((0, 0), (0.05, 0.8), (0.4, 1), (0.75, 0.7), (0.8, 0)), ((0.8, 0), (0.85, 0.8), (1, 1))),
    "r": (((0, 0), (0, 1)), ((0, 0.4), (0.3, 0.05), (0.6, 0.1))),
    "f": (((0.8, 0.1), (0.5, 0), (0.35, 0.2), (0.35, 1)), ((0, 0.45), (0.75, 0.45))),
}

Picture = NDArray[np.uint8]  # [H, W], ink 0 on background 255
Points = NDArray[np.float64]  # [..., 2], in pixels
Digits = tuple[Picture, NDArray[np.int64]]  # images, uint8 [N, 28, 28], ink 255 on background 0, and their labels
Draw = Callable[[Generator, Digits], Picture]


def _drawn(strokes: Iterable[Points], width: float) -> Picture:
    """Draw polylines, `width` pixels wide, with round ends and joints: SIDE × SIDE, black on white."""
    picture = Image.new("L", (SIDE, SIDE), 255)
    draw = ImageDraw.Draw(picture)
    for points in strokes:
        flat = [tuple(point) for point in points.tolist()]
        draw.line(flat, fill=0, width=round(width), joint="curve")
        for x, y in flat:
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=0)
    return np.array(picture)


def _around(angles: NDArray[np.float64] | float) -> Points:
    """Return the points of the unit circle at `angles`, in radians."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _smooth(points: Points) -> Points:
    """Return a Catmull-Rom spline through `points`, with twelve points per segment."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, 12)[:, None]
    parts = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        parts.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate(parts)


def _enlarged(digit: Picture, scale: int = 10) -> Picture:
    return np.array(ImageOps.scale(Image.fromarray(255 - digit), scale, Resampling.BICUBIC))


def _some(rng: Generator, digits: Digits, among: str = "0123456789") -> Picture:
    images, labels = digits
    return images[rng.choice(np.flatnonzero(np.isin(labels, [int(digit) for digit in among])))]


def _letter(rng: Generator, _: Digits, letters: str) -> Picture:
    picture = Image.new("L", (SIDE, SIDE), 255)
    letter, font = rng.choice(list(letters)), ImageFont.truetype(FONTS / f"{rng.choice(LETTER_FONTS)}.ttf", 180)
    ImageDraw.Draw(picture).text((140, 140), letter, fill=0, anchor="mm", font=font)
    return np.array(picture.rotate(rng.uniform(-8, 8), Resampling.BICUBIC, fillcolor=255))


def _scribble(rng: Generator, _: Digits) -> Picture:
    width, strokes = rng.uniform(14, 32), []
    for _number in range(rng.integers(1, 4)):
        points = rng.uniform(40, 240, (rng.integers(3, 8), 2))
        strokes.append(_smooth(points) if rng.random() < 0.6 else points)
    return _drawn(strokes, width)


def _shape(rng: Generator, _: Digits) -> Picture:
    kind, width = rng.integers(4), rng.uniform(14, 32)
    angle, size = rng.uniform(0, 2 * math.pi), rng.uniform(60, 100, 2)
    if kind < 2:  # a square or a triangle
        corners = 4 - kind
        turns = angle + 2 * math.pi * np.arange(corners + 1) / corners
        if corners == 4 and rng.random() < 0.5:
            turns = turns - angle + math.pi / 4
        return _drawn([140 + size * _around(turns)], width)
    if kind == 2:  # a cross
        arms = [size * _around(turn) for turn in (angle, angle + math.pi / 2 + rng.uniform(-0.2, 0.2))]
        return _drawn([np.stack([140 - arm, 140 + arm]) for arm in arms], width)
    radii = rng.uniform(0.4, 1.3, (8, 1)) * size  # a blot: radii of its outline
    points = 140 + radii * _around(np.linspace(0, 2 * math.pi, 9)[:-1])
    picture = Image.new("L", (SIDE, SIDE), 255)
    outline = _smooth(np.concatenate([points, points[:2]]))
    ImageDraw.Draw(picture).polygon([tuple(point) for point in outline.tolist()], fill=0)
    return np.array(picture)


def _two_digits(rng: Generator, digits: Digits) -> Picture:
    """Return two digits that touch or nearly touch, because the service refuses clearly separate digits."""
    left, right = (np.trim_zeros(_some(rng, digits), axis=1) for _ in range(2))
    canvas = np.zeros((28, 60), np.uint8)
    canvas[:, : left.shape[1]] = left
    start = left.shape[1] - rng.integers(0, 4)
    end = start + right.shape[1]
    canvas[:, start:end] = np.maximum(canvas[:, start:end], right)
    return _enlarged(np.pad(canvas[:, :end], 6), 8)


def _turned(rng: Generator, digits: Digits) -> Picture:
    """Return a digit rotated by 90° to the left or to the right. Never a 0: a rotated 0 is still a 0."""
    return np.rot90(_enlarged(_some(rng, digits, "123456789")), rng.choice([1, 3])).copy()


def _blocks(rng: Generator, _: Digits) -> Picture:
    count = rng.integers(3, 8)
    pattern = rng.random((count, count)) < rng.uniform(0.3, 0.6)
    pattern[rng.integers(count), rng.integers(count)] = True
    side = 200 // count
    return np.where(np.pad(np.kron(pattern, np.ones((side, side))), 40), 0, 255).astype(np.uint8)


def _hand_letter(rng: Generator, _: Digits) -> Picture:
    """Return a slanted letter of HAND: straight or smooth strokes through points with random shifts."""
    letter = HAND[rng.choice(list(HAND))]
    width, slant, smooth = rng.uniform(14, 30), rng.uniform(-0.25, 0.25), rng.random() < 0.5
    size = 180 * np.array([rng.uniform(0.6, 1), 1])
    strokes = []
    for stroke in letter:
        points = np.array(stroke) + rng.normal(0, 0.05, (len(stroke), 2))
        points[:, 0] += slant * (0.5 - points[:, 1])
        strokes.append(_smooth(50 + points * size) if smooth else 50 + points * size)
    return _drawn(strokes, width)


def _arrow(rng: Generator, _: Digits) -> Picture:
    turn = rng.uniform(0, 2 * math.pi)
    tip, tail, width = 140 + 90 * _around(turn), 140 - 90 * _around(turn), rng.uniform(14, 26)
    spread, barb = rng.uniform(0.4, 0.8), rng.uniform(50, 90)
    barbs = [tip - barb * _around(turn + side * spread) for side in (1, -1)]
    return _drawn([np.stack([tail, tip]), np.stack([barbs[0], tip, barbs[1]])], width)


def _smiley(rng: Generator, _: Digits) -> Picture:
    width, radius = rng.uniform(10, 20), rng.uniform(80, 110, 2)
    eyes = [np.array([[side, -0.35], [side, -0.2]]) for side in (-0.35, 0.35)]
    happy = 1 if rng.random() < 0.7 else -1
    arc = np.linspace(0.2 * math.pi, 0.8 * math.pi, 12)
    mouth = np.stack([0.55 * np.cos(arc), 0.25 + 0.3 * happy * (np.sin(arc) - 0.5)], 1)
    face = [_around(np.linspace(0, 2 * math.pi, 50)), *eyes, mouth]
    return _drawn([140 + radius * stroke for stroke in face], width)


def _texture(rng: Generator, _: Digits) -> Picture:
    """Return a round or square patch of stripes, chequers or smooth noise."""
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    kind, turn, waves = rng.integers(3), rng.uniform(0, math.pi), rng.uniform(6, 14)
    value = np.sin(waves * (x * math.cos(turn) + y * math.sin(turn)))
    if kind == 1:
        value *= np.sin(waves * (y * math.cos(turn) - x * math.sin(turn)))
    elif kind == 2:
        noise = Image.fromarray(rng.integers(0, 256, (200, 200), np.uint8))
        value = np.array(noise.filter(ImageFilter.GaussianBlur(200 / waves / 3)), np.float64)
        value -= np.median(value)
    patch = (value > 0) & ((x**2 + y**2 < 1) if rng.random() < 0.5 else True)
    return np.where(np.pad(patch, 40), 0, 255).astype(np.uint8)


def _half_digit(rng: Generator, digits: Digits) -> Picture:
    """Return the left, right, upper or lower half of a digit. Never of a 1: half of a 1 looks like a 1."""
    digit = _some(rng, digits, "023456789").copy()
    digit[(np.s_[:14], np.s_[14:], np.s_[:, :14], np.s_[:, 14:])[rng.integers(4)]] = 0
    return _enlarged(digit)


FITTED: dict[str, Draw] = {
    "printed letters": partial(_letter, letters=LETTERS),
    "scribbles": _scribble,
    "squares, crosses, triangles, blots": _shape,
    "two digits beside each other": _two_digits,
    "digits rotated by 90°": _turned,
    "random blocks": _blocks,
}
HELD_OUT: dict[str, Draw] = {
    "synthetic handwritten letters": _hand_letter,
    "arrows": _arrow,
    "smileys": _smiley,
    "textures": _texture,
    "half digits": _half_digit,
}
LIKE_DIGITS: dict[str, Draw] = {"printed I, O, S, Z, b, g, l, q, o, s, z": partial(_letter, letters=LOOKALIKES)}
