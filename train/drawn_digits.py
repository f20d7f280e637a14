"""Draw digits in styles of handwriting that are rare in MNIST, which comes from one country around 1990.

Examples: a 1 with a flag (the upstroke) and no base, a 7 with a bar, a 4 closed at the top, a 9 with a curled tail. The
drawn digits are added to the training images only. A human reader should recognise every drawn digit:
docs/training.md shows a sheet of all styles. `python -m train.drawn_digits FILE` draws this sheet.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from model.contract import SIDE
from train.data import Split

BOX = 20  # pixels: side of the square that the ink is scaled to
THINNEST, THICKEST = 1.8, 3.2  # pixels: stroke width
SEED = 17  # independent of the training's seed: every training sees the same drawn digits
CHUNK = 200  # images drawn at once
SMOOTH = 8  # number of line segments between two points of a curve
# Standard deviations: of a point's shift, in the units of STYLES, and of the slant, x per unit of y.
JITTER, SLANT = 0.22, 0.12
STRETCH = 0.2  # standard deviation of the logarithm of the width, that is, about 20 % of the width

# A style is a digit and its strokes, drawn in a box about 6 wide and 10 high, y downwards. " / " separates strokes.
# A stroke is a polyline, or a smooth curve through its points if it begins with ~. A coordinate is a number, or a range
# from:to. A point with ranges lies at a random place on the straight line from its first to its last position.
STYLES = (
    (1, "1.5:4,4:1 5,0 5,10"),  # a flag of any length, no base
    (1, "1:3,5:2 5,0 5,10"),
    (1, "0.5:2,6:4 5,0 5,10"),
    (1, "1.5:4,4:1 5,0 5,10 / 2:4,10 8:6,10"),  # a flag and a base
    (1, "~1.5:3,4:2 4:4.2,1.7:1 5,0 / 5,0 5,10"),  # a curved flag
    (1, "5,0 5,10"),
    (2, "~0,2.5 1,0.5 3,0 5.5,1.5 5,4.5 0,10 / 0,10 6,10"),
    (2, "~0,2 2.5,0 5,2.5 3,7.5 0.8,9.8 0.3,8.8 1.5,8 4,9.8 6.5,9"),  # with a loop
    (2, "~0,2.5 2.5,0 5,2.5 3.5,6.5 0,9.7 / ~0,9.7 2,8.8 4,9.8 6,9"),
    (2, "0,0.8:0 5.5,0 0,10 6,10"),  # angular
    (3, "~0,1.2 2.5,0 5,2 2,4.6 / ~2,4.6 5.5,6.5 4.5,9.3 2.5,10 0,8.8"),
    (3, "0,0 5.5,0 2,4 / ~2,4 5,5 5.3,8.3 2.5,10 0,9"),  # a flat top
    (3, "~0,0.5 4,0.5 4,3.8 1.5,4.5 / ~1.5,4.5 5.8,5 5.5,9 2.5,10 -0.5,9.5"),
    (4, "6.5:8,6.8 0,6.8 5,0 5,10"),  # closed to a triangle
    (4, "7:9,7 0,7 4,0 5,0 5,10"),
    (4, "1.5,0 0,6 6:8,6 / 5,0:4 5,10"),  # open
    (4, "~1,0 0,3.5 1,5.8 5,5.3 / 5,0:2 5,10"),
    (4, "3.5,0 0,6.5 7,6.5 / 4.5,3.5:5 4,10"),
    (4, "5,5.5 0,5.5 5,0 4.6,10"),
    (5, "5.5,0 0.8,0 0.4,4.5 / ~0.4,4.5 3.5,3.8 5.5,6.8 3.5,10 0,9"),
    (5, "0.8,0 0.4,4.5 / ~0.4,4.5 3.5,3.8 5.5,6.8 3.5,10 0,9 / 0.8:1.3,0:0.3 5.5:6.5,-0.5:0.3"),  # in two strokes
    (5, "6,0 1.5,0 0.5,4 / ~0.5,4 5,4.5 5,8.5 2,10 -0.5,9.5"),
    (6, "~5:3.5,0 1,3.5 0,7 1.2,9.7 4,9.7 5.2,7.5 3.5,5.5 0.3,7.2"),
    (6, "~3.5,0 0.8,4 0.2,7.5 2.5,10 5.2,8 4,5.7 1.5,6 0.3,7.5"),
    (6, "4,0 0.5,6.5 / ~0.5,6.5 0.7,9.5 3,10 5,8 3.5,6 0.5,7"),  # a straight stem
    (7, "0,0 6,0 2:4,10"),
    (7, "0,0 6,0 2:4,10 / 1.8,5 6.5:5.5,5:4.7"),  # with a bar
    (7, "0,2:1 0,0 6,0 2:4,10"),  # with a serif
    (7, "0,2:1 0,0 6,0 2:4,10 / 1.8,5 6.5:5.5,5:4.7"),
    (7, "0,0 6,0 / ~6,0 4,3.5 3,7 2.8,10"),
    (7, "~0,0.8 2,0 4,0.8 6,0 / ~6,0 4,3.5 3,7 2.8,10 / 1.8,5.3 6,4.8"),
    (8, "~5,1.5 2.7,0 0.8,1.8 3,4.6 5.5,7.5 3,10 0.4,7.7 2.8,4.8 5,1.5"),
    (8, "~3,0 0.8,2.2 3,4.5 5.2,2.2 3,0 / ~3,4.5 0.2,7.2 3,10 5.8,7.2 3,4.5"),  # two circles
    (8, "~5,0.8 2,0.3 1.2,2.8 4.5,6.5 4.2,9.6 1.5,9.6 1.2,7 5.5,0.6"),
    (9, "~5,2 3,0 0.2,2.5 2,5 4.8,3.5 5,2 / 5,1.5 5,10"),  # a straight tail
    (9, "~5,2 3,0 0.2,2.5 2,5 4.8,3.5 5,2 / 5,1.5 3:4,10"),
    (9, "~5,2 3,0 0.2,2.5 2,5 4.8,3.2 / ~5,1.5 5.2,6 4,9.5 2,10 0.3:1.2,9:8.3"),  # curled
    (9, "~5,2 3,0 0.2,2.5 2,5 4.8,3.2 / ~5,1.5 5,5 3.8,8.5 0.5,10"),
    (9, "~5,1 2.5,0 0.4,2.4 2,4.6 5,3.6 / 5,0.5 5,10"),  # open
    (0, "~3,0 1.2,1 0.2,3.2 0.2,6.8 1.2,9 3,10 4.8,9 5.8,6.8 5.8,3.2 4.8,1 3,0"),
    (0, "~3,0 2,1 1.5:2,3.2 1.5:2,6.8 2,9 3,10 4,9 4.5:4,6.8 4.5:4,3.2 4,1 3,0"),  # narrow
    (0, "~2.5,0.3 1,1.2 0.2,3.5 0.3,7 1.5,9.5 3.5,10 5.2,8.5 5.8,5.5 5.2,2.5 3:4.5,-0.5:1"),  # not quite closed
    (0, "~4.5,0 2.7,1 1,3.5 0,6.8 0.5,9.3 1.8,10 3.5,9 5.2,6.5 6,3.2 5.7,0.8 4.5,0"),  # slanted
    (0, "~3.5,0 1,0.8 -0.5,3 -0.8,6.5 0.8,9.2 3.5,10 6,9 7.2,6.5 7,3 5.5,0.7 3.5,0"),
)


def draw(count: int, seed: int = SEED) -> Split:
    """Draw `count` digits, equally many of every style (±1): images, uint8 [count, 28, 28], and their labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.tensor([STYLES[number % len(STYLES)][0] for number in range(count)], dtype=torch.int64)
    images = torch.empty(count, SIDE, SIDE, dtype=torch.uint8)
    for number, (_, strokes) in enumerate(STYLES[:count]):
        own = range(number, count, len(STYLES))
        for start in range(0, len(own), CHUNK):
            part = own[start : start + CHUNK]
            images[part.start : part.stop : part.step] = centred(_ink(strokes, len(part), random))
    return Split(images, labels)


