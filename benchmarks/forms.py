"""Renderers of test pictures: MNIST's digits as screens, scanners and cameras would show them.

Each form in FORMS is a function of a digit, 28×28, white on black, and a random generator; it returns an encoded PNG or
JPEG. docs/pictures.md describes each form. Keep the order in which a form's function calls the generator: another order
changes the pictures, and so the measured accuracy.
"""

import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageFilter, ImageOps
from PIL.Image import Resampling
from scipy import ndimage

TYPICAL_STROKE = 2.47  # pixels, in 28×28: the median of MNIST's training images, measured by _stroke_width
SIZE = (400, 300)  # default width and height of a picture, in pixels

Picture = Image.Image
Floats = NDArray[np.floating[Any]]
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])  # the corners of a square, clockwise


def _encoded(picture: Picture | NDArray[Any], quality: int | None = None, **options: Any) -> bytes:
    """Encode a picture, or its values of 0–255, as a JPEG of `quality`, or as a PNG if `quality` is None."""
    if not isinstance(picture, Picture):
        picture = Image.fromarray(picture.astype(np.uint8))
    content, options = io.BytesIO(), options | ({"quality": quality} if quality else {"compress_level": 1})
    picture.save(content, "JPEG" if quality else "PNG", **options)
    return content.getvalue()


def _enlarged(digit: Picture) -> Picture:
    return digit.resize((280, 280), Resampling.BICUBIC)


def _cropped(digit: Picture) -> Picture:
    return digit.crop(digit.getbbox())


def _scaled(ink: Picture, scale: float, filter: Resampling = Resampling.BICUBIC, least: int = 2) -> Picture:
    return ink.resize((max(least, round(ink.width * scale)), max(least, round(ink.height * scale))), filter)


def _page(digit: Picture, random: Generator, height: int) -> bytes:
    ink = _cropped(digit)
    ink = _scaled(ink, min(height / ink.height, 280 / ink.width), least=1)  # a wide digit must fit the page's width
    page = Image.new("L", (300, 400), 255)
    left, top = (int(random.integers(0, room - side + 1)) for room, side in zip(page.size, ink.size, strict=True))
    page.paste(0, (left, top), ink)
    return _encoded(page)


