"""The three networks. Each network is a list of layers, in the order of the layer table in the training report.

Every network maps normalised pixels, float32 [N, 1, 28, 28], to one logit per digit, float32 [N, 10].
Model_1 and Model_2 have the same layers as two networks of the reference, a course assignment that README.md names.
Model_3 is this project's own network. train/progression.py lists the networks that are trained.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(inputs: int, outputs: int, kernel: int = 3) -> list[nn.Module]:
    """Convolution without padding, batch normalisation, ReLU: [N, inputs, H, W] → [N, outputs, H', W']."""
    # No bias: batch normalisation subtracts the mean and would thus cancel a bias.
    return [nn.Conv2d(inputs, outputs, kernel, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def separable_block(inputs: int, outputs: int, *, padding: int = 0, dilation: int = 1) -> list[nn.Module]:
    """Depthwise separable convolution and ReLU: [N, inputs, H, W] → [N, outputs, H', W'].

    A 3×3 convolution within each channel, then a 1×1 convolution across the channels, each with batch normalisation.
    Source: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2017. ReLU comes only at the end.
    """
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=padding, dilation=dilation, groups=inputs, bias=False)
    # No learned scale and shift: the 1×1 convolution can learn the scale, the next batch normalisation cancels a shift.
    return [depthwise, nn.BatchNorm2d(inputs, affine=False), *block(inputs, outputs, kernel=1)]


class BinomialBlur(nn.Module):
    """Blur that halves the size of maps: depthwise 3×3 binomial filter (1 2 1) with stride 2 and constant weights."""

    weight: Tensor  # [channels, 1, 3, 3]; a buffer: not trained, and not saved in checkpoints

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("weight", torch.outer(row, row).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Map float32 [N, C, H, W] to [N, C, (H + 1) // 2, (W + 1) // 2]."""
        return F.conv2d(maps, self.weight, stride=2, padding=1, groups=len(self.weight))


def max_blur_pool(channels: int) -> list[nn.Module]:
    """Anti-aliased max pooling: [N, channels, H, W] → [N, channels, H // 2, W // 2]. No parameters.

    A 2×2 maximum of stride 1, then a blur of stride 2. Source: Zhang, "Making Convolutional Networks Shift-Invariant
    Again", 2019.
    """
    return [nn.MaxPool2d(2, stride=1), BinomialBlur(channels)]


class Model_1(nn.Sequential):
    """The reference's first experiment, 10,970 parameters: plain convolutions, with a 7×7 convolution at the end."""

    def __init__(self) -> None:
        super().__init__(
            *block(1, 10),
            *block(10, 10),
            *block(10, 20),
            nn.MaxPool2d(2),
            *block(20, 10, kernel=1),
            *block(10, 10),
            *block(10, 20),
            *block(20, 10, kernel=1),
            nn.Conv2d(10, 10, kernel_size=7, bias=False),
            nn.Flatten(),
        )


class Model_2(nn.Sequential):
    """The reference's second experiment, 6,664 parameters: dropout, and average pooling instead of the 7×7 convolution.

    The reference does not state the dropout rate. This project uses 0.1.
    """

    def __init__(self) -> None:
        super().__init__(
            *block(1, 8),
            *block(8, 10),
            nn.MaxPool2d(2),
            *block(10, 8, kernel=1),
            nn.Dropout(0.1),
            *block(8, 16),
            *block(16, 16),
            *block(16, 10, kernel=1),
            nn.Dropout(0.1),
            *block(10, 20),
            nn.Conv2d(20, 10, kernel_size=1, bias=False),
            nn.AvgPool2d(6),
            nn.Flatten(),
        )


class Model_3(nn.Sequential):
    """The network of this project, 7,162 parameters: separable convolutions and anti-aliased pooling.

    The first pooling includes a blur. The second pooling has stride 1, and the next convolution is dilated by 2. Thus
    the global average includes all positions. `channels`: the numbers of channels before and after the first pooling.
    """

    def __init__(self, channels: tuple[int, int] = (16, 32)) -> None:
        large, small = channels  # the large maps are before the first pooling, the small maps after it
        super().__init__(
            *block(1, large),
            *separable_block(large, large),
            *max_blur_pool(large),
            *separable_block(large, small),
            *separable_block(small, small),
            *separable_block(small, small, padding=1),
            *separable_block(small, small, padding=1),
            nn.MaxPool2d(2, stride=1),
            *separable_block(small, small, dilation=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(small, 10),
        )


def parameter_count(network: nn.Module) -> int:
    """Return the number of trainable parameters of `network`."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
