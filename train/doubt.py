"""Doubt: a head beside the trained network that tells digits from what is none, and the threshold that goes with it.

The network stays as it is, so that its accuracy does. The head is fitted to training images, some of them warped,
against the synthetic non-digits of train.nondigits (outlier exposure: Hendrycks, Mazeika & Dietterich, "Deep Anomaly
Detection with Outlier Exposure", 2019). What it reaches, also on kinds that it was not fitted to: docs/doubt.md.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.classifier import DigitClassifier, DoubtHead, logits_and_features, normalise, scale
from model.contract import Doubt
from model.networks import parameter_count
from train.augment import Warp
from train.data import Data
from train.nondigits import KINDS, draw
from train.predict import predict

DOUBTED = 0.01  # the share of the validation images that may be doubted
SEED = 14
NONDIGITS = 12  # one non-digit of each kind to so many training images
MEASURED = 60  # the same, where what is caught is measured
WARP = Warp(degrees=6, pixels=0.5, scale=0.05, shear=0.1, elastic=0.4)
WARPED = 3  # one training image in so many is warped
BATCH, EPOCHS, LEARNING_RATE = 1_024, 120, 0.03  # images of each sort a training step; passes over the digits
DIGIT_WEIGHT = 3.0  # of a digit's loss: few of them may be doubted

Read = tuple[Tensor, Tensor]  # what a head reads of images: features [N, F], probabilities [N, 10]


def fit(network: nn.Module, data: Data) -> DoubtHead:
    """Return a head for `network`, which is left as it is, fitted to `data`'s training images; on the CPU."""
    train, cut = data.train.images, len(data.train) // WARPED
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        digits = [_features(network, train[cut:]), _features(network, train[:cut], WARP)]
        others = [
            _features(network, draw(kind, max(1, len(train) // NONDIGITS), data.train, SEED + number))
            for number, kind in enumerate(KINDS)
        ]
        return _fit(_joined(digits), _joined(others))


def measure(classifier: DigitClassifier, data: Data) -> Doubt:
    """Choose the threshold on the validation images, and return it with the shares that it doubts."""
    if classifier.doubt is None:
        raise ValueError("expected a classifier with doubt")
    validation, test = (predict(classifier, split.images)[2] for split in (data.validation, data.test))
    threshold = choose_threshold(validation)
    count = max(1, len(data.train) // MEASURED)
    caught = {
        kind: float(np.mean(predict(classifier, draw(kind, count, data.validation, number))[2] > threshold))
        for number, kind in enumerate(KINDS)
    }
    return Doubt(
        parameter_count(classifier.doubt),
        threshold,
        validation_doubted=float(np.mean(validation > threshold)),
        test_doubted=float(np.mean(test > threshold)),
        caught=caught,
    )


def choose_threshold(doubts: NDArray[np.float32]) -> float:
    """Return the threshold above which a share DOUBTED of `doubts` lies: midway between two of them."""
    ordered = np.sort(doubts)[::-1]
    above = int(DOUBTED * len(ordered))
    return float(ordered[max(0, above - 1) : above + 1].mean())


@torch.inference_mode()
def _features(network: nn.Module, images: Tensor, warp: Warp | None = None) -> Read:
    """Return the features, [N, F], and the probabilities, [N, 10], of uint8 `images`."""
    parts = []
    for batch in images.cpu().split(500):
        scaled = scale(batch)
        logits, features = logits_and_features(network, normalise(warp(scaled) if warp else scaled))
        parts.append((features, torch.softmax(logits, dim=1)))
    return _joined(parts)


def _joined(parts: list[Read]) -> Read:
    return torch.cat([features for features, _ in parts]), torch.cat([probabilities for _, probabilities in parts])


def _fit(digits: Read, others: Read) -> DoubtHead:
    """Fit a head by logistic regression, on balanced batches of both."""
    # Fitted to standardised features; the head that is returned takes them as they are.
    everything = torch.cat([digits[0], others[0]])
    mean, deviation = everything.mean(dim=0), everything.std(dim=0) + 1e-3
    sorts = [((features - mean) / deviation, probabilities.clone()) for features, probabilities in (digits, others)]
    head = DoubtHead(len(mean))
    nn.init.zeros_(head.detectors.weight)
    nn.init.zeros_(head.detectors.bias)
    steps = max(10, EPOCHS * len(digits[0]) // BATCH)
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        of_digits, of_others = (
            head(features[chosen], probabilities[chosen])
            for features, probabilities in sorts
            for chosen in [torch.randint(len(features), (BATCH,))]
        )
        loss = DIGIT_WEIGHT * F.softplus(of_digits).mean() + F.softplus(-of_others).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        head.detectors.weight.div_(deviation)
        head.detectors.bias.sub_(head.detectors.weight @ mean)
    return head.requires_grad_(True).eval()
