"""Renderers of test pictures: MNIST's digits as screens, scanners and cameras would show them.

Each form is a function of a digit, 28×28, white on black, and a random generator; it returns an encoded PNG or JPEG.
The order of the random draws is part of a form: with another order, its pictures and figures change.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy import ndimage

TYPICAL_STROKE = 2.47  # of 28 pixels: the median of MNIST's training images, by _stroke_width

Floats = NDArray[np.float32]
SIZE = (400, 300)  # width and height, in pixels, of the forms that do not state theirs

Render = Callable[[Image.Image, np.random.Generator], bytes]


@dataclass(frozen=True)
class Form:
    """A form of pictures: its title, its description, and the function that renders it."""

    title: str
    words: str
    render: Render


FORMS: dict[str, Form] = {}  # by the name of the function


def form(title: str) -> Callable[[Render], Render]:
    """Add the decorated function to FORMS; its docstring is the description in docs/pictures.md."""

    def add(render: Render) -> Render:
        FORMS[render.__name__] = Form(title, " ".join((render.__doc__ or "").split()), render)
        return render

    return add


@form("28×28, as MNIST is")
def plain(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """A PNG of 28×28, white on black: MNIST's own form."""
    return _as_png(digit)


@form("enlarged 10×")
def enlarged(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """Enlarged to 280×280 (bicubic), white on black."""
    return _as_png(_enlarge(digit))


@form("dark on light")
def inverted(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """28×28, black on white."""
    return _as_png(ImageOps.invert(digit))


@form("dark on light, enlarged 10×")
def inverted_enlarged(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """Enlarged to 280×280, black on white."""
    return _as_png(ImageOps.invert(_enlarge(digit)))


def _page(height: int, digit: Image.Image, random: np.random.Generator) -> bytes:
    ink = digit.crop(digit.getbbox())
    ink = _scaled(ink, min(height / ink.height, 280 / ink.width), least=1)  # a wide digit fits the page's width
    whole = Image.new("L", (300, 400), 255)
    left, top = (int(random.integers(0, room - side + 1)) for room, side in zip(whole.size, ink.size, strict=True))
    whole.paste(0, (left, top), ink)
    return _as_png(whole)


@form("on a page, a third of its height")
def page_third(digit: Image.Image, random: np.random.Generator) -> bytes:
    """Black anywhere on a white page of 300×400, the ink 133 pixels high: a third of the page."""
    return _page(133, digit, random)


@form("on a page, a tenth of its height")
def page_tenth(digit: Image.Image, random: np.random.Generator) -> bytes:
    """Black anywhere on a white page of 300×400, the ink 40 pixels high: a tenth of the page."""
    return _page(40, digit, random)


@form("JPEG, quality 40")
def jpeg(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """280×280, black on white, as a JPEG of quality 40."""
    return _as_jpeg(ImageOps.invert(_enlarge(digit)), quality=40)


@form("thin strokes, about half")
def thin(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """280×280, black on white, bilevel: the ink eroded by a quarter of the digit's mean stroke width on each side,
    which leaves half; by less if the digit would otherwise break into parts or lose one.
    """
    mask = _mask(digit)
    distance, depth = _outline_distance(mask), _stroke_width(mask) / 4
    while depth > 1 and _components(distance > depth) != _components(mask):
        depth *= 0.85
    return _bilevel(distance > depth)


@form("thin strokes, torn")
def torn(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """As thin strokes, but always eroded by a quarter of the mean width: the thin strokes of a digit with strokes of
    unequal width disappear.
    """
    mask = _mask(digit)
    return _bilevel(_outline_distance(mask) > _stroke_width(mask) / 4)


@form("thick strokes, 1.8×")
def thick(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """280×280, black on white, bilevel: the ink dilated until the strokes are 4.4 of 28 pixels wide, 1.8 times the
    median of MNIST; the few digits with wider strokes are not changed. Small holes close.
    """
    mask = _mask(digit)
    return _bilevel(_outline_distance(~mask) <= max(0, 1.8 * TYPICAL_STROKE * 10 - _stroke_width(mask)) / 2)


@form("thick strokes, blotted")
def blotted(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """As thick strokes, but dilated to 1.8 times the digit's own mean width, also if that is large: some digits become
    blots.
    """
    mask = _mask(digit)
    return _bilevel(_outline_distance(~mask) <= 0.4 * _stroke_width(mask))


@form("black on transparent")
def transparent(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """280×280, black ink on transparent."""
    picture = Image.new("RGBA", (280, 280), (0, 0, 0, 0))
    picture.putalpha(_enlarge(digit))
    return _as_png(picture)


@form("gradient, noise, coloured paper")
def photographed(digit: Image.Image, random: np.random.Generator) -> bytes:
    """A simulated photo: 360×480, dark coloured ink on light coloured paper, the digit's 28×28 frame enlarged to
    150–300 pixels per side at a random position, blurred; light that decreases by 20–45 % in a random direction, a
    vignette of up to 30 % in the corners, noise of standard deviation 3–10 per channel, JPEG of quality 80.
    """
    width, height = 360, 480
    side = int(random.integers(150, 301))
    left, top = (int(random.integers(0, room - side + 1)) for room in (width, height))
    mask = np.zeros((height, width, 1), np.float32)
    ink = digit.resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(side / 200))
    mask[top : top + side, left : left + side, 0] = np.asarray(ink, np.float32) / 255
    paper, pen = random.uniform(170, 250, 3).astype(np.float32), random.uniform(10, 90, 3).astype(np.float32)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle, fall, vignette = random.uniform(0, 2 * np.pi), random.uniform(0.2, 0.45), random.uniform(0, 0.15)
    light = 1 - fall * (1 + (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2)) / 2 - vignette * (x**2 + y**2)
    scene = (paper + (pen - paper) * mask) * light[..., None].astype(np.float32)
    scene += random.uniform(3, 10) * random.standard_normal(scene.shape, np.float32)
    return _as_jpeg(Image.fromarray(scene.clip(0, 255).astype(np.uint8)), quality=80)


@form("MNIST at 8×8, enlarged")
def coarse(digit: Image.Image, random: np.random.Generator) -> bytes:
    """MNIST reduced to 8×8 as load_digits was (the pixels of each 4×4 block counted in a bitmap of 32×32 that the digit
    fills), and enlarged to 160×160: used for tuning in place of load_digits.
    """
    ink = digit.crop(digit.getbbox())
    return _counted(_scaled(ink, 32 / max(ink.size), least=1), random)


@form("MNIST at 8×8, stretched, enlarged")
def stretched(digit: Image.Image, random: np.random.Generator) -> bytes:
    """As MNIST at 8×8, but first stretched to 20×32 (at most twofold in width), as by a size normalisation that does
    not keep the aspect ratio: also used for tuning in place of load_digits.
    """
    ink = digit.crop(digit.getbbox())
    width = max(2, min(20, round(64 * ink.width / ink.height)))
    return _counted(ink.resize((width, 32), Image.Resampling.BICUBIC), random)


def _counted(ink: Image.Image, random: np.random.Generator) -> bytes:
    bitmap = np.zeros((32, 32), np.uint8)
    top, left = (32 - ink.height) // 2, (32 - ink.width) // 2
    bitmap[top : top + ink.height, left : left + ink.width] = np.asarray(ink) > 127
    counts = bitmap.reshape(8, 4, 8, 4).sum((1, 3))
    return other_hands(Image.fromarray((counts * 255 / 16).astype(np.uint8)), random)


@form("other hands: load_digits, 8×8")
def other_hands(digit: Image.Image, _random: np.random.Generator) -> bytes:
    """Digits that are not MNIST's: scikit-learn's load_digits, 8×8, enlarged to 160×160 (bicubic), black on white."""
    return _as_png(ImageOps.invert(digit.resize((160, 160), Image.Resampling.BICUBIC)))


def _scene(
    digit: Image.Image,
    random: np.random.Generator,
    share: tuple[float, float] = (0.35, 0.7),
    size: tuple[int, int] = SIZE,
) -> tuple[Floats, tuple[int, int, int, int]]:
    """Return the coverage of each pixel by the digit's ink, float32 [H, W], and its box: left, top, right, bottom.

    The digit is rotated by up to 8°. Its longer side is a random share of the picture's shorter side, its position is
    random.
    """
    ink = _enlarge(digit).rotate(random.uniform(-8, 8), Image.Resampling.BICUBIC)
    ink = ink.crop(ink.getbbox())
    ink = _scaled(ink, min(size) * random.uniform(*share) / max(ink.size), Image.Resampling.LANCZOS)
    margin = round(0.06 * min(size))
    left, top = (
        int(random.integers(margin, room - side - margin + 1)) for room, side in zip(size, ink.size, strict=True)
    )
    mask = np.zeros(size[::-1], np.float32)
    mask[top : top + ink.height, left : left + ink.width] = np.asarray(ink, np.float32) / 255
    return mask, (left, top, left + ink.width, top + ink.height)


def _uneven_light(
    random: np.random.Generator, fall: tuple[float, float], size: tuple[int, int] = SIZE
) -> NDArray[np.floating[Any]]:
    """Return light that decreases from 1, by a random share between the two of `fall`, in a random direction."""
    x, y = _axes(size)
    angle, share = random.uniform(0, 2 * np.pi), random.uniform(*fall)
    return 1 - share * (0.5 + (x * np.cos(angle) + y * np.sin(angle)) / math.hypot(*size))


def _shot(scene: Floats, random: np.random.Generator, noise: float, quality: int = 82, blur: float = 0.6) -> bytes:
    """Return a scene, float32 [H, W] or [H, W, 3], clipped to 0–1, as a camera's JPEG: blurred and noisy."""
    picture = Image.fromarray((scene.clip(0, 1) * 255).astype(np.uint8))
    values = np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)), np.float32)
    values = values + noise * random.standard_normal(values.shape, np.float32)
    return _as_jpeg(Image.fromarray(values.clip(0, 255).astype(np.uint8)), quality)


def _painted(mask: Floats, paper: Floats | float, pen: Floats | float) -> Floats:
    return paper + (np.asarray(pen, np.float32) - paper) * mask


def _axes(size: tuple[int, int] = SIZE) -> tuple[Floats, Floats]:
    """Return x and y of each pixel, in pixels from the centre, float32 [1, W] and [H, 1]."""
    width, height = size
    return (
        np.arange(width, dtype=np.float32)[None] - width / 2,
        np.arange(height, dtype=np.float32)[:, None] - height / 2,
    )


@form("glare on a whiteboard")
def glare(digit: Image.Image, random: np.random.Generator) -> bytes:
    """400×300: dark ink on a light board; the glare of one or two lamps, on the digit or near it, is added to board and
    ink.
    """
    mask, (left, top, right, bottom) = _scene(digit, random)
    x, y = _axes()
    scene = _painted(mask, random.uniform(0.62, 0.8), random.uniform(0.05, 0.3))
    for _ in range(int(random.integers(1, 3))):
        near_x = random.uniform(left - 60, right + 60) - SIZE[0] / 2
        near_y = random.uniform(top - 60, bottom + 60) - SIZE[1] / 2
        width, height = random.uniform(15, 60, 2)
        spot = np.exp(-(((x - near_x) / width) ** 2) - ((y - near_y) / height) ** 2)
        scene = scene + random.uniform(0.2, 0.5) * spot
    return _shot(scene, random, random.uniform(1, 4))


@form("in a box")
def boxed(digit: Image.Image, random: np.random.Generator) -> bytes:
    """360×360: a box around the digit, drawn or printed, in the same ink or another, with lines at most as thick as the
    digit's strokes.
    """
    size = (360, 360)
    mask, (left, top, right, bottom) = _scene(digit, random, (0.3, 0.55), size)
    length = max(right - left, bottom - top)
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    half_width = (right - left) / 2 + length * random.uniform(0.12, 0.5)
    half_height = (bottom - top) / 2 + length * random.uniform(0.12, 0.5)
    thick = random.uniform(0.02, 0.09) * length
    frame = Image.new("L", (size[0] * 2, size[1] * 2), 0)
    wobble = random.uniform(-0.03, 0.03, 8) * length if random.random() < 0.6 else np.zeros(8)
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    points = [
        (2 * (centre_x + i * half_width + wobble[2 * k]), 2 * (centre_y + j * half_height + wobble[2 * k + 1]))
        for k, (i, j) in enumerate(corners)
    ]
    ImageDraw.Draw(frame).line([*points, points[0], points[1]], fill=255, width=max(2, round(2 * thick)), joint="curve")
    outline = np.asarray(frame.reduce(2), np.float32) / 255
    pen = random.uniform(0.05, 0.3)
    scene = _painted(outline, random.uniform(0.85, 1), pen if random.random() < 0.6 else random.uniform(0.1, 0.6))
    return _shot(_painted(mask, scene, pen), random, random.uniform(0, 4))


@form("the edge of a hard shadow")
def hard_shadow(digit: Image.Image, random: np.random.Generator) -> bytes:
    """400×300: a shadow with 35–70 % of the light; its edge passes through the digit or near it."""
    mask, (left, top, right, bottom) = _scene(digit, random)
    x, y = _axes()
    angle = random.uniform(0, 2 * np.pi)
    # Through a point of the digit, or near it.
    through_x = random.uniform(left - 20, right + 20) - SIZE[0] / 2
    through_y = random.uniform(top - 20, bottom + 20) - SIZE[1] / 2
    side = (x - through_x) * np.cos(angle) + (y - through_y) * np.sin(angle)
    side = side + random.uniform(-0.001, 0.001) * ((x - through_x) ** 2 + (y - through_y) ** 2)
    shade = 1 / (1 + np.exp((-side / random.uniform(0.3, 2)).clip(-50, 50)))
    light = 1 - (1 - random.uniform(0.35, 0.7)) * shade
    scene = _painted(mask, random.uniform(0.75, 0.97), random.uniform(0.05, 0.3)) * light
    return _shot(scene.astype(np.float32), random, random.uniform(1, 5))


@form("the paper's corner on a dark table")
def paper_corner(digit: Image.Image, random: np.random.Generator) -> bytes:
    """400×300: one or two edges of the paper, rotated by up to 20°, on a dark table."""
    mask, _ = _scene(digit, random, (0.3, 0.55))
    x, y = _axes()
    angle = random.uniform(-0.35, 0.35)
    across = x * np.cos(angle) + y * np.sin(angle)
    down = -x * np.sin(angle) + y * np.cos(angle)
    rows, columns = np.nonzero(mask > 0.1)
    ink_across, ink_down = across[rows, columns], down[rows, columns]
    sheet = np.ones(SIZE[::-1], np.float32)
    edges = int(random.integers(1, 3))
    gap = random.uniform(6, 60, 2)
    signs = random.choice([-1, 1], 2)
    for axis, ink, sign, space in ((across, ink_across, signs[0], gap[0]), (down, ink_down, signs[1], gap[1]))[:edges]:
        sheet = sheet * ((sign * axis) < (sign * ink).max() + space)
    table = _table(random, 0.35, darkest=0.08, grain=0.04)
    paper = _painted(mask, random.uniform(0.75, 0.97), random.uniform(0.05, 0.3))
    return _shot(np.where(sheet > 0, paper, table), random, random.uniform(1, 4), blur=0.9)


def _lines(angle: float, spacing: float, phase: float, thick: float) -> Floats:
    """Return the coverage of each pixel by parallel lines, float32 [H, W]; angle 0 is horizontal."""
    x, y = _axes()
    place = (-x * np.sin(angle) + y * np.cos(angle) + phase) % spacing
    return np.asarray((thick / 2 + 0.5 - np.minimum(place, spacing - place)).clip(0, 1), np.float32)


@form("squared paper")
def squared(digit: Image.Image, random: np.random.Generator) -> bytes:
    """400×300: squares of 0.12 to 0.8 of the digit's height, lines of 8–40 % of the ink's contrast."""
    mask, (_, top, _, bottom) = _scene(digit, random)
    spacing, angle = (bottom - top) * random.uniform(0.12, 0.8), random.uniform(-0.06, 0.06)
    thick = random.uniform(1, 2)
    grid = np.maximum(
        _lines(angle, spacing, random.uniform(0, spacing), thick),
        _lines(angle + np.pi / 2, spacing, random.uniform(0, spacing), thick),
    )
    return _on_lines(mask, grid, random)


@form("ruled paper")
def ruled(digit: Image.Image, random: np.random.Generator) -> bytes:
    """400×300: lines as on squared paper, 0.4 to 1.3 of the digit's height apart, some with a margin line."""
    mask, (_, top, _, bottom) = _scene(digit, random)
    spacing, angle = (bottom - top) * random.uniform(0.4, 1.3), random.uniform(-0.06, 0.06)
    grid = _lines(angle, spacing, random.uniform(0, spacing), random.uniform(1, 2))
    if random.random() < 0.4:
        grid = np.maximum(grid, _lines(angle + np.pi / 2, 2_000, random.uniform(-180, -120), 1.5))
    return _on_lines(mask, grid, random)


def _on_lines(mask: Floats, grid: Floats, random: np.random.Generator) -> bytes:
    paper = random.uniform(0.85, 1)
    pen = random.uniform(0.05, 0.3)
    line = paper - (paper - pen) * random.uniform(0.08, 0.4)  # fainter than the ink
    return _shot(_painted(mask, _painted(grid, paper, line), pen), random, random.uniform(0, 4))


@form("pencil")
def pencil(digit: Image.Image, random: np.random.Generator) -> bytes:
    """400×300: grey, grainy strokes with 25–45 % of the full contrast."""
    mask, _ = _scene(digit, random)
    grain = Image.fromarray((random.random(SIZE[::-1]) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))
    tooth = np.asarray(grain, np.float32) / 255 - 0.5
    paper = random.uniform(0.8, 0.95)
    scene = _painted(mask * (1 + 2.5 * tooth).clip(0.2, 1), paper, paper - random.uniform(0.25, 0.45)) + 0.04 * tooth
    return _shot(scene, random, random.uniform(1, 4))


@form("phone photo of 2400×1800")
def phone(digit: Image.Image, random: np.random.Generator) -> bytes:
    """2400×1800: uneven light, noise of standard deviation 4–14, blurred, some rotated by their Exif orientation."""
    size = (2400, 1800)
    mask, _ = _scene(digit, random, (0.2, 0.6), size)
    light = _uneven_light(random, (0.1, 0.45), size)
    scene = _painted(mask, random.uniform(0.7, 0.95), random.uniform(0.08, 0.35)) * light
    upright = Image.open(io.BytesIO(_shot(scene.astype(np.float32), random, random.uniform(4, 14), 85, blur=2)))
    exif = Image.Exif()
    turns = {1: None, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif[0x0112], turn = list(turns.items())[int(random.integers(3))]
    return _encoded(upright.transpose(turn) if turn is not None else upright, "JPEG", quality=85, exif=exif)


@form("dark mode")
def dark_mode(digit: Image.Image, random: np.random.Generator) -> bytes:
    """300×300: light, coloured ink on a dark screen."""
    mask, _ = _scene(digit, random, (0.3, 0.8), (300, 300))
    ground, text = random.uniform(0.02, 0.18, 3), random.uniform(0.55, 1, 3)
    scene = ground + (text - ground) * mask[..., None]
    return _as_png(Image.fromarray((scene * 255).astype(np.uint8)))


@form("JPEG, quality 8")
def poor_jpeg(digit: Image.Image, random: np.random.Generator) -> bytes:
    """300×300: dark on light, as a JPEG of quality 8."""
    mask, _ = _scene(digit, random, (0.3, 0.8), (300, 300))
    scene = _painted(mask, random.uniform(0.8, 1), random.uniform(0, 0.3))
    return _as_jpeg(Image.fromarray((scene * 255).astype(np.uint8)), quality=8)


# A sheet in view, on a surround.


def _laid(
    digit: Image.Image, random: np.random.Generator, corners: NDArray[np.float64], size: tuple[int, int] = SIZE
) -> tuple[Floats, Floats]:
    """Return the coverage of each pixel by a sheet with these corners, clockwise, [4, 2], and by the digit on it."""
    width, height = np.ptp(corners, axis=0).round().astype(int).tolist()
    ink, _ = _scene(digit, random, (0.35, 0.75), (width, height))
    rows, goals = [], []  # for the coefficients of the transform from the picture's coordinates to the sheet's
    for (x, y), (u, v) in zip(corners, ((0, 0), (width, 0), (width, height), (0, height)), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        goals += [u, v]
    transform = np.linalg.solve(np.array(rows), np.array(goals)).tolist()
    sheet, ink = (
        np.asarray(
            Image.fromarray(layer).transform(size, Image.Transform.PERSPECTIVE, transform, Image.Resampling.BILINEAR)
        )
        for layer in (np.ones_like(ink), ink)
    )
    return sheet, ink


def _corners(random: np.random.Generator, cut_off: bool = False) -> NDArray[np.float64]:
    """Return the corners of a sheet turned by up to 15°, in perspective, cut off on one side or on none."""
    box = random.uniform(0.5, 0.8, 2) * SIZE
    middle = np.array(SIZE) / 2 + random.uniform(-0.06, 0.06, 2) * SIZE
    if cut_off:
        axis, sign = int(random.integers(2)), int(random.choice([-1, 1]))
        box[axis] *= 1.3
        middle[axis] += sign * random.uniform(0.2, 0.3) * SIZE[axis]
    angle = np.deg2rad(random.uniform(-15, 15))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    places = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * box / 2 * (1 + random.uniform(-0.05, 0.05, (4, 1)))
    return np.asarray(places @ turn + middle, np.float64)


def _table(random: np.random.Generator, lightest: float, darkest: float = 0.03, grain: float = 0.06) -> Floats:
    """Return the grey levels of a plain table, or one with grain, float32 [H, W]."""
    x, y = _axes()
    grain_levels = np.sin((y + 6 * np.sin(x / 90)) / random.uniform(2, 9)) * random.uniform(0, grain)
    return np.asarray(random.uniform(darkest, lightest) + grain_levels, np.float32)


def _cloth(random: np.random.Generator, lightest: float) -> Floats:
    """Return the grey levels of a striped, chequered or mottled cloth, float32 [H, W]."""
    kind, spacing, angle = int(random.integers(3)), random.uniform(8, 40), random.uniform(0, np.pi)
    if kind == 2:
        spots = Image.fromarray((random.random(SIZE[::-1]) * 255).astype(np.uint8))
        blurred = np.asarray(spots.filter(ImageFilter.GaussianBlur(spacing / 6)), np.float32)
        pattern = (0.5 + (blurred - blurred.mean()) / (4 * blurred.std())).clip(0, 1)
    else:
        thick = spacing * random.uniform(0.3, 0.6)
        pattern = _lines(angle, spacing, 0, thick)
        if kind == 1:
            pattern = (pattern + _lines(angle + np.pi / 2, spacing, 0, thick)) / 2
    dark = random.uniform(0.03, 0.5)
    return np.asarray(dark + (random.uniform(dark, lightest) - dark) * pattern, np.float32)


@form("a dark frame around a light sheet")
def framed(digit: Image.Image, random: np.random.Generator, light: bool = False) -> bytes:
    """200–500 pixels: dark ink on a light sheet; around it a frame of one darker grey, from 3 pixels to a quarter of
    the shorter side wide, equal or different on the four sides.
    """
    size = int(random.integers(200, 500)), int(random.integers(200, 500))
    left, top, right, bottom = (max(3.0, share * min(size)) for share in random.uniform(0, 0.25, 4))
    if random.random() < 0.5:
        top = right = bottom = left
    right, bottom = size[0] - round(right), size[1] - round(bottom)
    left, top = round(left), round(top)
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)
    sheet, mask = _laid(digit, random, corners, size)
    paper = random.uniform(0.7, 1)
    scene = _painted(sheet, random.uniform(0, paper - 0.25), _painted(mask, paper, random.uniform(0, 0.3)))
    return _shot(1 - scene if light else scene, random, random.uniform(0, 3), 90, blur=0.3)


@form("a light frame around a dark sheet")
def light_framed(digit: Image.Image, random: np.random.Generator) -> bytes:
    """The same, inverted: light ink, a dark sheet, a lighter frame."""
    return framed(digit, random, light=True)


def _on_surround(
    digit: Image.Image,
    random: np.random.Generator,
    surround: Callable[[np.random.Generator, float], Floats],
    cut_off: bool = False,
) -> bytes:
    mask: Floats = np.zeros(SIZE[::-1], np.float32)
    while not mask.any() or mask[[0, -1]].any() or mask[:, [0, -1]].any():  # the digit must be in view
        sheet, mask = _laid(digit, random, _corners(random, cut_off))
    paper = random.uniform(0.75, 0.97)
    scene = _painted(sheet, surround(random, paper - 0.2), _painted(mask, paper, random.uniform(0.05, 0.3)))
    if random.random() < 0.2:
        scene = 1 - scene  # a dark sheet with light ink on a light table
    return _shot(scene * _uneven_light(random, (0, 0.3)), random, random.uniform(1, 5), blur=0.9)


@form("a sheet on a table")
def on_table(digit: Image.Image, random: np.random.Generator) -> bytes:
    """400×300: a sheet wholly in view, turned by up to 15°, in perspective, on a darker table, plain or with grain; the
    light decreases by up to 30 %. A fifth is inverted: a dark sheet, light ink, a light table.
    """
    return _on_surround(digit, random, _table)


@form("a sheet on a patterned cloth")
def on_cloth(digit: Image.Image, random: np.random.Generator) -> bytes:
    """The same on a cloth: striped, chequered or mottled, its lightest tone at least 20 % of white darker than the
    sheet.
    """
    return _on_surround(digit, random, _cloth)


@form("three sides of a sheet in view")
def cut_off(digit: Image.Image, random: np.random.Generator) -> bytes:
    """As on a table or, for a third, on a cloth, with one side of the sheet outside the picture."""
    return _on_surround(digit, random, _table if random.random() < 0.7 else _cloth, cut_off=True)


@form("the photographer's shadow")
def own_shadow(digit: Image.Image, random: np.random.Generator) -> bytes:
    """400×300: paper that fills the picture, or half the time a sheet on a table; on it the shadow of a head and
    shoulders, with 45–80 % of the light and a soft edge.
    """
    corners = np.array([(0, 0), (400, 0), (400, 300), (0, 300)], float)
    if on_table := random.random() < 0.5:
        corners = _corners(random)
    sheet, mask = _laid(digit, random, corners)
    paper = _painted(mask, random.uniform(0.75, 0.97), random.uniform(0.05, 0.25))
    scene = _painted(sheet, _table(random, 0.4), paper) if on_table else paper
    # The shadow of a head and shoulders, or of a hand with a phone, from one side of the picture.
    x, y = _axes((400, 400))
    x, y = x - random.uniform(-100, 100), y + random.uniform(-80, 60)
    head = np.hypot(x / random.uniform(35, 70), y / random.uniform(45, 80)) < 1
    body = np.hypot(x / random.uniform(80, 160), (y - 200) / random.uniform(120, 170)) < 1
    shape = np.rot90(head | body, int(random.integers(4)))[50:350]
    soft = Image.fromarray(np.where(shape, np.uint8(255), np.uint8(0))).filter(
        ImageFilter.GaussianBlur(random.uniform(1, 12))
    )
    light = 1 - (1 - random.uniform(0.45, 0.8)) * np.asarray(soft, np.float32) / 255
    return _shot(scene * light, random, random.uniform(1, 5), blur=0.9)


def pair(first: Image.Image, second: Image.Image, random: np.random.Generator) -> bytes:
    """Return a picture of two digits beside each other, 0.1 to 0.8 of a digit's height apart, black on white."""
    whole = Image.new("L", (560, 300), 255)
    left = int(random.integers(20, 60))
    for digit in (first, second):
        ink = _scaled(digit.crop(digit.getbbox()), random.uniform(130, 180) / 20)
        whole.paste(0, (left, (300 - ink.height) // 2 + int(random.integers(-20, 21))), ink)
        left += ink.width + round(random.uniform(0.1, 0.8) * 150)
    return _as_png(whole.crop((0, 0, min(560, left), 300)))


def _enlarge(digit: Image.Image) -> Image.Image:
    return digit.resize((280, 280), Image.Resampling.BICUBIC)


def _scaled(
    ink: Image.Image, scale: float, filter: Image.Resampling = Image.Resampling.BICUBIC, least: int = 2
) -> Image.Image:
    return ink.resize((max(least, round(ink.width * scale)), max(least, round(ink.height * scale))), filter)


def _stroke_width(mask: NDArray[np.bool_]) -> float:
    """Return the stroke width in pixels: twice the area of the ink divided by the length of its outline."""
    steps = np.diff(mask, axis=0).sum() + np.diff(mask, axis=1).sum()  # 4/π of a curve's length
    return 2 * float(mask.sum()) / (float(steps) * np.pi / 4)


def _bilevel(mask: NDArray[np.bool_]) -> bytes:
    return _as_png(Image.fromarray(np.where(mask, np.uint8(0), np.uint8(255))))


def _mask(digit: Image.Image) -> NDArray[np.bool_]:
    return np.asarray(_enlarge(digit)) > 127


def _outline_distance(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the distance of each pixel to the nearest pixel without ink."""
    return np.asarray(ndimage.distance_transform_edt(mask))


def _components(mask: NDArray[np.bool_]) -> int:
    return int(ndimage.label(mask, np.ones((3, 3)))[1])


def _as_png(picture: Image.Image) -> bytes:
    return _encoded(picture, "PNG", compress_level=1)


def _as_jpeg(picture: Image.Image, quality: int) -> bytes:
    return _encoded(picture, "JPEG", quality=quality)


def _encoded(picture: Image.Image, *arguments: Any, **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, *arguments, **options)
    return content.getvalue()
