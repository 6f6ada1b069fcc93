import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, vmap

import pyro_sps as sps
from pyro_sps.network.build import ACTIVATIONS
from pyro_sps.network.topology import Topology, UnsupportedLayerError
from pyro_sps.network.trace import trace


class Custom(nn.Module):
    """A network of four linear layers whose forward is a function given to it."""

    def __init__(self, forward, bias=True):
        super().__init__()
        self.first = nn.Linear(3, 4, bias)
        self.second = nn.Linear(4, 4, bias)
        self.last = nn.Linear(4, 2, bias)
        self.square = nn.Linear(3, 3, bias)
        self.slope = nn.Parameter(torch.ones(4))
        self.hidden = forward

    def forward(self, x):
        return self.hidden(self, x)


def residual(net, x):
    h = torch.tanh(net.first(x))
    return net.last(h + torch.tanh(net.second(h)))


def mixed_functions(net, x):
    h = F.leaky_relu(net.first(x), 0.2)
    h = F.elu(net.second(h), alpha=0.7).sigmoid()
    return net.last(torch.sin(0.5 * h) / 2 + 1.5)


def functional_linear(net, x):
    h = F.linear(x, net.first.weight, net.first.bias).erf()
    return F.linear(bias=net.last.bias, weight=net.last.weight, input=-h)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 5), nn.Linear(5, 5), nn.Linear(5, 1)
        self.third = nn.Linear(5, 5)
        self.third.weight = self.second.weight

    def forward(self, x):
        return self.last(self.third(self.second(self.first(x).tanh()).relu()).tanh())


class Flattened(nn.Sequential):
    features = (2, 3)


NETS = {
    "sequential": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)),
    "no bias": lambda: sps.mlp([3, 4, 4, 2], "gelu", bias=False),
    "skip": lambda: sps.mlp([3, 4, 4, 2], skip=True),
    "skip of one layer": lambda: sps.mlp([3, 2], bias=False, skip=True),
    "skip of one feature": lambda: sps.mlp([1, 4, 2], "relu", skip=True),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.SiLU()), nn.Sequential(nn.Linear(4, 2))),
    "one layer": lambda: nn.Linear(3, 2),
    "input activation": lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 2)),
    "output activation": lambda: nn.Sequential(nn.Linear(3, 2), nn.Softplus()),
    "in place": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
    "flatten": lambda: Flattened(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2)),
    "tied": Tied,
    "residual": lambda: Custom(residual),
    "residual, no bias": lambda: Custom(residual, bias=False),
    "functions": lambda: Custom(mixed_functions),
    "F.linear": lambda: Custom(functional_linear),
    "shared layer": lambda: Custom(lambda net, x: net.last(net.second(net.second(net.first(x)).tanh()).tanh())),
    "sum with the input": lambda: Custom(lambda net, x: net.square(torch.tanh(x + net.square(x)))),
    "sum of activated input": lambda: Custom(lambda net, x: net.square(torch.tanh(x)) + x.sin()),
    "unused value": lambda: Custom(lambda net, x: (net.second(net.first(x)), net.last(net.first(x)))[1]),
    "torch.flatten": lambda: Custom(lambda net, x: net.last(net.first(torch.flatten(input=x, start_dim=1)).relu())),
    "x.flatten": lambda: Custom(lambda net, x: net.last(net.first(x.flatten(1)).mul(2.0).add(1.0))),
    "python sum": lambda: Custom(lambda net, x: net.last(sum([net.first(x).tanh(), net.first(x)]))),
}


def random_weights(topology, batch=(), dtype=torch.float64):
    return {t.name: torch.randn(batch + t.shape, dtype=dtype) for t in topology.tensors}


def inputs(net, rows=3, dtype=torch.float64):
    topology = Topology.of(net)
    return torch.randn(rows, *getattr(net, "features", (topology.groups[0].size,)), dtype=dtype)


