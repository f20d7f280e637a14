"""torch.compile: the compiled network shares its weights, and a failure only costs speed."""

import pytest
import torch
from torch import nn

from model.networks import Model_2
from train.compile import compiled

SAMPLE = torch.rand(8, 1, 28, 28)


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_without_a_compiler_the_network_is_returned_unchanged(monkeypatch, capfd):
    def fail(*_, **__):
        raise RuntimeError("no compiler\nfound")

    monkeypatch.setattr(torch, "compile", lambda _network, **__: fail)
    network = Model_2()
    before = state(network)
    assert compiled(network, SAMPLE) is network
    assert capfd.readouterr().err == (
        "note: torch.compile failed (no compiler found); training continues uncompiled, slower\n"
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.slow
def test_compiled_network_shares_its_weights_and_compiling_does_not_change_them():
    # One layer per kind that has weights or differs in training mode: compile time grows with the number of layers.
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten())
    before = state(network)
    faster = compiled(network, SAMPLE)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    network.eval()
    torch.testing.assert_close(faster(SAMPLE), network(SAMPLE))
