"""Data augmentation: each image of a batch gets its own random affine and elastic warp, on the batch's device."""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

CONTROL_POINTS = 5  # number along each axis; two neighbours are a quarter of the image's side apart


@dataclass(frozen=True)
class Warp:
    """A random warp for each image. The first five fields are limits: values are drawn uniformly from −limit to +limit.

    The warp is an affine map plus an elastic deformation, that is, smooth random displacements (Simard, Steinkraus
    & Platt, "Best practices for convolutional neural networks applied to visual document analysis", 2003).
    """

    degrees: float  # rotation
    pixels: float  # shift, along each axis
    scale: float  # relative change of size
    shear: float  # pixels along x per pixel of y
    elastic: float  # displacement of each control point in pixels, along each axis
    thicker: float = 0.0  # largest weight of the 3×3 maximum, with which a quarter of the images is blended
    thinner: float = 0.0  # largest weight of the 3×3 minimum, with which another quarter is blended

    def __str__(self) -> str:
        warp = (
            f"every image rotated by up to ±{self.degrees:g}°, shifted by ±{self.pixels:g} pixels, "
            f"scaled by ±{100 * self.scale:g} %, sheared by ±{self.shear:g}, bent by ±{self.elastic:g} pixels"
        )
        strokes = f", strokes made up to {self.thicker:g} pixels thicker or {self.thinner:g} thinner on each side"
        return warp + strokes * bool(self.thicker or self.thinner)

    def __call__(self, images: Tensor) -> Tensor:
        """Warp float32 [N, C, H, H] `images` with bilinear resampling. Pixels outside the image are 0 (background).

        The random numbers come from torch's global generator of the images' device.
        """
        count, side = len(images), images.shape[-1]
        pixel = 2 / side  # one pixel in affine_grid's units, in which the image reaches from −1 to 1
        # The limits are Python floats: a tensor would force a synchronisation with the GPU for every batch.
        limits = (math.radians(self.degrees), self.scale, self.shear, self.pixels * pixel, self.pixels * pixel)
        draws = (torch.rand(count, 5, device=images.device) * 2 - 1).unbind(dim=1)
        angle, scale, shear, x, y = (draw * limit for draw, limit in zip(draws, limits, strict=True))
        cos, sin = angle.cos() / (1 + scale), angle.sin() / (1 + scale)
        # One 2×3 matrix per image: rotation × shear ÷ scale, and the shift in the last column.
        maps = torch.stack([cos, shear * cos - sin, x, sin, shear * sin + cos, y], dim=1)
        positions, spline = _grid(side, images.device)
        shifts = torch.rand(count, 2, CONTROL_POINTS, CONTROL_POINTS, device=images.device) * 2 - 1
        elastic = spline @ (shifts * (self.elastic * pixel)) @ spline.T
        sources = (maps.view(-1, 3) @ positions).view(count, 2, side, side) + elastic
        warped = F.grid_sample(images, sources.permute(0, 2, 3, 1), align_corners=False)
        return self._change_stroke_width(warped) if self.thicker or self.thinner else warped

    def _change_stroke_width(self, images: Tensor) -> Tensor:
        """Make strokes thicker or thinner: blend half of the `images` with their 3×3 maximum or minimum."""
        draws = torch.rand(len(images), 1, 1, 1, device=images.device) * 4 - 2  # from −2 to 2; within ±1: no change
        thicker, thinner = self.thicker * (draws - 1).clip(0), self.thinner * (-draws - 1).clip(0)
        maximum, minimum = F.max_pool2d(images, 3, 1, 1), -F.max_pool2d(-images, 3, 1, 1)
        return images + thicker * (maximum - images) + thinner * (minimum - images)


@cache
def _grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return pixel positions (x, y, 1), [3, side × side], and spline weights along an axis, [side, CONTROL_POINTS].

    Matrix products with these two tensors take a fifth of the time of the equivalent `F.affine_grid` and bicubic
    `F.interpolate`.
    """
    axis = (torch.arange(side, device=device) * 2 + 1) / side - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    positions = torch.stack([x, y, torch.ones_like(x)]).view(3, -1)
    identity = torch.eye(CONTROL_POINTS, device=device)[None, None]
    spline = F.interpolate(identity, size=(side, CONTROL_POINTS), mode="bicubic", align_corners=True)[0, 0]
    return positions, spline
