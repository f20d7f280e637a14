"""The exported classifier. Its input is raw pixels; its outputs are probabilities, digits and doubts."""

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.contract import CLASSES, SIDE

MEAN, STD = 0.1307, 0.3081  # mean and standard deviation of MNIST's training pixels, scaled to 0–1


def scale(pixels: Tensor) -> Tensor:
    """Scale uint8 [N, 28, 28] pixels to float32 [N, 1, 28, 28], from 0 (background) to 1 (ink)."""
    return pixels.unsqueeze(1).float() / 255


def normalise(scaled: Tensor) -> Tensor:
    """Normalise float32 pixels between 0 and 1: subtract MNIST's mean and divide by its standard deviation."""
    return (scaled - MEAN) / STD


Outputs = tuple[NDArray[Any], ...]  # probabilities [N, 10], digits [N] and doubts [N]
Features = tuple[Tensor, Tensor]  # inputs of the doubt head: [N, F] for the detectors, [N, S] for the shared term


def logits_and_features(network: nn.Module, images: Tensor) -> tuple[Tensor, Features]:
    """Return the logits, [N, 10], of normalised images, [N, 1, 28, 28], and the features of the doubt head.

    The detectors get the means of the maps after the last two ReLU layers. The shared term gets the sorted logits, the
    mean squares and maxima of the maps after the first two, and the mean squares of the maps after the third-to-last
    and second-to-last. `network` is an nn.Sequential with ReLU layers; if there are one or two, it has fewer features.
    """
    maps = []
    for layer in network.children():
        images = layer(images)
        if isinstance(layer, nn.ReLU):
            maps.append(images)
    logits, early = images, maps[:2]
    detected = [F.adaptive_avg_pool2d(each, 1).flatten(1) for each in maps[-2:]]
    squares = [(each * each).mean(dim=(2, 3)) for each in early + maps[-3:-1]]
    maxima = [each.amax(dim=(2, 3)) for each in early]
    shared = [*squares, *maxima, logits.topk(CLASSES).values]
    return logits, (torch.cat(detected, dim=1), torch.cat(shared, dim=1))


class DoubtHead(nn.Module):
    """Out-of-distribution score: ten linear detectors, weighted by the probabilities, plus a shared linear term.

    `features` is the number of inputs of each detector. `shared` is the number of inputs of the shared term.
    """

    def __init__(self, features: int, shared: int) -> None:
        super().__init__()
        self.detectors = nn.Linear(features, CLASSES)
        self.shared = nn.Linear(shared, 1, bias=False)

    @classmethod
    def of(cls, network: nn.Module) -> "DoubtHead":
        """Return a doubt head for the features of `network`. The head is not fitted yet."""
        with torch.no_grad():
            _, features = logits_and_features(network.eval(), torch.zeros(1, 1, SIDE, SIDE))
        return cls(*(part.shape[1] for part in features))

    def forward(self, features: Features, probabilities: Tensor) -> Tensor:
        """Return the doubts, float32 [N]. `probabilities`: [N, 10]. Images that are no digits have larger doubts."""
        detected, shared = features
        doubt: Tensor = (probabilities * self.detectors(detected)).sum(dim=1) + self.shared(shared).squeeze(1)
        return doubt


class DigitClassifier(nn.Module):
    """A network with normalisation, softmax and doubt head. By default, the doubt head is not fitted.

    Normalisation is part of the graph, so that training and serving always normalise in the same way.
    """

    def __init__(self, network: nn.Module, doubt: DoubtHead | None = None) -> None:
        super().__init__()
        self.network = network
        self.doubt = doubt or DoubtHead.of(network)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map uint8 [N, 28, 28] to probabilities, float32 [N, 10], digits, int64 [N], and doubts, float32 [N]."""
        logits, features = logits_and_features(self.network, normalise(scale(image)))
        probabilities = torch.softmax(logits, dim=1)
        return probabilities, probabilities.argmax(dim=1), self.doubt(features, probabilities)


def predict(classifier: DigitClassifier, images: Tensor) -> Outputs:
    """Return the outputs of DigitClassifier.forward for `images`, uint8 [N, 28, 28]. Moves `classifier` to the CPU."""
    classifier = classifier.cpu().eval()
    with torch.inference_mode():
        outputs = zip(*(classifier(batch) for batch in images.cpu().split(1_000)), strict=True)
        return tuple(torch.cat(parts).numpy() for parts in outputs)
