"""Synthetic non-digits in MNIST's format, to fit the doubt head: scribbles, glyphs, shapes, letters and others.

Each kind is drawn in batches from a random number generator; some are made of digits. As in MNIST, the ink is scaled to
20×20 pixels with its aspect ratio kept, and its centre of mass is moved to the middle of 28×28 pixels.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from model.contract import SIDE
from train.data import Split

BOX = 20  # pixels: side of the square that the ink is scaled to
CHUNK = 100  # images per batch
SAMPLES = 3  # per side and output pixel, when an image is scaled
THINNEST, THICKEST = 1.8, 3.2  # pixels: stroke width
# Letters that do not look like a digit: without I, O, S, Z, b, g, l, q, o, s, z.
LETTERS = "ABCDEFGHJKLMNPQRTUVWXYacdefhijkmnprtuvwxy"
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
)  # shipped with matplotlib
GLYPH = 96  # pixels: side of a letter's image

Draw = Callable[[int, Split, Generator], Tensor]


def draw(kind: str, count: int, split: Split, seed: int) -> Tensor:
    """Draw `count` images of a `kind` of KINDS, uint8 [count, 28, 28]. Some kinds are made of the digits of `split`."""
    random = torch.Generator().manual_seed(seed)
    sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    ink = torch.cat([KINDS[kind](size, split, random) for size in sizes])
    return _centred(ink)


def _scribbles(count: int, _: Split, random: Generator) -> Tensor:
    """Draw one to four smooth or angular strokes, connected or separate."""
    strokes = 4
    controls = torch.rand(count, strokes, 4, 2, generator=random)
    chained = _chance(0.5, (count, strokes - 1, 1), random)
    controls[:, 1:, 0] = torch.where(chained, controls[:, :-1, 3], controls[:, 1:, 0])
    straight = _chance(0.35, (count, 1, 1, 1), random)
    t = torch.linspace(0, 1, 9)
    bezier = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])  # [4, 9]
    curves = torch.einsum("nskd,kt->nstd", controls, bezier)
    # Three straight lines through the four points.
    positions = torch.linspace(0, 3, 9)
    hats = (1 - (positions - torch.arange(4)[:, None]).abs()).clip(0)
    paths = torch.where(straight, torch.einsum("nskd,kt->nstd", controls, hats), curves)
    return _strokes(_only(_segments(paths), torch.randint(1, strokes + 1, (count,), generator=random)), random)


def _glyphs(count: int, _: Split, random: Generator) -> Tensor:
    """Draw two to five straight or curved strokes between the nodes of a 3×3 lattice, similar to letters and signs."""
    strokes = 5
    start = torch.randint(0, 9, (count, strokes), generator=random)
    step = torch.randint(1, 9, (count, strokes), generator=random)
    for number in range(1, strokes):
        end = (start[:, number - 1] + step[:, number - 1]) % 9
        joined = _chance(0.6, (count,), random)
        start[:, number] = torch.where(joined, end, start[:, number])
    nodes = torch.stack([torch.arange(9) % 3, torch.arange(9) // 3], 1) / 2.0
    ends = torch.stack([nodes[start], nodes[(start + step) % 9]], dim=2)
    ends = ends + 0.06 * torch.randn(ends.shape, generator=random)
    along = ends[:, :, 1] - ends[:, :, 0]
    bend = torch.randn(count, strokes, 1, generator=random) * _chance(0.35, (count, strokes, 1), random) * 0.5
    middle = ends.mean(dim=2) + bend * torch.stack([-along[..., 1], along[..., 0]], dim=2)
    t = torch.linspace(0, 1, 6)[:, None]
    a, b, c = (point.unsqueeze(2) for point in (ends[:, :, 0], middle, ends[:, :, 1]))
    paths = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    paths = paths * (0.5 + 0.7 * torch.rand(count, 1, 1, 2, generator=random))
    return _strokes(_only(_segments(paths), torch.randint(2, strokes + 1, (count,), generator=random)), random)


def _shapes(count: int, _: Split, random: Generator) -> Tensor:
    """Draw polygons with three to six corners, outlined or filled, and crosses."""
    corners = torch.randint(3, 7, (count, 1), generator=random)
    number = torch.arange(7).expand(count, 7)
    irregular = 0.5 * _chance(0.5, (count, 1), random) * torch.rand(count, 6, generator=random)
    turn = (number % corners) + torch.gather(irregular, 1, number % corners)
    angle = 2 * math.pi * (turn / corners + torch.rand(count, 1, generator=random))
    paths = torch.stack([angle.cos(), angle.sin()], dim=2)
    paths = paths * (0.6 + 0.4 * torch.rand(count, 1, 2, generator=random))
    segments = _segments(paths.unsqueeze(1))
    crosses = _chance(0.25, (count, 1, 1, 1), random)
    cross = torch.rand(count, 1, generator=random) * math.pi + torch.tensor([0, math.pi / 2, 0, math.pi / 2, 0, 0])
    arms = torch.stack([cross.cos(), cross.sin()], dim=2)
    segments = torch.where(crosses, torch.stack([-arms, arms], dim=2), segments)
    return _strokes(segments, random, filled=~crosses[:, 0, 0, 0] & _chance(0.25, (count,), random))


def _blots(count: int, _: Split, random: Generator) -> Tensor:
    """Draw smooth noise above a threshold, mostly within a circle."""
    cells = int(torch.randint(3, 9, (), generator=random))
    noise = torch.randn(count, 1, cells, cells, generator=random)
    value = F.interpolate(noise, size=(40, 40), mode="bicubic", align_corners=False)[:, 0]
    axis = torch.linspace(-1, 1, 40)
    falloff = (axis[:, None] ** 2 + axis**2) * 2 * torch.rand(count, 1, 1, generator=random)
    value = value - falloff
    above = 0.4 + 1.6 * torch.rand(count, 1, 1, generator=random)  # distance of the threshold from the maximum
    return _fitted((4 * (value - value.amax(dim=(1, 2), keepdim=True) + above)).clip(0, 1))


def _blocks(count: int, _: Split, random: Generator) -> Tensor:
    """Draw random patterns of 3×3 to 8×8 blocks."""
    cells = int(torch.randint(3, 9, (), generator=random))
    share = 0.3 + 0.4 * torch.rand(count, 1, 1, generator=random)
    pattern = (torch.rand(count, cells, cells, generator=random) < share).float()
    pattern[:, cells // 2, cells // 2] = 1  # no image is blank
    return _fitted(F.interpolate(pattern[:, None], size=(48, 48), mode="nearest")[:, 0])


def _letters(count: int, _: Split, random: Generator) -> Tensor:
    """Draw printed letters, slightly rotated, slanted and stretched."""
    glyphs = _letter_masks()
    chosen = glyphs[torch.randint(0, len(glyphs), (count,), generator=random)].float()
    draws = torch.rand(count, 4, generator=random) * 2 - 1
    angle, slant, x, y = (draws * torch.tensor([0.2, 0.25, 0.25, 0.15])).unbind(dim=1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(count)
    maps = torch.stack([cos * (1 + x), (slant - sin) * (1 + y), zero, sin * (1 + x), cos * (1 + y), zero], dim=1)
    grid = F.affine_grid(1.3 * maps.view(-1, 2, 3), [count, 1, GLYPH, GLYPH], align_corners=False)
    return _fitted(F.grid_sample(chosen[:, None], grid, align_corners=False)[:, 0])


@cache
def _letter_masks() -> Tensor:
    """Return every letter of every font in two stroke widths, uint8 [N, GLYPH, GLYPH] of 0 and 1."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    masks = []
    for name in FONTS:
        font = ImageFont.truetype(folder / f"{name}.ttf", round(0.8 * GLYPH))
        for letter in LETTERS:
            image = Image.new("L", (GLYPH, GLYPH))
            ImageDraw.Draw(image).text((GLYPH / 2, GLYPH / 2), letter, fill=255, anchor="mm", font=font)
            mask = torch.from_numpy(np.array(image) > 127).float()
            for width in (2.2, 2.8):
                masks.append(_thinned(mask, width * GLYPH * 0.6 / BOX))
    return torch.stack(masks).to(torch.uint8)


