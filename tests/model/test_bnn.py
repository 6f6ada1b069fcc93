import gc
import math
import warnings
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.mcmc.util import initialize_model
from scipy import stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_sps as sps
from pyro_sps.masks.schemes import SymmetryWarning
from pyro_sps.model.priors import OrderedNormal

MASK = torch.tensor([[True, False, True], [False, False, True]])
FIXED = torch.tensor([[9.0, -0.1, 9.0], [0.3, 7.0, 9.0]])


def normal(dtype=torch.float32):
    return dist.Normal(torch.tensor(0.0, dtype=dtype), 1.0)


# --- PartialWeight -----------------------------------------------------------------------------------


def test_entries_are_the_constants_or_the_sample():
    weight = sps.PartialWeight("w", MASK, FIXED)
    with poutine.trace() as traced:
        full = weight(normal())
    site = traced.trace.nodes["w"]
    assert site["value"].shape == (3,)
    assert torch.equal(full[MASK], site["value"])  # in row-major order
    assert torch.equal(full[~MASK], FIXED[~MASK])
    assert list(traced.trace.nodes) == ["w"]


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    batch=st.lists(st.integers(1, 3), max_size=2),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scaled=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_assemble_by_brute_force(shape, batch, seed, dtype, scaled):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.5
    fixed = torch.randn(shape, generator=generator, dtype=dtype)
    weight = sps.PartialWeight("w", mask, fixed)
    free = torch.randn((*batch, weight.num_free), generator=generator, dtype=dtype)
    scale = torch.rand(batch, generator=generator, dtype=dtype) if scaled else None
    full = weight.assemble(free, scale)
    assert weight.num_free == int(mask.sum())
    if weight.num_free or scaled:
        assert full.shape == (*batch, *shape)
    full = full.expand(*batch, *shape)
    factor = 1 if scale is None else scale.reshape(*batch, *(1 for _ in shape))
    assert torch.equal(full[..., ~mask], (fixed * factor).expand(*batch, *shape)[..., ~mask])
    assert torch.equal(full[..., mask], free)


def test_assembly_is_differentiable():
    weight = sps.PartialWeight("w", MASK, FIXED.double())
    free = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(weight.assemble, (free, scale))
    assert torch.autograd.gradgradcheck(weight.assemble, (free, scale))
    assert torch.autograd.gradcheck(weight.assemble, (free[0], scale[0]))
    all_fixed = sps.PartialWeight("w", torch.zeros_like(MASK), FIXED.double())
    assert torch.autograd.gradcheck(lambda c: all_fixed.assemble(None, c), (scale,))


def latents(trace):
    return [name for name in trace.stochastic_nodes if name != "data"]  # but not the indices of the plate


class Kernels(TorchDispatchMode):
    """Notes which operations run and which tensors they make."""

    def __init__(self):
        super().__init__()
        self.names, self.tensors = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket.__name__)
        outputs = result if isinstance(result, (tuple, list)) else [result]
        self.tensors += [(self.names[-1], output) for output in outputs if isinstance(output, torch.Tensor)]
        return result


def test_assembly_costs_one_scatter():
    weight = sps.PartialWeight("w", MASK, FIXED)
    free = torch.randn(5, 3)
    with Kernels() as kernels:
        weight.assemble(free)
    views = {"view", "expand", "unsqueeze", "_unsafe_view", "alias"}
    assert [name for name in kernels.names if name not in views] == ["scatter"]


def test_a_tensor_without_free_entries_has_no_site():
    weight = sps.PartialWeight("w", torch.zeros_like(MASK), FIXED)
    with poutine.trace() as traced:
        assert torch.equal(weight(normal()), FIXED)
        assert torch.equal(weight(normal(), torch.tensor(2.0)), 2 * FIXED)
    assert not traced.trace.nodes


def test_a_tensor_without_fixed_entries_is_the_sample():
    weight = sps.PartialWeight("w", torch.ones_like(MASK), torch.full_like(FIXED, math.nan))
    with poutine.trace() as traced:
        full = weight(normal())
    assert torch.equal(full.flatten(), traced.trace.nodes["w"]["value"])


def test_partial_weight_holds_buffers_of_its_own_and_no_parameters():
    mask, fixed = MASK.clone(), FIXED.clone().requires_grad_()
    weight = sps.PartialWeight("w", mask, fixed)
    with torch.no_grad():
        mask.fill_(True)
        fixed.fill_(5.0)
    assert torch.equal(weight.mask, MASK)
    assert torch.equal(weight.fixed, torch.where(MASK, 0.0, FIXED))
    assert not list(weight.parameters())
    assert set(dict(weight.named_buffers())) == {"mask", "fixed", "index"}
    assert not weight.fixed.requires_grad


def test_partial_weight_moves_to_another_dtype():
    weight = sps.PartialWeight("w", MASK, FIXED).to(torch.float64)
    full = weight(dist.Normal(0.0, 1.0))  # a single precision prior
    assert full.dtype == torch.float64
    assert torch.equal(full[~MASK], FIXED[~MASK].double())
    assert weight.mask.dtype == torch.bool


def test_partial_weight_state_dict_round_trip():
    first = sps.PartialWeight("w", MASK, FIXED)
    second = sps.PartialWeight("w", ~MASK, torch.zeros_like(FIXED))
    second.load_state_dict(first.state_dict())
    assert second.num_free == 3
    assert torch.equal(second.assemble(torch.arange(3.0)), first.assemble(torch.arange(3.0)))


def test_partial_weight_repr():
    assert repr(sps.PartialWeight("w", MASK, FIXED)) == "PartialWeight('w', 3 of 6 stochastic)"


@pytest.mark.parametrize(
    ("name", "mask", "fixed", "says"),
    [
        ("", MASK, FIXED, "name must be a non-empty string, got ''"),
        (3, MASK, FIXED, "name must be a non-empty string, got 3"),
        ("w", MASK.int(), FIXED, "mask of 'w' must have dtype torch.bool, got torch.int32"),
        ("w", MASK, FIXED.T, r"fixed of 'w' must have the mask's shape \(2, 3\), got \(3, 2\)"),
        ("w", MASK, FIXED.int(), "fixed of 'w' must have a floating-point dtype, got torch.int32"),
        ("w", MASK, FIXED / 0, "fixed of 'w' has values that are not finite at fixed entries"),
    ],
)
def test_partial_weight_errors(name, mask, fixed, says):
    with pytest.raises(ValueError, match=says):
        sps.PartialWeight(name, mask, fixed)


# --- priors ------------------------------------------------------------------------------------------

PRIORS = {
    "scalar": dist.Normal(0.3, 2.0),
    "one": dist.Normal(torch.zeros(1), 2.0),
    "full": dist.Normal(torch.arange(6.0).reshape(2, 3), torch.arange(1.0, 7.0).reshape(2, 3)),
    "full event": dist.Normal(torch.arange(6.0).reshape(2, 3), 1.0).to_event(2),
    "by row": dist.Normal(torch.tensor([[1.0], [2.0]]), 1.0),
    "by column": dist.Normal(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0.5)),
    "Laplace": dist.Laplace(0.0, torch.arange(1.0, 7.0).reshape(2, 3)),
    "StudentT": dist.StudentT(torch.tensor(3.0), 0.0, torch.tensor([1.0, 2.0, 3.0])),
    "Cauchy": dist.Cauchy(0.0, 2.0),
    "HalfNormal": dist.HalfNormal(torch.tensor([1.0, 2.0, 3.0])),
    "LogNormal": dist.LogNormal(torch.tensor([1.0, 2.0, 3.0]), 0.5),
    "Uniform": dist.Uniform(torch.tensor([-1.0, -2.0, -3.0]), 4.0),
    "Gamma": dist.Gamma(2.0, torch.tensor([1.0, 2.0, 3.0])),
    "torch": torch.distributions.Normal(torch.tensor([1.0, 2.0, 3.0]), 2.0),
    "torch event": torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(2, 3), 2.0), 2),
}