def loop(net, weights, x, batch):
    """The network for each weight set, one after another."""
    flat = {name: w.reshape((-1, *w.shape[len(batch) :])) for name, w in weights.items()}
    outputs = [
        functional_call(net, {name: w[i] for name, w in flat.items()}, (x,), tie_weights=True)
        for i in range(torch.Size(batch).numel())
    ]
    return torch.stack(outputs).reshape(batch + outputs[0].shape)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize("name", NETS)
def test_function_equals_a_loop_over_weight_sets(name, batch):
    net = NETS[name]().double()
    topology, function = trace(net)
    weights, x = random_weights(topology, batch), inputs(net)
    outputs = function(weights, x)
    assert outputs.shape == (*batch, 3, topology.groups[topology.matrices[-1].groups[0]].size)
    torch.testing.assert_close(outputs, loop(net, weights, x, batch), rtol=1e-12, atol=1e-12)


@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    bias=st.booleans(),
    batch=st.lists(st.integers(1, 3), max_size=2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    rows=st.integers(1, 4),
)
@settings(deadline=None, max_examples=40)
def test_function_of_random_mlps(widths, activation, bias, batch, dtype, rows):
    net = sps.mlp(widths, activation, bias, dtype=dtype)
    topology, function = trace(net)
    weights, x = random_weights(topology, tuple(batch), dtype), inputs(net, rows, dtype)
    expected = loop(net, weights, x, tuple(batch))
    # rounding errors of sums of at most six products a layer
    tolerance = 1e3 * torch.finfo(dtype).eps * (1 + expected.abs().max().item())
    torch.testing.assert_close(function(weights, x), expected, rtol=0, atol=tolerance)
    assert [group.size for group in topology.groups] == widths
    assert topology.num_weights == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", ["sequential", "residual", "tied", "sum with the input"])
def test_gradients_of_function_equal_those_of_the_loop(name):
    net = NETS[name]().double()
    topology, function = trace(net)
    weights, x = random_weights(topology, (3,)), inputs(net)
    for weight in weights.values():
        weight.requires_grad_()
    cotangent = torch.randn(function(weights, x).shape, dtype=torch.float64)
    batched = torch.autograd.grad(function(weights, x), list(weights.values()), cotangent)
    looped = torch.autograd.grad(loop(net, weights, x, (3,)), list(weights.values()), cotangent)
    torch.testing.assert_close(batched, looped, rtol=1e-12, atol=1e-12)


