"""Augmentation: a random affine map an image, computed for a whole batch at once on the batch's device."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """How far a random affine map may go, each way: every image draws its own, uniformly."""

    degrees: float  # rotation
    pixels: float  # shift, along each axis
    scale: float  # relative change of size
    shear: float  # pixels along x, a pixel of y

    def __str__(self) -> str:
        return (
            f"every image rotated by up to ±{self.degrees:g}°, shifted by ±{self.pixels:g} pixels, "
            f"scaled by ±{100 * self.scale:g} %, sheared by ±{self.shear:g}"
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 [N, C, H, W] `images` mapped and bilinearly resampled; zero, paper, comes in at the edges.

        Draws from torch's global generator of the images' device.
        """
        count, shift = len(images), 2 * self.pixels / images.shape[-1]  # in affine_grid's units: see below
        # Scaled by plain numbers: a tensor of them would make the host wait for a GPU at every batch.
        limits = (math.radians(self.degrees), self.scale, self.shear, shift, shift)
        draws = (torch.rand(count, 5, device=images.device) * 2 - 1).unbind(dim=1)
        angle, scale, shear, x, y = (draw * limit for draw, limit in zip(draws, limits, strict=True))
        cos, sin = angle.cos() / (1 + scale), angle.sin() / (1 + scale)
        # Rotation × shear ÷ scale, then the shift in affine_grid's units, where the image spans −1 to 1.
        maps = torch.stack([cos, shear * cos - sin, x, sin, shear * sin + cos, y], dim=1).view(count, 2, 3)
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)
