"""A CUDA graph of a training step trains like the step without a graph; every replay has new random numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

from train import loop
from train.cuda_graph import captured
from train.data import Data, Split
from train.loop import fit
from train.progression import PROGRESSION

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def data() -> Data:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (640, 28, 28), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(10, (640,), generator=generator))
    return Data(Path("noise"), {}, split, split, split)


def trained(data: Data, network: str):
    # Without augmentation, because only the arithmetic is compared.
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


def test_every_replay_draws_new_random_numbers_and_a_seed_repeats_them():
    network, batch = nn.Linear(1, 1).to("cuda"), torch.arange(3, device="cuda")

    def draw(indices):
        return torch.rand((), device="cuda"), indices.sum()

    replay = captured(draw, network, SGD(network.parameters(), lr=0.1), batch)
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append([float(replay(batch)[0]) for _ in range(3)])
    assert len(set(drawn[0])) == 3
    assert drawn[0] == drawn[1]
