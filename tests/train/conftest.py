"""An untrained classifier and its graph, exported once."""

import pytest
import torch

from model.classifier import DigitClassifier, DoubtHead
from model.networks import Model_3
from train import export


@pytest.fixture(scope="session")
def classifier() -> DigitClassifier:
    torch.manual_seed(0)
    network = Model_3().eval()
    return DigitClassifier(network, DoubtHead.of(network)).eval()


@pytest.fixture(scope="session")
def graph(classifier) -> bytes:
    return export.to_onnx(classifier, {"model": "Model_3"})
