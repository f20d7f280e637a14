"""In a training step on a GPU, every tensor must be on the GPU. This is checked without a GPU.

Fake tensors have a device and a shape, but no values. Data, augmentation, forward pass and loss are checked. The
backward pass, the optimizer and the CUDA graph need a real GPU: see test_cuda_graph and test_loop.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from model.networks import Model_3
from train import augment
from train.data import Split
from train.loop import batch_loss
from train.progression import PROGRESSION

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def fake() -> Iterator[None]:
    augment._grid.cache_clear()  # the cached tensors are fake in these tests and real in other tests
    with FakeTensorMode():
        yield
    augment._grid.cache_clear()


def loss_on_cuda(network: type[nn.Module], recipe, device: torch.device = CUDA) -> torch.Tensor:
    """Return the loss of a batch of 64 images of a split on `device`; the network is on the GPU."""
    with CUDA:
        on_cuda = network().train()
    images = torch.zeros(640, 28, 28, dtype=torch.uint8)
    split = Split(images, torch.zeros(640, dtype=torch.int64)).to(device)
    batch = torch.randperm(len(split), device=split.labels.device)[:64]
    loss, right = batch_loss(on_cuda, split, batch, recipe)
    assert (right.shape, right.device.type) == ((), device.type)
    return loss


@pytest.mark.parametrize("name", PROGRESSION)
def test_every_tensor_of_a_training_step_is_on_the_gpu(name):
    loss = loss_on_cuda(PROGRESSION[name].network, PROGRESSION[name].recipe)
    assert (loss.shape, loss.device.type) == ((), "cuda")


@pytest.mark.parametrize(("on_cpu", "device"), [(torch.Tensor.cpu, "cuda"), (None, "cpu")])
def test_tensor_on_the_cpu_is_an_error(on_cpu, device):
    recipe = replace(PROGRESSION["Model_3"].recipe, augmentation=on_cpu)
    with pytest.raises(RuntimeError, match=r"device"):
        loss_on_cuda(Model_3, recipe, torch.device(device))