def pair(first: Picture, second: Picture, random: Generator) -> bytes:
    """Return a PNG of two digits beside each other, with a gap of 15 to 120 pixels, black on white."""
    page = Image.new("L", (560, 300), 255)
    left = int(random.integers(20, 60))
    for digit in (first, second):
        ink = _scaled(_cropped(digit), random.uniform(130, 180) / 20)
        page.paste(0, (left, (300 - ink.height) // 2 + int(random.integers(-20, 21))), ink)
        left += ink.width + round(random.uniform(0.1, 0.8) * 150)
    return _encoded(page.crop((0, 0, min(560, left), 300)))


def _at_8x8(digit: Picture, _: Generator) -> bytes:
    return _encoded(ImageOps.invert(digit.resize((160, 160), Resampling.BICUBIC)))


def _counted(digit: Picture, random: Generator, stretched: bool = False) -> bytes:
    """Render a digit at 8×8, like scikit-learn's load_digits: fit it into 32×32 bits, count the ink per 4×4 block."""
    ink = _cropped(digit)
    if stretched:  # 32 pixels high and 20 wide, but at most twice as wide as with the right aspect ratio
        ink = ink.resize((max(2, min(20, round(64 * ink.width / ink.height))), 32), Resampling.BICUBIC)
    else:
        ink = _scaled(ink, 32 / max(ink.size), least=1)
    bitmap = np.zeros((32, 32), np.uint8)
    top, left = (32 - ink.height) // 2, (32 - ink.width) // 2
    bitmap[top : top + ink.height, left : left + ink.width] = np.asarray(ink) > 127
    counts = bitmap.reshape(8, 4, 8, 4).sum((1, 3))
    return _at_8x8(Image.fromarray((counts * 255 / 16).astype(np.uint8)), random)


def _stroke_width(mask: NDArray[np.bool_]) -> float:
    """Return the stroke width of `mask`, [H, W], in pixels: twice the ink's area divided by its outline's length."""
    steps = np.diff(mask, axis=0).sum() + np.diff(mask, axis=1).sum()  # about 4/π times the outline's length
    return 2 * float(mask.sum()) / (float(steps) * np.pi / 4)


def _thin(digit: Picture, _: Generator, torn: bool = False) -> bytes:
    mask = np.asarray(_enlarged(digit)) > 127
    distance, depth = ndimage.distance_transform_edt(mask), _stroke_width(mask) / 4
    labelled = partial(ndimage.label, structure=np.ones((3, 3)))
    while not torn and depth > 1 and labelled(distance > depth)[1] != labelled(mask)[1]:
        depth *= 0.85
    return _encoded(np.where(distance > depth, 0, 255))


def _thick(digit: Picture, _: Generator, blotted: bool = False) -> bytes:
    mask = np.asarray(_enlarged(digit)) > 127
    width = _stroke_width(mask)
    depth = 0.4 * width if blotted else max(0, 1.8 * TYPICAL_STROKE * 10 - width) / 2
    return _encoded(np.where(ndimage.distance_transform_edt(~mask) <= depth, 0, 255))


def _scene(
    digit: Picture, random: Generator, share: tuple[float, float] = (0.35, 0.7), size: tuple[int, int] = SIZE
) -> tuple[Floats, Box]:
    """Return the coverage of each pixel by the digit's ink, float32 [H, W], and the digit's box.

    The digit is rotated by up to 8°. Its longer side is a random share, in the range `share`, of the picture's shorter
    side. Its position is random.
    """
    ink = _cropped(_enlarged(digit).rotate(random.uniform(-8, 8), Resampling.BICUBIC))
    ink = _scaled(ink, min(size) * random.uniform(*share) / max(ink.size), Resampling.LANCZOS)
    margin = round(0.06 * min(size))
    left, top = (
        int(random.integers(margin, room - side - margin + 1)) for room, side in zip(size, ink.size, strict=True)
    )
    mask = np.zeros(size[::-1], np.float32)
    mask[top : top + ink.height, left : left + ink.width] = np.asarray(ink, np.float32) / 255
    return mask, (left, top, left + ink.width, top + ink.height)


def _axes(size: tuple[int, int] = SIZE) -> tuple[Floats, Floats]:
    """Return x and y of each pixel, in pixels from the centre, float32 [1, W] and [H, 1]."""
    width, height = (np.arange(side, dtype=np.float32) - side / 2 for side in size)
    return width[None], height[:, None]


def _near(box: Box, random: Generator, reach: int) -> tuple[Floats, Floats]:
    """Return x and y of each pixel relative to a random point, at most `reach` pixels outside of `box`."""
    return tuple(
        axis - (random.uniform(low - reach, high + reach) - side / 2)
        for axis, side, low, high in zip(_axes(), SIZE, box[:2], box[2:], strict=True)
    )


def _turned(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _uneven_light(random: Generator, fall: tuple[float, float], size: tuple[int, int] = SIZE) -> Floats:
    """Return each pixel's brightness, at most 1. It falls in a random direction, by up to a random share in `fall`."""
    across, _ = _turned(*_axes(size), random.uniform(0, 2 * np.pi))
    return 1 - random.uniform(*fall) * (0.5 + across / math.hypot(*size))


def _painted(mask: Floats, paper: Floats | float, pen: Floats | float) -> Floats:
    return paper + (np.asarray(pen, np.float32) - paper) * mask


def _blurred(values: NDArray[Any], radius: float) -> Floats:
    """Blur `values` of 0–255 by a Gaussian with the standard deviation `radius` in pixels. Return them as float32."""
    picture = Image.fromarray(values.astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float32)


def _shot(
    scene: Floats, random: Generator, noise: float, quality: int = 82, blur: float = 0.6, **options: Any
) -> bytes:
    """Blur a scene of 0–1, [H, W] or [H, W, 3]; add noise (standard deviation: `noise` grey levels); return a JPEG."""
    values = _blurred(scene.clip(0, 1) * 255, blur)
    values = values + noise * random.standard_normal(values.shape, np.float32)
    return _encoded(values.clip(0, 255), quality, **options)


def _lines(angle: float, spacing: float, phase: float, thick: float) -> Floats:
    """Return each pixel's coverage by parallel lines, float32 [H, W]. `angle` is in radians; 0 is horizontal."""
    place = (_turned(*_axes(), angle)[1] + phase) % spacing
    return np.asarray((thick / 2 + 0.5 - np.minimum(place, spacing - place)).clip(0, 1), np.float32)


def _photographed(digit: Picture, random: Generator) -> bytes:
    width, height = 360, 480
    side = int(random.integers(150, 301))
    left, top = (int(random.integers(0, room - side + 1)) for room in (width, height))
    mask = np.zeros((height, width, 1), np.float32)
    ink = digit.resize((side, side), Resampling.BICUBIC)
    mask[top : top + side, left : left + side, 0] = _blurred(np.asarray(ink), side / 200) / 255
    paper, pen = random.uniform(170, 250, 3).astype(np.float32), random.uniform(10, 90, 3).astype(np.float32)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle, fall, vignette = random.uniform(0, 2 * np.pi), random.uniform(0.2, 0.45), random.uniform(0, 0.15)
    light = 1 - fall * (1 + _turned(x, y, angle)[0] / np.sqrt(2)) / 2 - vignette * (x**2 + y**2)
    scene = _painted(mask, paper, pen) * light[..., None].astype(np.float32)
    scene += random.uniform(3, 10) * random.standard_normal(scene.shape, np.float32)
    return _encoded(scene.clip(0, 255), 80)


def _glare(digit: Picture, random: Generator) -> bytes:
    mask, box = _scene(digit, random)
    scene = _painted(mask, random.uniform(0.62, 0.8), random.uniform(0.05, 0.3))
    for _ in range(int(random.integers(1, 3))):
        x, y = _near(box, random, 60)
        width, height = random.uniform(15, 60, 2)
        scene = scene + random.uniform(0.2, 0.5) * np.exp(-((x / width) ** 2) - (y / height) ** 2)
    return _shot(scene, random, random.uniform(1, 4))


def _boxed(digit: Picture, random: Generator) -> bytes:
    mask, box = _scene(digit, random, (0.3, 0.55), (360, 360))
    low, high = np.array(box[:2]), np.array(box[2:])
    length = max(high - low)
    half = (high - low) / 2 + length * random.uniform(0.12, 0.5, 2)
    thick = random.uniform(0.02, 0.09) * length
    wobble = random.uniform(-0.03, 0.03, (4, 2)) * length if random.random() < 0.6 else 0
    corners = 2 * ((low + high) / 2 + CORNERS * half + wobble)
    frame = Image.new("L", (720, 720), 0)
    path = [tuple(corner) for corner in corners[[0, 1, 2, 3, 0, 1]].tolist()]
    ImageDraw.Draw(frame).line(path, fill=255, width=max(2, round(2 * thick)), joint="curve")
    outline = np.asarray(frame.reduce(2), np.float32) / 255
    pen = random.uniform(0.05, 0.3)
    scene = _painted(outline, random.uniform(0.85, 1), pen if random.random() < 0.6 else random.uniform(0.1, 0.6))
    return _shot(_painted(mask, scene, pen), random, random.uniform(0, 4))


def _hard_shadow(digit: Picture, random: Generator) -> bytes:
    mask, box = _scene(digit, random)
    angle = random.uniform(0, 2 * np.pi)
    x, y = _near(box, random, 20)  # positions relative to a point on the shadow's edge, which is slightly curved
    side = _turned(x, y, angle)[0] + random.uniform(-0.001, 0.001) * (x**2 + y**2)
    shade = 1 / (1 + np.exp((-side / random.uniform(0.3, 2)).clip(-50, 50)))
    light = 1 - (1 - random.uniform(0.35, 0.7)) * shade
    scene = _painted(mask, random.uniform(0.75, 0.97), random.uniform(0.05, 0.3)) * light
    return _shot(scene.astype(np.float32), random, random.uniform(1, 5))


def _paper_corner(digit: Picture, random: Generator) -> bytes:
    mask, _ = _scene(digit, random, (0.3, 0.55))
    axes = _turned(*_axes(), random.uniform(-0.35, 0.35))
    sheet, edges = np.ones(mask.shape, bool), int(random.integers(1, 3))
    gaps, signs = random.uniform(6, 60, 2), random.choice([-1, 1], 2)
    for axis, sign, gap in list(zip(axes, signs, gaps, strict=True))[:edges]:
        sheet &= sign * axis < (sign * axis)[mask > 0.1].max() + gap
    table = _table(random, 0.35, darkest=0.08, grain=0.04)
    paper = _painted(mask, random.uniform(0.75, 0.97), random.uniform(0.05, 0.3))
    return _shot(np.where(sheet, paper, table), random, random.uniform(1, 4), blur=0.9)


def _lined(digit: Picture, random: Generator, squared: bool) -> bytes:
    mask, (_, top, _, bottom) = _scene(digit, random)
    spacing = (bottom - top) * (random.uniform(0.12, 0.8) if squared else random.uniform(0.4, 1.3))
    angle = random.uniform(-0.06, 0.06)
    if squared:
        thick = random.uniform(1, 2)
        both = (_lines(turn, spacing, random.uniform(0, spacing), thick) for turn in (angle, angle + np.pi / 2))
        grid = np.maximum(*both)
    else:
        grid = _lines(angle, spacing, random.uniform(0, spacing), random.uniform(1, 2))
        if random.random() < 0.4:  # 40 % of the pictures have a vertical margin line
            grid = np.maximum(grid, _lines(angle + np.pi / 2, 2_000, random.uniform(-180, -120), 1.5))
    paper, pen = random.uniform(0.85, 1), random.uniform(0.05, 0.3)
    line = paper - (paper - pen) * random.uniform(0.08, 0.4)  # the lines are fainter than the ink
    return _shot(_painted(mask, _painted(grid, paper, line), pen), random, random.uniform(0, 4))


def _pencil(digit: Picture, random: Generator) -> bytes:
    mask, _ = _scene(digit, random)
    grain = _blurred(random.random(mask.shape) * 255, 0.8) / 255 - 0.5
    paper = random.uniform(0.8, 0.95)
    scene = _painted(mask * (1 + 2.5 * grain).clip(0.2, 1), paper, paper - random.uniform(0.25, 0.45)) + 0.04 * grain
    return _shot(scene, random, random.uniform(1, 4))


def _phone(digit: Picture, random: Generator) -> bytes:
    size = (2400, 1800)
    mask, _ = _scene(digit, random, (0.2, 0.6), size)
    light = _uneven_light(random, (0.1, 0.45), size)
    scene = _painted(mask, random.uniform(0.7, 0.95), random.uniform(0.08, 0.35)) * light
    picture = Image.open(io.BytesIO(_shot(scene.astype(np.float32), random, random.uniform(4, 14), 85, blur=2)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], turn = ((1, 0), (6, 90), (8, 270))[int(random.integers(3))]
    return _encoded(picture.rotate(turn, expand=True), 85, exif=exif)


def _dark_mode(digit: Picture, random: Generator) -> bytes:
    mask, _ = _scene(digit, random, (0.3, 0.8), (300, 300))
    ground, text = random.uniform(0.02, 0.18, 3), random.uniform(0.55, 1, 3)
    return _encoded((ground + (text - ground) * mask[..., None]) * 255)


def _poor_jpeg(digit: Picture, random: Generator) -> bytes:
    mask, _ = _scene(digit, random, (0.3, 0.8), (300, 300))
    return _encoded(_painted(mask, random.uniform(0.8, 1), random.uniform(0, 0.3)) * 255, 8)


def _laid(digit: Picture, random: Generator, corners: Floats, size: tuple[int, int] = SIZE) -> list[Floats]:
    """Return each pixel's coverage by a sheet and by its digit. `corners`, [4, 2], are clockwise from the top left."""
    width, height = np.ptp(corners, axis=0).round().astype(int).tolist()
    ink, _ = _scene(digit, random, (0.35, 0.75), (width, height))
    rows, goals = [], []  # linear equations of the transform from the picture's coordinates to the sheet's
    for (x, y), (u, v) in zip(corners, ((0, 0), (width, 0), (width, height), (0, height)), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        goals += [u, v]
    transform = np.linalg.solve(np.array(rows), np.array(goals)).tolist()
    how = size, Image.Transform.PERSPECTIVE, transform, Resampling.BILINEAR
    return [np.asarray(Image.fromarray(layer).transform(*how)) for layer in (np.ones_like(ink), ink)]


def _corners(random: Generator, cut_off: bool = False) -> Floats:
    """Return a sheet's corners: rotated up to 15°, in perspective; with `cut_off`, one side is usually out of view."""
    box = random.uniform(0.5, 0.8, 2) * SIZE
    middle = np.array(SIZE) / 2 + random.uniform(-0.06, 0.06, 2) * SIZE
    if cut_off:
        axis, sign = int(random.integers(2)), int(random.choice([-1, 1]))
        box[axis] *= 1.3
        middle[axis] += sign * random.uniform(0.2, 0.3) * SIZE[axis]
    angle = np.deg2rad(random.uniform(-15, 15))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    places = CORNERS * box / 2 * (1 + random.uniform(-0.05, 0.05, (4, 1)))
    return places @ turn + middle


def _table(random: Generator, lightest: float, darkest: float = 0.03, grain: float = 0.06) -> Floats:
    """Return a table's grey levels, float32 [H, W]: one of `darkest` to `lightest`, plus grain of up to ±`grain`."""
    x, y = _axes()
    levels = np.sin((y + 6 * np.sin(x / 90)) / random.uniform(2, 9)) * random.uniform(0, grain)
    return np.asarray(random.uniform(darkest, lightest) + levels, np.float32)


def _cloth(random: Generator, lightest: float) -> Floats:
    """Return the grey levels, at most `lightest`, of a striped, chequered or mottled cloth, float32 [H, W]."""
    kind, spacing, angle = int(random.integers(3)), random.uniform(8, 40), random.uniform(0, np.pi)
    if kind == 2:
        spots = _blurred(random.random(SIZE[::-1]) * 255, spacing / 6)
        pattern = (0.5 + (spots - spots.mean()) / (4 * spots.std())).clip(0, 1)
    else:
        thick = spacing * random.uniform(0.3, 0.6)
        pattern = _lines(angle, spacing, 0, thick)
        if kind == 1:
            pattern = (pattern + _lines(angle + np.pi / 2, spacing, 0, thick)) / 2
    dark = random.uniform(0.03, 0.5)
    return np.asarray(dark + (random.uniform(dark, lightest) - dark) * pattern, np.float32)


def _framed(digit: Picture, random: Generator, light: bool = False) -> bytes:
    size = int(random.integers(200, 500)), int(random.integers(200, 500))
    left, top, right, bottom = (max(3.0, share * min(size)) for share in random.uniform(0, 0.25, 4))
    if random.random() < 0.5:
        top = right = bottom = left
    left, top, right, bottom = round(left), round(top), size[0] - round(right), size[1] - round(bottom)
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)
    sheet, mask = _laid(digit, random, corners, size)
    paper = random.uniform(0.7, 1)
    scene = _painted(sheet, random.uniform(0, paper - 0.25), _painted(mask, paper, random.uniform(0, 0.3)))
    return _shot(1 - scene if light else scene, random, random.uniform(0, 3), 90, blur=0.3)


def _on_surround(digit: Picture, random: Generator, surround: Callable[..., Floats] | None = None) -> bytes:
    """Render a sheet on what `surround` draws. If None: on a table or a cloth, usually with one side out of view."""
    if cut_off := surround is None:
        surround = _table if random.random() < 0.7 else _cloth
    mask: Floats = np.zeros(SIZE[::-1], np.float32)
    while not mask.any() or mask[[0, -1]].any() or mask[:, [0, -1]].any():  # repeat until the digit is in view
        sheet, mask = _laid(digit, random, _corners(random, cut_off))
    paper = random.uniform(0.75, 0.97)
    scene = _painted(sheet, surround(random, paper - 0.2), _painted(mask, paper, random.uniform(0.05, 0.3)))
    if random.random() < 0.2:
        scene = 1 - scene  # a dark sheet with light ink on a lighter surround
    return _shot(scene * _uneven_light(random, (0, 0.3)), random, random.uniform(1, 5), blur=0.9)


def _own_shadow(digit: Picture, random: Generator) -> bytes:
    on_table = random.random() < 0.5
    sheet, mask = _laid(digit, random, _corners(random) if on_table else (CORNERS + 1) / 2 * SIZE)
    paper = _painted(mask, random.uniform(0.75, 0.97), random.uniform(0.05, 0.25))
    scene = _painted(sheet, _table(random, 0.4), paper) if on_table else paper
    # The shadow of a head and shoulders, or of a hand with a phone, from one side of the picture.
    x, y = _axes((400, 400))
    x, y = x - random.uniform(-100, 100), y + random.uniform(-80, 60)
    head = np.hypot(x / random.uniform(35, 70), y / random.uniform(45, 80)) < 1
    body = np.hypot(x / random.uniform(80, 160), (y - 200) / random.uniform(120, 170)) < 1
    shadow = np.rot90(head | body, int(random.integers(4)))[50:350]
    shade = _blurred(np.where(shadow, 255, 0), random.uniform(1, 12)) / 255
    light = 1 - (1 - random.uniform(0.45, 0.8)) * shade
    return _shot(scene * light, random, random.uniform(1, 5), blur=0.9)


class Form(NamedTuple):
    """A form of pictures: its title in docs/pictures.md and the function that renders it."""

    title: str
    render: Callable[[Picture, Generator], bytes]


FORMS = {
    "plain": Form("28×28, as MNIST is", lambda digit, _: _encoded(digit)),
    "enlarged": Form("enlarged 10×", lambda digit, _: _encoded(_enlarged(digit))),
    "inverted": Form("dark on light", lambda digit, _: _encoded(ImageOps.invert(digit))),
    "inverted_enlarged": Form(
        "dark on light, enlarged 10×", lambda digit, _: _encoded(ImageOps.invert(_enlarged(digit)))
    ),
    "page_third": Form("on a page, a third of its height", partial(_page, height=133)),
    "page_tenth": Form("on a page, a tenth of its height", partial(_page, height=40)),
    "jpeg": Form("JPEG, quality 40", lambda digit, _: _encoded(ImageOps.invert(_enlarged(digit)), 40)),
    "thin": Form("thin strokes, about half", _thin),
    "torn": Form("thin strokes, torn", partial(_thin, torn=True)),
    "thick": Form("thick strokes, 1.8×", _thick),
    "blotted": Form("thick strokes, blotted", partial(_thick, blotted=True)),
    "transparent": Form(
        "black on transparent",
        lambda digit, _: _encoded(Image.merge("RGBA", [Image.new("L", (280, 280))] * 3 + [_enlarged(digit)])),
    ),
    "photographed": Form("gradient, noise, coloured paper", _photographed),
    # coarse and stretched are measured only with --train, that is, for tuning; other_hands only without it.
    "coarse": Form("MNIST at 8×8, enlarged", _counted),
    "stretched": Form("MNIST at 8×8, stretched, enlarged", partial(_counted, stretched=True)),
    "other_hands": Form("other hands: load_digits, 8×8", _at_8x8),
    "glare": Form("glare on a whiteboard", _glare),
    "boxed": Form("in a box", _boxed),
    "hard_shadow": Form("the edge of a hard shadow", _hard_shadow),
    "paper_corner": Form("the paper's corner on a dark table", _paper_corner),
    "squared": Form("squared paper", partial(_lined, squared=True)),
    "ruled": Form("ruled paper", partial(_lined, squared=False)),
    "pencil": Form("pencil", _pencil),
    "phone": Form("phone photo of 2400×1800", _phone),
    "dark_mode": Form("dark mode", _dark_mode),
    "poor_jpeg": Form("JPEG, quality 8", _poor_jpeg),
    "framed": Form("a dark frame around a light sheet", _framed),
    "light_framed": Form("a light frame around a dark sheet", partial(_framed, light=True)),
    "on_table": Form("a sheet on a table", partial(_on_surround, surround=_table)),
    "on_cloth": Form("a sheet on a patterned cloth", partial(_on_surround, surround=_cloth)),
    "cut_off": Form("three sides of a sheet in view", _on_surround),
    "own_shadow": Form("the photographer's shadow", _own_shadow),
}
