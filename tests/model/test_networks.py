"""Model_1 and Model_2 equal the reference's networks, layer for layer; Model_3 keeps to the budget of parameters."""

import pytest
import torch
from torch import nn

from model.networks import Model_1, Model_2, Model_3, max_blur_pool, parameter_count, separable_block

# The reference's tables: layer, output shape of one image, parameters.
TABLES = {
    Model_1: """
        Conv2d-1       10 26 26    90
        BatchNorm2d-2  10 26 26    20
        ReLU-3         10 26 26     0
        Conv2d-4       10 24 24   900
        BatchNorm2d-5  10 24 24    20
        ReLU-6         10 24 24     0
        Conv2d-7       20 22 22  1800
        BatchNorm2d-8  20 22 22    40
        ReLU-9         20 22 22     0
        MaxPool2d-10   20 11 11     0
        Conv2d-11      10 11 11   200
        BatchNorm2d-12 10 11 11    20
        ReLU-13        10 11 11     0
        Conv2d-14      10  9  9   900
        BatchNorm2d-15 10  9  9    20
        ReLU-16        10  9  9     0
        Conv2d-17      20  7  7  1800
        BatchNorm2d-18 20  7  7    40
        ReLU-19        20  7  7     0
        Conv2d-20      10  7  7   200
        BatchNorm2d-21 10  7  7    20
        ReLU-22        10  7  7     0
        Conv2d-23      10  1  1  4900
        """,
    Model_2: """
        Conv2d-1        8 26 26    72
        BatchNorm2d-2   8 26 26    16
        ReLU-3          8 26 26     0
        Conv2d-4       10 24 24   720
        BatchNorm2d-5  10 24 24    20
        ReLU-6         10 24 24     0
        MaxPool2d-7    10 12 12     0
        Conv2d-8        8 12 12    80
        BatchNorm2d-9   8 12 12    16
        ReLU-10         8 12 12     0
        Dropout-11      8 12 12     0
        Conv2d-12      16 10 10  1152
        BatchNorm2d-13 16 10 10    32
        ReLU-14        16 10 10     0
        Conv2d-15      16  8  8  2304
        BatchNorm2d-16 16  8  8    32
        ReLU-17        16  8  8     0
        Conv2d-18      10  8  8   160
        BatchNorm2d-19 10  8  8    20
        ReLU-20        10  8  8     0
        Dropout-21     10  8  8     0
        Conv2d-22      20  6  6  1800
        BatchNorm2d-23 20  6  6    40
        ReLU-24        20  6  6     0
        Conv2d-25      10  6  6   200
        AvgPool2d-26   10  1  1     0
        """,
}
PARAMETERS = {Model_1: 10_970, Model_2: 6_664}


def measured_table(network: nn.Module) -> list[list[str]]:
    rows: list[list[str]] = []

    def record(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if not isinstance(layer, nn.Flatten):  # Flatten only changes the shape; the reference has no such layer
            name = f"{type(layer).__name__}-{len(rows) + 1}"
            rows.append([name, *map(str, output.shape[1:]), str(parameter_count(layer))])

    for layer in network.children():
        layer.register_forward_hook(record)
    network.eval()(torch.zeros(1, 1, 28, 28))
    return rows


@pytest.mark.parametrize("network", TABLES, ids=lambda network: network.__name__)
def test_layers_are_those_of_the_reference(network):
    assert measured_table(network()) == [line.split() for line in TABLES[network].strip().splitlines()]


@pytest.mark.parametrize("network", PARAMETERS, ids=lambda network: network.__name__)
def test_parameter_count_is_that_of_the_reference(network):
    assert parameter_count(network()) == PARAMETERS[network]


def test_model_3_keeps_to_the_budget():
    assert parameter_count(Model_3()) <= 8_000


def test_blur_pooling_is_a_dense_maximum_then_a_binomial_filter():
    images = torch.rand(2, 3, 24, 24)
    # Two 2×2 averages, one after the other, equal the 3×3 binomial filter.
    averages = nn.AvgPool2d(2, stride=1, padding=1), nn.AvgPool2d(2)
    expected = nn.Sequential(nn.MaxPool2d(2, stride=1), *averages)(images)
    torch.testing.assert_close(nn.Sequential(*max_blur_pool(3))(images), expected)
    assert not nn.Sequential(*max_blur_pool(3)).state_dict()


def test_a_separable_block_is_one_convolution_per_channel_then_one_across_the_channels():
    layers = nn.Sequential(*separable_block(2, 5, dilation=2)).eval()
    depthwise, across = (layer for layer in layers if isinstance(layer, nn.Conv2d))
    kernels = across.weight * depthwise.weight.transpose(0, 1)  # [5, 2, 3, 3]: kernels of one equivalent convolution
    images = torch.randn(3, 2, 9, 9)
    expected = torch.conv2d(images, kernels, dilation=2).relu()  # before training, batch normalisation changes nothing
    torch.testing.assert_close(layers(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("network", [Model_1, Model_2, Model_3])
def test_maps_images_to_one_logit_a_digit(network):
    assert network()(torch.rand(5, 1, 28, 28)).shape == (5, 10)
