"""Devices of the tensors of a training step on a GPU, checked without a GPU.

Fake tensors have a device and a shape, but no values. Data, augmentation, forward pass and loss are checked. The
backward pass, the optimizer and the CUDA graph need a real GPU: see test_graph and test_loop.
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
    augment._grid.cache_clear()  # the cached tensors are fake in these tests and real in others
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


class ConstantOnCPU(Model_3):
    """A network with a constant that stays on the CPU."""

    def forward(self, images):
        return super().forward(images * torch.ones(28, 28, device="cpu"))


def augment_with_cpu_tensor(images):
    return images + torch.rand(images.shape)


@pytest.mark.parametrize(
    ("network", "augmentation", "device"),
    [(ConstantOnCPU, None, "cuda"), (Model_3, augment_with_cpu_tensor, "cuda"), (Model_3, None, "cpu")],
    ids=["network", "augmentation", "data"],
)
def test_tensor_on_the_cpu_is_an_error(network, augmentation, device):
    recipe = replace(PROGRESSION["Model_3"].recipe, augmentation=augmentation)
    with pytest.raises(RuntimeError, match=r"device"):
        loss_on_cuda(network, recipe, torch.device(device))