def test_function_can_be_mapped_and_compared_with_vmap_of_functional_call():
    net = sps.mlp([3, 4, 4, 2], dtype=torch.float64)
    topology, function = trace(net)
    weights, x = random_weights(topology, (5,)), inputs(net)
    expected = vmap(lambda w: functional_call(net, w, (x,)))(weights)
    torch.testing.assert_close(function(weights, x), expected)
    torch.testing.assert_close(vmap(lambda w: function(w, x))(weights), expected)
    replicas = torch.randn(5, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(
        vmap(function)(weights, replicas), vmap(lambda w, x: functional_call(net, w, (x,)))(weights, replicas)
    )


@pytest.mark.parametrize("name", NETS)
def test_network_is_left_as_it_was(name):
    net = NETS[name]().train()
    for child in net.children():
        child.eval()

    def state():
        tensors = {key: (id(value), value.clone()) for key, value in net.state_dict(keep_vars=True).items()}
        modules = {
            key: (module.training, set(vars(module)), dict(module._modules)) for key, module in net.named_modules()
        }
        return tensors, modules, [p.requires_grad for p in net.parameters()], [p.grad for p in net.parameters()]

    tensors, *others = state()
    topology, function = trace(net)
    x = inputs(net, dtype=torch.float32)
    copy = x.clone()
    function(random_weights(topology, (2,), torch.float32), x)
    assert torch.equal(x, copy)
    new_tensors, *new_others = state()
    assert new_others == others
    assert {key: identity for key, (identity, _) in tensors.items()} == {k: i for k, (i, _) in new_tensors.items()}
    for key, (_, value) in tensors.items():
        assert torch.equal(value, new_tensors[key][1])


def test_failed_trace_leaves_no_attribute():
    net = Custom(lambda net, x: net.last(torch.fft.fft(net.first(x) * torch.tensor(2.0)).real))
    attributes = set(vars(net))
    with pytest.raises(UnsupportedLayerError, match="'_fft_r2c'"):
        trace(net)
    assert set(vars(net)) == attributes


def test_function_and_topology_keep_no_parameter_alive():
    nets = {name: make() for name, make in NETS.items()}
    parameters = {name: [weakref.ref(parameter) for parameter in net.parameters()] for name, net in nets.items()}
    traced = {name: trace(net) for name, net in nets.items()}
    del nets
    gc.collect()
    for name in traced:
        assert parameters[name]
        assert not any(reference() is not None for reference in parameters[name]), name


@pytest.mark.parametrize("name", NETS)
def test_meta_networks(name):
    net = NETS[name]().double()
    topology, function = trace(net)
    with torch.device("meta"):
        meta_topology, meta_function = trace(NETS[name]())
    assert meta_topology == topology
    weights, x = random_weights(topology, (2,)), inputs(net)
    assert torch.equal(meta_function(weights, x), function(weights, x))


def test_a_huge_network_costs_no_memory_on_the_meta_device():
    topology = Topology.of(sps.mlp([10, 10**6, 10**6, 1], device="meta"))
    assert topology.num_weights == 11 * 10**6 + (10**6 + 1) * 10**6 + 10**6 + 1


# --- what the topology says --------------------------------------------------------------------------


def groups(net):
    return [(group.name, group.size, group.pinned, group.activation) for group in Topology.of(net).groups]


def joins(net):
    return {tensor.name: tensor.groups for tensor in Topology.of(net).tensors}


def test_topology_of_a_chain():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
    assert groups(net) == [
        ("input", 3, True, "linear"),
        ("layer 1", 4, False, "odd"),
        ("layer 2", 5, False, "homogeneous"),
        ("output", 2, True, "linear"),
    ]
    assert joins(net) == {"0.weight": (1, 0), "0.bias": (1,), "2.weight": (2, 1), "4.weight": (3, 2), "4.bias": (3,)}
    topology = Topology.of(net)
    assert topology.hidden == (1, 2)
    assert [tensor.name for tensor in topology.matrices] == ["0.weight", "2.weight", "4.weight"]
    assert topology["2.weight"].fan_in == 4
    assert [group.size for group in topology.neighbours(1)] == [3, 5]
    with pytest.raises(KeyError, match=r"7\.weight.*0\.weight"):
        topology["7.weight"]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        *[(name, "odd") for name in ("tanh", "erf", "sin", "asinh", "sinh", "atan", "arctan")],
        *[(name, "homogeneous") for name in ("relu", "leaky_relu")],
        *[(name, "generic") for name in ("sigmoid", "softplus", "gelu", "silu", "elu", "selu", "celu", "mish", "exp")],
        *[(name, "generic") for name in ("hardsigmoid", "hardswish", "relu6", "logsigmoid")],
        *[(name, "odd") for name in ("softsign", "tanhshrink")],
        ("neg", "linear"),
    ],
)
def test_activation_classes_are_true_of_the_functions(activation, expected):
    function = getattr(F, activation, None) or getattr(torch, activation)
    net = Custom(lambda net, x: net.last(function(net.first(x))))
    assert groups(net)[1][3] == expected
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    odd = torch.allclose(function(-x), -function(x))
    homogeneous = torch.allclose(function(2.5 * x), 2.5 * function(x))
    assert (odd, homogeneous) == (expected in ("odd", "linear"), expected in ("homogeneous", "linear"))


