"""Augmentation transforms each image at random, within the limits of the Warp."""

from dataclasses import replace

import torch

from train.augment import Warp

IDENTITY = Warp(degrees=0, pixels=0, scale=0, shear=0, elastic=0)


def dot(row: int, column: int, count: int) -> torch.Tensor:
    """Return `count` images with a single white pixel, at `row` and `column`."""
    images = torch.zeros(count, 1, 28, 28)
    images[:, 0, row, column] = 1
    return images


def centre(images: torch.Tensor) -> torch.Tensor:
    """Return the centre of mass, (row, column), of each image."""
    grid = torch.stack(torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij"))
    mass = images.sum(dim=(1, 2, 3))
    return (images * grid).sum(dim=(2, 3)) / mass[:, None]


def test_limits_of_zero_change_nothing():
    images = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(IDENTITY(images), images)


def test_shifts_reach_the_limit_and_stay_within_it():
    torch.manual_seed(0)
    moved = centre(replace(IDENTITY, pixels=2)(dot(14, 14, 500))) - 14
    assert 1.9 < moved.abs().max() <= 2.01


def test_rotations_reach_the_limit_and_stay_within_it():
    torch.manual_seed(0)
    offset = centre(replace(IDENTITY, degrees=10)(dot(4, 14, 500))) - 13.5
    angles = torch.rad2deg(torch.atan2(offset[:, 1] - 0.5, -offset[:, 0]))
    assert 9 < angles.abs().max() < 11
    assert angles.min() < -8
    assert angles.max() > 8


def line(row: int, count: int) -> torch.Tensor:
    """Return `count` images with a horizontal line in `row`, from column 8 to 19."""
    images = torch.zeros(count, 1, 28, 28)
    images[:, 0, row, 8:20] = 1
    return images


def width(images: torch.Tensor) -> torch.Tensor:
    """Return the width of the ink of each image in pixels: √12 standard deviations of its columns."""
    columns = images.sum(dim=(1, 2))
    mean = (columns * torch.arange(28.0)).sum(dim=1) / columns.sum(dim=1)
    variance = (columns * (torch.arange(28.0) - mean[:, None]) ** 2).sum(dim=1) / columns.sum(dim=1)
    return (12 * variance).sqrt()


def test_scales_reach_the_limit_and_stay_within_it():
    torch.manual_seed(0)
    widths = width(replace(IDENTITY, scale=0.1)(line(14, 500))) / 12
    assert 0.89 < widths.min() < 0.93
    assert 1.07 < widths.max() < 1.12


def test_shear_shifts_rows_in_proportion_to_their_distance_from_the_middle():
    torch.manual_seed(0)
    warp = replace(IDENTITY, shear=0.1)
    high, low = (centre(warp(line(row, 500)))[:, 1] - 13.5 for row in (4, 23))
    for moved in (high, low):  # 9.5 rows from the middle, 0.1 pixels per row
        assert 0.85 < moved.abs().max() <= 0.96
    torch.testing.assert_close(centre(warp(line(4, 5)))[:, 0], torch.full((5,), 4.0))


def test_elastic_displacements_stay_within_the_limit_and_bend_a_line():
    torch.manual_seed(0)
    bent = replace(IDENTITY, elastic=1)(line(14, 500))
    # The displacements of the two ends of the line. A shift alone gives the correlation 1, a rotation alone -1.
    columns = torch.arange(28)
    left, right = (centre(bent * ((columns - end).abs() <= 1))[:, 0] - 14 for end in (9, 18))
    # Bicubic interpolation overshoots its control points by up to 28 % per axis.
    assert 0.7 < torch.cat([left, right]).abs().max() < 1.28**2
    correlation = torch.corrcoef(torch.stack([left, right]))[0, 1]
    assert correlation.abs() < 0.5


def test_a_quarter_of_the_images_gets_thicker_strokes_and_another_quarter_thinner_ones():
    torch.manual_seed(0)
    images = torch.zeros(2_000, 1, 28, 28)
    images[:, 0, 8:20, 12:15] = 1  # 36 pixels: 10×1 after the 3×3 minimum, 14×5 after the maximum
    changed = replace(IDENTITY, thicker=1, thinner=0.5)(images).sum(dim=(1, 2, 3))
    for share in (changed > 36.1, changed < 35.9):
        assert 0.22 < share.float().mean() < 0.28
    assert 69 < changed.max() <= 70.1
    assert 22.9 <= changed.min() < 23.3  # half of the way from 36 to 10


def test_each_image_has_its_own_transformation():
    torch.manual_seed(0)
    images = Warp(degrees=10, pixels=2, scale=0.1, shear=0.1, elastic=0)(dot(10, 12, 8))
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_same_seed_gives_the_same_transformations():
    warp = Warp(degrees=10, pixels=2, scale=0.1, shear=0.1, elastic=1)
    torch.manual_seed(5)
    first = warp(dot(9, 9, 3))
    torch.manual_seed(5)
    assert torch.equal(warp(dot(9, 9, 3)), first)
