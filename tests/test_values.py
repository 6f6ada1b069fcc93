"""Fixed values: what they are, where they are, and that seeds make them again."""

import pytest
import torch

import pyro_sps as sps
from pyro_sps.values import make_values

TOPOLOGY = sps.Topology.of(sps.mlp([8, 50, 50, 2]))
MASKS = sps.Heavy()(TOPOLOGY)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fixed_entries(values):
    return torch.cat([tensor[~MASKS[name]] for name, tensor in values.tensors().items()])


@pytest.mark.parametrize("rule", [sps.Zero(), sps.Constant(2.5), sps.RandomConstant(0.7), sps.MAP()])
def test_stochastic_entries_are_zero(rule):
    for name, tensor in make_values(rule, TOPOLOGY, MASKS, generator()).tensors().items():
        assert (tensor[MASKS[name]] == 0).all()


def test_constants_are_plus_or_minus_c_with_balanced_signs():
    entries = fixed_entries(sps.Constant(2.5)(TOPOLOGY, MASKS, generator()))
    assert set(entries.tolist()) == {2.5, -2.5}
    assert abs(entries.sign().sum()) < 4 * len(entries) ** 0.5
    learned = sps.Constant(3.0, learn=True)(TOPOLOGY, MASKS, generator())
    assert (learned.scale, learned.learn) == (3.0, True)
    assert set(learned.pattern["2.weight"].unique().tolist()) == {-1.0, 0.0, 1.0}


def test_random_constants_are_normal_draws():
    entries = fixed_entries(sps.RandomConstant(0.7)(TOPOLOGY, MASKS, generator()))
    count = len(entries)
    assert abs(entries.mean()) < 4 * 0.7 / count**0.5
    assert abs(entries.var() / 0.49 - 1) < 4 * (2 / count) ** 0.5


@pytest.mark.parametrize("rule", [sps.Constant(1.0), sps.RandomConstant(1.0)])
def test_seeds_make_them_again(rule):
    one, two, other = (fixed_entries(rule(TOPOLOGY, MASKS, generator(seed))) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_given_values_and_functions():
    weights = {tensor.name: torch.randn(tensor.shape) for tensor in TOPOLOGY.tensors}
    for values in (sps.Given(weights), weights, lambda topology, masks, generator: weights):
        result = make_values(values, TOPOLOGY, MASKS).tensors()
        for name, mask in MASKS.items():
            assert torch.equal(result[name][~mask], weights[name][~mask])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"nope": torch.zeros(1)}, ValueError, r"weights name \['nope'\]"),
        ({"0.weight": torch.zeros(50, 8)}, ValueError, "weights lack '2.weight', of which the masks fix 1225"),
        ({t.name: torch.zeros(3) for t in TOPOLOGY.tensors}, ValueError, r"must have shape \(50, 8\), got \(3,\)"),
        ({t.name: torch.full(t.shape, torch.nan) for t in TOPOLOGY.tensors}, ValueError, "not finite"),
        (sps.Zero, TypeError, r"got the class Zero; write Zero\(\)"),
        ("zero", TypeError, "got str"),
        (lambda topology, masks, generator: 3, TypeError, "got int"),
    ],
)
def test_bad_values(values, error, message):
    with pytest.raises(error, match=message):
        make_values(values, TOPOLOGY, MASKS)


@pytest.mark.parametrize(
    "build",
    [lambda: sps.Constant(0.0), lambda: sps.Constant(float("inf")), lambda: sps.RandomConstant(-1), lambda: sps.MAP(0)],
)
def test_bad_arguments(build):
    with pytest.raises(ValueError, match="must be a positive (finite number|integer)"):
        build()
