"""The exported module: raw pixels in, probabilities, digit and doubt out."""

import pytest
import torch
from torch import nn

from model.classifier import DigitClassifier, DoubtHead
from model.networks import Model_3


class FirstPixel(nn.Module):
    """A network whose logit for digit 0 is its first input pixel; the others are 0."""

    def forward(self, images):
        return nn.functional.pad(images[:, :, 0, 0], (0, 9))


def test_digit_is_the_one_with_the_highest_probability():
    image = torch.randint(0, 256, (6, 28, 28), dtype=torch.uint8)
    probabilities, digit = DigitClassifier(Model_3()).eval()(image)
    assert (probabilities.shape, probabilities.dtype) == ((6, 10), torch.float32)
    assert (digit.shape, digit.dtype) == ((6,), torch.int64)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(6))
    assert torch.equal(digit, probabilities.argmax(dim=1))


def test_doubt_is_one_number_per_image_and_does_not_change_the_probabilities():
    image = torch.randint(0, 256, (6, 28, 28), dtype=torch.uint8)
    network = Model_3().eval()
    probabilities, digit, doubt = DigitClassifier(network, DoubtHead.of(network)).eval()(image)
    assert (doubt.shape, doubt.dtype) == ((6,), torch.float32)
    without = DigitClassifier(network)(image)
    assert torch.equal(without[0], probabilities)
    assert torch.equal(without[1], digit)


@pytest.mark.parametrize(("pixel", "normalised"), [(0, -0.1307 / 0.3081), (255, (1 - 0.1307) / 0.3081)])
def test_pixels_are_normalised_by_mnists_mean_and_standard_deviation(pixel, normalised):
    image = torch.full((1, 28, 28), pixel, dtype=torch.uint8)
    probabilities, _ = DigitClassifier(FirstPixel())(image)
    expected = torch.softmax(torch.tensor([normalised] + [0.0] * 9), dim=0)
    torch.testing.assert_close(probabilities[0], expected)
