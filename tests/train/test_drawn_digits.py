"""Drawn digits have MNIST's form, are the same at every call, and the model that ships recognises them."""

import numpy as np
import onnxruntime
import pytest
import torch

from model.contract import GRAPH, MANIFEST, parse_manifest
from serve.pictures.preprocess import in_form
from train import paths
from train.data import Split, load
from train.drawn_digits import draw, with_drawn_digits
from train.loop import fit
from train.progression import Experiment, Recipe


@pytest.fixture(scope="module")
def outputs():
    """Return labels, predictions and doubts of drawn digits that no training has seen, and the model's threshold."""
    digits = draw(2_000, seed=1)
    session = onnxruntime.InferenceSession(paths.RELEASE / GRAPH)
    predictions, doubts = session.run(["digit", "doubt"], {"image": digits.images.numpy()})
    return (
        digits.labels.numpy(),
        predictions,
        doubts,
        parse_manifest((paths.RELEASE / MANIFEST).read_bytes()).doubt.threshold,
    )


def test_images_have_mnists_form():
    digits = draw(500)
    assert (digits.images.shape, digits.images.dtype, digits.labels.dtype) == ((500, 28, 28), torch.uint8, torch.int64)
    assert np.mean(list(map(in_form, digits.images.numpy()))) > 0.95
    assert len(digits.images.unique(dim=0)) == 500
    assert set(digits.labels.tolist()) == set(range(10))


def test_seed_decides_the_images():
    one, same, other = (draw(50, seed).images for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_every_digit_is_read_as_its_label(outputs):
    labels, predictions, *_ = outputs
    assert min(np.mean(predictions[labels == digit] == digit) for digit in range(10)) > 0.97


def test_few_are_doubted(outputs):
    *_, doubts, threshold = outputs
    assert np.mean(doubts > threshold) < 0.02


def test_a_training_adds_the_fraction_of_its_recipe(tiny):
    data = load(tiny)
    batches = []

    class Counting(torch.nn.Linear):
        def forward(self, images):
            if self.training:
                batches.append(len(images))
            return super().forward(images.flatten(1))

    for fraction in (0.0, 0.5):
        recipe = Recipe(learning_rate=0.0, batch_size=9, epochs=1, drawn_digits=fraction)
        experiment = Experiment("", lambda: Counting(784, 10), target=(), expectation="", recipe=recipe)
        fit(experiment, data, seed=1, device=torch.device("cpu"))
    assert len(data.train) == 198
    assert len(batches) == 198 // 9 + (198 + 99) // 9


def test_they_come_after_the_training_images(tiny):
    train = load(tiny).train
    both = with_drawn_digits(train, 0.1)
    assert torch.equal(both.images[:198], train.images)
    assert torch.equal(both.labels[198:], draw(20).labels)
    assert isinstance(both, Split)
