"""The three networks of the progression, each a list of layers in the order of its layer table.

Every network maps normalised pixels, float32 [N, 1, 28, 28], to one logit per digit, float32 [N, 10].
Model_1 and Model_2 equal the reference's, layer by layer. Model_3 is our own.
"""

from torch import nn


def block(inputs: int, outputs: int, kernel: int = 3, dilation: int = 1) -> list[nn.Module]:
    """Convolution without padding, batch normalisation, ReLU: [N, inputs, H, W] → [N, outputs, H', W']."""
    # No bias: batch normalisation subtracts the mean and would cancel it.
    convolution = nn.Conv2d(inputs, outputs, kernel, dilation=dilation, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def max_blur_pool() -> list[nn.Module]:
    """Anti-aliased max pooling: [N, C, H, W] → [N, C, H/2, W/2]. No parameters.

    A dense 2×2 maximum, then a 3×3 binomial blur (1 2 1) with stride 2, computed as two 2×2 averages. Source: Zhang,
    "Making Convolutional Networks Shift-Invariant Again", 2019.
    """
    return [nn.MaxPool2d(2, stride=1), nn.AvgPool2d(2, stride=1, padding=1), nn.AvgPool2d(2)]


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
    """The reference's second experiment, 6,664 parameters: dropout, and global average pooling for the 7×7 layer.

    The reference does not state its dropout rate; 0.1 is our choice.
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
    """The experiment that reaches the goal, 7,578 parameters: anti-aliased pooling, most channels on the small maps.

    The first pooling is blurred. The second one is dense (stride 1), and the convolution after it is dilated by 2
    (à trous), so that the global average includes every phase. `channels` are those of the five convolutions.
    """

    def __init__(self, channels: tuple[int, int, int, int, int] = (8, 12, 16, 16, 16)) -> None:
        first, second, third, fourth, fifth = channels
        super().__init__(
            *block(1, first),
            *block(first, second),
            *max_blur_pool(),
            *block(second, third),
            *block(third, fourth),
            nn.MaxPool2d(2, stride=1),
            *block(fourth, fifth, dilation=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(fifth, 10),
        )


def parameter_count(network: nn.Module) -> int:
    """Return the number of trainable parameters of `network`."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
