import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyro_sps as sps
from pyro_sps.masks.schemes import SymmetryWarning, make_masks
from pyro_sps.network.topology import Topology

ignore_symmetries = pytest.mark.filterwarnings("ignore::pyro_sps.masks.schemes.SymmetryWarning")


def topology_of(*widths, bias=True):
    return Topology.of(sps.mlp(list(widths), bias=bias, device="meta"))


def fixed_entries(masks):
    """Places of the fixed entries, (out, in), of each tensor that has some."""
    return {name: sorted(map(tuple, (~mask).nonzero().tolist())) for name, mask in masks.items() if not mask.all()}


def fixed_by_definition(widths, rule):
    """DESIGN 2.1, entry by entry: ranks count from the top for odd l and from the bottom for even l."""
    places = {}
    for l in range(1, len(widths)):  # noqa: E741
        before, after = widths[l - 1], widths[l]
        m = min(before, after)
        found = []
        for j in range(after):
            for i in range(before):
                rank_in, rank_out = (i, j) if l % 2 else (before - 1 - i, after - 1 - j)
                if max(rank_in, rank_out) < m and rule(rank_in, rank_out, m):
                    found.append((j, i))
        if found:
            places[f"{2 * (l - 1)}.weight"] = found
    return places


RULES = {
    sps.Light(): lambda rank_in, rank_out, m: rank_in == rank_out <= m - 2,
    sps.Heavy(): lambda rank_in, rank_out, m: rank_in < rank_out,
}


@ignore_symmetries
def test_block_positions_of_a_small_network_by_hand():
    topology = topology_of(3, 4, 2, 2)
    assert fixed_entries(sps.Light()(topology)) == {
        "0.weight": [(0, 0), (1, 1)],  # odd l: the top of both layers
        "2.weight": [(1, 3)],  # even l: the bottom
        "4.weight": [(0, 0)],
    }
    assert fixed_entries(sps.Heavy()(topology)) == {
        "0.weight": [(1, 0), (2, 0), (2, 1)],
        "2.weight": [(0, 3)],
        "4.weight": [(1, 0)],
    }


@ignore_symmetries
@pytest.mark.parametrize("scheme", RULES, ids=["light", "heavy"])
@given(widths=st.lists(st.integers(1, 7), min_size=2, max_size=6))
@settings(deadline=None, max_examples=50)
def test_positions_against_the_definition(scheme, widths):
    masks = scheme(topology_of(*widths))
    assert fixed_entries(masks) == fixed_by_definition(widths, RULES[scheme])
    assert all(masks[name].all() for name in masks if name.endswith("bias"))


@pytest.mark.parametrize("scheme", RULES, ids=["light", "heavy"])
def test_units_of_a_block_have_different_numbers_of_fixed_connections_only_under_heavy(scheme):
    mask = scheme(topology_of(6, 6, 6))["0.weight"]
    expected = {"Heavy": [0, 1, 2, 3, 4, 5], "Light": [1, 1, 1, 1, 1, 0]}[type(scheme).__name__]
    assert (~mask).sum(1).tolist() == expected


@ignore_symmetries
@pytest.mark.parametrize(
    ("widths", "scheme", "counts"),
    [  # DESIGN 2.2
        ((8, 50, 50, 2), sps.Light(), (7, 49, 1)),
        ((8, 50, 50, 2), sps.Heavy(), (28, 1225, 1)),
        ((1, 50, 50, 1), sps.Light(), (0, 49, 0)),
        ((1, 50, 50, 1), sps.Heavy(), (0, 1225, 0)),
        ((8, 50, 50, 50, 2), sps.Light(), (7, 49, 49, 1)),
        ((8, 50, 2), sps.Light(), (7, 1)),
        ((8, 50, 2), sps.Heavy(), (28, 1)),
        ((8, 50, 50, 2), sps.Unmasked(), (0, 0, 0)),
    ],
)
def test_numbers_of_fixed_entries(widths, scheme, counts):
    topology = topology_of(*widths)
    masks = scheme(topology)
    assert tuple(int((~masks[tensor.name]).sum()) for tensor in topology.matrices) == counts
    assert sps.fixed_count(masks) == sum(counts)
    assert list(masks) == [tensor.name for tensor in topology.tensors]


def test_unmasked_fixes_nothing():
    masks = sps.Unmasked()(topology_of(3, 4, 2))
    assert all(mask.all() and mask.dtype == torch.bool for mask in masks.values())


# --- random --------------------------------------------------------------------------------------------


@ignore_symmetries
@pytest.mark.parametrize(
    "like", [sps.Light(), sps.Heavy(), sps.Random(0.3), lambda t, g: {"0.bias": torch.arange(7) < 3}]
)
def test_random_has_as_many_fixed_entries_per_tensor(like):
    topology = topology_of(5, 7, 6, 2)
    reference = topology.check_masks(like(topology, torch.Generator().manual_seed(0)))
    masks = sps.Random(like)(topology, torch.Generator().manual_seed(1))
    for name in reference:
        assert int((~masks[name]).sum()) == int((~reference[name]).sum())


