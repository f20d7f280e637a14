"""The three networks of the progression, each a list of layers that reads like its layer table.

Every network maps float32 [N, 1, 28, 28], normalised pixels, to float32 [N, 10], one logit a digit.
Model_1 and Model_2 are the reference's, layer for layer; Model_3 is ours.
"""

from torch import nn


def block(inputs: int, outputs: int, kernel: int = 3) -> list[nn.Module]:
    """Convolution without padding, batch normalisation, ReLU: [N, inputs, H, W] → [N, outputs, H', W']."""
    # The normalisation that follows has a bias of its own: one in the convolution would be cancelled by it.
    return [nn.Conv2d(inputs, outputs, kernel, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Model_1(nn.Sequential):
    """The reference's first experiment, 10,970 parameters: a plain network that ends in one 7×7 convolution."""

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
    """The reference's second experiment, 6,664 parameters: global average pooling for the 7×7 layer, and dropout.

    The reference does not say its dropout rate; 0.1 is ours.
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
    """The experiment that reaches the goal, 7,578 parameters: capacity moved to where the maps are small."""

    def __init__(self) -> None:
        super().__init__(
            *block(1, 8),
            *block(8, 12),
            nn.MaxPool2d(2),
            *block(12, 16),
            *block(16, 16),
            nn.MaxPool2d(2),
            *block(16, 16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )


def parameter_count(network: nn.Module) -> int:
    """Return how many trainable numbers `network` has."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
