"""Tracing: the pure function equals the network, the topology is right, errors name the layer."""

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyro_sps as sps
from pyro_sps.topology import trace


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        hidden = hidden + torch.tanh(self.b(hidden))
        return self.c(0.5 * hidden)


class Skip(nn.Module):
    """The input is added to a hidden layer, whose units so get identities."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.b(x + self.a(x).relu())


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(self.b(self.b(self.a(x).sin()).sin()).sin())


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(nn.functional.gelu(nn.functional.linear(x, self.weight)))


NETWORKS = {
    "sequential": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)
    ),
    "no bias": lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ELU(), nn.Linear(4, 2, bias=False)),
    "inplace": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.SiLU(), nn.Flatten(), nn.Linear(4, 2)),
    "linear": lambda: nn.Linear(3, 2),
    "residual": Residual,
    "skip": Skip,
    "shared": Shared,
    "functional": Functional,
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_function_equals_the_network(name, batch):
    net = NETWORKS[name]().double()
    _, function = trace(net)
    x = torch.randn(7, 3, dtype=torch.float64)
    weights = {key: torch.randn(*batch, *value.shape, dtype=torch.float64) for key, value in net.named_parameters()}

    def call(parameters):
        return torch.func.functional_call(net, parameters, (x,))

    for _ in batch:
        call = torch.func.vmap(call)
    torch.testing.assert_close(function(weights, x), call(weights))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.sampled_from(sorted(sps.topology.ACTIVATIONS)),
    st.booleans(),
)
def test_topology_of_a_chain(widths, activation, bias):
    net = sps.mlp(widths, activation, bias)
    topology, function = trace(net)
    assert [group.size for group in topology.groups] == widths
    assert [group.pinned for group in topology.groups] == [True] + [False] * (len(widths) - 2) + [True]
    assert [tensor.shape for tensor in topology.matrices] == list(zip(widths[1:], widths[:-1], strict=True))
    assert [tensor.name for tensor in topology.tensors] == [name for name, _ in net.named_parameters()]
    assert topology.num_weights == sum(parameter.numel() for parameter in net.parameters())
    kinds = {"tanh": "odd", "relu": "homogeneous", "leaky_relu": "homogeneous", "identity": "linear"}
    assert all(topology.groups[index].activation == kinds.get(activation, "generic") for index in topology.hidden)
    x = torch.randn(3, widths[0])
    torch.testing.assert_close(function(dict(net.named_parameters()), x), net(x))


def test_residual_sums_and_shared_layers_tie_groups():
    topology = sps.Topology.of(Residual())
    assert [(group.name, group.size) for group in topology.groups] == [("input", 3), ("layer 1", 5), ("output", 2)]
    assert topology["b.weight"].groups == (1, 1)
    shared = sps.Topology.of(Shared())
    assert shared["b.weight"].groups == (1, 1)
    assert len(shared.hidden) == 1
    assert not sps.Topology.of(Skip()).hidden


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3)), r"layer '0' \(Conv2d\) is not supported. Supported: nn.Linear"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), r"'1' \(BatchNorm1d\)"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1)), r"'1' \(Linear\) reads 4 features.*3 units"),
        (nn.Sequential(nn.Linear(2, 3), nn.PReLU()), "PReLU"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(2, 3)), "must flatten from dimension 1"),
        (nn.Tanh(), "must return one tensor"),
        (nn.Bilinear(2, 2, 2), "second input|not supported|bilinear"),
    ],
)
def test_what_is_not_supported_is_named(net, message):
    with pytest.raises(sps.UnsupportedLayerError, match=message):
        sps.Topology.of(net)


def test_branching_on_values_is_named():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(sps.UnsupportedLayerError, match="must not branch on values"):
        sps.Topology.of(Branch())
    with pytest.raises(TypeError, match=r"net must be a torch.nn.Module, got function"):
        trace(lambda x: x)


def test_the_network_is_left_as_it_was_and_not_kept():
    net = NETWORKS["inplace"]().train()
    before = copy.deepcopy(net)
    bnn = sps.BNN(net, scheme=sps.Unmasked(), values=sps.Zero())
    bnn(torch.randn(2, 3))
    assert net.training
    assert vars(net).keys() == vars(before).keys()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before.state_dict()[name])
    parameters = [weakref.ref(parameter) for parameter in net.parameters()]
    del net
    gc.collect()
    assert all(parameter() is None for parameter in parameters)


def test_meta_networks_cost_nothing_to_trace():
    topology = sps.Topology.of(sps.mlp([4096, 4096, 10], device="meta"))
    assert topology.num_weights == 4096 * 4096 + 4096 + 40960 + 10


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"nope": torch.ones(1)}, r"masks name \['nope'\]"),
        ({"0.weight": torch.ones(2, 3)}, "must be a torch.bool tensor of shape"),
        ({"0.weight": torch.ones(3, 2, dtype=torch.bool)}, r"got torch.bool of shape \(3, 2\)"),
    ],
)
def test_masks_are_checked(masks, message):
    with pytest.raises(ValueError, match=message):
        sps.Topology.of(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))).check_masks(masks)


@pytest.mark.parametrize("widths", [[3], [3, 0], [3, 2.5]])
def test_bad_widths(widths):
    with pytest.raises(ValueError, match="widths must be at least two positive integers"):
        sps.mlp(widths)
