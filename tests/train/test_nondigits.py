"""Synthetic non-digits have MNIST's form, and are the same at every call."""

import pytest
import torch

from serve.pictures.preprocess import in_form
from train.data import load
from train.nondigits import KINDS, draw


@pytest.fixture(scope="module")
def digits(subset):
    return load(subset).train


@pytest.mark.parametrize("kind", KINDS)
def test_images_have_mnists_form(kind, digits):
    images = draw(kind, 120, digits, seed=1)
    assert (images.shape, images.dtype) == ((120, 28, 28), torch.uint8)
    assert sum(in_form(images.numpy())) >= 0.95 * 120
    assert len(images.unique(dim=0)) > 100


def test_seed_decides_the_images(digits):
    one, same, other = (draw("scribbles", 30, digits, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
