"""The classifier that is exported: raw pixels in, probabilities and the digit out."""

import torch
from torch import Tensor, nn

MEAN, STD = 0.1307, 0.3081  # of the training pixels, scaled to 0–1; MNIST's usual figures


def scale(pixels: Tensor) -> Tensor:
    """Return uint8 [N, 28, 28] pixels as float32 [N, 1, 28, 28] from 0, the paper, to 1, the ink."""
    return pixels.unsqueeze(1).float() / 255


def normalise(scaled: Tensor) -> Tensor:
    """Return float32 pixels of 0–1 with MNIST's mean taken off, in units of its standard deviation."""
    return (scaled - MEAN) / STD


class DigitClassifier(nn.Module):
    """A network with all that stands between it and a picture: normalisation before, softmax after.

    Normalisation is part of the graph so that training and serving cannot disagree about it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 [N, 28, 28] to probabilities, float32 [N, 10], and the likeliest digit, int64 [N]."""
        probabilities = torch.softmax(self.network(normalise(scale(image))), dim=1)
        return probabilities, probabilities.argmax(dim=1)
