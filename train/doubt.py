"""Doubt: out-of-distribution detection by a head that is fitted to the trained network's features, and its threshold.

The network and its accuracy do not change. The head separates training images, some of them warped, from the synthetic
non-digits of train.nondigits (outlier exposure: Hendrycks, Mazeika & Dietterich, "Deep Anomaly Detection with Outlier
Exposure", 2019). Results, also on kinds not used for fitting: docs/doubt.md.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.classifier import (
    DigitClassifier,
    DoubtHead,
    Features,
    Outputs,
    logits_and_features,
    normalise,
    predict,
    scale,
)
from model.contract import Doubt
from model.networks import parameter_count
from train.augment import Warp
from train.data import Data, Split
from train.nondigits import KINDS, draw

DOUBTED = 0.01  # fraction of the validation images that may be doubted
SEED = 14
DIGITS_PER_NONDIGIT = 12  # training images per non-digit of a kind of weight 1, when fitting
# The kinds that are more like digits are drawn more often.
WEIGHTS = dict.fromkeys(KINDS, 0.5) | {"scribbles": 3, "letters": 2, "glyphs": 1, "pairs of digits": 1}
DIGITS_PER_MEASURED = 60  # training images per non-digit of each kind, when measuring
WARP = Warp(degrees=6, pixels=0.5, scale=0.05, shear=0.1, elastic=0.4)
WARPED = 3  # one of three training images is warped
BATCH_SIZE, EPOCHS, LEARNING_RATE = 1_024, 60, 0.03  # BATCH_SIZE digits and as many non-digits per training step
DIGIT_WEIGHT = 6.0  # weight of the digits' loss, because few of them may be doubted

LogitsAndFeatures = tuple[Tensor, Features]  # as from model.classifier.logits_and_features


def fit(network: nn.Module, train: Split) -> DoubtHead:
    """Fit a doubt head for `network` to the images it was trained on, on the CPU. `network` does not change."""
    images, cut = train.images, len(train) // WARPED
    with torch.random.fork_rng(devices=[]):  # only the CPU's generator is used; with several GPUs, the default warns
        torch.manual_seed(SEED)
        digits = [extract_features(network, images[cut:]), extract_features(network, images[:cut], WARP)]
        count = len(train) / DIGITS_PER_NONDIGIT
        drawn = (
            draw(kind, max(1, round(WEIGHTS[kind] * count)), train, SEED + number) for number, kind in enumerate(KINDS)
        )
        return _fit(_concatenate(digits), _concatenate([extract_features(network, images) for images in drawn]))


def measure(classifier: DigitClassifier, data: Data, validation: Outputs, test: Outputs) -> Doubt:
    """Choose the threshold on the validation images, and measure the fractions doubted.

    `validation` and `test` are the outputs of `classifier` on these sets of `data`.
    """
    threshold = choose_threshold(validation[2])
    count = max(1, len(data.train) // DIGITS_PER_MEASURED)

    def doubted(outputs: Outputs) -> float:
        return float(np.mean(outputs[2] > threshold))

    drawn = {kind: draw(kind, count, data.validation, number) for number, kind in enumerate(KINDS)}
    caught = {kind: doubted(predict(classifier, images)) for kind, images in drawn.items()}
    return Doubt(parameter_count(classifier.doubt), threshold, doubted(validation), doubted(test), caught)


def choose_threshold(doubts: NDArray[np.float32]) -> float:
    """Return the threshold, midway between two values, above which the fraction DOUBTED of `doubts` lies."""
    ordered = np.sort(doubts)[::-1]
    above = int(DOUBTED * len(ordered))
    return float(ordered[max(0, above - 1) : above + 1].mean())


@torch.inference_mode()
def extract_features(network: nn.Module, images: Tensor, warp: Warp | None = None) -> LogitsAndFeatures:
    """Return the logits and the features of the doubt head of `images`, uint8 [N, 28, 28], in batches of 500."""
    batches = (scale(batch) for batch in images.cpu().split(500))
    return _concatenate([logits_and_features(network, normalise(warp(batch) if warp else batch)) for batch in batches])


def _concatenate(parts: list[LogitsAndFeatures]) -> LogitsAndFeatures:
    detected, shared = (torch.cat(features) for features in zip(*(features for _, features in parts), strict=True))
    return torch.cat([logits for logits, _ in parts]), (detected, shared)


def _fit(digits: LogitsAndFeatures, others: LogitsAndFeatures) -> DoubtHead:
    """Fit a head by logistic regression on balanced batches of digits and others."""
    # Fit to standardised features. At the end, the standardisation is merged into the weights.
    _, everything = _concatenate([digits, others])
    means = [part.mean(dim=0) for part in everything]
    deviations = [part.std(dim=0) + 1e-3 for part in everything]

    classes = []
    for logits, features in (digits, others):
        detected, shared = ((part - mean) / by for part, mean, by in zip(features, means, deviations, strict=True))
        classes.append((detected, shared, torch.softmax(logits, dim=1)))
    head = DoubtHead(*map(len, means))
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    steps = max(10, EPOCHS * len(digits[0]) // BATCH_SIZE)
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        of_digits, of_others = (
            head((detected[chosen], shared[chosen]), probabilities[chosen])
            for detected, shared, probabilities in classes
            for chosen in [torch.randint(len(probabilities), (BATCH_SIZE,))]
        )
        loss = DIGIT_WEIGHT * F.softplus(of_digits).mean() + F.softplus(-of_others).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        for layer, mean, deviation in zip((head.detectors, head.shared), means, deviations, strict=True):
            layer.weight.div_(deviation)
            # The probabilities sum to 1, so the detectors' biases can hold the shared features' offset, too.
            head.detectors.bias.sub_(layer.weight @ mean)
    return head.requires_grad_(True).eval()
