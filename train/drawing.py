"""Draw strokes as ink in MNIST's format: scaled to 20×20 pixels, the centre of mass in the middle of 28×28 pixels."""

import torch
from torch import Generator, Tensor

from model.contract import SIDE

BOX = 20  # pixels: side of the square that the ink is scaled to
THINNEST, THICKEST = 1.8, 3.2  # pixels: stroke width


def chance(probability: float, shape: tuple[int, ...], random: Generator) -> Tensor:
    """Return bools of `shape`, each true with `probability`."""
    return torch.rand(shape, generator=random) < probability


def segments_of(paths: Tensor) -> Tensor:
    """Return the line segments, [N, K × (P - 1), 2 ends, 2], of `paths`, [N, K, P, x and y]."""
    return torch.stack([paths[:, :, :-1], paths[:, :, 1:]], dim=3).flatten(1, 2)


def draw_strokes(segments: Tensor, random: Generator, filled: Tensor | None = None) -> Tensor:
    """Draw strokes along `segments`, [N, K, 2 ends, x and y], scaled to the box: float32 [N, 28, 28] of 0–1.

    `filled`, bool [N], marks the images in which the convex polygon of the segments is filled.
    """
    width = THINNEST + (THICKEST - THINNEST) * torch.rand(len(segments), 1, 1, generator=random)
    low, high = segments.amin(dim=(1, 2), keepdim=True), segments.amax(dim=(1, 2), keepdim=True)
    scale = (BOX - width[..., None]) / (high - low).amax(dim=3, keepdim=True).clip(1e-3)
    segments = (segments - (low + high) / 2) * scale + SIDE / 2
    start, end = segments[:, :, 0, :, None, None], segments[:, :, 1, :, None, None]  # [N, K, 2, 1, 1]
    (dx, dy), axis = (end - start).unbind(dim=2), torch.arange(SIDE) + 0.5
    # Relative to a segment's start: [N, K, 1, 28] and [N, K, 28, 1].
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
    """Convert `ink`, [N, 28, 28] of 0–1, to uint8 and shift its centre of mass to the middle by whole pixels."""
    images = (255 * ink).round().to(torch.uint8)
    mass, positions = images.sum(dim=(1, 2)).clip(1), torch.arange(SIDE)
    centres = [(images.sum(dim=3 - axis) * positions).sum(dim=1) / mass for axis in (1, 2)]  # row and column
    shifts = (SIDE / 2 - 0.5 - torch.stack(centres, dim=1)).round().long().clip(-4, 4).tolist()
    return torch.stack([image.roll(shift, dims=(0, 1)) for image, shift in zip(images, shifts, strict=True)])
