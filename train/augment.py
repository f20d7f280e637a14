"""Augmentation: a random warp an image, computed for a whole batch at once on the batch's device."""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

HANDLES = 5  # a side: the grid of points that the elastic part pulls at, a quarter of the image apart


@dataclass(frozen=True)
class Warp:
    """How far a random warp may go, each way: every image draws its own, uniformly.

    An affine map and, on top, an elastic one: smooth displacements, as of an unsteady hand (Simard, Steinkraus & Platt,
    "Best practices for convolutional neural networks applied to visual document analysis", 2003).
    """

    degrees: float  # rotation
    pixels: float  # shift, along each axis
    scale: float  # relative change of size
    shear: float  # pixels along x, a pixel of y
    elastic: float  # pixels that each handle is pulled by, along each axis

    def __str__(self) -> str:
        return (
            f"every image rotated by up to ±{self.degrees:g}°, shifted by ±{self.pixels:g} pixels, "
            f"scaled by ±{100 * self.scale:g} %, sheared by ±{self.shear:g}, bent by ±{self.elastic:g} pixels"
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 [N, C, H, H] `images` warped and bilinearly resampled; zero, paper, comes in at the edges.

        Draws from torch's global generator of the images' device.
        """
        count, side = len(images), images.shape[-1]
        pixel = 2 / side  # in affine_grid's units, where the image spans −1 to 1
        # Scaled by plain numbers: a tensor of them would make the host wait for a GPU at every batch.
        limits = (math.radians(self.degrees), self.scale, self.shear, self.pixels * pixel, self.pixels * pixel)
        draws = (torch.rand(count, 5, device=images.device) * 2 - 1).unbind(dim=1)
        angle, scale, shear, x, y = (draw * limit for draw, limit in zip(draws, limits, strict=True))
        cos, sin = angle.cos() / (1 + scale), angle.sin() / (1 + scale)
        # Rotation × shear ÷ scale, then the shift: two rows an image.
        maps = torch.stack([cos, shear * cos - sin, x, sin, shear * sin + cos, y], dim=1)
        places, spline = _grid(side, images.device)
        pulls = (torch.rand(count, 2, HANDLES, HANDLES, device=images.device) * 2 - 1) * (self.elastic * pixel)
        sources = (maps.view(-1, 3) @ places).view(count, 2, side, side) + spline @ pulls @ spline.T
        return F.grid_sample(images, sources.permute(0, 2, 3, 1), align_corners=False)


@cache
def _grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where pixels are, (x, y, 1), [3, side × side], and what each handle counts along an axis, [side, HANDLES].

    `F.affine_grid` and a bicubic `F.interpolate` of the pulls would come to the same in five times the time: as matrix
    products both are small.
    """
    axis = (torch.arange(side, device=device) * 2 + 1) / side - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)]).view(3, -1)
    identity = torch.eye(HANDLES, device=device)[None, None]
    spline = F.interpolate(identity, size=(side, HANDLES), mode="bicubic", align_corners=True)[0, 0]
    return places, spline