@pytest.mark.parametrize("activation", ["Tanh", "ReLU", "LeakyReLU", "GELU", "SiLU", "ELU", "Softplus", "Sigmoid"])
def test_modules_have_the_class_of_their_function(activation):
    module = getattr(nn, activation)()
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    odd = torch.allclose(module(-x), -module(x))
    homogeneous = torch.allclose(module(2.5 * x), 2.5 * module(x))
    group = Topology.of(nn.Sequential(nn.Linear(1, 2), module, nn.Linear(2, 1))).groups[1]
    assert (group.odd, group.homogeneous) == (odd, homogeneous)


def test_hardtanh_is_odd_only_if_its_bounds_are():
    for module, expected in ((nn.Hardtanh(), "odd"), (nn.Hardtanh(-1.0, 2.0), "generic")):
        assert groups(nn.Sequential(nn.Linear(1, 2), module, nn.Linear(2, 1)))[1][3] == expected


def test_every_use_of_a_unit_counts_for_its_class():
    both = Custom(lambda net, x: net.last(torch.tanh(net.first(x)) + torch.relu(net.first(x))))
    assert groups(both)[1][3] == "generic"
    shifted = Custom(lambda net, x: net.last(torch.tanh(net.first(x)) + 1.0))
    assert groups(shifted)[1][3] == "generic"
    scaled = Custom(lambda net, x: net.last(3 * -torch.tanh(net.first(x)) / 2))
    assert groups(scaled)[1][3] == "odd"
    summed = Custom(lambda net, x: net.last(sum([torch.tanh(net.first(x)), torch.sin(net.first(x))])))
    assert groups(summed)[1][3] == "odd"


def test_residual_sums_tie_groups():
    net = Custom(residual)
    assert [(name, size) for name, size, *_ in groups(net)] == [("input", 3), ("layer 1", 4), ("output", 2)]
    assert joins(net)["second.weight"] == (1, 1)
    assert joins(net)["last.weight"] == (2, 1)


def test_sum_with_the_input_pins_the_units():
    net = Custom(lambda net, x: net.square(torch.tanh(x + net.square(x))))
    assert [(name, pinned) for name, _, pinned, _ in groups(net)] == [("input", True)]
    assert Topology.of(net).hidden == ()


def test_shared_layers_tie_groups():
    shared = Custom(lambda net, x: net.last(net.second(net.second(net.first(x)).tanh()).tanh()))
    assert joins(shared) == {
        "first.weight": (1, 0),
        "first.bias": (1,),
        "second.weight": (1, 1),
        "second.bias": (1,),
        "last.weight": (2, 1),
        "last.bias": (2,),
    }
    tied = joins(Tied())
    assert tied["second.weight"] == (1, 1)
    assert tied["third.bias"] == (1,)
    assert "third.weight" not in tied


def test_permuting_a_group_and_flipping_odd_units_leaves_the_function():
    """The groups are right if relabelling their units in every tensor changes nothing."""
    for name in ("sequential", "skip", "residual", "tied", "shared layer", "F.linear", "python sum"):
        net = NETS[name]().double()
        topology, function = trace(net)
        weights, x = random_weights(topology), inputs(net)
        for index in topology.hidden:
            group = topology.groups[index]
            order = torch.randperm(group.size)
            signs = torch.ones(group.size, dtype=torch.float64)
            if group.odd:
                signs = torch.randint(0, 2, (group.size,)).double() * 2 - 1
            moved = dict(weights)
            for tensor in topology.tensors:
                for axis, own in enumerate(tensor.groups):
                    if own == index:
                        shape = [-1 if a == axis else 1 for a in range(len(tensor.groups))]
                        value = moved[tensor.name].index_select(axis, order)
                        moved[tensor.name] = value * signs[order].reshape(shape)
            torch.testing.assert_close(function(moved, x), function(weights, x), rtol=1e-10, atol=1e-10)


# --- fully connected units ---------------------------------------------------------------------------


