"""Rigid masks: certified, counted, brute-forced; the constants and alternatives that go with them."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from brute_force import brute_force
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyro_sps as sps
from pyro_sps.masks.rigid import InputOffsets, Rigid
from pyro_sps.masks.search import subsets
from pyro_sps.masks.values import Ladder
from pyro_sps.network.topology import Topology
from pyro_sps.network.units import UnitGroup, WeightTensor
from pyro_sps.symmetry.certificate import certify
from pyro_sps.symmetry.table import scheme_table


def topology_of(*widths: int, activation: str = "tanh") -> Topology:
    return Topology.of(sps.mlp(widths, activation, device="meta"))


def left(topology, masks, values=None):
    report = certify(topology, masks, values)
    return report.permutations.after, None if report.signed_permutations is None else report.signed_permutations.after


def signs(topology, masks, seed):
    return sps.Constant(0.5)(topology, masks, torch.Generator().manual_seed(seed))


# --- how many -----------------------------------------------------------------------------------------

# hidden units H, hidden layers L: the docstring's bound is H − L where no layer is too wide
COUNTS = [
    ([8, 50, 50, 2], 99, 100),
    ([1, 50, 50, 1], 99, 100),
    ([8, 50, 2], 88, 90),
    ([8, 64, 32, 2], 95, 96),
    ([3, 10, 40, 40, 1], 89, 90),
    ([4, 50, 50, 50, 50, 50, 50, 2], 299, 300),
    ([8, 512, 512, 2], 1023, 1024),
]


@pytest.mark.parametrize(("widths", "most", "most_with_signs"), COUNTS)
def test_number_of_fixed_weights(widths, most, most_with_signs):
    topology = topology_of(*widths)
    masks = Rigid()(topology)
    assert sps.fixed_count(masks) <= most
    assert left(topology, masks)[0] == 1
    masks = Rigid(signs=True)(topology)
    assert sps.fixed_count(masks) <= most_with_signs
    for seed in range(3):
        assert left(topology, masks, signs(topology, masks, seed)) == (1, 1)


def test_the_bound_of_the_docstring():
    """H − L − p, with p paths of 2, 4, … units: 1 + 2 + … + 9 = 45 of 50 units a layer."""
    assert sps.fixed_count(Rigid()(topology_of(8, 50, 50, 2))) == 100 - 2 - 9
    assert sps.fixed_count(Rigid()(topology_of(5, 50, 50, 50, 50, 2))) == 200 - 4 - 2 * 9


@pytest.mark.parametrize(("inputs", "hidden", "outputs"), [(1, 4, 1), (2, 5, 1), (2, 16, 2), (8, 50, 2), (3, 20, 2)])
def test_one_hidden_layer_takes_the_fewest(inputs, hidden, outputs):
    """The cheapest patterns: no neighbour, one neighbour, two, ..."""
    n = inputs + outputs
    sizes = sorted(size for size in range(n + 1) for _ in range(math.comb(n, size)))
    assert sps.fixed_count(Rigid()(topology_of(inputs, hidden, outputs))) == sum(sizes[:hidden])
    if hidden < 2**n:
        masks = Rigid(signs=True)(topology_of(inputs, hidden, outputs))
        assert sps.fixed_count(masks) == sum(sizes[1 : hidden + 1])  # the empty pattern leaves a sign


@pytest.mark.parametrize("widths", [(1, 2, 2, 1), (2, 3, 1), (1, 3, 2, 1)])
def test_no_mask_of_a_tiny_network_has_fewer(widths):
    """All smaller masks of the network, tried out by brute force."""
    topology = topology_of(*widths, activation="gelu")
    best = sps.fixed_count(Rigid()(topology))
    places = [(t.name, index) for t in topology.matrices for index in np.ndindex(*t.shape)]
    zeros = {t.name: torch.zeros(t.shape) for t in topology.tensors}
    for some in itertools.combinations(places, best - 1):
        masks = topology.check_masks({})
        for name, index in some:
            masks[name][index] = False
        assert brute_force(topology, masks, zeros, signed=False) > 1


# --- rigid --------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=3, max_size=5), st.booleans(), st.integers(0, 100))
def test_rigid_by_brute_force(widths, odd, seed):
    topology = topology_of(*widths, activation="tanh" if odd else "relu")
    room = all(widths[i] <= 2 ** (widths[i - 1] + widths[i + 1]) for i in range(1, len(widths) - 1))
    assert room  # with at most 4 units always
    masks = Rigid()(topology)
    zeros = {t.name: torch.zeros(t.shape) for t in topology.tensors}
    assert brute_force(topology, masks, zeros, signed=False) == 1
    values = Ladder()
    masks = Rigid(signs=True)(topology, values=values)
    assert brute_force(topology, masks, values(topology, masks).tensors(), signed=True) == 1
    assert all(masks[t.name].all() for t in topology.tensors if not t.is_matrix)  # biases stay stochastic
    try:
        masks = Rigid(signs=True)(topology)
    except ValueError:
        assert any(widths[i] > 2 ** (widths[i - 1] + widths[i + 1]) - 1 for i in range(1, len(widths) - 1))
    else:
        pattern = signs(topology, masks, seed).tensors()
        assert brute_force(topology, masks, pattern, signed=True) == 1


def residual_topology(size: int, odd: bool = True) -> Topology:
    """A layer with two residual blocks, all on the same units."""
    units = (
        UnitGroup("input", 2, True),
        UnitGroup("layer 1", size, False, odd, False),
        UnitGroup("output", 1, True),
    )
    joins = {"first": (1, 0), "block 1": (1, 1), "block 2": (1, 1), "last": (2, 1)}
    tensors = [WeightTensor(name, (units[a].size, units[b].size), (a, b)) for name, (a, b) in joins.items()]
    return Topology(units, tuple(tensors))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 40])
@pytest.mark.parametrize("strength", [1, 2])
def test_residual_networks(size, strength):
    topology = residual_topology(size)
    masks = Rigid(strength=strength)(topology)
    assert left(topology, masks)[0] == 1
    if strength == 1:
        assert sps.fixed_count(masks) == size - 1
    check_strength(topology, masks, strength)
    masks = Rigid(signs=True)(topology)
    assert left(topology, masks, signs(topology, masks, 0)) == (1, 1)
    assert sps.fixed_count(masks) == size


def test_kernels():
    """Of a tensor with further axes one position of a kernel is fixed."""
    units = (UnitGroup("input", 2, True), UnitGroup("layer 1", 6, False), UnitGroup("output", 3, True))
    topology = Topology(units, (WeightTensor("a", (6, 2, 3), (1, 0)), WeightTensor("b", (3, 6, 3), (2, 1))))
    masks = Rigid()(topology)
    assert sps.fixed_count(masks) == 5
    assert left(topology, masks)[0] == 1


def test_mixed_activations_flip_only_where_they_can():
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 1))
    topology = Topology.of(net)
    masks = Rigid(signs=True)(topology)
    assert sps.fixed_count(masks) == 6 + 5
    assert left(topology, masks, signs(topology, masks, 0)) == (1, 1)


# --- strength -------------------------------------------------------------------------------------------


def check_strength(topology, masks, strength, values=None):
    """Any two units of a layer differ in so many places, counted one by one as the docstring of Rigid says."""
    for index in topology.hidden:
        for u, w in itertools.combinations(range(topology.groups[index].size), 2):
            places = 0
            for tensor in topology.matrices:
                mask = masks[tensor.name].numpy()
                value = None if values is None else values[tensor.name].numpy()
                for axis in (0, 1):
                    if tensor.groups[axis] == index:
                        own = tensor.groups[1 - axis] == index
                        for j in range(tensor.shape[1 - axis]):
                            if own and j in (u, w):
                                continue
                            a, b = ((u, j), (w, j)) if axis == 0 else ((j, u), (j, w))
                            same = bool(mask[a] == mask[b])
                            if same and not mask[a] and value is not None:
                                same = bool(value[a] == value[b])
                            places += not same
            assert places >= strength, (topology.groups[index].name, u, w)


@pytest.mark.parametrize("strength", [1, 2, 3, 6])
@pytest.mark.parametrize("widths", [(8, 12, 12, 2), (3, 8, 20, 12, 1)])
def test_strength_by_brute_force(strength, widths):
    topology = topology_of(*widths)
    masks = Rigid(strength=strength)(topology)
    check_strength(topology, masks, strength)
    assert left(topology, masks)[0] == 1
    masks = Rigid(signs=True, strength=strength)(topology, values=sps.Constant(1.0))
    check_strength(topology, masks, strength)
    assert left(topology, masks, signs(topology, masks, 1)) == (1, 1)


@pytest.mark.parametrize("strength", [2, 5])
def test_strength_with_distinct_constants(strength):
    topology, values = topology_of(4, 30, 2), Ladder()
    masks = Rigid(signs=True, strength=strength)(topology, values=values)
    check_strength(topology, masks, strength, values(topology, masks).tensors())
    assert sps.fixed_count(masks) == 30 * strength


@pytest.mark.parametrize("widths", [(8, 50, 50, 1), (8, 20, 20, 1), (8, 32, 32, 1), (11, 50, 50, 1)])
def test_strength_of_networks_with_one_output(widths):
    # The first searches of these end in masks that are different enough but not rigid.
    topology = topology_of(*widths)
    masks = Rigid(strength=2)(topology)
    check_strength(topology, masks, 2)
    assert sps.certify(topology, masks).permutations.is_rigid


def test_weights_added_for_strength_are_few():
    """About k/4 a unit, since a weight between two hidden layers counts for two units."""
    for strength in (4, 8):
        assert sps.fixed_count(Rigid(strength=strength)(topology_of(8, 50, 50, 2))) < 100 * strength / 4 * 1.9


# --- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [sps.Zero(), sps.Constant(1.0), sps.Constant(1.0, learn=True), sps.RandomConstant(1.0), sps.MAP(), Ladder()],
    ids=repr,
)
def test_rigid_networks_do_not_warn(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bnn = sps.BNN(sps.mlp([8, 10, 10, 2]), scheme=Rigid(), values=values, seed=3)
    report = bnn.symmetry()
    assert report.permutations.is_rigid
    assert report.verify(bnn).ok
    if not isinstance(values, sps.Zero | sps.MAP):
        bnn = sps.BNN(sps.mlp([8, 10, 10, 2]), scheme=Rigid(signs=True), values=values, seed=3)
        assert bnn.symmetry().is_rigid


@pytest.mark.parametrize("with_signs", [False, True])
def test_narrow_neighbours_need_distinct_constants(with_signs):
    topology = topology_of(1, 50, 1)
    for values in (None, sps.Zero(), sps.Constant(1.0), sps.MAP()):
        if with_signs and isinstance(values, sps.Zero):
            continue
        with pytest.raises(ValueError, match=r"50 units of layer 1 .*2 neighbours .*4 sets.*Ladder"):
            Rigid(signs=with_signs)(topology, values=values)
    for values in (Ladder(), sps.RandomConstant(1.0)):
        bnn = sps.BNN(sps.mlp([1, 50, 1]), scheme=Rigid(signs=with_signs), values=values)
        assert bnn.num_fixed == 49 + with_signs
        assert bnn.symmetry().permutations.is_rigid
        if with_signs:
            assert bnn.symmetry().is_rigid


def test_given_values_are_certified_as_they_are():
    topology = topology_of(1, 6, 1)
    distinct = {t.name: torch.arange(1.0, 1 + t.numel).reshape(t.shape) for t in topology.tensors}
    masks = Rigid(signs=True)(topology, values=sps.Given(distinct))
    assert left(topology, masks, sps.Given(distinct)(topology, masks)) == (1, 1)
    equal = {t.name: torch.ones(t.shape) for t in topology.tensors}
    with pytest.raises(ValueError, match=r"no mask for these values.*Ladder"):
        Rigid()(topology, values=sps.Given(equal))
    zeros = {t.name: torch.zeros(t.shape) for t in topology_of(8, 6, 6, 2).tensors}
    with pytest.raises(ValueError, match="no mask"):
        Rigid(signs=True)(topology_of(8, 6, 6, 2), values=sps.Given(zeros))


def test_the_generator_is_left_as_it_was():
    generator = torch.Generator().manual_seed(0)
    Rigid()(topology_of(1, 50, 1), generator, values=sps.RandomConstant(1.0))
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("arguments", [{"signs": 1}, {"strength": 0}, {"strength": 1.5}, {"strength": True}])
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Rigid(**arguments)


def test_zeros_have_no_signs():
    with pytest.raises(ValueError, match=r"Zero\(\).*Constant"):
        Rigid(signs=True)(topology_of(8, 5, 5, 2), values=sps.Zero())
    Rigid(signs=True)(topology_of(8, 5, 5, 2, activation="relu"), values=sps.Zero())  # has none to remove


def test_too_much_strength():
    with pytest.raises(ValueError, match=r"layer 1 can differ in no more than 3 places"):
        Rigid(strength=4)(topology_of(2, 5, 1))
    with pytest.raises(ValueError, match=r"layer 1 can differ in no more than 2 places"):
        Rigid(strength=3)(topology_of(1, 5, 1), values=Ladder())


# --- ladder and offsets ------------------------------------------------------------------------------------


def test_ladder_looks_like_a_normal_distribution():
    topology = topology_of(1, 2001, 1)
    masks = {"0.weight": torch.zeros(2001, 1, dtype=torch.bool)}
    value = Ladder(2.0)(topology, topology.check_masks(masks)).tensors()["0.weight"].flatten().double()
    assert len(value.abs().unique()) == 2001
    # Quantiles of |Normal(0, 2²)|, exactly; the signs alternate.
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 2.0)
    rank = torch.arange(2001, dtype=torch.float64)
    torch.testing.assert_close(2 * normal.cdf(value.abs()) - 1, (rank + 0.5) / 2001, rtol=1e-5, atol=1e-6)
    assert value.sign()[:4].tolist() == [1, -1, 1, -1]
    assert float(value.std()) == pytest.approx(2.0, rel=0.01)


def test_rungs_differ_whatever_the_default_dtype():
    topology = topology_of(1, 3000, 1)
    masks = topology.check_masks({"0.weight": torch.zeros(3000, 1, dtype=torch.bool)})
    expected = Ladder()(topology, masks).pattern["0.weight"]
    assert len(expected.abs().unique()) == 3000
    torch.set_default_dtype(torch.float16)  # in which they would not
    try:
        assert torch.equal(Ladder()(topology, masks).pattern["0.weight"], expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with pytest.raises(ValueError, match="scale"):
        Ladder(0.0)


def test_input_offsets():
    bnn = sps.BNN(sps.mlp([1, 50, 50, 1]), scheme=InputOffsets(), values=Ladder())
    assert bnn.num_fixed == 100
    assert all(mask.all() for name, mask in bnn.masks.items() if "weight" in name)
    assert bnn.symmetry().is_rigid
    equal = sps.Constant(1.0)
    topology = topology_of(1, 5, 1)
    masks = InputOffsets()(topology)
    assert left(topology, masks, equal(topology, masks))[0] > 1  # equal offsets tell nothing
    assert "2.bias" not in [name for name, mask in masks.items() if not mask.all()]
    with pytest.raises(ValueError, match="layer 1 has none"):
        InputOffsets()(Topology.of(sps.mlp([1, 5, 1], bias=False)))


def test_light_warns_and_names_the_remedy():
    with pytest.warns(sps.SymmetryWarning, match=r"Light leaves 10\^52.78 .*Rigid"):
        sps.BNN(sps.mlp([8, 50, 50, 2]), scheme=sps.Light(), values=sps.Zero())


def test_subsets_are_complete_and_balanced():
    places = [(0, 0, j) for j in range(6)]
    chosen = [frozenset(subset) for subset in subsets(places)]
    assert len(chosen) == len(set(chosen)) == 2**6 - 1
    assert [len(subset) for subset in chosen] == sorted(len(subset) for subset in chosen)
    pairs = [place for subset in chosen[6:12] for place in subset]
    assert all(pairs.count(place) == 2 for place in places)


def test_scheme_table():
    lines = scheme_table([[8, 50, 50, 2], [1, 50, 1]]).splitlines()
    cells = {tuple(line.strip("| ").split(" | ")[:2]): line.strip("|").split(" | ") for line in lines[2:]}
    assert len({line.count("|") for line in lines}) == 1
    assert [cell.strip() for cell in cells["8-50-50-2", "heavy"][2:]] == ["1,254", "1", "2^100 = 10^30.10", "4"]
    assert [cell.strip() for cell in cells["8-50-50-2", "rigid, signs"][2:]] == ["100", "1", "2^100 = 10^30.10", "1"]
    assert "impossible" in cells["1-50-1", "rigid"][2]
