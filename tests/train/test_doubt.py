"""The doubt head detects non-digits, does not change the network, and doubts 1 % of the validation digits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.classifier import DigitClassifier, DoubtHead, predict
from model.networks import Model_2, Model_3, parameter_count
from serve.pictures.preprocess import in_form
from train import doubt, paths
from train.data import load
from train.doubt import KINDS, draw
from train.export import load_classifier
from train.progression import PARAMETER_BUDGET


@pytest.fixture(scope="module")
def data(part):
    return load(part("doubt", 4_800, 300))


@pytest.fixture
def network():
    """Return the released network."""
    return load_classifier(Model_3(), (paths.RELEASE / "model.safetensors").read_bytes(), paths.RELEASE).network


@pytest.mark.slow
def test_fit_detects_non_digits_and_does_not_change_the_network(network, data):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    classifier = DigitClassifier(network, doubt.fit(network, data.train))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    outputs = (predict(classifier, split.images) for split in (data.validation, data.test))
    found = doubt.measure(classifier, data, *outputs)
    assert found.validation_doubted == 0.01
    assert found.test_doubted <= 0.05
    assert min(found.caught.values()) > 0.3
    turned = predict(classifier, draw("turned digits", 200, data.test, seed=5))[2]
    assert np.mean(turned > found.threshold) > 0.6


def test_only_training_images_decide_the_head_and_only_validation_images_the_threshold(network, tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # by default, fork_rng warns if there are several GPUs
    data, state = load(tiny), torch.random.get_rng_state()
    others = replace(data, validation=data.test, test=data.validation)
    one, other = (doubt.fit(network, each.train) for each in (data, others))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert torch.equal(state, torch.random.get_rng_state())
    classifier = DigitClassifier(network, one)
    digits = [(None, None, np.linspace(0, top, 200, dtype=np.float32)) for top in (1, 2)]
    found = doubt.measure(classifier, data, *digits)
    assert found.threshold == doubt.choose_threshold(digits[0][2])
    assert (found.validation_doubted, found.test_doubted) == (0.01, np.mean(digits[1][2] > found.threshold))


@pytest.mark.parametrize("kind", [Model_2, Model_3])
def test_network_and_head_are_within_the_parameter_budget(kind):
    network = kind()
    assert parameter_count(network) + parameter_count(DoubtHead.of(network)) <= PARAMETER_BUDGET


def test_threshold_is_midway_between_the_lowest_doubted_value_and_the_next():
    assert doubt.choose_threshold(np.arange(200, dtype=np.float32)) == 197.5


@pytest.mark.parametrize("kind", KINDS)
def test_non_digits_have_mnists_form(kind, data):
    images = draw(kind, 120, data.train, seed=1)
    assert (images.shape, images.dtype) == ((120, 28, 28), torch.uint8)
    assert sum(map(in_form, images.numpy())) >= 0.95 * 120
    assert len(images.unique(dim=0)) > 100


def test_seed_decides_the_non_digits(data):
    one, same, other = (draw("scribbles", 30, data.train, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