def _thinned(mask: Tensor, width: float) -> Tensor:
    """Erode the `mask`, [H, W], until its mean stroke width is at most `width` pixels."""
    for _ in range(GLYPH // 8):
        outline = sum(float(mask.diff(dim=axis).abs().sum()) for axis in (0, 1)) * math.pi / 4
        if 2 * float(mask.sum()) / outline <= width:
            break
        smaller = -F.max_pool2d(-mask[None], 3, stride=1, padding=1)[0]
        if not smaller.any():
            break
        mask = smaller
    return mask


def _pairs(count: int, split: Split, random: Generator) -> Tensor:
    """Draw two digits next to each other, touching or separate."""
    left, right = (_digits(count, split, random) for _ in range(2))
    canvas = torch.zeros(count, SIDE, 2 * SIDE)
    canvas[:, :, :SIDE] = left
    for index, shift in enumerate(torch.randint(11, 22, (count,), generator=random).tolist()):
        part = canvas[index, :, shift : shift + SIDE]
        torch.maximum(part, right[index], out=part)
    return _fitted(canvas)


def _turned(count: int, split: Split, random: Generator) -> Tensor:
    """Draw digits rotated by about 90°, without 0, which would still be a digit."""
    digits = _digits(count, split, random, without=(0,))
    quarter = torch.where(_chance(0.5, (count,), random), 1.0, -1.0)
    angle = quarter * math.pi / 2 + 0.4 * (torch.rand(count, generator=random) - 0.5)
    zero = torch.zeros(count)
    maps = torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps, [count, 1, SIDE, SIDE], align_corners=False)
    return _fitted(F.grid_sample(digits[:, None], grid, align_corners=False)[:, 0])


