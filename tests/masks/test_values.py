import math

import pytest
import torch
from scipy import stats

import pyro_sps as sps
from pyro_sps.masks.values import make_values
from pyro_sps.network.topology import Topology


def case(*widths, scheme=None):
    topology = Topology.of(sps.mlp(list(widths), device="meta"))
    return topology, (scheme or sps.Heavy())(topology)


def fixed_entries(values, masks):
    """All constants in one vector."""
    return torch.cat([tensor[~masks[name]] for name, tensor in values.tensors().items()])


RULES = [sps.Zero(), sps.Constant(0.7), sps.RandomConstant(1.3), sps.MAP()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_shapes_and_zeros_at_stochastic_entries(rule):
    topology, masks = case(5, 6, 6, 2)
    values = rule(topology, masks, torch.Generator().manual_seed(0))
    assert list(values.pattern) == [tensor.name for tensor in topology.tensors]
    for tensor in topology.tensors:
        assert values.pattern[tensor.name].shape == tensor.shape
        assert (values.tensors()[tensor.name][masks[tensor.name]] == 0).all()


def test_zero():
    topology, masks = case(5, 6, 6, 2)
    assert (fixed_entries(sps.Zero()(topology, masks), masks) == 0).all()


@pytest.mark.parametrize("c", [0.3, 1.0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_are_exact(c, dtype):
    topology, masks = case(5, 6, 6, 2)
    values = sps.Constant(c)(topology, masks, torch.Generator().manual_seed(0))
    exact = torch.tensor(c, dtype=dtype)
    for name, tensor in values.tensors(dtype).items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor[~masks[name]].abs(), exact.expand(int((~masks[name]).sum())))


def test_signs_are_balanced_and_independent():
    topology, masks = case(100, 100, scheme=sps.Heavy())
    signs = fixed_entries(sps.Constant()(topology, masks, torch.Generator().manual_seed(0)), masks)
    n = len(signs)
    assert n == 4950
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4.5 / math.sqrt(n)  # the mean of n signs has standard deviation 1/sqrt(n)
    assert abs((signs[1:] * signs[:-1]).mean()) < 4.5 / math.sqrt(n - 1)


def test_random_constants_are_normal_times_the_scale():
    topology, masks = case(100, 100, scheme=sps.Heavy())
    values = sps.RandomConstant(0.5, learn=True)(topology, masks, torch.Generator().manual_seed(0))
    assert (values.scale, values.learn) == (0.5, True)
    draws = fixed_entries(values, masks)
    assert stats.kstest(draws.numpy(), stats.norm(0, 0.5).cdf).pvalue > 1e-4
    other = sps.RandomConstant(2.0)(topology, masks, torch.Generator().manual_seed(0))
    torch.testing.assert_close(fixed_entries(other, masks), 4 * draws)  # the same draws, another scale


@pytest.mark.parametrize("rule", [sps.Constant(), sps.RandomConstant()])
def test_randomness_comes_from_the_generator_only(rule):
    topology, masks = case(8, 8, 2)
    state = torch.get_rng_state()
    first, second, third = (
        fixed_entries(rule(topology, masks, torch.Generator().manual_seed(seed)), masks) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_learn_is_passed_on():
    topology, masks = case(3, 3, 2)
    for rule, expected in ((sps.Constant(2.0, learn=True), (2.0, True)), (sps.Constant(2.0), (2.0, False))):
        values = rule(topology, masks)
        assert (values.scale, values.learn) == expected


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, "1", True, None])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda v: sps.Constant(v), "c"),
        (lambda v: sps.RandomConstant(v), "scale"),
        (lambda v: sps.MAP(learning_rate=v), "learning_rate"),
        (lambda v: sps.FixedValues({}, v), "scale"),
    ],
)
def test_numbers_must_be_positive(make, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive finite number, got {value!r}"):
        make(value)


@pytest.mark.parametrize("rule", [sps.Constant, sps.RandomConstant, sps.Ladder])
def test_only_learned_scales_are_a_layer_s_own(rule):
    assert rule(learn=True, per_layer=True).per_layer
    with pytest.raises(ValueError, match="per_layer=True needs learn=True"):
        rule(per_layer=True)
    with pytest.raises(ValueError, match="per_layer=True needs learn=True"):
        sps.FixedValues({}, per_layer=True)


@pytest.mark.parametrize("value", [0, -3, 2.5, True])
def test_map_steps_must_be_a_positive_integer(value):
    with pytest.raises(ValueError, match=f"num_steps must be a positive integer, got {value!r}"):
        sps.MAP(num_steps=value)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, math.nan, "0.1", True, None])