def univariate(prior):
    return prior.base_dist if isinstance(prior, torch.distributions.Independent) else prior


@pytest.mark.parametrize("name", PRIORS)
def test_prior_is_restricted_to_the_free_entries(name):
    prior = PRIORS[name]
    weight = sps.PartialWeight("w", MASK, FIXED)
    trace = poutine.trace(weight).get_trace(prior)
    full = trace.nodes["_RETURN"]["value"]
    site = trace.nodes["w"]["fn"]
    assert (site.batch_shape, site.event_shape) == ((), (3,))
    clean = torch.where(MASK, full, torch.ones_like(full))  # inside every support
    expected = univariate(prior).expand(MASK.shape).log_prob(clean)[MASK].sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


@pytest.mark.parametrize("shape", [(4, 1), (4, 5, 1)])
def test_batch_dimensions_of_a_prior_go_to_the_left(shape):
    """A sampled scale with particle dimensions, as `s[..., None, None]`."""
    scale = torch.rand(*shape) + 0.5
    weight = sps.PartialWeight("w", MASK, FIXED)
    with poutine.trace() as traced:
        full = weight(dist.Normal(0.0, scale[..., None, None]))
    assert full.shape == (*shape, 2, 3)
    site = traced.trace.nodes["w"]
    assert site["fn"].batch_shape == shape
    expected = dist.Normal(0.0, scale.unsqueeze(-1)).log_prob(full[..., MASK]).sum(-1)
    torch.testing.assert_close(site["fn"].log_prob(site["value"]), expected)


def test_batch_dimensions_and_full_shape_together():
    scale = torch.rand(4, 1, 1, 1) + torch.arange(1.0, 7.0).reshape(2, 3)
    weight = sps.PartialWeight("w", MASK, FIXED)
    with poutine.trace() as traced:
        weight(dist.Normal(0.0, scale))
    torch.testing.assert_close(traced.trace.nodes["w"]["fn"].base_dist.scale, scale[..., MASK])


BAD_PRIORS = {
    "multivariate": (dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), "univariate and continuous"),
    "correlated": (dist.MultivariateNormal(torch.zeros(3), torch.eye(3)).expand([2]).to_event(1), "univariate"),
    "discrete": (dist.Poisson(2.0), "must be univariate and continuous, got Poisson"),
    "shape": (dist.Normal(torch.zeros(3, 2), 1.0), r"batch shape \(3, 2\) does not fit a tensor of shape \(2, 3\)"),
    "particles": (dist.Normal(torch.zeros(4, 1), 1.0), "particles and other batch dimensions go to the left"),
    "mask of ones": (dist.Normal(torch.zeros(4, 3), 1.0), "does not fit"),
    "transformed": (
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), [torch.distributions.transforms.ExpTransform()]),
        "cannot be restricted to the free entries.*independent univariate",
    ),
    "options": (dist.Stable(1.5, 0.1, coords="S"), r"cannot be restricted .*\['coords'\]"),
    "no distribution": (1.0, "must be a distribution, got 1.0"),
}


@pytest.mark.parametrize("name", BAD_PRIORS)
def test_prior_errors(name):
    prior, says = BAD_PRIORS[name]
    with pytest.raises(ValueError, match=says):
        sps.PartialWeight("w", MASK, FIXED)(prior)


# --- a small network, in full and written by hand --------------------------------------------------------

MASKS = {
    "0.weight": torch.tensor([[True, False], [True, True], [False, True]]),
    "0.bias": torch.tensor([True, False, True]),
    "2.weight": torch.tensor([[False, True, True]]),
    "2.bias": torch.tensor([False]),
}
SITES = {"0.weight": 4, "0.bias": 2, "2.weight": 2}


def small_net(dtype=torch.float64):
    return sps.mlp([2, 3, 1], dtype=dtype)


def small_bnn(dtype=torch.float64, **options):
    options = {"values": sps.Constant(0.7), "likelihood": sps.Gaussian(0.5)} | options
    return sps.BNN(small_net(dtype), options.pop("scheme", MASKS), **options)


def guarded(bnn):
    """Let the network fail if a fixed entry is not, bit for bit, its constant; count its runs."""
    function, runs = bnn.function, []

    def checked(weights, x):
        constants = bnn.fixed
        for name, weight in weights.items():
            fixed = ~bnn.masks[name]
            assert torch.equal(weight[..., fixed], constants[name][fixed].expand_as(weight[..., fixed]))
            assert weight.shape[weight.dim() - fixed.dim() :] == fixed.shape
        runs.append(weights["0.weight"].shape[:-2])
        return function(weights, x)

    bnn._function = (checked,)
    return runs


@pytest.fixture
def data():
    return torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)


def by_hand(weights, x):
    hidden = torch.tanh(x @ weights["0.weight"].mT + weights["0.bias"].unsqueeze(-2))
    return hidden @ weights["2.weight"].mT + weights["2.bias"].unsqueeze(-2)


def full_weights(bnn, sites):
    full = {name: bnn.fixed[name].clone() for name in bnn.masks}
    for name, value in sites.items():
        full[name][bnn.masks[name]] = value
    return full


def random_sites(*batch):
    return {name: torch.randn(*batch, size, dtype=torch.float64) for name, size in SITES.items()}


def test_sites_hold_the_free_entries_only(data):
    bnn = small_bnn()
    trace = poutine.trace(bnn).get_trace(*data)
    assert {name: tuple(trace.nodes[name]["value"].shape) for name in latents(trace)} == {
        name: (size,) for name, size in SITES.items()
    }
    assert (bnn.num_stochastic, bnn.num_fixed, bnn.num_outputs) == (8, 5, 1)
    assert trace.observation_nodes == ["obs"]
    assert not trace.param_nodes


def test_outputs_are_those_of_the_network_written_by_hand(data):
    bnn = small_bnn()
    sites = random_sites()
    outputs = poutine.condition(bnn, sites)(*data)
    torch.testing.assert_close(outputs, by_hand(full_weights(bnn, sites), data[0]))
    assert torch.equal(bnn.assemble(sites)["0.weight"], full_weights(bnn, sites)["0.weight"])
    many = random_sites(5)
    stacked = bnn.assemble(many)
    for name in MASKS:  # also a tensor without a site
        assert stacked[name].shape == (5, *MASKS[name].shape)
    for index in range(5):
        single = full_weights(bnn, {name: value[index] for name, value in many.items()})
        assert all(torch.equal(stacked[name][index], single[name]) for name in MASKS)


