"""The exported module: raw pixels in, probabilities, digit and doubt out."""

import torch

from model.classifier import DigitClassifier, normalise, scale
from model.networks import Model_3


def test_pixels_are_normalised_by_mnists_mean_and_standard_deviation():
    image = torch.randint(0, 256, (6, 28, 28), dtype=torch.uint8)
    network = Model_3().eval()
    probabilities, digit, doubt = DigitClassifier(network).eval()(image)
    assert (probabilities.shape, probabilities.dtype) == ((6, 10), torch.float32)
    assert (digit.shape, digit.dtype) == ((6,), torch.int64)
    assert (doubt.shape, doubt.dtype) == ((6,), torch.float32)
    expected = torch.softmax(network((image[:, None] / 255 - 0.1307) / 0.3081), dim=1)
    torch.testing.assert_close(probabilities, expected)
    torch.testing.assert_close(normalise(scale(image)), (image[:, None] / 255 - 0.1307) / 0.3081)
    assert torch.equal(digit, expected.argmax(dim=1))
