"""Every operation that is known, on the networks of `networks.py`: what is claimed of them is true of numbers."""

import math
import pickle

import pytest
import torch
from network.networks import NETWORKS, Net, build, conv, example
from network.test_topology import NETS, inputs
from torch import nn
from torch.func import functional_call

import pyro_sps as sps
from pyro_sps.network.record import MappedFunction, record
from pyro_sps.network.recorder import Recorder
from pyro_sps.network.topology import UnsupportedLayerError
from pyro_sps.network.trace import trace
from pyro_sps.symmetry.certificate import certify
from pyro_sps.symmetry.verify import random_weights, run

every_network = pytest.mark.parametrize("name", NETWORKS)


@every_network
def test_what_is_claimed_is_true_of_numbers(name):
    net, x = build(name), example(name)
    topology = sps.Topology.of(net, x)
    result = topology.verify(net, seed=1, example=x)
    assert result.ok
    assert result.products > 0
    assert result.max_deviation < 1e-11


def test_both_runs_take_the_same_way(monkeypatch):
    """Where the second run strays from the first, all operations are followed, also those of no effect."""
    recorders = []

    class Kept(Recorder):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            recorders.append(self)

    monkeypatch.setattr("pyro_sps.network.record.Recorder", Kept)
    for name in NETWORKS:
        sps.Topology.of(build(name), example(name))
    assert len(recorders) > len(NETWORKS) / 2
    assert all(recorder.calls is not None and not recorder.strayed for recorder in recorders)


@every_network
def test_moving_units_apart_changes_the_outputs(name):
    """The control: half of a move, in one of the tensors alone, is no symmetry."""
    net, x = build(name), example(name)
    topology, function = trace(net, x)
    generator = torch.Generator().manual_seed(2)
    weights = random_weights(topology, generator)
    expected = run(function, weights, x)
    for one in certify(topology, {}).classes:
        changes = []
        for move in one.generators:
            moved = move.apply(topology, weights)
            touched = [key for key in weights if not torch.equal(moved[key], weights[key])]
            for key in touched if len(touched) > 1 else ():
                changes.append(float((run(function, {**weights, key: moved[key]}, x) - expected).abs().max()))
        assert not changes or max(changes) > 1e-6 * float(expected.abs().max())


@every_network
def test_sets_of_weights_equal_a_loop_over_them(name):
    net, x = build(name), example(name)
    topology, function = trace(net, x)
    weights = {t.name: torch.randn(2, 2, *t.shape, dtype=torch.float64) for t in topology.tensors}
    got = function(weights, x)
    flat = {key: value.flatten(0, 1) for key, value in weights.items()}
    expected = [functional_call(net, {k: v[i] for k, v in flat.items()}, (x,), tie_weights=True) for i in range(4)]
    torch.testing.assert_close(got, torch.stack(expected).unflatten(0, (2, 2)), rtol=1e-9, atol=1e-9)
    if isinstance(function, MappedFunction):
        again = pickle.loads(pickle.dumps(MappedFunction(nn.Sequential(nn.Conv1d(1, 2, 1)), ["0.weight", "0.bias"])))
        assert again({"0.weight": torch.ones(2, 1, 1), "0.bias": torch.zeros(2)}, torch.ones(3, 1, 1)).shape == (
            3,
            2,
            1,
        )


def test_sets_of_weights_run_at_once_where_that_is_possible():
    ways = {name: trace(build(name), example(name))[1] for name in ("conv, flatten", "function of one's own")}
    assert [function.one_by_one for function in ways.values()] == [False, True]
    again, arguments = ways["function of one's own"].__reduce__()  # as pickle does; its lambdas cannot be pickled
    assert again(*arguments).one_by_one