@pytest.mark.parametrize("num_data", [None, 6, 60])
def test_log_density_is_prior_plus_scaled_likelihood(data, num_data):
    x, y = data
    bnn = small_bnn(prior_scale=0.8)
    sites = random_sites()
    trace = poutine.trace(poutine.condition(bnn, sites)).get_trace(x, y, num_data=num_data)
    prior = sum(
        -0.5 * (w / 0.8).square().sum() - w.numel() * math.log(0.8 * math.sqrt(2 * math.pi)) for w in sites.values()
    )
    residuals = (y - by_hand(full_weights(bnn, sites), x)) / 0.5
    likelihood = -0.5 * residuals.square().sum() - 6 * math.log(0.5 * math.sqrt(2 * math.pi))
    scale = 1 if num_data is None else num_data / 6
    torch.testing.assert_close(trace.log_prob_sum(), prior + scale * likelihood, rtol=1e-12, atol=1e-12)


def test_minibatches_estimate_the_full_likelihood(data):
    """Averaged over all minibatches of a split the scaled likelihood is that of all rows."""
    bnn, sites = small_bnn(), random_sites()

    def log_likelihood(x, y, **options):
        trace = poutine.trace(poutine.condition(bnn, sites)).get_trace(x, y, **options)
        trace.compute_log_prob()
        return trace.nodes["obs"]["log_prob_sum"]

    x, y = data
    parts = [log_likelihood(x[rows], y[rows], num_data=6) for rows in torch.arange(6).split(2)]
    torch.testing.assert_close(sum(parts) / 3, log_likelihood(x, y))


def test_num_data_must_not_be_smaller_than_the_batch(data):
    with pytest.raises(ValueError, match="num_data must be at least the number of rows of x, 6, got 5"):
        small_bnn()(*data, num_data=5)


def test_targets_of_a_wrong_shape_are_rejected(data):
    """They could be broadcast: a density of the wrong model, without an error."""
    for y in (data[1][:, 0], data[1].expand(6, 2), data[1][:5], data[1].T):
        with pytest.raises(ValueError, match=r"y must have shape \(6, 1\), got"):
            small_bnn()(data[0], y)
    classifier = sps.BNN(sps.mlp([2, 3]), {}, likelihood=sps.Categorical())
    for y in (torch.zeros(6, 1), torch.zeros(6, 3), torch.zeros(5)):
        with pytest.raises(ValueError, match=r"y must have shape \(6,\), got"):
            classifier(data[0].float(), y)


# --- constants bit for bit, however the model is run -------------------------------------------------------