KINDS: dict[str, Draw] = {
    "scribbles": _scribbles,
    "glyphs": _glyphs,
    "shapes": _shapes,
    "blots": _blots,
    "blocks": _blocks,
    "letters": _letters,
    "pairs of digits": _pairs,
    "turned digits": _turned,
}


def _digits(count: int, split: Split, random: Generator, without: tuple[int, ...] = ()) -> Tensor:
    """Return random digits of `split`, float32 [count, 28, 28] of 0–1."""
    among = torch.isin(split.labels, torch.tensor(without, dtype=torch.int64), invert=True).nonzero()[:, 0]
    return split.images[among[torch.randint(0, len(among), (count,), generator=random)]].float() / 255


def _chance(probability: float, shape: tuple[int, ...], random: Generator) -> Tensor:
    return torch.rand(shape, generator=random) < probability


def _segments(paths: Tensor) -> Tensor:
    """Return the line segments, [N, K, P - 1, 2 ends, 2] flattened to [N, K', 2, 2], of paths [N, K, P, 2]."""
    return torch.stack([paths[:, :, :-1], paths[:, :, 1:]], dim=3).flatten(1, 2)


def _only(segments: Tensor, strokes: Tensor) -> Tensor:
    """Keep the segments of the first `strokes`, int [N]; replace the others by copies of the first segment."""
    number = torch.arange(segments.shape[1])
    most = segments.shape[1] // int(strokes.max())
    return torch.where((number < most * strokes[:, None])[:, :, None, None], segments, segments[:, :1])


