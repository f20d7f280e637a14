"""A CUDA graph of a training step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import SGD

# A training step. Input: indices of images, int64 [N]. Output: mean loss and number of correct predictions.
Step = Callable[[Tensor], tuple[Tensor, Tensor]]


def captured(step: Step, network: nn.Module, optimizer: SGD, batch: Tensor) -> Step:
    """Capture `step`, which trains `network` by `optimizer`, as a CUDA graph; return a function that replays it.

    A graph starts all kernels of a step at once. To start such small kernels one by one takes longer than to run them.
    `batch` is an example of the indices that `step` takes. The returned function takes the same number of indices. Each
    call overwrites and returns the same two tensors, and uses the optimizer's current learning rate and new random
    numbers. All other Python values are those at the time of the capture. The optimizer must have one parameter group,
    and `step` must not copy anything to or from the CPU. The capture leaves weights and momentum unchanged. Source:
    PyTorch's notes on CUDA semantics, "CUDA Graphs", whole-network capture.
    """
    momentum = [
        optimizer.state[weights].setdefault("momentum_buffer", torch.zeros_like(weights))
        for weights in network.parameters()
    ]
    state = [*network.state_dict().values(), *momentum]
    before = [tensor.clone() for tensor in state]
    (group,) = optimizer.param_groups
    options = dict(group)
    indices, rate = batch.clone(), torch.tensor(group["lr"], device=batch.device)
    group |= {"lr": rate, "fused": True}  # only the fused optimizer reads the learning rate from a tensor
    warm_up = torch.cuda.Stream()  # the first steps choose algorithms; during a capture, this is not allowed
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(3):
            step(indices)
    torch.cuda.current_stream().wait_stream(warm_up)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(indices)
    group |= options
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)

    def replay(batch: Tensor) -> tuple[Tensor, Tensor]:
        indices.copy_(batch)
        rate.fill_(group["lr"])
        graph.replay()
        return results

    return replay
