"""The layer table of a network: torchinfo's summary for the terminal, rows with receptive fields for the report."""

from dataclasses import dataclass

import torchinfo
from torch import nn

from model.contract import SIDE
from model.networks import BinomialBlur


@dataclass(frozen=True)
class Layer:
    """One row of the table."""

    name: str  # type and number, as in the reference: "Conv2d-1"
    output_shape: tuple[int, ...]  # of one image: (10, 26, 26)
    parameters: int
    receptive_field: int  # input pixels that affect one output value, along one side


def layers(network: nn.Module) -> list[Layer]:
    """Return the layers of `network` in order, for one 28×28 image."""
    rows: list[Layer] = []
    field, stride = 1, 1  # of the map so far, in input pixels
    leaves = [info for info in summary(network).summary_list if info.is_leaf_layer]
    for number, info in enumerate(leaves, start=1):
        kernel, window_stride = _window(info.module, info.input_size[-1])
        field, stride = field + (kernel - 1) * stride, stride * window_stride
        shape = tuple(info.output_size[1:])
        rows.append(Layer(f"{info.class_name}-{number}", shape, info.num_params, field))
    return rows


def summary(network: nn.Module) -> torchinfo.ModelStatistics:
    """Return torchinfo's summary of `network` for one image; its text is a table."""
    return torchinfo.summary(
        network,
        input_size=(1, 1, SIDE, SIDE),
        col_names=("output_size", "kernel_size", "num_params"),
        device="cpu",
        mode="eval",
        verbose=0,
    )


def _window(module: nn.Module, input_side: int) -> tuple[int, int]:
    """Return a layer's window (with dilation) and stride along one side; (1, 1) for a pointwise layer."""
    match module:
        case nn.Conv2d():
            return (module.kernel_size[0] - 1) * module.dilation[0] + 1, module.stride[0]
        case nn.MaxPool2d() | nn.AvgPool2d():
            return int(module.kernel_size), int(module.stride)  # type: ignore[arg-type]
        case BinomialBlur():
            return 3, 2
        case nn.AdaptiveAvgPool2d():
            return input_side, input_side
        case _:
            return 1, 1
