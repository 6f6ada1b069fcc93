"""The hierarchical prior against closed forms, quadrature, and Pyro's own guides, samplers and handlers."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoLowRankMultivariateNormal, AutoNormal
from scipy import integrate, stats
from torch import nn

import pyro_sps as sps
from pyro_sps.base.recording import record
from pyro_sps.diagnostics.density import log_prior, prior_draws
from pyro_sps.model.density import pyro_session
from pyro_sps.model.target import Target

FAMILIES = ["lognormal", "halfnormal"]


def model(family="lognormal", likelihood=None, scheme=None, dtype=torch.float64, **options):
    net = sps.mlp([2, 3, 2], skip=True, dtype=dtype)
    scheme = sps.Random(0.5) if scheme is None else scheme
    likelihood = sps.Gaussian(0.3) if likelihood is None else likelihood
    return sps.BNN(net, scheme, sps.Constant(0.7), likelihood, prior=sps.Hierarchical(0.8, family, 1.5, 0.6), **options)


def data(rows=12, outputs=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 2, generator=generator, dtype=dtype)
    return x, torch.randn(rows, outputs, generator=generator, dtype=dtype)


def bases(bnn):
    return {tensor.name: 1.5 / math.sqrt(tensor.fan_in) if tensor.is_matrix else 0.6 for tensor in bnn.topology.tensors}


# --- the prior ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("likelihood", [sps.Gaussian(0.3), sps.HeteroscedasticGaussian()])
def test_log_density_by_hand(family, likelihood):
    bnn = model(family, likelihood)
    sites = prior_draws(bnn, 5, 0)
    expected = np.zeros(5)
    for name, value in sites.items():
        value = value.numpy()
        if name.endswith("_scale"):
            law = stats.norm(0, 0.8) if family == "lognormal" else stats.halfnorm(0, 0.8)
        else:
            law = stats.norm(0, bases(bnn)[name])
        expected += law.logpdf(value).sum(-1)
    np.testing.assert_allclose(log_prior(bnn, sites).numpy(), expected, rtol=1e-10)
    assert set(sites) - set(bnn.masks) == {bnn.prior.site(name) for name in bnn.masks}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_scaled_and_constants_are_not(family):
    bnn = model(family)
    sites = prior_draws(bnn, 4, 1)
    weights = bnn.assemble(sites)
    for name, mask in bnn.masks.items():
        scale = sites[bnn.prior.site(name)]
        scale = scale.exp() if family == "lognormal" else scale
        assert scale.shape == (4, 1)
        assert torch.equal(weights[name][:, mask], sites[name] * scale)
        assert torch.equal(bnn.free_weights(sites)[name], sites[name] * scale)
        assert torch.equal(weights[name][:, ~mask], bnn.fixed[name][~mask].expand(4, -1))
    back = bnn.sites_of(weights, sites)
    for name in bnn.masks:
        torch.testing.assert_close(back[name], sites[name])


def test_outputs_of_two_kinds_have_scales_of_their_own():
    bnn = model(likelihood=sps.HeteroscedasticGaussian(), scheme=sps.Unmasked())
    sites = prior_draws(bnn, 4, 1)
    weights = bnn.assemble(sites)
    for name in ("2.weight", "2.bias", "skip.weight"):  # which lead to one mean and one scale of noise
        scale, raw = sites[f"{name}_log_scale"].exp(), sites[name].reshape(weights[name].shape)
        assert scale.shape == (4, 2)
        for output in (0, 1):
            # Noise depends on the inputs a tenth as much a priori; its level is as free as that of means.
            damping = 0.1 if output == 1 and name.endswith("weight") else 1.0
            expected = damping * raw[:, output] * scale[:, output].reshape(-1, *(1,) * (raw.dim() - 2))
            torch.testing.assert_close(weights[name][:, output], expected)
    assert sites["0.weight_log_scale"].shape == (4, 1)


def test_weights_have_the_distribution_of_the_centred_model():
    """log |w| = log b + log |N(0, 1)| + N(0, width²): its mean and variance are known."""
    bnn, count = model(scheme=sps.Unmasked()), 20_000
    weights = bnn.free_weights(prior_draws(bnn, count, 2))
    for name, base in bases(bnn).items():
        log = weights[name][:, 0].abs().log()
        mean = math.log(base) - (np.euler_gamma + math.log(2)) / 2  # E log |N| = (ψ(1/2) + log 2) / 2
        variance = math.pi**2 / 8 + 0.8**2
        assert abs(log.mean().item() - mean) < 5 * math.sqrt(variance / count)
        squares = (log - mean).square()
        assert abs(squares.mean().item() - variance) < 6 * squares.std().item() / math.sqrt(count)


@pytest.mark.parametrize("family", FAMILIES)
def test_posterior_of_a_linear_model_by_quadrature(family):
    """Given its scale the model is conjugate: evidence and mean by an integral over the scale, or over all of it."""
    x, _ = data(8)
    x = x[:, :1]
    y = 0.7 * x + 0.2
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    bnn = sps.BNN(net, sps.Unmasked(), likelihood=sps.Gaussian(0.5), prior=sps.Hierarchical(1.0, family, 1.5))
    law = stats.lognorm(1.0) if family == "lognormal" else stats.halfnorm(0, 1.0)
    gram, moment = (x.T @ x).item() / 0.25, (x.T @ y).item() / 0.25
    noise = stats.norm(0, 0.5).logpdf(y.numpy()).sum()

    def given(s):
        precision = gram + 1 / (1.5 * s) ** 2
        evidence = noise + moment**2 / precision / 2 - 0.5 * np.log1p((1.5 * s) ** 2 * gram)
        return np.exp(evidence) * law.pdf(s), moment / precision

    evidence = integrate.quad(lambda s: given(s)[0], 0, np.inf)[0]
    mean = integrate.quad(lambda s: given(s)[0] * given(s)[1], 0, np.inf)[0] / evidence

    target = Target.of(bnn, x, y)
    assert [site.name for site in target.problem.sites] == [bnn.prior.site("weight"), "weight"]
    log_scale, raw = torch.linspace(-8, 5, 261).double(), torch.linspace(-9, 9, 901).double()
    flat = torch.cartesian_prod(log_scale, raw)
    density = (-target.energy(flat)).exp()
    total = density.sum() * (log_scale[1] - log_scale[0]) * (raw[1] - raw[0])
    weights = bnn.assemble(target.sites(flat))["weight"].flatten()
    assert total.item() == pytest.approx(evidence, rel=2e-3)  # 5 standard deviations of log s, and the grid
    assert (density @ weights / density.sum()).item() == pytest.approx(mean, rel=2e-3)


# --- an ordinary Pyro model -----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("likelihood", [sps.HeteroscedasticGaussian(), sps.Categorical()])
@pytest.mark.parametrize(
    "autoguide", [AutoNormal, AutoDelta, AutoLowRankMultivariateNormal, AutoLaplaceApproximation, sps.AutoSPSNormal]
)
def test_stock_guides(autoguide, likelihood, family):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    bnn = model(family, likelihood)
    x, y = data(outputs=likelihood.num_targets(2))
    y = (y[:, 0] > 0).long() if isinstance(likelihood, sps.Categorical) else y
    guide = autoguide(bnn)
    svi = SVI(bnn, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=3, vectorize_particles=True))
    losses = [svi.step(x, y) for _ in range(5)]
    assert np.isfinite(losses).all()
    assert Predictive(bnn, guide=guide, num_samples=4)(x)["obs"].shape[:2] == (4, 12)
    assert Predictive(bnn, guide=guide, num_samples=4, parallel=True)(x)["obs"].shape[:2] == (4, 12)


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_field_elbo_equals_that_of_pyro(family):
    pyro.clear_param_store()
    bnn = model(family)
    x, y = data()
    guide = sps.AutoSPSNormal(bnn, init_scale=0.05)
    guide(x, y)

    def losses(elbo, count):
        with torch.no_grad():
            return torch.tensor([elbo.loss(bnn, guide, x, y) for _ in range(count)], dtype=torch.float64)

    pyro.set_rng_seed(0)
    ours, theirs = losses(sps.MeanFieldELBO(20), 60), losses(TraceMeanField_ELBO(20, vectorize_particles=True), 60)
    error = math.sqrt((ours.var() + theirs.var()).item() / 60)
    assert abs((ours.mean() - theirs.mean()).item()) < 5 * error


@pytest.mark.parametrize("family", FAMILIES)
def test_energy_equals_that_of_pyro(family):
    bnn = model(family)
    x, y = data()
    target = Target.of(bnn, x, y)
    flat = target.prior_draws(3, torch.Generator().manual_seed(0))
    for row in flat:
        sites = {name: value for name, value in target.sites(row).items()}
        with torch.no_grad():
            trace = poutine.trace(poutine.condition(bnn, sites)).get_trace(x, y)
        jacobian = 0.0
        if family == "halfnormal":  # log |ds / d log s| = log s
            jacobian = sum(value.log().sum() for name, value in sites.items() if name.endswith("_scale"))
        expected = -(trace.log_prob_sum() + jacobian)
        torch.testing.assert_close(target.energy(row), expected)
    torch.testing.assert_close(target.flat(target.sites(flat)), flat)


def test_pyros_own_nuts_and_conversion():
    bnn = model("halfnormal", scheme=sps.Random(0.7))
    x, y = data()
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(bnn, max_tree_depth=3), num_samples=5, warmup_steps=5, num_chains=1, disable_progbar=True)
    mcmc.run(x, y)
    converted = sps.from_mcmc(mcmc, bnn, x, y)
    weights = bnn.free_weights(mcmc.get_samples())
    expected = torch.cat([weights[weight.name] for weight in bnn.weights if weight.num_free], dim=-1)
    np.testing.assert_array_equal(converted.posterior["w"].values[0], expected.numpy())
    assert converted.posterior["0.weight_scale"].shape == (1, 5, 1)
    assert converted.prior["0.weight_scale"].shape == (1, 5, 1)


# --- the whole way --------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "dtype"), [("lognormal", torch.float32), ("halfnormal", torch.float64)])
def test_fit_save_and_convert(family, dtype, tmp_path):
    x, y = data(30, 1, dtype)
    net = sps.mlp([2, 4, 2], skip=True, dtype=dtype)
    bnn = sps.BNN(
        net, sps.Random(0.5), sps.Constant(1.0), sps.HeteroscedasticGaussian(), prior=sps.Hierarchical(family=family)
    )
    fits = sps.fit(bnn, x, y, num_steps=60, num_particles=2, replicas=2, standardize=True, progress=False)
    fit = fits[0]
    prediction = fit.predict(x, 20)
    assert prediction.mean.dtype == dtype
    fit.save(tmp_path)
    again = sps.load(tmp_path, net)
    assert again.bnn.prior == bnn.prior
    assert torch.equal(again.predict(x, 20).mean, prediction.mean)
    assert torch.equal(again.predict(x, 20).log_prob(y), prediction.log_prob(y))

    flat, full = (sps.to_arviz(fits, 7, layout=layout) for layout in ("flat", "tensors"))
    for weight in bnn.weights:  # both layouts have weights, not values of sites
        labels = [label for label in flat.posterior["weight"].values if label.startswith(f"{weight.name}[")]
        if labels:
            values = full.posterior[weight.name].values[..., weight.mask.numpy()]
            np.testing.assert_array_equal(flat.posterior["w"].sel(weight=labels).values, values)
    diagnosis = sps.diagnose(fits, draws=20)
    assert len(diagnosis.replicas.rhat_weights) == bnn.num_stochastic
    means = diagnosis.importance[0].weight_means()
    assert {name: len(value) for name, value in means.items()} == {w.name: w.num_free for w in bnn.weights}


@pytest.mark.parametrize(("family", "held_out"), [("lognormal", 0.25), ("halfnormal", 0.0)])
def test_map_values_start_and_constants_are_one_network(family, held_out):
    """The start of a fit with MAP values is the MAP network itself: fixed and free entries are scaled alike."""
    x, y = data(40, 1)
    net = sps.mlp([2, 4, 1], skip=True, dtype=torch.float64)
    rule = sps.MAP(num_steps=60, held_out=held_out)
    bnn = sps.BNN(net, sps.Random(0.6), rule, sps.Gaussian(0.3), prior=sps.Hierarchical(family=family))
    fit = sps.fit(bnn, x, y, num_steps=1, learning_rate=1e-12, seed=4, progress=False)
    estimate = sps.map_estimate(bnn, x, y, num_steps=60, held_out=held_out, seed=4, progress=False)
    weights = fit.bnn.assemble(fit.guide.median())
    for name, value in estimate.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-9)


def test_checkpoints_know_the_prior(tmp_path):
    x, y = data(20, 1)
    net = sps.mlp([2, 3, 1], dtype=torch.float64)

    def with_width(width):
        return sps.BNN(net, sps.Rigid(), sps.Constant(1.0), prior=sps.Hierarchical(width))

    fit = sps.fit(with_width(1.0), x, y, num_steps=10, progress=False, checkpoint=tmp_path)
    again = sps.resume(tmp_path, with_width(1.0), x, y, progress=False)
    assert torch.equal(again.guide.loc, fit.guide.loc)
    with pytest.raises(ValueError, match="prior"):
        sps.resume(tmp_path, with_width(2.0), x, y, progress=False)


def test_learns_that_inputs_do_not_matter():
    """The scale of a tensor whose weights are of no use becomes smaller than that of one that carries the signal."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    y = 2 * x[:, :1] + 0.1 * torch.randn(200, 1, generator=generator, dtype=torch.float64)
    net = sps.mlp([2, 3, 1], skip=True, dtype=torch.float64)
    bnn = sps.BNN(net, sps.Unmasked(), likelihood=sps.Gaussian(0.1), prior=sps.Hierarchical())
    fit = sps.fit(bnn, x, y, num_steps=600, learning_rate=0.02, progress=False)
    scale = fit.guide.median()
    assert scale["skip.weight_log_scale"].item() > scale["2.weight_log_scale"].item()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["width", "scale", "bias_scale"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "1"])