def test_the_share_that_is_held_out_must_be_one(value):
    with pytest.raises(ValueError, match=rf"held_out must be in \[0, 1\), got {value!r}"):
        sps.MAP(held_out=value)


@pytest.mark.parametrize("value", [-0.1, 0, 1.5, math.nan, "0.1", True, None])
def test_the_share_of_noise_must_be_one(value):
    with pytest.raises(ValueError, match=rf"noise_share must be in \(0, 1\], got {value!r}"):
        sps.MAP(noise_share=value)


def test_map_is_a_placeholder_of_zeros():
    topology, masks = case(5, 6, 2)
    values = sps.MAP(num_steps=10)(topology, masks)
    assert (fixed_entries(values, masks) == 0).all()
    assert not values.learn


# --- given values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [sps.Given, lambda d: d, lambda d: lambda *_: d, lambda d: lambda *_: sps.FixedValues(d)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_given_values_are_taken_where_the_masks_fix(wrap, dtype):
    topology, masks = case(3, 4, 2)
    weights = {tensor.name: torch.randn(tensor.shape, dtype=dtype) for tensor in topology.tensors}
    weights["0.weight"][masks["0.weight"]] = math.nan  # stochastic entries are not read
    del weights["0.bias"]  # nor are tensors without a fixed entry
    copies = {name: weight.clone() for name, weight in weights.items()}
    values = make_values(wrap(weights), topology, masks).tensors()
    for tensor in topology.tensors:
        fixed = ~masks[tensor.name]
        if tensor.name in weights:
            assert values[tensor.name].dtype == dtype
            assert torch.equal(values[tensor.name][fixed], weights[tensor.name][fixed])
        assert (values[tensor.name][~fixed] == 0).all()
    for name, weight in weights.items():  # the user's tensors are left alone
        torch.testing.assert_close(weight, copies[name], rtol=0, atol=0, equal_nan=True)


def test_given_parameters_carry_no_gradient():
    net = sps.mlp([3, 4, 2])
    topology, masks = case(3, 4, 2)
    values = sps.Given(dict(net.named_parameters()))(topology, masks)
    assert not any(tensor.requires_grad for tensor in values.tensors().values())


def test_given_repr_is_short():
    assert repr(sps.Given({"0.weight": torch.zeros(50, 50)})) == "Given()"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(1)}, r"weights name \['x'\], which the network does not have"),
        ({"0.weight": None}, r"weights lack '0\.weight', of which the masks fix 3 entries"),
        ({"0.weight": torch.zeros(3, 4)}, r"weights\['0\.weight'\] must have shape \(4, 3\), got \(3, 4\)"),
        ({"0.weight": torch.full((4, 3), math.nan)}, r"weights\['0\.weight'\] has values that are not finite"),
    ],
)
def test_given_errors(change, says):
    topology, masks = case(3, 4, 2)
    weights = {tensor.name: torch.zeros(tensor.shape) for tensor in topology.tensors} | change
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    for values in (sps.Given(weights), weights, lambda *_: weights, sps.FixedValues(weights)):
        with pytest.raises(ValueError, match=says):
            make_values(values, topology, masks)


# --- what works as values ----------------------------------------------------------------------------


def test_rules_functions_and_results_work_as_values():
    topology, masks = case(3, 4, 2)
    generator = torch.Generator().manual_seed(3)
    expected = sps.Constant(0.5, learn=True)(topology, masks, torch.Generator().manual_seed(3))
    for values in (sps.Constant(0.5, learn=True), expected, lambda t, m, g: expected):
        made = make_values(values, topology, masks, generator)
        assert (made.scale, made.learn) == (0.5, True)
        for name, tensor in expected.pattern.items():
            assert torch.equal(made.pattern[name], tensor)


def test_stray_values_under_stochastic_entries_are_dropped():
    topology, masks = case(3, 4, 2)
    values = make_values(
        sps.FixedValues({tensor.name: torch.ones(tensor.shape) for tensor in topology.tensors}, 2.0), topology, masks
    )
    for name, mask in masks.items():
        assert torch.equal(values.tensors()[name], 2.0 * (~mask).float())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (sps.Zero, r"must be an instance, got the class Zero; write Zero\(\)"),
        (1.0, "values must be a rule, a function or a dict of tensors, got float"),
        (lambda *_: 1.0, "values must give FixedValues or a dict of tensors, got float"),
    ],
)
def test_values_errors(values, says):
    topology, masks = case(3, 4, 2)
    with pytest.raises(TypeError, match=says):
        make_values(values, topology, masks)
