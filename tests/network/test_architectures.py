"""Builders of well-known networks: sizes that their papers give, shapes, and graphs that torch.fx can read."""

import importlib

import pytest
import torch
from torch import fx

import pyro_sps as sps
from pyro_sps.network.architectures import NETWORKS, example_of

IMAGE, GRAY = torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 28, 28)
SMALL = {
    "resnet20": ({"width": 4}, IMAGE, (2, 10)),
    "lenet5": ({}, GRAY, (2, 10)),
    "vgg11": ({"width": 4}, IMAGE, (2, 10)),
    "mobilenet": ({"width": 4}, IMAGE, (2, 10)),
    "unet": ({"width": 4}, IMAGE, (2, 1, 32, 32)),
    "lstm": ({}, torch.zeros(2, 5, 1), (2, 1)),
    "gru": ({}, torch.zeros(2, 5, 1), (2, 1)),
    "vit-tiny": ({"classes": 10, "size": 32, "patch": 8, "width": 24, "depth": 2}, IMAGE, (2, 10)),
    "nanogpt": ({"length": 8, "width": 16, "depth": 2}, torch.zeros(2, 8, dtype=torch.int64), (2, 8, 65)),
}


def weights_of(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_sizes_are_those_of_the_papers():
    assert weights_of(sps.networks.lenet5()) == 61_706  # LeCun et al. (1998), with full connections
    # Residual blocks as in He et al. (2016), whose shortcuts have no weights: 269,722. Two projections come on top.
    assert weights_of(sps.networks.resnet20()) == 269_722 + (16 * 32 + 32 * 64) + 2 * (32 + 64)
    assert weights_of(sps.networks.vgg11()) == 9_231_114
    # Touvron et al. (2021): 5,717,416 with a class token and its position, which are not here.
    assert weights_of(sps.networks.vit_tiny()) == 5_717_416 - 2 * 192


def test_the_command_line_knows_them_all():
    assert tuple(NETWORKS) == importlib.import_module("pyro_sps.cli.symmetry").NETWORKS
    for name in ("lenet5", "lstm", "nanogpt"):
        assert len(NETWORKS[name]()(example_of(name))) == 2


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_graph(name):
    options, x, shape = SMALL[name]
    net = NETWORKS[name](**options).eval()
    expected = net(x)
    assert expected.shape == shape
    torch.testing.assert_close(fx.symbolic_trace(net)(x), expected)


def test_norms():
    assert weights_of(sps.networks.resnet20(norm="group")) == weights_of(sps.networks.resnet20())
    assert weights_of(sps.networks.resnet20(norm="none")) < weights_of(sps.networks.resnet20())
    with pytest.raises(ValueError, match=r"norm must be one of \['batch', 'group', 'none'\], got 'layer'"):
        sps.networks.resnet20(norm="layer")
