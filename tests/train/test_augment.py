"""Augmentation moves every image its own way, within its limits, on the batch's device."""

import torch

from train.augment import Warp

STILL = Warp(degrees=0, pixels=0, scale=0, shear=0, elastic=0)


def dot(row: int, column: int, count: int = 1) -> torch.Tensor:
    images = torch.zeros(count, 1, 28, 28)
    images[:, 0, row, column] = 1
    return images


def centre(images: torch.Tensor) -> torch.Tensor:
    """Return the centre of mass, (row, column), of each image."""
    grid = torch.stack(torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij"))
    mass = images.sum(dim=(1, 2, 3))
    return (images * grid).sum(dim=(2, 3)) / mass[:, None]


def test_nothing_allowed_changes_nothing():
    images = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(STILL(images), images)


def test_shift_stays_within_its_pixels_and_uses_them():
    torch.manual_seed(0)
    moved = centre(Warp(degrees=0, pixels=2, scale=0, shear=0, elastic=0)(dot(14, 14, 500))) - 14
    assert 1.9 < moved.abs().max() <= 2.01


def test_rotation_stays_within_its_degrees_and_uses_them():
    torch.manual_seed(0)
    offset = centre(Warp(degrees=10, pixels=0, scale=0, shear=0, elastic=0)(dot(4, 14, 500))) - 13.5
    angles = torch.rad2deg(torch.atan2(offset[:, 1] - 0.5, -offset[:, 0]))
    assert 9 < angles.abs().max() < 11
    assert angles.min() < -8
    assert angles.max() > 8


def line(row: int, count: int) -> torch.Tensor:
    """Return images of a horizontal stroke at `row`, from column 8 to 19."""
    images = torch.zeros(count, 1, 28, 28)
    images[:, 0, row, 8:20] = 1
    return images


def width(images: torch.Tensor) -> torch.Tensor:
    """Return how wide the ink of each image is, in pixels, by its deviation: a bar of w pixels has w / √12."""
    columns = images.sum(dim=(1, 2))
    mean = (columns * torch.arange(28.0)).sum(dim=1) / columns.sum(dim=1)
    spread = (columns * (torch.arange(28.0) - mean[:, None]) ** 2).sum(dim=1) / columns.sum(dim=1)
    return (12 * spread).sqrt()


def test_scale_stays_within_its_share_and_uses_it():
    torch.manual_seed(0)
    widths = width(Warp(degrees=0, pixels=0, scale=0.1, shear=0, elastic=0)(line(14, 500))) / 12
    assert 0.89 < widths.min() < 0.93
    assert 1.07 < widths.max() < 1.12


def test_shear_moves_rows_along_by_their_height():
    torch.manual_seed(0)
    warp = Warp(degrees=0, pixels=0, scale=0, shear=0.1, elastic=0)
    high, low = (centre(warp(line(row, 500)))[:, 1] - 13.5 for row in (4, 23))
    for moved in (high, low):  # 9.5 rows from the middle, 0.1 pixels a row
        assert 0.85 < moved.abs().max() <= 0.96
    torch.testing.assert_close(centre(warp(line(4, 5)))[:, 0], torch.full((5,), 4.0))


def test_elastic_bends_a_stroke_within_its_pixels_and_in_more_than_one_way():
    torch.manual_seed(0)
    bent = Warp(degrees=0, pixels=0, scale=0, shear=0, elastic=1)(line(14, 500))
    # The height of the stroke at its two ends: a shift would move both alike, a rotation one against the other.
    columns = torch.arange(28)
    left, right = (centre(bent * ((columns - end).abs() <= 1))[:, 0] - 14 for end in (9, 18))
    # Between its handles bicubic interpolation overshoots them, by 28 % along an axis at most.
    assert 0.7 < torch.cat([left, right]).abs().max() < 1.28**2
    correlation = torch.corrcoef(torch.stack([left, right]))[0, 1]
    assert correlation.abs() < 0.5


def test_each_image_draws_its_own():
    torch.manual_seed(0)
    images = Warp(degrees=10, pixels=2, scale=0.1, shear=0.1, elastic=0)(dot(10, 12, 8))
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_seed_decides():
    warp = Warp(degrees=10, pixels=2, scale=0.1, shear=0.1, elastic=1)
    torch.manual_seed(5)
    first = warp(dot(9, 9, 3))
    torch.manual_seed(5)
    assert torch.equal(warp(dot(9, 9, 3)), first)
