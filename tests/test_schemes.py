"""Masks by hand, by the paper's formula, and by counting."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyro_sps as sps
from pyro_sps.schemes import make_masks


def topology_of(*widths):
    return sps.Topology.of(sps.mlp(widths, device="meta"))


def quiet(scheme, topology, generator=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sps.SymmetryWarning)
        return scheme(topology, generator)


@pytest.mark.parametrize(
    ("widths", "light", "heavy"),
    [
        ((8, 50, 50, 2), (7, 49, 1), (28, 1225, 1)),
        ((1, 50, 50, 1), (0, 49, 0), (0, 1225, 0)),
        ((8, 50, 50, 50, 2), (7, 49, 49, 1), (28, 1225, 1225, 1)),
        ((8, 50, 2), (7, 1), (28, 1)),
    ],
)
def test_numbers_of_fixed_entries(widths, light, heavy):
    topology = topology_of(*widths)
    for scheme, counts in ((sps.Light(), light), (sps.Heavy(), heavy)):
        masks = quiet(scheme, topology)
        assert tuple(int((~masks[tensor.name]).sum()) for tensor in topology.matrices) == counts
        assert sps.fixed_count(masks) == sum(counts)  # biases stay stochastic
    assert sps.fixed_count(sps.Unmasked()(topology)) == 0


def fixed_positions(masks, topology, index):
    return {tuple(position) for position in (~masks[topology.matrices[index].name]).nonzero().tolist()}


def test_blocks_lie_at_the_top_for_odd_and_at_the_bottom_for_even_tensors():
    topology = topology_of(3, 5, 4, 4)
    light, heavy = quiet(sps.Light(), topology), quiet(sps.Heavy(), topology)
    # (unit of layer l, unit of layer l - 1); ranks count from the end the block lies at.
    assert fixed_positions(light, topology, 0) == {(0, 0), (1, 1)}
    assert fixed_positions(light, topology, 1) == {(3, 4), (2, 3), (1, 2)}
    assert fixed_positions(light, topology, 2) == {(0, 0), (1, 1), (2, 2)}
    assert fixed_positions(heavy, topology, 0) == {(1, 0), (2, 0), (2, 1)}
    assert fixed_positions(heavy, topology, 1) == {(2, 4), (1, 4), (1, 3), (0, 4), (0, 3), (0, 2)}


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=3, max_size=6))
def test_fully_connected_units_follow_the_papers_formula(widths):
    topology = topology_of(*widths)
    light = topology.fully_connected(quiet(sps.Light(), topology))
    heavy = topology.fully_connected(quiet(sps.Heavy(), topology))
    for layer in range(1, len(widths) - 1):
        before, width, after = widths[layer - 1 : layer + 2]
        # The paper has neighbours no wider than the layer in mind; a block is never wider than the layer either.
        formula = max(0, width - min(before, width) - min(after, width) + 2)
        assert light[f"layer {layer}"] == formula
        # Heavy leaves rank 0 of its block with layer l - 1 untouched there, where light leaves rank m - 1;
        # both fix all ranks but one on either side, so that the numbers differ by one unit at most.
        assert formula <= heavy[f"layer {layer}"] <= max(1, formula)


def test_heavy_keeps_one_unit_where_the_formula_says_none():
    assert topology_of(8, 50, 50, 2).fully_connected(sps.Heavy()(topology_of(8, 50, 50, 2))) == {
        "layer 1": 1,
        "layer 2": 1,
    }


@pytest.mark.parametrize("scheme", [sps.Light(), sps.Heavy()])
def test_fully_connected_units_are_warned_of(scheme):
    with pytest.warns(sps.SymmetryWarning, match=r"42 of the 50 units of layer 1.*widths 8 \(input\) and 2 \(output\)"):
        scheme(topology_of(8, 50, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheme(topology_of(8, 50, 50, 2))


@pytest.mark.parametrize("like", [sps.Light(), sps.Heavy()])
def test_random_fixes_as_many_entries_a_tensor_at_uniform_places(like):
    topology = topology_of(3, 6, 6, 2)
    target = quiet(like, topology)
    total = torch.zeros(6, 6)
    draws = 400
    for seed in range(draws):
        masks = sps.Random(like=like)(topology, torch.Generator().manual_seed(seed))
        for name, mask in masks.items():
            assert (~mask).sum() == (~target[name]).sum()
        total += ~masks["2.weight"]
    share = (~target["2.weight"]).sum() / 36
    error = (draws * share * (1 - share)) ** 0.5
    assert ((total - draws * share).abs() < 4.5 * error).all()


def test_random_takes_a_fraction_and_a_seed():
    topology = topology_of(10, 10, 10)
    one, two, other = (sps.Random(0.3)(topology, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert int((~one["0.weight"]).sum()) == 30
    assert one["0.bias"].all()
    assert torch.equal(one["0.weight"], two["0.weight"])
    assert not torch.equal(one["0.weight"], other["0.weight"])
    with pytest.raises(ValueError, match=r"like must be a scheme or a fraction in \[0, 1\], got 1.5"):
        sps.Random(1.5)


def test_functions_and_dicts_work_where_schemes_do():
    topology = topology_of(3, 4, 2)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 2] = False
    for scheme in ({"0.weight": mask}, lambda topology, generator: {"0.weight": mask}):
        masks = make_masks(scheme, topology)
        assert torch.equal(masks["0.weight"], mask)
        assert masks["2.weight"].all()
    with pytest.raises(TypeError, match=r"got the class Heavy; write Heavy\(\)"):
        make_masks(sps.Heavy, topology)
    with pytest.raises(TypeError, match="got str"):
        make_masks("heavy", topology)