@given(widths=st.lists(st.integers(1, 9), min_size=3, max_size=6))
@settings(deadline=None, max_examples=100)
@pytest.mark.filterwarnings("ignore::pyro_sps.masks.schemes.SymmetryWarning")
def test_fully_connected_against_the_formula(widths):
    """DESIGN 2.1: light agrees with the paper's formula; heavy keeps one unit where the formula says none."""
    topology = Topology.of(sps.mlp(widths, device="meta"))
    light = topology.fully_connected(sps.Light()(topology))
    heavy = topology.fully_connected(sps.Heavy()(topology))
    for l in range(1, len(widths) - 1):  # noqa: E741
        before, size, after = widths[l - 1 : l + 2]
        formula = max(0, size - before - after + 2)
        exact = max(0, size - min(before, size) - min(after, size) + 2)
        assert light[f"layer {l}"] == exact
        assert heavy[f"layer {l}"] == max(1, exact)
        # A wider neighbour has units that no unit of this layer meets: they do not help, but the formula counts them.
        helpless = (before > size and min(after, size) == 1) or (after > size and min(before, size) == 1)
        assert exact - formula == helpless


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_fully_connected_against_a_count_by_hand(data):
    name = data.draw(st.sampled_from(["sequential", "residual", "tied", "shared layer", "no bias"]))
    topology = Topology.of(NETS[name]())
    seed = data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    masks = {t.name: torch.rand(t.shape, generator=generator) < 0.8 for t in topology.tensors}
    counts = topology.fully_connected(masks)
    assert list(counts) == [topology.groups[index].name for index in topology.hidden]
    for index in topology.hidden:
        expected = 0
        for unit in range(topology.groups[index].size):
            rows = [masks[t.name][unit, :] for t in topology.matrices if t.groups[0] == index]
            columns = [masks[t.name][:, unit] for t in topology.matrices if t.groups[1] == index]
            expected += all(bool(connections.all()) for connections in rows + columns)
        assert counts[topology.groups[index].name] == expected


def test_fully_connected_ignores_biases_and_counts_missing_masks_as_stochastic():
    topology = Topology.of(sps.mlp([3, 4, 2]))
    assert topology.fully_connected({}) == {"layer 1": 4}
    assert topology.fully_connected({"0.bias": torch.zeros(4, dtype=torch.bool)}) == {"layer 1": 4}
    assert topology.fully_connected({"0.weight": torch.zeros(4, 3, dtype=torch.bool)}) == {"layer 1": 0}


def test_check_masks():
    topology = Topology.of(sps.mlp([3, 4, 2]))
    mask = torch.zeros(4, 3, dtype=torch.bool)
    checked = topology.check_masks({"0.weight": mask})
    assert list(checked) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert checked["0.weight"] is mask
    assert all(checked[name].all() for name in checked if name != "0.weight")
    with pytest.raises(ValueError, match=r"masks name \['weight'\].*it has \['0\.weight'"):
        topology.check_masks({"weight": mask})
    with pytest.raises(ValueError, match=r"masks\['0\.weight'\].*shape \(4, 3\), got torch.bool of shape \(3, 4\)"):
        topology.check_masks({"0.weight": mask.T})
    with pytest.raises(ValueError, match=r"masks\['0\.weight'\].*torch.bool.*got torch.float32"):
        topology.check_masks({"0.weight": mask.float()})
    with pytest.raises(ValueError, match=r"masks\['0\.weight'\].*got \[\[True\]\]"):
        topology.check_masks({"0.weight": [[True]]})
    with pytest.raises(TypeError, match=r"masks must map.*got list"):
        topology.check_masks([mask])


# --- errors ------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, z):
        return self.layer(x) + z