def with_drawn_digits(split: Split, fraction: float) -> Split:
    """Return `split` with drawn digits appended. Their number is `fraction` times the number of images in `split`."""
    drawn = draw(round(fraction * len(split)))
    return Split(torch.cat([split.images, drawn.images]), torch.cat([split.labels, drawn.labels]))


def _ink(strokes: str, count: int, random: Generator) -> Tensor:
    """Draw the `strokes` of a style `count` times: float32 [count, 28, 28] of 0–1."""
    segments = torch.cat([segments_of(_path(stroke, count, random)[:, None]) for stroke in strokes.split(" / ")], dim=1)
    x, y = segments.unbind(dim=3)
    slant, stretch = torch.randn(2, count, 1, 1, generator=random)
    width = (STRETCH * stretch).exp()
    return draw_strokes(torch.stack([width * x - SLANT * slant * y, y], dim=3), random)


def _path(stroke: str, count: int, random: Generator) -> Tensor:
    """Sample one stroke of a style `count` times, each as P points of a polyline or curve: [count, P, x and y]."""
    ranges = [[value.split(":") for value in point.split(",")] for point in stroke.lstrip("~").split()]
    first, last = (torch.tensor([[float(value[end]) for value in point] for point in ranges]) for end in (0, -1))
    points = torch.lerp(first, last, torch.rand(count, len(first), 1, generator=random))
    points += JITTER * torch.randn(points.shape, generator=random)
    return _curve(points) if stroke.startswith("~") else points


