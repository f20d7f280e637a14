"""Batch prediction with PyTorch on the CPU."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from model.classifier import DigitClassifier

BATCH_SIZE = 1_000

Outputs = tuple[NDArray[Any], ...]  # probabilities [N, 10], digits [N] and, with a doubt head, doubts [N]


def predict(classifier: DigitClassifier, images: Tensor) -> Outputs:
    """Return the outputs of `classifier` for uint8 [N, 28, 28] `images`; see DigitClassifier.forward."""
    classifier = classifier.cpu().eval()
    with torch.inference_mode():
        outputs = zip(*(classifier(batch) for batch in images.cpu().split(BATCH_SIZE)), strict=True)
        return tuple(torch.cat(parts).numpy() for parts in outputs)