@pytest.mark.parametrize("values", [sps.Zero(), sps.Constant(0.1), sps.RandomConstant(0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_draws(values, dtype):
    bnn = small_bnn(dtype, values=values)
    runs = guarded(bnn)
    for _ in range(20):
        bnn(torch.randn(4, 2, dtype=dtype))
    assert runs == [()] * 20
    if isinstance(values, sps.Constant):
        exact = torch.tensor(0.1, dtype=dtype)
        assert all(torch.equal(w[~MASKS[n]].abs(), exact.expand_as(w[~MASKS[n]])) for n, w in bnn.fixed.items())


def test_vectorised_particles(data):
    bnn = small_bnn()
    runs = guarded(bnn)
    sites = random_sites(5, 1)
    with pyro.plate("particles", 5, dim=-2):
        trace = poutine.trace(poutine.condition(bnn, sites)).get_trace(*data)
    assert runs == [(5,)]  # one run for all of them
    outputs = trace.nodes["_RETURN"]["value"]
    assert outputs.shape == (5, 6, 1)
    for index in range(5):
        single = {name: value[index, 0] for name, value in sites.items()}
        torch.testing.assert_close(outputs[index], by_hand(full_weights(bnn, single), data[0]))
    trace.compute_log_prob()
    assert trace.nodes["obs"]["log_prob"].shape == (5, 6)
    assert trace.nodes["0.bias"]["log_prob"].shape == (5, 1)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("guide", [AutoNormal, AutoLowRankMultivariateNormal, AutoDelta, sps.AutoSPSNormal])
def test_stock_svi_with_vectorised_particles(data, guide, elbo):
    bnn = small_bnn(values=sps.Constant(0.7, learn=True))
    runs = guarded(bnn)
    guide = guide(bnn)
    svi = SVI(bnn, guide, pyro.optim.ClippedAdam({"lr": 0.02}), elbo(8, vectorize_particles=True, max_plate_nesting=1))
    losses = [svi.step(*data) for _ in range(40)]
    assert (8,) in runs
    assert sum(losses[-10:]) < sum(losses[:10])
    assert bnn.fixed_scale.item() != pytest.approx(0.7, abs=1e-3)
    # nothing of the skeleton network is optimised
    stored = dict(pyro.get_param_store().named_parameters())
    assert not [name for name in stored if "weight" in name and "Auto" not in name]
    assert sum(value.numel() for value in stored.values()) == sum(
        parameter.numel() for parameter in [*guide.parameters(), *bnn.parameters()]
    )


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_from_the_prior(data, parallel):
    bnn = small_bnn()
    runs = guarded(bnn)
    draws = Predictive(bnn, num_samples=7, parallel=parallel, return_sites=("obs", "0.weight", "_RETURN"))(data[0])
    assert draws["obs"].shape == (7, 6, 1)
    assert draws["0.weight"].reshape(7, -1).shape == (7, 4)
    assert draws["_RETURN"].shape == (7, 6, 1)
    assert (runs[-1] == (7,)) == parallel
    assert len(draws["0.weight"].unique()) == 28


@pytest.mark.parametrize("unsqueezed", [False, True])
@pytest.mark.parametrize("draws", [1, 7])
def test_predictive_in_parallel_from_posterior_draws(data, unsqueezed, draws):
    """Draws of shape (S, entries), as MCMC and stock guides give them, or (S, 1, entries)."""
    bnn = small_bnn()
    runs = guarded(bnn)
    sites = random_sites(draws, 1) if unsqueezed else random_sites(draws)
    parallel = Predictive(bnn, sites, parallel=True, return_sites=("_RETURN", "obs"))(data[0])
    assert runs[-1] == ((draws,) if draws > 1 or unsqueezed else ())
    sequential = Predictive(
        bnn, {name: value.reshape(draws, -1) for name, value in sites.items()}, return_sites=("_RETURN",)
    )(data[0])
    torch.testing.assert_close(parallel["_RETURN"].reshape(draws, 6, 1), sequential["_RETURN"])
    assert parallel["obs"].shape == (draws, 6, 1)
    noise = parallel["obs"] - sequential["_RETURN"]
    assert len(noise.unique()) == draws * 6


@pytest.mark.parametrize("guide", [AutoNormal, AutoLowRankMultivariateNormal, AutoDelta, sps.AutoSPSNormal])
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_with_guides(data, guide, parallel):
    bnn = small_bnn()
    runs = guarded(bnn)
    guide = guide(bnn)
    guide(*data)
    draws = Predictive(bnn, guide=guide, num_samples=5, parallel=parallel)(data[0])
    assert draws["obs"].shape == (5, 6, 1)
    assert (runs[-1] == (5,)) == parallel


def test_condition(data):
    bnn = small_bnn()
    guarded(bnn)
    sites = random_sites()
    trace = poutine.trace(poutine.condition(bnn, {"0.bias": sites["0.bias"]})).get_trace(*data)
    assert torch.equal(trace.nodes["0.bias"]["value"], sites["0.bias"])
    assert trace.nodes["0.bias"]["is_observed"]
    assert latents(trace) == ["0.weight", "2.weight"]


def test_nuts(data):
    bnn = small_bnn()
    runs = guarded(bnn)
    mcmc = MCMC(NUTS(bnn, max_tree_depth=3), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(*data)
    samples = mcmc.get_samples()
    assert {name: tuple(value.shape) for name, value in samples.items()} == {n: (5, s) for n, s in SITES.items()}
    assert all(value.dtype == torch.float64 for value in samples.values())
    assert len(runs) > 10
    predicted = Predictive(bnn, samples, parallel=True, return_sites=("_RETURN",))(data[0])["_RETURN"]
    last = full_weights(bnn, {name: value[-1] for name, value in samples.items()})
    torch.testing.assert_close(predicted[-1], by_hand(last, data[0]))


def test_potential_energy_of_mcmc_is_minus_the_log_density(data):
    bnn = small_bnn()
    _, potential, _, _ = initialize_model(bnn, model_args=data)
    sites = random_sites()
    trace = poutine.trace(poutine.condition(bnn, sites)).get_trace(*data)
    torch.testing.assert_close(potential(sites), -trace.log_prob_sum())


def test_laplace_approximation(data):
    """AutoLaplaceApproximation: the covariance is the inverse Hessian, which goes through the scatter."""
    # So noisy that the posterior has a Hessian of full rank.
    bnn = small_bnn(likelihood=sps.Gaussian(2.0), prior_scale=1.0)
    runs = guarded(bnn)
    guide = AutoLaplaceApproximation(bnn)
    svi = SVI(bnn, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(60):
        svi.step(*data)
    laplace = guide.laplace_approximation(*data)
    mode = guide.loc.detach()

    def loss(flat):
        sites = dict(zip(SITES, flat.split(list(SITES.values())), strict=True))
        weights = bnn.assemble(sites)
        residuals = (data[1] - by_hand(weights, data[0])) / 2.0
        return 0.5 * residuals.square().sum() + 0.5 * flat.square().sum()

    hessian = torch.autograd.functional.hessian(loss, mode)
    covariance = laplace.get_posterior().covariance_matrix
    torch.testing.assert_close(covariance @ hessian, torch.eye(8, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    Predictive(bnn, guide=laplace, num_samples=3, parallel=True)(data[0])
    assert len(runs) > 60


# --- learned constants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [sps.Constant(0.7, learn=True), sps.RandomConstant(0.7, learn=True)])
def test_learned_scale_is_the_only_parameter(data, values):
    bnn = small_bnn(values=values)
    assert [name for name, _ in bnn.named_parameters()] == ["fixed_scale_unconstrained"]
    trace = poutine.trace(bnn).get_trace(*data)
    assert trace.param_nodes == ["fixed_scale"]
    assert bnn.constant_scale().item() == pytest.approx(0.7)
    assert bnn.constant_scale().dtype == torch.float64
    pattern = values(bnn.topology, MASKS, torch.Generator().manual_seed(0)).pattern
    with torch.no_grad():
        bnn.fixed_scale = torch.tensor(0.25, dtype=torch.float64)
    for name, mask in MASKS.items():
        assert torch.equal(bnn.fixed[name][~mask], 0.25 * pattern[name][~mask].double())
        assert not bnn.fixed[name].requires_grad


def test_gradient_of_the_learned_scale(data):
    bnn = small_bnn(values=sps.Constant(0.7, learn=True))
    sites = random_sites()
    loss = -poutine.trace(poutine.condition(bnn, sites)).get_trace(*data).log_prob_sum()
    (gradient,) = torch.autograd.grad(loss, [bnn.fixed_scale_unconstrained])

    def written_out(log_c):
        weights = {w.name: w.fixed * log_c.exp() for w in bnn.weights}
        for name, value in sites.items():
            weights[name] = weights[name].masked_scatter(MASKS[name], value)
        return 0.5 * ((data[1] - by_hand(weights, data[0])) / 0.5).square().sum()

    log_c = torch.tensor(0.7, dtype=torch.float64).log().requires_grad_()
    (expected,) = torch.autograd.grad(written_out(log_c), [log_c])
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("rule", [sps.Constant, sps.RandomConstant, sps.Ladder])
def test_a_scale_a_layer(data, rule):
    bnn = small_bnn(values=rule(0.7, learn=True, per_layer=True))
    fixed = [name for name, mask in MASKS.items() if not mask.all()]
    assert bnn.scaled == fixed
    assert bnn.constant_scale().tolist() == pytest.approx([0.7] * len(fixed))
    with torch.no_grad():
        bnn.fixed_scale = torch.arange(1, len(fixed) + 1, dtype=torch.float64)
    pattern = rule()(bnn.topology, MASKS, torch.Generator().manual_seed(0)).pattern
    for rung, name in enumerate(fixed, 1):
        torch.testing.assert_close(bnn.fixed[name], rung * pattern[name].double())
    # Each derivative is that of the tensor's own scale.
    sites = random_sites()

    def loss(scales):
        with torch.no_grad():
            bnn.fixed_scale = scales
        model = poutine.trace(poutine.condition(bnn, sites)).get_trace(*data)
        return -model.log_prob_sum()

    scales = torch.linspace(0.5, 0.9, len(fixed), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(scales), [bnn.fixed_scale_unconstrained])
    for index in range(len(fixed)):
        step = torch.zeros_like(scales)
        step[index] = 1e-6
        slope = (loss(scales + step) - loss(scales - step)).item() / 2e-6
        assert gradient[index].item() == pytest.approx(slope * scales[index].item(), rel=1e-5, abs=1e-5)
    # `assemble` and the model agree, for many draws too.
    many = {name: value.expand(3, -1) for name, value in sites.items()}
    for name, value in bnn.assemble(many).items():
        assert torch.equal(value[1], bnn.assemble(sites)[name])
    assert bnn.symmetry().permutations.after == small_bnn(values=rule()).symmetry().permutations.after


def test_a_learned_scale_without_fixed_weights_is_no_parameter():
    bnn = sps.BNN(small_net(), sps.Unmasked(), sps.Constant(1.0, learn=True), sps.Gaussian(0.1))
    assert not list(bnn.parameters())
    assert bnn.constant_scale() is None


# --- constants that are replaced -------------------------------------------------------------------------


@pytest.mark.parametrize("values", [sps.MAP(), sps.Zero(), sps.Constant(0.1)])
def test_set_fixed(values):
    bnn = small_bnn(values=values)
    new = {name: torch.randn(mask.shape, dtype=torch.float64) for name, mask in MASKS.items()}
    copy, before = bnn.copy(), bnn.fixed
    bnn.set_fixed(new)
    for name, mask in MASKS.items():
        assert torch.equal(bnn.fixed[name], torch.where(mask, 0.0, new[name]))
        assert torch.equal(copy.fixed[name], before[name])
    bnn.set_fixed(sps.FixedValues({name: torch.ones(mask.shape) for name, mask in MASKS.items()}, 0.1))
    assert bnn.fixed["2.bias"].item() == 0.1  # in double precision
    with pytest.raises(ValueError, match="weights lack"):
        bnn.set_fixed({})


def test_set_fixed_with_a_learned_scale_is_an_error():
    with pytest.raises(ValueError, match="cannot make the scale of the fixed values a parameter"):
        small_bnn(values=sps.Zero()).set_fixed(sps.Constant(learn=True))
    with pytest.raises(ValueError, match=r"the fixed values have a learned scale; give sps.Given\(values\)"):
        small_bnn(values=sps.Constant(learn=True)).set_fixed({})


# --- the network and the module ------------------------------------------------------------------------


def storages(module):
    return {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}


@pytest.mark.parametrize("values", [sps.Constant(learn=True), "its own"])
def test_the_network_is_a_skeleton_only(values, data):
    """No copy of its parameters stays, they are no part of the module, and it is left as it was."""
    net = small_net().train()
    net[1].eval()
    if values == "its own":
        values = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    state = {name: (id(value), value.detach().clone()) for name, value in net.state_dict(keep_vars=True).items()}
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    flags = [module.training for module in net.modules()]
    bnn = sps.BNN(net, MASKS, values)
    guide = AutoNormal(bnn)
    svi = SVI(bnn, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    bnn.eval(), bnn.train(), svi.step(*data)
    assert [module.training for module in net.modules()] == flags
    assert {name: set(vars(module)) for name, module in net.named_modules()} == attributes
    for name, value in net.state_dict(keep_vars=True).items():
        assert (id(value), value.requires_grad, value.grad) == (state[name][0], True, None)
        assert torch.equal(value, state[name][1])
    assert not storages(bnn) & storages(net)
    assert not [module for module in bnn.modules() if isinstance(module, nn.Linear)]
    parameters = [weakref.ref(parameter) for parameter in net.parameters()]
    del net, name, value
    gc.collect()
    assert not [reference for reference in parameters if reference() is not None]


def test_memory_is_that_of_masks_constants_and_indices():
    widths = (50, 200, 200, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)
        bnn = sps.BNN(sps.mlp(list(widths)), sps.Random(0.5), sps.Constant(1.0, learn=True))
    weights = bnn.topology.num_weights
    held = sum(t.numel() * t.element_size() for t in [*bnn.parameters(), *bnn.buffers()])
    assert held <= weights * (1 + 4) + 8 * bnn.num_stochastic + 100
    gc.collect()
    alive = [
        t
        for t in gc.get_objects()
        if issubclass(type(t), torch.Tensor) and t.numel() >= 200 * 200 and t.is_floating_point() and not t.is_meta
    ]
    assert len([t for t in alive if t.shape == (200, 200)]) == 1  # the constants


def test_meta_networks_become_cpu_modules(data):
    bnn = sps.BNN(sps.mlp([2, 3, 1], device="meta", dtype=torch.float64), MASKS, sps.Zero())
    assert {t.device.type for t in [*bnn.parameters(), *bnn.buffers()]} == {"cpu"}
    assert bnn(*data).dtype == torch.float64


@pytest.mark.parametrize(
    "options", [{}, {"values": sps.Constant(0.1, learn=True)}, {"likelihood": sps.Gaussian(0.2, learn=True)}]
)
def test_state_dict_round_trip(options, data):
    first, second = small_bnn(**options, seed=0), small_bnn(**options, seed=1)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.3)
    second.load_state_dict(first.state_dict())
    sites = random_sites()
    log_probs = [poutine.trace(poutine.condition(b, sites)).get_trace(*data).log_prob_sum() for b in (first, second)]
    assert torch.equal(*log_probs)


def test_state_dict_of_other_masks_moves_the_free_entries(data):
    first = small_bnn(likelihood=sps.Gaussian(0.5))
    second = small_bnn(scheme={name: ~mask for name, mask in MASKS.items()})
    second.load_state_dict(first.state_dict())
    assert second.num_stochastic == 8
    sites = random_sites()
    torch.testing.assert_close(poutine.condition(second, sites)(*data), poutine.condition(first, sites)(*data))


def test_moving_to_another_dtype(data):
    bnn = small_bnn(torch.float32, values=sps.Constant(0.7, learn=True), likelihood=sps.Gaussian(0.3, learn=True))
    bnn.to(torch.float64)
    trace = poutine.trace(bnn).get_trace(*data)
    for name, node in trace.nodes.items():
        if node["type"] in ("sample", "param") and isinstance(node["value"], torch.Tensor) and name != "data":
            assert node["value"].dtype == torch.float64, name
    assert bnn.like.dtype == torch.float64


def test_copies():
    bnn = small_bnn(values=sps.Constant(0.7, learn=True), likelihood=sps.Gaussian(0.3, learn=True))
    copy = bnn.copy()
    assert {id(p) for p in bnn.parameters()}.isdisjoint({id(p) for p in copy.parameters()})
    assert [id(weight.fixed) for weight in bnn.weights] == [id(weight.fixed) for weight in copy.weights]
    assert copy.topology is bnn.topology
    with torch.no_grad():
        copy.fixed_scale_unconstrained.add_(1.0)
    assert bnn.fixed_scale.item() == pytest.approx(0.7)
    assert copy.fixed_scale.item() == pytest.approx(0.7 * math.e)


def test_unmasked_copies(data):
    bnn = small_bnn(values=sps.Constant(0.7, learn=True))
    free = bnn.unmasked()
    assert (free.num_stochastic, free.num_fixed) == (13, 0)
    assert not list(free.parameters())
    assert bnn.num_fixed == 5
    assert bnn.fixed_scale.item() == pytest.approx(0.7)
    trace = poutine.trace(free).get_trace(*data)
    assert [trace.nodes[name]["value"].numel() for name in MASKS] == [6, 3, 3, 1]


def test_seeds():
    first, second, third = (small_bnn(values=sps.RandomConstant(), seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first.fixed[name], second.fixed[name]) for name in MASKS)
    assert not torch.equal(first.fixed["0.weight"], third.fixed["0.weight"])
    net = small_net()
    state = torch.get_rng_state()
    sps.BNN(net, MASKS, sps.RandomConstant())
    assert torch.equal(torch.get_rng_state(), state)


class NoOtherDtype(Kernels):
    """Fails if a floating-point tensor of another dtype than double precision is made."""

    def __exit__(self, *error):
        result = super().__exit__(*error)
        self.wrong = [(name, t.dtype) for name, t in self.tensors if t.is_floating_point() and t.dtype != torch.float64]
        return result


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"values": sps.Constant(0.3, learn=True)},
        {"prior_scale": 1.0, "scale_by_fan_in": True},
        {"likelihood": sps.Gaussian(0.3, learn=True, per_output=1)},
        {"likelihood": sps.Bernoulli()},
        {"likelihood": sps.Poisson()},
        {"ordered_biases": True, "scheme": {"0.weight": MASKS["0.weight"]}},
    ],
)
def test_everything_in_a_run_has_the_networks_dtype(options, data):
    bnn = small_bnn(**options)
    with NoOtherDtype() as mode:
        outputs = bnn(data[0])
        bnn(data[0], torch.zeros(6, 1, dtype=torch.float64), num_data=60)
    assert outputs.dtype == torch.float64
    assert len(mode.tensors) > 20
    assert not mode.wrong


@pytest.mark.parametrize(
    "options", [{}, {"values": sps.Constant(0.3, learn=True)}, {"prior_scale": 1.0, "scale_by_fan_in": True}]
)
def test_everything_in_a_run_is_on_the_networks_device(options):
    """On the meta device any tensor made elsewhere would be an error."""
    bnn = small_bnn(**options).to("meta")
    x, y = torch.empty(6, 2, dtype=torch.float64, device="meta"), torch.empty(6, 1, dtype=torch.float64, device="meta")
    with pyro.validation_enabled(False), pyro.plate("particles", 3, dim=-2), Kernels() as kernels:
        outputs = bnn(x, y)
    assert (outputs.device.type, outputs.shape) == ("meta", (3, 6, 1))
    assert {tensor.device.type for _, tensor in kernels.tensors} == {"meta"}


# --- priors of a network -----------------------------------------------------------------------------


def site_scales(bnn):
    trace = poutine.trace(bnn).get_trace(torch.zeros(1, 2, dtype=torch.float64))
    return {name: trace.nodes[name]["fn"].base_dist.scale for name in MASKS if name in trace.nodes}


def test_default_prior_scales():
    plain = site_scales(small_bnn(prior_scale=1.5))
    assert all(torch.equal(scale, torch.full_like(scale, 1.5)) for scale in plain.values())
    for options, scale in (({"prior_scale": 1.5, "scale_by_fan_in": True}, 1.5), ({}, 2.0)):
        scales = site_scales(small_bnn(**options))
        expected = {"0.weight": scale / math.sqrt(2), "0.bias": scale, "2.weight": scale / math.sqrt(3)}
        for name, value in expected.items():
            assert torch.equal(scales[name], torch.full_like(scales[name], value))


def test_priors_by_tensor():
    full = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(3, 2)
    scales = site_scales(
        small_bnn(prior={"0.weight": dist.Normal(0.0, full), "2.weight": lambda t: dist.Normal(0.0, t.fan_in)})
    )
    assert torch.equal(scales["0.weight"], full[MASKS["0.weight"]])
    assert torch.equal(scales["0.bias"], torch.full((2,), 2.0, dtype=torch.float64))
    assert torch.equal(scales["2.weight"], torch.full((2,), 3.0, dtype=torch.float64))


def test_prior_factory_sees_every_tensor_with_free_entries():
    seen = []

    def factory(tensor):
        seen.append(tensor.name)
        return dist.Normal(0.0, 2.0 if tensor.is_matrix else 3.0)

    scales = site_scales(small_bnn(prior=factory))
    assert set(seen) == set(SITES)
    assert (scales["0.weight"] == 2).all()
    assert (scales["0.bias"] == 3).all()


@pytest.mark.parametrize(
    ("prior", "says"),
    [
        ({"x": dist.Normal(0.0, 1.0)}, r"prior names \['x'\], which the network does not have"),
        (dist.Poisson(1.0), r"prior of '0\.weight': the prior .* must be univariate and continuous, got Poisson"),
        (dist.Normal(torch.zeros(5), 1.0), r"prior of '0\.weight': .*\(5,\) does not fit a tensor of shape \(3, 2\)"),
        (3.0, r"prior of '0\.weight': the prior must be a distribution or a function from a WeightTensor to one"),
        (lambda tensor: 3.0, "prior of '0.weight': the prior must be a distribution, got 3.0"),
        ({"2.weight": dist.MultivariateNormal(torch.zeros(3), torch.eye(3))}, r"prior of '2\.weight'.*univariate"),
    ],
)
def test_priors_are_checked_when_the_network_is_built(prior, says):
    with pytest.raises(ValueError, match=says):
        small_bnn(prior=prior)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_prior_scale_errors(scale):
    with pytest.raises(ValueError, match="prior_scale must be a positive finite number"):
        small_bnn(prior_scale=scale)


def hierarchical(tensor):
    """A scale for each tensor, itself sampled."""
    scale = pyro.sample(f"scale_{tensor.name}", dist.HalfNormal(torch.tensor(1.0, dtype=torch.float64)))
    return dist.Normal(0.0, scale[(..., *(None for _ in tensor.shape))])


def test_hierarchical_priors_with_particles(data):
    bnn = small_bnn(prior=hierarchical)
    runs = guarded(bnn)
    sites = random_sites(5, 1) | {f"scale_{name}": torch.rand(5, 1, dtype=torch.float64) + 0.2 for name in SITES}
    with pyro.plate("particles", 5, dim=-2):
        trace = poutine.trace(poutine.condition(bnn, sites)).get_trace(*data)
    trace.compute_log_prob()
    assert runs == [(5,)]
    for name, size in SITES.items():
        scale = sites[f"scale_{name}"]
        expected = (
            -0.5 * (sites[name] / scale[..., None]).square().sum(-1) - size * (scale * math.sqrt(2 * math.pi)).log()
        )
        torch.testing.assert_close(trace.nodes[name]["log_prob"], expected)
    singles = []
    for index in range(5):
        single = {name: value[index, 0] for name, value in sites.items()}
        singles.append(poutine.trace(poutine.condition(bnn, single)).get_trace(*data).log_prob_sum())
    torch.testing.assert_close(trace.log_prob_sum(), sum(singles))


@pytest.mark.parametrize("guide", [AutoNormal, sps.AutoSPSNormal])
def test_hierarchical_priors_with_guides(data, guide):
    bnn = small_bnn(prior=hierarchical)
    guide = guide(bnn)
    svi = SVI(
        bnn, guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO(4, vectorize_particles=True, max_plate_nesting=1)
    )
    assert all(math.isfinite(svi.step(*data)) for _ in range(3))
    draws = Predictive(bnn, guide=guide, num_samples=5, parallel=True)(data[0])
    assert draws["obs"].shape == (5, 6, 1)


def test_building_a_network_with_a_hierarchical_prior_leaves_no_trace():
    def factory(tensor):
        pyro.param("nobody should see this", torch.tensor(1.0))
        return hierarchical(tensor)

    net = small_net()
    state = torch.get_rng_state()
    with poutine.trace() as traced:
        sps.BNN(net, MASKS, prior=factory)
    assert not traced.trace.nodes
    assert not list(pyro.get_param_store().keys())
    assert torch.equal(torch.get_rng_state(), state)


# --- ordered biases ----------------------------------------------------------------------------------


def test_ordered_density_integrates_to_one():
    """For n = 2 by the trapezoidal rule, in the unconstrained space that guides and HMC work in."""
    ordered = OrderedNormal(torch.tensor(0.4).double(), torch.tensor(1.3).double(), 2)
    first, log_gap = torch.linspace(-12, 12, 401).double(), torch.linspace(-25, 4, 801).double()
    grid = torch.stack(torch.meshgrid(first, log_gap, indexing="ij"), -1)
    transform = torch.distributions.biject_to(ordered.support)
    values = transform(grid)
    density = (ordered.log_prob(values) + transform.log_abs_det_jacobian(grid, values)).exp()
    assert torch.trapezoid(torch.trapezoid(density, log_gap), first).item() == pytest.approx(1, abs=1e-6)


def test_ordered_density_is_that_of_one_order_in_n_factorial():
    ordered = OrderedNormal(torch.tensor(0.4).double(), torch.tensor(1.3).double(), 4)
    value = torch.tensor([-1.0, 0.2, 0.2, 3.0]).double()
    expected = stats.norm(0.4, 1.3).logpdf(value.numpy()).sum() + math.log(24)
    assert ordered.log_prob(value).item() == pytest.approx(expected, rel=1e-6)
    assert ordered.log_prob(value.flip(0)).item() == -math.inf
    assert OrderedNormal(torch.tensor(0.0), torch.tensor(1.0), 1).log_prob(torch.zeros(1)).item() == pytest.approx(
        -0.5 * math.log(2 * math.pi)
    )


def test_ordered_draws_are_sorted_normals():
    ordered = OrderedNormal(torch.tensor(0.4), torch.tensor(1.3), 3).expand([2])
    draws = ordered.sample((4000,))
    assert draws.shape == (4000, 2, 3)
    assert (draws.diff() >= 0).all()
    for rank in range(3):  # order statistics of uniforms are beta distributed
        uniform = stats.norm(0.4, 1.3).cdf(draws[:, 0, rank].numpy())
        assert stats.kstest(uniform, stats.beta(rank + 1, 3 - rank).cdf).pvalue > 1e-4


def ordered_bnn(**options):
    return small_bnn(scheme=sps.Unmasked(), ordered_biases=True, **options)


def test_only_hidden_biases_are_ordered(data):
    bnn = ordered_bnn(prior_scale=1.5)
    trace = poutine.trace(bnn).get_trace(*data)
    assert type(trace.nodes["0.bias"]["fn"]) is OrderedNormal
    assert type(trace.nodes["2.bias"]["fn"].base_dist) is dist.Normal
    bias = trace.nodes["0.bias"]["value"]
    expected = stats.norm(0, 1.5).logpdf(bias.numpy()).sum() + math.log(6)
    trace.compute_log_prob()
    assert trace.nodes["0.bias"]["log_prob_sum"].item() == pytest.approx(expected)


def test_ordered_biases_with_a_single_precision_prior(data):
    bnn = ordered_bnn(prior=dist.Normal(0.0, 2.0))
    assert bnn(*data).dtype == torch.float64


@pytest.mark.parametrize("guide", [AutoNormal, sps.AutoSPSNormal, AutoLowRankMultivariateNormal])
def test_ordered_biases_with_guides(data, guide):
    bnn = ordered_bnn()
    guide = guide(bnn)
    svi = SVI(bnn, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1))
    losses = [svi.step(*data) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])
    biases = Predictive(bnn, guide=guide, num_samples=50, parallel=True)(data[0])["0.bias"]
    assert (biases.reshape(50, 3).diff() > 0).all()


def test_ordered_biases_with_nuts(data):
    mcmc = MCMC(NUTS(ordered_bnn(), max_tree_depth=2), num_samples=5, warmup_steps=3, disable_progbar=True)
    mcmc.run(*data)
    assert (mcmc.get_samples()["0.bias"].diff() > 0).all()


def test_sorting_hidden_units_maps_the_plain_posterior_onto_the_ordered_one(data):
    """For any weights, relabelling the units so that biases increase keeps the likelihood, and the density gains n!."""
    plain, ordered = small_bnn(scheme=sps.Unmasked()), ordered_bnn()
    sites = {t.name: torch.randn(t.numel, dtype=torch.float64) for t in plain.topology.tensors}
    order = sites["0.bias"].argsort()
    moved = dict(sites)
    moved["0.bias"] = sites["0.bias"][order]
    moved["0.weight"] = sites["0.weight"].reshape(3, 2)[order].flatten()
    moved["2.weight"] = sites["2.weight"][order]
    before = poutine.trace(poutine.condition(plain, sites)).get_trace(*data).log_prob_sum()
    after = poutine.trace(poutine.condition(ordered, moved)).get_trace(*data).log_prob_sum()
    torch.testing.assert_close(after, before + math.log(6))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scheme": MASKS}, r"prior of '0\.bias': ordered_biases needs stochastic biases, but the masks fix some"),
        ({"prior": dist.Laplace(0.0, 1.0)}, r"prior of '0\.bias': ordered_biases needs one normal prior"),
        ({"prior": {"0.bias": dist.Normal(torch.zeros(3), 1.0)}}, "needs one normal prior for all biases of a layer"),
    ],
)
def test_ordered_biases_errors(options, says):
    with pytest.raises(ValueError, match=says):
        small_bnn(**({"scheme": sps.Unmasked()} | options), ordered_biases=True)