def _curve(points: Tensor) -> Tensor:
    """Return the uniform Catmull-Rom spline, [N, (P - 1) × SMOOTH + 1, 2], through `points`, [N, P, 2]."""
    t = torch.arange(SMOOTH) / SMOOTH
    powers = torch.stack([torch.ones_like(t), t, t**2, t**3])
    matrix = torch.tensor([[0, -1, 2, -1], [2, 0, -5, 3], [0, 1, 4, -3], [0, 0, -1, 1]]) / 2
    padded = F.pad(points.mT, (1, 1), mode="replicate")  # [N, 2, P + 2]
    curve = padded.unfold(2, 4, 1) @ (matrix @ powers)  # [N, 2, P - 1, SMOOTH]
    return torch.cat([curve.flatten(2).mT, points[:, -1:]], dim=1)


def segments_of(paths: Tensor) -> Tensor:
    """Return the line segments, [N, K × (P - 1), 2 ends, 2], of K `paths` of P points per image, [N, K, P, x and y]."""
    return torch.stack([paths[:, :, :-1], paths[:, :, 1:]], dim=3).flatten(1, 2)


def draw_strokes(segments: Tensor, random: Generator, filled: Tensor | None = None) -> Tensor:
    """Draw strokes along `segments`, [N, K, 2 ends, x and y], scaled to the box: float32 [N, 28, 28] of 0–1.

    If `filled`, bool [N], is true for an image, the convex polygon that its segments form is filled.
    """
    width = THINNEST + (THICKEST - THINNEST) * torch.rand(len(segments), 1, 1, generator=random)
    low, high = segments.amin(dim=(1, 2), keepdim=True), segments.amax(dim=(1, 2), keepdim=True)
    scale = (BOX - width[..., None]) / (high - low).amax(dim=3, keepdim=True).clip(1e-3)
    segments = (segments - (low + high) / 2) * scale + SIDE / 2
    start, end = segments[:, :, 0, :, None, None], segments[:, :, 1, :, None, None]  # [N, K, 2, 1, 1]
    (dx, dy), axis = (end - start).unbind(dim=2), torch.arange(SIDE) + 0.5
    # Positions of the pixels relative to a segment's start: [N, K, 1, 28] and [N, K, 28, 1].
    x, y = axis - start[:, :, 0], axis[:, None] - start[:, :, 1]
    length = (dx * dx + dy * dy).clip(1e-6)
    t = (x * (dx / length) + y * (dy / length)).clip(0, 1)
    distance = ((x - t * dx).square_() + (y - t * dy).square_()).amin(dim=1).sqrt()
    ink = (width / 2 - distance + 0.5).clip(0, 1)
    if filled is not None:
        inside = (dx * y - dy * x >= 0).all(dim=1) & filled[:, None, None]
        ink = torch.where(inside, 1.0, ink)
    return ink


def centred(ink: Tensor) -> Tensor:
    """Convert `ink`, [N, 28, 28] of 0–1, to uint8; move its centre of mass to the middle, at most 4 pixels per axis."""
    images = (255 * ink).round().to(torch.uint8)
    mass, positions = images.sum(dim=(1, 2)).clip(1), torch.arange(SIDE)
    centres = [(images.sum(dim=3 - axis) * positions).sum(dim=1) / mass for axis in (1, 2)]  # row and column
    shifts = (SIDE / 2 - 0.5 - torch.stack(centres, dim=1)).round().long().clip(-4, 4).tolist()
    return torch.stack([image.roll(shift, dims=(0, 1)) for image, shift in zip(images, shifts, strict=True)])


def sheet(rows: int = 10) -> Image.Image:
    """Return a picture with a column per style and `rows` digits of each style, black on white."""
    images = draw(rows * len(STYLES)).images.view(rows, len(STYLES), SIDE, SIDE)
    return Image.fromarray(255 - images.transpose(1, 2).reshape(rows * SIDE, -1).numpy())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m train.drawn_digits", description="Draw one sheet of all styles.")
    parser.add_argument("file", type=Path, help="the picture to write")
    sheet().save(parser.parse_args().file)
