"""Compile a network with torch.compile, for training on a GPU."""

import logging
import sys

import torch
from torch import Tensor, nn


def compiled(network: nn.Module, sample: Tensor) -> nn.Module:
    """Compile `network` for training batches like `sample`; if that fails, print a note and return it unchanged.

    Its kernels are replayed as CUDA graphs, because launching such small kernels one by one takes longer than running
    them. The compiled network shares its weights with `network`; they keep their values.
    """
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    try:
        faster: nn.Module = torch.compile(network, dynamic=False, mode="reduce-overhead")  # type: ignore[assignment]
        # The first call compiles and warms up, the second records the graphs, the third replays them, so that any
        # failure happens here. As in training, the logits are still referenced after the backward pass.
        for _ in range(3):
            network.zero_grad()
            logits = faster(sample)
            logits.sum().backward()
        if sample.is_cuda:
            torch.cuda.synchronize(sample.device)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print(f"note: torch.compile failed ({reason}); training continues uncompiled, slower", file=sys.stderr)
        torch._dynamo.reset()
        faster = network
    network.zero_grad()
    network.load_state_dict(before)
    return faster