# --- symmetries --------------------------------------------------------------------------------------


def test_a_scheme_that_leaves_symmetries_warns():
    with pytest.warns(SymmetryWarning, match="layer 1"):
        sps.BNN(sps.mlp([8, 20, 2]), sps.Light(), sps.Constant(1.0))


@pytest.mark.parametrize("options", [{"scheme": sps.Unmasked()}, {"scheme": {}}, {"values": sps.MAP()}, {}])
def test_no_warning_where_nothing_was_meant_to_be_broken_or_all_is(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sps.BNN(sps.mlp([3, 5, 5, 2]), **options)


def test_symmetry_report():
    assert small_bnn(scheme=sps.Unmasked()).symmetry().permutations.after == math.factorial(3)
    assert ordered_bnn().symmetry().permutations.after == 1
    assert sps.BNN(sps.mlp([3, 5, 5, 2]), sps.Heavy(), sps.Constant(1.0)).symmetry().permutations.after == 1


def test_map_values_that_are_not_known_yet():
    bnn = sps.BNN(sps.mlp([3, 5, 5, 2]))
    report = bnn.symmetry()
    assert report.is_rigid  # as MAP values will be
    assert "no MAP values yet" in str(report)
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    bnn(x)
    with pytest.warns(UserWarning, match=r"zero until their MAP values are known: sps\.fit finds them"):
        bnn(x, y)
    bnn.set_fixed({name: torch.randn(mask.shape) for name, mask in bnn.masks.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bnn(x, y)
    assert "no MAP values yet" not in str(bnn.symmetry())


# --- the hand-written way and FixWeights -----------------------------------------------------------------

W1 = torch.tensor([[True, False], [True, True], [False, True]])
W2 = torch.tensor([[True, True, False]])
V1 = torch.tensor([[0.0, 0.3], [0.0, 0.0], [-0.7, 0.0]], dtype=torch.float64)
V2 = torch.tensor([[0.0, 0.0, 1.1]], dtype=torch.float64)


def written_by_hand(x, y=None):
    zero = torch.zeros((), dtype=torch.float64)
    w1 = pyro.sample("w1", dist.Normal(zero, 1.5).expand([3, 2]).to_event(2))
    w2 = pyro.sample("w2", dist.Laplace(zero, 1.0).expand([1, 3]).to_event(2))
    if w1.dim() > 2:  # particles: without the dimension of the data plate
        w1, w2 = w1.squeeze(-3), w2.squeeze(-3)
    with pyro.plate("data", len(x)):
        return pyro.sample("obs", dist.Normal(torch.tanh(x @ w1.mT) @ w2.mT, 0.5).to_event(1), obs=y)


def by_partial_weights():
    first, second = sps.PartialWeight("w1", W1, V1), sps.PartialWeight("w2", W2, V2)

    def model(x, y=None):
        zero = torch.zeros((), dtype=torch.float64)
        w1, w2 = first(dist.Normal(zero, 1.5)), second(dist.Laplace(zero, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(torch.tanh(x @ w1.mT) @ w2.mT, 0.5).to_event(1), obs=y)

    return model


def by_fix_weights(model=written_by_hand):
    return poutine.reparam(model, {"w1": sps.FixWeights(W1, V1), "w2": sps.FixWeights(W2, V2)})


def test_fix_weights_has_the_posterior_of_partial_weights(data):
    partial, fixed = by_partial_weights(), by_fix_weights()
    for _ in range(3):
        w1 = torch.randn(4, dtype=torch.float64, requires_grad=True)
        w2 = torch.randn(2, dtype=torch.float64, requires_grad=True)
        first = poutine.trace(poutine.condition(partial, {"w1": w1, "w2": w2})).get_trace(*data)
        second = poutine.trace(poutine.condition(fixed, {"w1_free": w1, "w2_free": w2})).get_trace(*data)
        torch.testing.assert_close(first.log_prob_sum(), second.log_prob_sum(), rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(trace.log_prob_sum(), (w1, w2)) for trace in (first, second)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_fix_weights_conditions_the_model_on_the_fixed_entries(data):
    """Up to a constant, the prior density of the fixed entries, the density is that of the model as it was written."""
    w1, w2 = torch.randn(4, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    full = {"w1": V1.masked_scatter(W1, w1), "w2": V2.masked_scatter(W2, w2)}
    whole = poutine.trace(poutine.condition(written_by_hand, full)).get_trace(*data).log_prob_sum()
    fixed = poutine.trace(poutine.condition(by_fix_weights(), {"w1_free": w1, "w2_free": w2})).get_trace(*data)
    zero = torch.zeros((), dtype=torch.float64)
    constant = dist.Normal(zero, 1.5).log_prob(V1[~W1]).sum() + dist.Laplace(zero, 1.0).log_prob(V2[~W2]).sum()
    torch.testing.assert_close(fixed.log_prob_sum() + constant, whole)


def test_fix_weights_sites(data):
    trace = poutine.trace(by_fix_weights()).get_trace(*data)
    assert latents(trace) == ["w1_free", "w2_free"]
    node = trace.nodes["w1"]
    assert node["is_observed"]
    assert torch.equal(node["value"][~W1], V1[~W1])
    assert torch.equal(node["value"][W1], trace.nodes["w1_free"]["value"])
    assert node["fn"].log_prob(node["value"] + 1) == 0  # a deterministic site, without a density


def test_fix_weights_in_vectorised_particles(data):
    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(by_fix_weights()).get_trace(*data)
    value = trace.nodes["w1"]["value"]
    assert value.shape == (4, 1, 3, 2)
    assert torch.equal(value[..., ~W1], V1[~W1].expand(4, 1, 2))
    trace.compute_log_prob()
    assert trace.nodes["obs"]["log_prob"].shape == (4, 6)


def test_fix_weights_in_a_plate():
    mask, values = torch.tensor([True, False, True]), torch.tensor([0.0, 5.0, 0.0])

    def model():
        with pyro.plate("rows", 4):
            return pyro.sample("w", dist.Normal(torch.zeros(4, 3), 1.0).to_event(1))

    trace = poutine.trace(poutine.reparam(model, {"w": sps.FixWeights(mask, values)})).get_trace()
    assert trace.nodes["w_free"]["fn"].batch_shape == (4,)
    assert trace.nodes["w_free"]["value"].shape == (4, 2)
    assert torch.equal(trace.nodes["w"]["value"][:, 1], torch.full((4,), 5.0))
    all_fixed = poutine.reparam(model, {"w": sps.FixWeights(torch.zeros(3, dtype=torch.bool), values)})
    assert torch.equal(all_fixed(), values.expand(4, 3))


def test_fix_weights_with_every_entry_fixed_or_free(data):
    none, every = torch.zeros_like(W1), torch.ones_like(W1)
    trace = poutine.trace(poutine.reparam(written_by_hand, {"w1": sps.FixWeights(none, V1)})).get_trace(*data)
    assert latents(trace) == ["w2"]
    assert torch.equal(trace.nodes["w1"]["value"], V1)
    trace = poutine.trace(poutine.reparam(written_by_hand, {"w1": sps.FixWeights(every, V1)})).get_trace(*data)
    assert torch.equal(trace.nodes["w1"]["value"].flatten(), trace.nodes["w1_free"]["value"])


@pytest.mark.parametrize("guide", [AutoNormal, sps.AutoSPSNormal, AutoLowRankMultivariateNormal, AutoDelta])
@pytest.mark.parametrize("site", ["w1", "w1_free"])
def test_fix_weights_in_autoguides_with_initial_values(data, guide, site):
    """Given for the site, or for its free entries; of all sites, or of one of them."""
    free = torch.randn(4, dtype=torch.float64)
    values = {"w1": V1.masked_scatter(W1, free), "w1_free": free}
    model = by_fix_weights()
    guide = guide(model, init_loc_fn=init_to_value(values={site: values[site]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        guide(*data)
    torch.testing.assert_close(guide.median(*data)["w1_free"], free)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1))
    losses = [svi.step(*data) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])
    draws = Predictive(model, guide=guide, num_samples=6, return_sites=("w1", "obs"))(data[0])
    assert torch.equal(draws["w1"][..., ~W1], V1[~W1].expand_as(draws["w1"][..., ~W1]))
    assert draws["obs"].shape == (6, 6, 1)


def test_fix_weights_with_initial_values_that_differ_from_the_constants(data):
    values = {"w1": torch.randn(3, 2, dtype=torch.float64)}
    for _ in range(2):
        guide = AutoNormal(by_fix_weights(), init_loc_fn=init_to_value(values=values))
        with pytest.warns(RuntimeWarning, match="FixWeights does not commute with initialization"):
            guide(*data)
        torch.testing.assert_close(guide.median()["w1_free"], values["w1"][W1])


def test_fix_weights_with_nuts(data):
    mcmc = MCMC(NUTS(by_fix_weights(), max_tree_depth=3), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(*data)
    assert {name: tuple(value.shape) for name, value in mcmc.get_samples().items()} == {
        "w1_free": (5, 4),
        "w2_free": (5, 2),
    }


def one_site(distribution, obs=None):
    return lambda: pyro.sample("w", distribution, obs=obs)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (one_site(dist.Normal(0.0, 1.0).expand([3]).to_event(1), torch.zeros(3)), "site 'w' is observed"),
        (one_site(dist.Normal(0.0, 1.0).expand([3])), r"event shape, got batch shape \(3,\).*use .to_event\(1\)"),
        (one_site(dist.Normal(0.0, 1.0).expand([4]).to_event(1)), r"site 'w' has shape \(4,\), its mask \(3,\)"),
        (
            one_site(dist.MultivariateNormal(torch.zeros(3), torch.eye(3))),
            "site 'w' cannot be partially fixed.*univariate",
        ),
        (one_site(dist.Poisson(1.0).expand([3]).to_event(1)), "site 'w' cannot be partially fixed.*continuous"),
        (one_site(dist.Dirichlet(torch.ones(3))), "site 'w' cannot be partially fixed.*univariate"),
    ],
)
def test_fix_weights_errors(model, says):
    reparam = sps.FixWeights(torch.tensor([True, False, True]), torch.zeros(3))
    with pytest.raises(ValueError, match=says):
        poutine.reparam(model, {"w": reparam})()


@pytest.mark.parametrize(
    ("mask", "values", "says"),
    [
        (torch.ones(3), torch.zeros(3), "mask of 'FixWeights' must have dtype torch.bool"),
        (torch.ones(3, dtype=torch.bool), torch.zeros(4), r"must have the mask's shape \(3,\), got \(4,\)"),
    ],
)
def test_fix_weights_arguments(mask, values, says):
    with pytest.raises(ValueError, match=says):
        sps.FixWeights(mask, values)