def test_large_convolutions_run_one_set_of_weights_after_the_other(monkeypatch):
    net, x = build("residual, group norm"), example("residual, group norm")
    topology, function = trace(net, x)
    weights = {t.name: torch.randn(3, 2, *t.shape, dtype=torch.float64) for t in topology.tensors}
    together = function(weights, x)
    monkeypatch.setattr("pyro_sps.network.record._LARGE_INPUT", 1)
    monkeypatch.setattr(torch.func, "vmap", None)
    torch.testing.assert_close(function(weights, x), together, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["conv, flatten", "lstm", "small gpt", "residual, group norm", "function of one's own"]
)
def test_gradients_equal_those_of_the_network(name):
    net, x = build(name), example(name)
    topology, function = trace(net, x)
    weights = {t.name: torch.randn(3, *t.shape, dtype=torch.float64, requires_grad=True) for t in topology.tensors}
    outputs = function(weights, x)
    cotangent = torch.randn_like(outputs)
    batched = torch.autograd.grad(outputs, list(weights.values()), cotangent)
    looped = torch.stack([functional_call(net, {k: v[i] for k, v in weights.items()}, (x,)) for i in range(3)])
    expected = torch.autograd.grad(looped, list(weights.values()), cotangent)
    torch.testing.assert_close(batched, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_both_ways_to_read_a_fully_connected_network_agree(name):
    """The recorder finds what the tracer of fully connected networks finds."""
    net = NETS[name]()
    dense, recorded = sps.Topology.of(net), record(net, inputs(net, 2, torch.float32))
    tensors = {tensor.name for tensor in recorded.tensors}
    assert {tensor.name for tensor in dense.tensors} >= tensors
    ours, theirs = certify(dense, {}), certify(recorded, {})
    if len(tensors) == len(dense.tensors) and name not in (
        "python sum",
        "sum with the input",
        "sum of activated input",
    ):
        assert ours.permutations.before == theirs.permutations.before
        assert dense.num_weights == recorded.num_weights


def orders(name, net=None):
    net = build(name) if net is None else net
    report = certify(sps.Topology.of(net, example(name)), {})
    return [one.before for one in report.classes]


def test_orders_that_are_known():
    """Counted by hand, from the networks' definitions."""
    f = math.factorial
    assert orders("conv, flatten") == [f(3) * f(4), f(3) * f(4) * 2**4, 3]
    assert orders("conv, one channel") == [1, 2]
    assert orders("lstm") == orders("lstm by hand") == orders("lstm cell") == [f(4), f(4) * 2**4]
    assert orders("gru") == orders("gru cell") == [f(4), f(4) * 2**4]
    assert orders("lstm, two layers both ways") == [f(4) ** 4, f(4) ** 4 * 2**16]
    # Channels: two groups of two, with the inputs of the group; the group moves as a whole.
    assert orders("grouped")[0] == 2 * 2**2 * 2**2
    assert orders("depthwise")[0] == f(4) * f(3)
    assert orders("depthwise, twice as many")[0] == f(3) * 2**3
    # Two heads of two dimensions, of queries and keys and of values; the residual stream of four.
    assert orders("attention by hand")[0] == 2 * 2**2 * 2**2 * f(4)
    assert orders("small gpt")[0] == 2 * 2**2 * 2**2 * f(4) * f(5)
    # Two groups of two heads, with keys and queries of two, and values of two; heads have rows of a table of their own.
    assert orders("grouped queries")[0] == 2 * 2**2 * 2**2 * 2**2
    assert orders("padded window")[0] == 2 * 2**2 * 2**2
    assert orders("padded units")[0] == 2 * 2  # those that have something added, and those that have nothing
    assert orders("states") == [f(4), f(4) * 2**4]
    assert orders("kernel by a view")[0] == f(4)
    assert orders("layer norm") == [f(4), f(4) * 2 * 2**4]  # all before the norm at once, each one behind it
    assert orders("rms norm") == [f(4), f(4) * 2**4, 4]
    assert orders("batch norm") == [f(4), f(4) * 2**4, 8]
    assert orders("batch norm of the input") == [f(4), f(4) * 2**4 * 2**3, 3]  # who cannot be relabelled has a sign
    assert orders("one scale of the input") == [f(4), f(4) * 2**4 * 2, 1]
    assert orders("depthwise, also of the input") == [f(3), f(3) * 2**3 * 2**5, 5]
    assert orders("thrown away") == [f(4), f(4) * 2**4]
    assert orders("thrown away, of convolutions") == [f(3), f(3) * 2**3]
    assert orders("in place, by another name") == [f(4), f(4) * 2**4]
    assert orders("glu") == [f(4), f(4) * 2**4, 4]
    assert orders("weight norm, convolutions") == [f(3) * f(4), f(3) * f(4) * 2**7, 7]  # of directions
    assert orders("weight norm, transposed")[0] == f(3) * f(4)
    assert orders("gated kernel")[0] == f(3) * f(4)
    assert orders("bilinear")[0] == f(4) * f(4) * f(3)
    assert orders("radial basis functions")[0] == f(4) * f(5)
    assert orders("in between")[0] == orders("clamped between two")[0] == orders("cosine")[0] == f(4)
    assert orders("in order")[0] == f(4) * f(3)  # whichever units they are of, what is in order stays
    assert orders("two in groups of the input")[0] == 2 * 2
    assert orders("slots that are not named")[0] == f(4)  # of the centres; what is added to the inputs ties the units
    assert orders("sums of some")[0] == 2
    assert orders("picked")[0] == 2 * 2  # those that are, and those that are not
    assert orders("the largest")[0] == f(3)  # of the four before, a number says which is the largest
    assert orders("neighbours")[0] == f(4)
    assert orders("concatenation") == [f(4) * f(3), f(4) * f(3) * 2**4, 3]


def test_a_batch_norm_that_has_seen_data_tells_its_channels_apart():
    net = build("batch norm")
    assert orders("batch norm", net)[0] == 24
    net[1].running_mean.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert orders("batch norm", net)[:2] == [4, 4 * 2**2]


def test_example_is_asked_for_where_it_is_needed():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(7, 2)

        def forward(self, x):
            return self.layer(x[:, 0, 0] + x[:, 1, 1])

    with pytest.raises(UnsupportedLayerError, match=r"Give an example.*sps.BNN\(net, example="):
        sps.Topology.of(Odd())
    assert sps.Topology.of(Odd(), torch.zeros(2, 2, 2, 7)).num_weights == 16
    with pytest.raises(ValueError, match="cannot be run with the example"):
        sps.Topology.of(Odd(), torch.zeros(2, 7))


def test_a_network_of_another_topology_is_not_verified():
    with pytest.raises(ValueError, match="another topology"):
        sps.Topology.of(sps.mlp([3, 4, 2])).verify(sps.mlp([3, 5, 2]))


@pytest.mark.parametrize(("pick", "told"), [
    (lambda a, b: (a, b), r"a tuple of outputs\[0\] of shape \(2, 2\), outputs\[1\] of .*self.net\(x\)\[0\]"),
    (lambda a, b: {"y": a, "loss": None}, r"a dict of outputs\['y'\] of shape \(2, 2\)\. One .*self.net\(x\)\['y'\]"),
    (lambda a, b: None, "a NoneType: wrap it in a module that returns a tensor"),
    (lambda a, b: torch.zeros(2, 1), "it returns a constant"),
])  # fmt: skip
def test_what_is_not_one_tensor_says_what_to_wrap(pick, told):
    net = Net(lambda net, x: pick(*(layer(x).flatten(1) for layer in (net.a, net.b))), a=conv(1, 2, 1), b=conv(1, 1, 1))
    with pytest.raises(sps.UnsupportedLayerError, match=told):
        sps.Topology.of(net, torch.zeros(2, 1, 1, 1))


def test_a_wrapped_network_of_several_outputs_works():
    both = Net(lambda net, x: (net.a(x), net.b(x)), a=nn.LayerNorm(3), b=nn.Linear(3, 1))
    wrapped = Net(lambda net, x: torch.cat(net.both(x), -1), both=both)
    assert sps.Topology.of(wrapped, torch.zeros(2, 3)).num_outputs == 4


@pytest.mark.parametrize("width", [4, 5])
def test_rows_of_a_turned_table_are_refused(width):
    """Of a square one rows and columns used to be taken for each other."""
    net = Net(
        lambda n, x: n.out(torch.nn.functional.embedding(x, n.table.T).tanh().sum(1)),
        table=nn.Parameter(torch.zeros(4, width)), out=nn.Linear(4, 1),
    )  # fmt: skip
    with pytest.raises(sps.UnsupportedLayerError, match="rows of a view of 'table'"):
        sps.Topology.of(net, torch.zeros(2, 3, dtype=torch.int64))
