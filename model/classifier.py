"""The classifier that is exported: raw pixels in, probabilities, the digit and the doubt out."""

import torch
from torch import Tensor, nn

from model.contract import CLASSES, SIDE

MEAN, STD = 0.1307, 0.3081  # of the training pixels, scaled to 0–1; MNIST's usual figures


def scale(pixels: Tensor) -> Tensor:
    """Return uint8 [N, 28, 28] pixels as float32 [N, 1, 28, 28] from 0, the paper, to 1, the ink."""
    return pixels.unsqueeze(1).float() / 255


def normalise(scaled: Tensor) -> Tensor:
    """Return float32 pixels of 0–1 with MNIST's mean taken off, in units of its standard deviation."""
    return (scaled - MEAN) / STD


def logits_and_features(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, [N, 10], of normalised images, [N, 1, 28, 28], and the features, [N, F], that doubt reads.

    The features are the outputs of the first ReLU layer and of the last two, averaged over the map. `network` is an
    nn.Sequential with such layers.
    """
    maps = []
    for layer in network.children():
        images = layer(images)
        if isinstance(layer, nn.ReLU):
            maps.append(images)
    read = [*maps[:1], *maps[1:][-2:]]
    return images, torch.cat([each.mean(dim=(2, 3)) for each in read], dim=1)


class DoubtHead(nn.Module):
    """How unlike a digit an image is: ten linear detectors, one a digit, weighted by the digits' probabilities."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.detectors = nn.Linear(features, CLASSES)

    @classmethod
    def of(cls, network: nn.Module) -> "DoubtHead":
        """Return an unfitted head for the features of `network`."""
        with torch.no_grad():
            _, features = logits_and_features(network.eval(), torch.zeros(1, 1, SIDE, SIDE))
        return cls(features.shape[1])

    def forward(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Map features [N, F] and probabilities [N, 10] to the doubt, float32 [N]: the log-odds of no digit."""
        doubt: Tensor = (probabilities * self.detectors(features)).sum(dim=1)
        return doubt


class DigitClassifier(nn.Module):
    """A network with all that stands between it and a picture: normalisation before, softmax after, doubt beside.

    Normalisation is part of the graph so that training and serving cannot disagree about it.
    """

    def __init__(self, network: nn.Module, doubt: DoubtHead | None = None) -> None:
        super().__init__()
        self.network = network
        self.doubt = doubt

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map uint8 [N, 28, 28] to probabilities, float32 [N, 10], the likeliest digit, int64 [N], and the doubt.

        The doubt is float32 [N]; a classifier without a head for it returns the first two alone.
        """
        normalised = normalise(scale(image))
        if self.doubt is None:
            probabilities = torch.softmax(self.network(normalised), dim=1)
            return probabilities, probabilities.argmax(dim=1)
        logits, features = logits_and_features(self.network, normalised)
        probabilities = torch.softmax(logits, dim=1)
        return probabilities, probabilities.argmax(dim=1), self.doubt(features, probabilities)