def test_random_like_a_dict_of_masks_or_a_fraction():
    topology = topology_of(5, 8, 2)
    masks = sps.Random({"0.weight": torch.arange(40).reshape(8, 5) < 11})(topology)
    assert sps.fixed_count(masks) == 29
    masks = sps.Random(0.25)(topology)
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == {
        "0.weight": 10,
        "0.bias": 0,
        "2.weight": 4,
        "2.bias": 0,
    }


def test_random_is_reproducible_and_leaves_the_global_state_alone():
    topology = topology_of(5, 7, 2)
    state = torch.get_rng_state()
    first, second, third = (sps.Random()(topology, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert fixed_entries(first) == fixed_entries(second)
    assert fixed_entries(first) != fixed_entries(third)


def test_random_places_are_uniform():
    topology = topology_of(4, 5)
    generator = torch.Generator().manual_seed(0)
    draws = 2000
    counts = sum((~sps.Random(sps.Light())(topology, generator)["0.weight"]).double() for _ in range(draws))
    probability = 3 / 20
    error = (draws * probability * (1 - probability)) ** 0.5
    assert ((counts - draws * probability).abs() < 4.5 * error).all()  # 20 entries, each 7e-6


@pytest.mark.parametrize("like", [-0.1, 1.5, float("nan"), True])
def test_random_rejects_bad_fractions(like):
    with pytest.raises(ValueError, match=r"like must be a scheme or a fraction in \[0, 1\]"):
        sps.Random(like)


def test_random_does_not_warn_of_what_the_other_scheme_leaves():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sps.Random(sps.Light())(topology_of(2, 30, 2))


# --- warnings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "name"), [(sps.Light(), "light"), (sps.Heavy(), "heavy")])
def test_warning_names_the_layer_and_its_neighbours_widths(scheme, name):
    with pytest.warns(SymmetryWarning) as caught:
        scheme(topology_of(8, 50, 30, 2))
    assert len(caught) == 1  # layer 2, of 30 units, has one fully connected unit at most
    message = str(caught[0].message)
    assert f"the {name} scheme leaves 14 of the 50 units of layer 1 fully connected" in message
    assert "neighbours have widths 8 (input) and 30 (layer 2)" in message
    assert caught[0].filename == __file__


@pytest.mark.parametrize("scheme", [sps.Light(), sps.Heavy()])
def test_no_warning_with_at_most_one_fully_connected_unit(scheme):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        topology = topology_of(8, 9, 10, 10, 2)
        masks = scheme(topology)
    assert max(topology.fully_connected(masks).values()) <= 1


# --- what works as a scheme --------------------------------------------------------------------------


def test_functions_and_dicts_work_as_schemes():
    topology = topology_of(3, 4, 2)
    mask = torch.arange(12).reshape(4, 3) % 2 == 0
    for scheme in ({"0.weight": mask}, lambda t, g: {"0.weight": mask}):
        masks = make_masks(scheme, topology)
        assert torch.equal(masks["0.weight"], mask)
        assert masks["2.weight"].all()


def test_a_function_gets_the_generator():
    topology = topology_of(3, 4, 2)
    generator = torch.Generator().manual_seed(0)
    received = []
    make_masks(lambda t, g: received.append((t, g)) or {}, topology, generator=generator)
    assert received == [(topology, generator)]


def test_a_scheme_that_uses_values_gets_them():
    class Scheme:
        uses_values = True

        def __call__(self, topology, generator, values):
            self.values = values
            return {}

    scheme, values = Scheme(), sps.Zero()
    make_masks(scheme, topology_of(3, 4, 2), values)
    assert scheme.values is values


@pytest.mark.parametrize(
    ("scheme", "error", "says"),
    [
        (sps.Light, TypeError, r"must be an instance, got the class Light; write Light\(\)"),
        ("light", TypeError, "must be a scheme, a function or a dict of masks, got str"),
        ({"x": torch.ones(1, dtype=torch.bool)}, ValueError, r"masks name \['x'\]"),
        (lambda t, g: {"0.bias": torch.ones(4)}, ValueError, r"masks\['0.bias'\] must be a torch.bool tensor"),
        (lambda t, g: None, TypeError, "masks must map tensor names"),
    ],
)
def test_scheme_errors(scheme, error, says):
    with pytest.raises(error, match=says):
        make_masks(scheme, topology_of(3, 4, 2))


@ignore_symmetries
def test_schemes_of_a_residual_network():
    """Every tensor has its own block, also where a group is used by several of them."""

    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

        def forward(self, x):
            h = self.first(x).tanh()
            return self.last(h + self.second(h).tanh())

    masks = sps.Heavy()(Topology.of(Residual()))
    assert {name: len(places) for name, places in fixed_entries(masks).items()} == {
        "first.weight": 3,
        "second.weight": 6,
        "last.weight": 1,
    }


@pytest.mark.parametrize("scheme", [sps.Light(), sps.Heavy(), sps.Rigid()])
def test_a_linear_path_beside_the_network_stays_stochastic(scheme):
    """It joins units that have an identity, so that no fixed weight of it breaks a symmetry."""
    masks = scheme(Topology.of(sps.mlp([8, 6, 6, 7], skip=True)))
    plain = scheme(Topology.of(sps.mlp([8, 6, 6, 7])))
    assert masks.pop("skip.weight").all()
    assert masks.keys() == plain.keys()
    assert all(torch.equal(masks[name], plain[name]) for name in plain)