def test_numbers_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive finite number"):
        sps.Hierarchical(**{name: value})


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="family must be one of lognormal, halfnormal, got 'cauchy'"):
        sps.Hierarchical(family="cauchy")
    with pytest.raises(ValueError, match="ordered_biases needs a normal prior of given scale"):
        model(scheme=sps.Unmasked(), ordered_biases=True)
    with pytest.raises(ValueError, match=r"prior_scale and scale_by_fan_in are of no effect with prior=Hierarchical"):
        model(prior_scale=1.0)
    bnn = model()
    sites = prior_draws(bnn, 2, 0)
    del sites["0.weight_log_scale"]
    with pytest.raises(ValueError, match=r"sites must have '0.weight_log_scale': the prior of '0.weight'"):
        bnn.assemble(sites)


def test_the_gradient_changes_no_tensor_in_place():
    """Inductor of torch 2.13 does not compile some programs that do (pytorch issue 196570), as this one once did."""
    net, likelihood = sps.mlp([2, 3, 2], skip=True), sps.HeteroscedasticStudentT()
    bnn = sps.BNN(net, sps.Unmasked(), likelihood=likelihood, prior=sps.Hierarchical())
    target = Target.of(bnn, torch.zeros(4, 2), torch.zeros(4, 1))

    def gradient(flat):
        with torch.enable_grad():
            leaf = flat.detach().requires_grad_()
            return torch.autograd.grad(target.energy(leaf).sum(), leaf)[0]

    with pyro_session():
        graph = record(gradient, torch.zeros(5, target.problem.size)).graph
    names = {str(node.target) for node in graph.nodes}
    assert "aten.bmm.default" in names
    assert not [name for name in names if "index_put" in name or "scatter" in name or "index_add" in name]
