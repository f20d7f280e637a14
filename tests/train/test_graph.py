"""A training step as a CUDA graph: the same training as step by step, and capturing it changes no state."""

from dataclasses import replace

import pytest
import torch

from train import loop
from train.data import Data, Split
from train.loop import fit
from train.progression import PROGRESSION

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def data() -> Data:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (640, 28, 28), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(10, (640,), generator=generator))
    return Data("noise", {}, split, split, split)


def trained(data: Data, network: str):
    # Without augmentation and dropout: a graph draws other random numbers.
    recipe = replace(PROGRESSION["Model_3"].recipe, epochs=3, augmentation=None)
    experiment = replace(PROGRESSION[network], recipe=recipe)
    result, history = fit(experiment, data, seed=1, device=torch.device("cuda"))
    return result.state_dict(), [epoch.train_loss for epoch in history]


@pytest.mark.parametrize("network", ["Model_1", "Model_3"])
def test_graph_trains_as_step_by_step(network, data, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    graph, graph_losses = trained(data, network)
    monkeypatch.setattr(loop, "captured", lambda step, *_: step)
    eager, eager_losses = trained(data, network)
    assert graph_losses == pytest.approx(eager_losses, rel=1e-3)
    for name, tensor in eager.items():
        torch.testing.assert_close(graph[name], tensor, rtol=2e-2, atol=2e-3, msg=name)