def _strokes(segments: Tensor, random: Generator, filled: Tensor | None = None) -> Tensor:
    """Draw strokes along `segments`, [N, K, 2 ends, x and y], scaled to the box: float32 [N, 28, 28] of 0–1.

    `filled`, bool [N], marks the images in which the convex polygon of the segments is filled.
    """
    count = len(segments)
    width = THINNEST + (THICKEST - THINNEST) * torch.rand(count, 1, 1, generator=random)
    low, high = segments.amin(dim=(1, 2), keepdim=True), segments.amax(dim=(1, 2), keepdim=True)
    scale = (BOX - width[..., None]) / (high - low).amax(dim=3, keepdim=True).clip(1e-3)
    segments = (segments - (low + high) / 2) * scale + SIDE / 2
    start, end = segments[:, :, 0, :, None, None], segments[:, :, 1, :, None, None]  # [N, K, 2, 1, 1]
    (dx, dy), axis = (end - start).unbind(dim=2), torch.arange(SIDE) + 0.5
    x, y = (
        axis - start[:, :, 0],
        axis[:, None] - start[:, :, 1],
    )  # relative to a segment's start: [N, K, 1, 28], [N, K, 28, 1]
    length = (dx * dx + dy * dy).clip(1e-6)
    t = (x * (dx / length) + y * (dy / length)).clip(0, 1)
    distance = ((x - t * dx).square_() + (y - t * dy).square_()).amin(dim=1).sqrt()
    ink = (width / 2 - distance + 0.5).clip(0, 1)
    if filled is not None:
        inside = (dx * y - dy * x >= 0).all(dim=1) & filled[:, None, None]
        ink = torch.where(inside, 1.0, ink)
    return ink


def _fitted(images: Tensor) -> Tensor:
    """Scale the bounding box of the ink of each image, float [N, H, W], to the box: [N, 28, 28] of 0–1."""
    _, height, width = images.shape
    mask = images > 0.2
    boxes = []
    for axis, size in ((1, height), (2, width)):
        used = mask.any(dim=3 - axis)
        first, last = used.int().argmax(dim=1), size - used.flip(1).int().argmax(dim=1)
        boxes.append((first, last))
    (top, bottom), (left, right) = boxes
    # Sample positions in pixels of the input: SAMPLES × SAMPLES per output pixel.
    scale = torch.maximum(bottom - top, right - left).float() / BOX
    offsets = (torch.arange(SIDE * SAMPLES) + 0.5) / SAMPLES - SIDE / 2
    y = ((top + bottom) / 2)[:, None] + offsets * scale[:, None]
    x = ((left + right) / 2)[:, None] + offsets * scale[:, None]
    grid = torch.stack(
        [
            (2 * x / width - 1)[:, None, :].expand(-1, len(offsets), -1),
            (2 * y / height - 1)[:, :, None].expand(-1, -1, len(offsets)),
        ],
        dim=3,
    )
    sampled = F.grid_sample(images[:, None], grid, align_corners=False)
    margin = (SIDE - BOX) // 2
    inside = F.avg_pool2d(sampled, SAMPLES)[:, 0, margin:-margin, margin:-margin]
    result = F.pad(inside, (margin, margin, margin, margin))  # ink fainter than the mask is cut off
    return result / result.amax(dim=(1, 2), keepdim=True).clip(1e-3)


def _centred(ink: Tensor) -> Tensor:
    """Convert `ink`, [N, 28, 28] of 0–1, to uint8 and shift its centre of mass to the middle by whole pixels."""
    images = (255 * ink).round().to(torch.uint8)
    mass = images.sum(dim=(1, 2)).clip(1)
    positions = torch.arange(SIDE)
    shifts = [
        (SIDE / 2 - 0.5 - (images.sum(dim=3 - axis) * positions).sum(dim=1) / mass).round().long().clip(-4, 4)
        for axis in (1, 2)
    ]
    rows, columns = ((positions - shift[:, None]) % SIDE for shift in shifts)
    return images[torch.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