def hooked(kind):
    net = sps.mlp([3, 4, 2])
    if kind == "weight norm":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(net[2])
    else:
        net[2].register_forward_hook(lambda module, args, output: 2 * output)
    return net


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (lambda: Custom(lambda net, x: net.last(torch.fft.fft(net.first(x)).real)), "operation '_fft_r2c'"),
        (
            lambda: Custom(lambda net, x: net.last(torch.linalg.inv(net.square(x)[:, None] * x[..., None])[0])),
            "operation",
        ),
    ],
)
def test_unsupported_layers_are_named_with_what_is_supported(net, names):
    with pytest.raises(UnsupportedLayerError) as caught:
        Topology.of(net())
    assert names in str(caught.value)
    assert "Supported: nn.Linear" in str(caught.value)


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (lambda: hooked("hook"), r"layer '2' \(Linear\) has forward hooks, .*: remove them"),
        (lambda: hooked("weight norm"), "use torch.nn.utils.parametrizations.weight_norm"),
        (Branching, "branches on it; a network must not branch on values"),
        (TwoInputs, "Give an example.*required positional argument: 'z'"),
        (lambda: nn.Sequential(), "must return one tensor that its layers computed"),
        (lambda: nn.Tanh(), "must return one tensor that its layers computed"),
        (lambda: Custom(lambda net, x: {"a": net.square(x)}), "must return one tensor"),
        (lambda: Custom(lambda net, x: (net.square(x), x)), "must return one tensor"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)), r"layer '1' \(Linear\) reads 5 .* has 4 units"),
        (lambda: Custom(lambda net, x: net.first(x) + net.square(x)), r"layer 'add' .*reads 4 .* has 3 units"),
        (lambda: Custom(lambda net, x: net.first(x.flatten())), "must flatten from dimension 1 to -1, got 0 to -1"),
        (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(3, 2)), r"'0' \(Flatten\) must flatten from .* got 0"),
        (lambda: nn.Sequential(nn.LeakyReLU(inplace=True), nn.Linear(3, 2)), r"'0' \(LeakyReLU\) works in place"),
        (lambda: Custom(lambda net, x: net.square(F.relu(x, True))), "'relu' .*in place on the network's input"),
    ],
)
def test_errors_say_what_is_wrong(net, says):
    with pytest.raises(UnsupportedLayerError, match=says):
        Topology.of(net())


def test_net_must_be_a_module():
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module, got list"):
        Topology.of([nn.Linear(1, 1)])


@pytest.mark.parametrize("widths", [[3], [3, 0, 1], [3, 2.5, 1], []])
def test_mlp_widths(widths):
    with pytest.raises(ValueError, match="widths must be at least two positive integers"):
        sps.mlp(widths)


def test_the_skip_is_a_linear_path_beside_the_network():
    net, x = sps.mlp([3, 4, 4, 2], "relu", skip=True, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    plain = sps.mlp([3, 4, 4, 2], "relu", dtype=torch.float64)
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if name != "skip.weight"})
    torch.testing.assert_close(net(x), plain(x) + x @ net.skip.weight.T)
    topology = Topology.of(net)
    assert [group.name for group in topology.groups] == ["input", "layer 1", "layer 2", "output"]
    assert topology["skip.weight"].groups == (3, 0)
    assert topology["skip.weight"].shape == (2, 3)
    assert all(topology.groups[index].pinned for index in topology["skip.weight"].groups)
    beside = [tensor for tensor in topology.tensors if tensor.name != "skip.weight"]
    assert beside == list(Topology.of(plain).tensors)
    assert topology.groups == Topology.of(plain).groups


def test_mlp_activation_error():
    with pytest.raises(ValueError, match=r"activation must be one of .*'tanh'.*got 'tan'"):
        sps.mlp([1, 1], activation="tan")


def test_wrong_inputs_of_the_function():
    topology, function = trace(sps.mlp([3, 4, 2]))
    with pytest.raises(ValueError, match=r"x must have shape \(rows, features\).*got \(3,\)"):
        function(random_weights(topology, dtype=torch.float32), torch.zeros(3))


def test_a_topology_knows_which_weight_tensors_it_has():
    topology = sps.Topology.of(sps.mlp([3, 4, 1]))
    assert "0.weight" in topology
    assert "1.weight" not in topology
    with pytest.raises(KeyError, match=r"no weight tensor '1\.weight'"):
        topology["1.weight"]
