import copy
import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from scipy import stats

import pyro_sps as sps
from pyro_sps.diagnostics.density import log_prior, prior_draws
from pyro_sps.model.likelihoods import LIKELIHOODS, Likelihood
from pyro_sps.model.target import Target

ALL = [
    sps.Gaussian(0.3),
    sps.Gaussian(0.3, learn=True),
    sps.Gaussian(0.3, learn=True, per_output=4),
    sps.HeteroscedasticGaussian(),
    sps.HeteroscedasticGaussian([0.01, 0.3]),
    sps.StudentT(7.0, 0.3),
    sps.StudentT(7.0, 0.3, learn=True, per_output=4),
    sps.HeteroscedasticStudentT(7.0),
    sps.HeteroscedasticStudentT(7.0, [0.01, 0.3]),
    sps.Ordinal([-1, 0, 0.5, 2], [-1.0, 0.2, 0.7]),
    sps.Ordinal([-1, 0, 0.5, 2], [-1.0, 0.2, 0.7], learn=False),
    sps.Categorical(),
    sps.Bernoulli(),
    sps.Poisson(),
]
BATCHES = [(), (3,), (2, 3)]


def outputs_of(batch=(), rows=5, outputs=4, dtype=torch.float64):
    return torch.randn((*batch, rows, outputs), dtype=dtype)


def targets(likelihood, rows=5, outputs=4):
    if isinstance(likelihood, sps.Categorical):
        return torch.randint(0, outputs, (rows,))
    shape = (rows, likelihood.num_targets(outputs))
    if isinstance(likelihood, sps.Bernoulli):
        return torch.randint(0, 2, shape).double()
    if isinstance(likelihood, sps.Poisson):
        return torch.randint(0, 6, shape).double()
    if isinstance(likelihood, sps.Ordinal):
        return torch.tensor([-1, 0, 0.5, 2], dtype=torch.float64)[torch.randint(0, 4, shape)]
    return torch.randn(shape, dtype=torch.float64)


def softplus(x):
    return np.log1p(np.exp(x))


def by_scipy(likelihood, outputs):
    """The distribution of every target as a frozen scipy distribution, from outputs as a numpy array."""
    if isinstance(likelihood, sps.HeteroscedasticGaussian):
        loc, scale = np.split(outputs, 2, axis=-1)
        scale = softplus(scale) + likelihood.minimum
        heavy = isinstance(likelihood, sps.HeteroscedasticStudentT)
        return stats.t(7.0, loc, scale) if heavy else stats.norm(loc, scale)
    if isinstance(likelihood, sps.Gaussian):
        return stats.norm(outputs, 0.3)
    if isinstance(likelihood, sps.StudentT):
        return stats.t(7.0, outputs, 0.3)
    if isinstance(likelihood, sps.Bernoulli):
        return stats.bernoulli(1 / (1 + np.exp(-outputs)))
    return stats.poisson(np.exp(outputs))


def log_density(distribution, y):
    return distribution.logpdf(y) if hasattr(distribution.dist, "logpdf") else distribution.logpmf(y)


REAL = [likelihood for likelihood in ALL if not isinstance(likelihood, sps.Categorical | sps.Ordinal)]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("likelihood", REAL, ids=lambda value: type(value).__name__)
def test_against_scipy(likelihood, batch):
    outputs, y = outputs_of(batch), targets(likelihood)
    expected = by_scipy(likelihood, outputs.numpy())
    log_prob = log_density(expected, y.numpy())
    distribution = likelihood(outputs)
    assert distribution.batch_shape == (*batch, 5)
    assert distribution.event_shape == (likelihood.num_targets(4),)
    with torch.no_grad():
        np.testing.assert_allclose(distribution.log_prob(y).numpy(), log_prob.sum(-1), rtol=1e-10)
        np.testing.assert_allclose(likelihood.elementwise(outputs).log_prob(y).numpy(), log_prob, rtol=1e-10)
        np.testing.assert_allclose(likelihood.mean(outputs).numpy(), expected.mean(), rtol=1e-10)
        np.testing.assert_allclose(likelihood.variance(outputs).numpy() + 0 * log_prob, expected.var(), rtol=1e-10)


@pytest.mark.parametrize("batch", BATCHES)
def test_categorical(batch):
    outputs, y = outputs_of(batch), torch.randint(0, 4, (5,))
    likelihood = sps.Categorical()
    probabilities = np.exp(outputs.numpy())
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = np.log(np.take_along_axis(probabilities, np.broadcast_to(y.numpy()[:, None], (*batch, 5, 1)), -1))[
        ..., 0
    ]
    distribution = likelihood(outputs)
    assert (distribution.batch_shape, distribution.event_shape) == ((*batch, 5), ())
    np.testing.assert_allclose(distribution.log_prob(y).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(likelihood.mean(outputs).numpy(), probabilities, rtol=1e-10)
    np.testing.assert_allclose(likelihood.variance(outputs).numpy(), probabilities * (1 - probabilities), rtol=1e-10)


@pytest.mark.parametrize("likelihood", ALL, ids=lambda value: type(value).__name__)
def test_mean_and_variance_are_those_of_draws(likelihood):
    outputs, draws = outputs_of(rows=2), 20_000
    with torch.no_grad():
        sample = likelihood(outputs).sample((draws,))
        if isinstance(likelihood, sps.Categorical):
            sample = torch.nn.functional.one_hot(sample, 4)
        sample = sample.double()
        mean, variance = likelihood.mean(outputs), likelihood.variance(outputs)
        assert ((sample.mean(0) - mean).abs() < 5 * (variance / draws).sqrt()).all()
        # The standard error of the mean square deviation, from the fourth moment of the draws themselves.
        squares = (sample - mean).square()
        assert ((squares.mean(0) - variance).abs() < 6 * squares.std(0) / math.sqrt(draws)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", ALL, ids=lambda value: type(value).__name__)
def test_dtype_of_the_outputs_is_kept(likelihood, dtype):
    outputs = outputs_of(dtype=dtype)
    for module in (likelihood, copy.deepcopy(likelihood).to(dtype)):
        y = targets(likelihood).to(torch.int64 if likelihood.event_dim == 0 else dtype)
        assert module(outputs).log_prob(y).dtype == dtype
        assert module.mean(outputs).dtype == dtype
        assert module.variance(outputs).dtype == dtype


@pytest.mark.parametrize("likelihood", ALL, ids=lambda value: type(value).__name__)
def test_config_rebuilds_the_likelihood(likelihood):
    rebuilt = LIKELIHOODS[type(likelihood).__name__](**likelihood.config())
    assert rebuilt.config() == likelihood.config()
    assert {name: value.tolist() for name, value in rebuilt.state_dict().items()} == {
        name: value.tolist() for name, value in likelihood.state_dict().items()
    }


def test_default_config_is_empty_and_base_is_abstract():
    assert Likelihood().config() == {}
    with pytest.raises(NotImplementedError):
        Likelihood()(torch.zeros(1, 1))


# --- noise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_noise_is_exact_and_no_parameter(dtype):
    likelihood = sps.Gaussian(0.1).to(dtype)
    assert torch.equal(likelihood.noise_scale, torch.tensor(0.1, dtype=dtype))
    assert not list(likelihood.parameters())


@pytest.mark.parametrize("per_output", [None, 2])
def test_learned_noise_is_the_root_mean_square_residual(per_output):
    """With a network whose weights are all fixed, the noise that maximises the likelihood is known."""
    net = sps.mlp([3, 2], dtype=torch.float64)
    topology = sps.Topology.of(net)
    weights = {name: parameter.detach() for name, parameter in net.named_parameters()}
    masks = {tensor.name: torch.zeros(tensor.shape, dtype=torch.bool) for tensor in topology.tensors}
    bnn = sps.BNN(net, masks, weights, sps.Gaussian(0.5, learn=True, per_output=per_output))
    x = torch.randn(50, 3, dtype=torch.float64)
    residuals = torch.randn(50, 2, dtype=torch.float64) * torch.tensor([0.2, 2.0], dtype=torch.float64)
    y = net(x).detach() + residuals
    best = residuals.square().mean(0 if per_output else (0, 1)).sqrt()

    def slope(scale):
        """Derivative of the loss by the logarithm of the noise."""
        bnn.likelihood.scale = scale
        unconstrained = bnn.likelihood.scale_unconstrained
        loss = Trace_ELBO().differentiable_loss(bnn, lambda x, y: None, x, y)
        return torch.autograd.grad(loss, unconstrained)[0]

    assert (slope(0.9 * best) < -1).all()
    assert (slope(best).abs() < 1e-9).all()
    assert (slope(1.1 * best) > 1).all()


def test_learned_noise_is_one_parameter_of_the_model():
    bnn = sps.BNN(sps.mlp([3, 2]), sps.Unmasked(), likelihood=sps.Gaussian(0.5, learn=True, per_output=2))
    x = torch.randn(4, 3)
    trace = pyro.poutine.trace(bnn).get_trace(x, torch.zeros(4, 2))
    assert trace.param_nodes == ["likelihood.scale"]
    torch.testing.assert_close(trace.nodes["likelihood.scale"]["value"], torch.full((2,), 0.5))
    guide = AutoDelta(bnn)
    svi = SVI(bnn, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(x, torch.zeros(4, 2))
    assert not torch.equal(bnn.likelihood.noise_scale, torch.full((2,), 0.5))


def test_the_users_likelihood_is_copied():
    likelihood = sps.Gaussian(0.5, learn=True)
    first, second = (sps.BNN(sps.mlp([3, 2]), sps.Unmasked(), likelihood=likelihood) for _ in range(2))
    assert first.likelihood is not likelihood
    with torch.no_grad():
        first.likelihood.scale_unconstrained.fill_(0.0)
    assert second.likelihood.noise_scale.item() == pytest.approx(0.5)
    assert likelihood.noise_scale.item() == pytest.approx(0.5)


def test_heteroscedastic_noise_has_a_minimum():
    outputs = torch.tensor([[0.0, -200.0]], dtype=torch.float64)
    assert sps.HeteroscedasticGaussian(0.01)(outputs).base_dist.scale.item() == pytest.approx(0.01)
    outputs = torch.tensor([[0.0, 0.0, -200.0, -200.0]], dtype=torch.float64)
    assert sps.HeteroscedasticGaussian([0.01, 0.2])(outputs).base_dist.scale.tolist() == [[0.01, 0.2]]


def test_the_minimum_is_the_error_of_rounding_where_nothing_was_said():
    y = torch.tensor([[0.0, 0.123, 1.0], [2.0, 3.14159, 1.5], [5.0, 0.123, 2.5], [5.0, 2.71828, 2.5]])
    rounding = [1 / math.sqrt(12), 1e-3, 0.5 / math.sqrt(12)]  # of whole numbers, no grid, halves
    likelihood = sps.HeteroscedasticGaussian()
    assert likelihood.minimum == 1e-3
    likelihood.adapt(y)
    assert likelihood.minimum == pytest.approx(rounding)
    assert sps.HeteroscedasticGaussian(**likelihood.config()).minimum == likelihood.minimum
    given = sps.HeteroscedasticGaussian(0.01)
    given.adapt(y)
    assert given.minimum == 0.01  # what somebody said stays
    assert sps.HeteroscedasticGaussian(0.0).minimum == 0.0


def test_noise_does_not_collapse_onto_whole_numbers():
    """With the floor a density is at most that of the error of rounding; with a given small minimum it is not."""
    x = torch.linspace(-2, 2, 60).unsqueeze(1)
    y = (2 * x).round()
    net = sps.mlp([1, 10, 2])

    def smallest(likelihood):
        fit = sps.fit(
            sps.BNN(net, sps.Unmasked(), likelihood=likelihood), x, y, num_steps=1, standardize=False, progress=False
        )
        return fit.bnn.likelihood.minimum, -math.log(math.sqrt(2 * math.pi) * np.max(fit.bnn.likelihood.minimum))

    floor, best = smallest(sps.HeteroscedasticGaussian())
    assert floor == pytest.approx([1 / math.sqrt(12)])
    assert best == pytest.approx(math.log(math.sqrt(12 / (2 * math.pi))))
    assert smallest(sps.HeteroscedasticGaussian(1e-3))[0] == 1e-3


def test_replicas_have_one_minimum():
    """They run as one program, whatever the grids of data of their own."""
    x = torch.linspace(-2, 2, 60).unsqueeze(1).expand(2, 60, 1)
    y = torch.stack([(2 * x[0]).round(), x[0].sin()])
    bnn = sps.BNN(sps.mlp([1, 3, 2]), sps.Unmasked(), likelihood=sps.HeteroscedasticGaussian())
    fits = sps.fit(bnn, x, y, num_steps=1, standardize=False, progress=False, replicas=2)
    assert [fit.bnn.likelihood.minimum for fit in fits] == [pytest.approx([1 / math.sqrt(12)])] * 2


def test_noise_can_be_constant_for_a_while():
    outputs, likelihood = outputs_of((3,)), sps.HeteroscedasticGaussian(0.01)
    with likelihood.constant_noise():
        scale = likelihood(outputs).base_dist.scale
    expected = torch.nn.functional.softplus(outputs[..., 2:].mean(1)) + 0.01
    torch.testing.assert_close(scale, expected.unsqueeze(1).expand(3, 5, 2))
    assert not torch.equal(likelihood(outputs).base_dist.scale, scale)
    with sps.Gaussian().constant_noise():
        pass


def test_the_noise_head_is_what_lets_the_noise_depend_on_the_inputs():
    net = sps.mlp([3, 4, 4, 4], skip=True, dtype=torch.float64)
    bnn = sps.BNN(net, sps.Random(0.5), sps.Zero(), sps.HeteroscedasticGaussian(), prior=sps.Hierarchical())
    head = bnn.noise_head()
    assert sorted(head) == ["4.weight", "skip.weight"]
    for name, entries in head.items():  # the lower half of the rows
        assert torch.equal(entries, bnn.masks[name].nonzero()[:, 0] >= 2)
    trace = pyro.poutine.trace(bnn.sample_weights).get_trace()
    values = {name: node["value"] for name, node in trace.iter_stochastic_nodes()}
    x = torch.randn(6, 3, dtype=torch.float64)

    def scale(values):
        return bnn.likelihood(bnn.function(bnn.assemble(values), x)).base_dist.scale

    assert (scale(values).std(0) > 1e-3).all()
    values |= {name: values[name].masked_fill(entries, 0.0) for name, entries in head.items()}
    assert (scale(values).std(0) < 1e-12).all()
    assert sps.BNN(net, sps.Unmasked()).noise_head() == {}


# --- grades ------------------------------------------------------------------------------------------

GRADES = [-1, 0, 0.5, 2]


def ordinal_probabilities(outputs, cuts):
    """P(y ≤ k) = σ(c_k - f), and differences of it."""
    below = 1 / (1 + np.exp(-(cuts - outputs[..., None])))
    ends = np.zeros((*outputs.shape, 1))
    return np.diff(np.concatenate([ends, below, ends + 1], axis=-1), axis=-1)


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
def test_ordinal_by_the_definition(batch, learn):
    cuts = np.array([-1.0, 0.2, 0.7])
    likelihood = sps.Ordinal(GRADES, cuts.tolist(), learn)
    outputs, y = outputs_of(batch), targets(likelihood)
    expected = ordinal_probabilities(outputs.numpy(), cuts)
    with torch.no_grad():
        np.testing.assert_allclose(likelihood.probabilities(outputs).numpy(), expected, rtol=1e-10)
        index = np.broadcast_to(np.searchsorted(GRADES, y.numpy()), outputs.shape)
        picked = np.take_along_axis(expected, index[..., None], -1)[..., 0]
        np.testing.assert_allclose(likelihood.elementwise(outputs).log_prob(y).numpy(), np.log(picked), rtol=1e-9)
        np.testing.assert_allclose(likelihood(outputs).log_prob(y).numpy(), np.log(picked).sum(-1), rtol=1e-9)
        mean = expected @ np.array(GRADES)
        np.testing.assert_allclose(likelihood.mean(outputs).numpy(), mean, rtol=1e-10)
        variance = (expected * (np.array(GRADES) - mean[..., None]) ** 2).sum(-1)
        np.testing.assert_allclose(likelihood.variance(outputs).numpy(), variance, rtol=1e-9)


def test_ordinal_agrees_with_pyros_distribution():
    outputs, index = outputs_of((3,)), torch.randint(0, 5, (5, 4))
    likelihood = sps.Ordinal(5)
    pyros = pyro.distributions.OrderedLogistic(outputs, likelihood.cuts.detach())
    torch.testing.assert_close(likelihood.elementwise(outputs).log_prob(index.double()).detach(), pyros.log_prob(index))


def test_default_cut_points_make_grades_equally_probable():
    probabilities = sps.Ordinal(6).probabilities(torch.zeros(1, 1, dtype=torch.float64))
    torch.testing.assert_close(probabilities.detach(), torch.full((1, 1, 6), 1 / 6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ordinal_is_exact_in_the_tails(dtype):
    """log P(y = k) for outputs far off, where a difference of probabilities is zero: σ(b) - σ(a) ≈ eᵇ - eᵃ."""
    likelihood = sps.Ordinal(3, [-1.0, 1.0])
    outputs = torch.tensor([[60.0], [-60.0]], dtype=dtype, requires_grad=True)
    logs = likelihood.elementwise(outputs).log_prob(torch.ones(2, 1, dtype=dtype))
    expected = math.log(math.e - 1 / math.e) - 60
    torch.testing.assert_close(logs, torch.full_like(logs, expected))
    (slope,) = torch.autograd.grad(logs.sum(), outputs)
    torch.testing.assert_close(slope, torch.tensor([[-1.0], [1.0]], dtype=dtype))


def test_ordinal_learns_the_shares_of_the_grades():
    """Without inputs that matter the cut points that maximise the likelihood are the logits of cumulated shares."""
    y = torch.tensor([0.0] * 10 + [1.0] * 30 + [2.0] * 60).double().unsqueeze(1)
    likelihood = sps.Ordinal(3)
    optimiser = torch.optim.LBFGS(likelihood.parameters(), max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14)

    def loss():
        optimiser.zero_grad()
        value = -likelihood(torch.zeros_like(y)).log_prob(y).mean()
        value.backward()
        return value

    optimiser.step(loss)
    expected = torch.logit(torch.tensor([0.1, 0.4], dtype=torch.float64))
    torch.testing.assert_close(likelihood.cuts.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 0, -3, 2.5, True, [1], [2, 1], [1, 1], [1, math.nan], "low", ["a", "b"], None])
def test_ordinal_levels_errors(levels):
    with pytest.raises(ValueError, match="levels must be at least two increasing numbers, or their number, got"):
        sps.Ordinal(levels)


@pytest.mark.parametrize("cuts", [[0.0], [1.0, 0.0], [0.0, math.inf], 3, [0.0, 1.0, 2.0]])
def test_ordinal_cut_point_errors(cuts):
    with pytest.raises(ValueError, match="cut_points must be 2 increasing numbers, got"):
        sps.Ordinal(3, cuts)


# --- sampled instead of learned ----------------------------------------------------------------------

SAMPLED = [
    sps.Gaussian(0.3, learn=True, prior=(-1.0, 0.5), sampled=True),
    sps.Gaussian(0.3, learn=True, per_output=2, sampled=True),
    sps.StudentT(None, 0.3, learn=True, sampled=True),
    sps.StudentT(5.0, 0.3, learn=True, per_output=2, sampled=True),
    sps.HeteroscedasticStudentT(sampled=True, least=3.0),
    sps.Ordinal(3, sampled=True),
]
NAMES = [
    "Gaussian, a prior of one's own",
    "Gaussian per output",
    "StudentT, df too",
    "StudentT per output",
    "HeteroscedasticStudentT",
    "Ordinal",
]


def sampled_model(likelihood):
    net = sps.mlp([3, 4, 4 if likelihood.num_targets(2) == 1 else 2], dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 3, (6, 2), generator=torch.Generator().manual_seed(1)).double()
    return sps.BNN(net, sps.Rigid(), sps.Constant(1.0), likelihood), x, y


def expected_prior(likelihood, sites):
    """Log density of the sites by hand."""
    total = 0.0
    for name, value in sites.items():
        if name == "likelihood.log_scale":
            total += stats.norm(*likelihood.prior).logpdf(value).sum(-1)
        elif name == "likelihood.log_df":
            total += stats.norm(1.5, 1.0).logpdf(value).sum(-1)
        else:  # cut points at -log 2 and log 2: the first one and the logarithm of the distance
            mean = [-math.log(2), math.log(2 * math.log(2))]
            total += stats.norm(mean, 1.0).logpdf(value).sum(-1)
    return total


def expected_likelihood(likelihood, sites, outputs, y):
    """Log densities of the targets by scipy, shape (draws, rows, targets)."""
    outputs, y = outputs.numpy(), y.numpy()
    if isinstance(likelihood, sps.Ordinal):
        value = sites["likelihood.cuts"].numpy()
        cuts = np.stack([value[:, 0], value[:, 0] + np.exp(value[:, 1])], -1)[:, None, None]
        picked = np.take_along_axis(
            ordinal_probabilities(outputs, cuts), np.broadcast_to(y.astype(int), outputs.shape)[..., None], -1
        )
        return np.log(picked[..., 0])
    if isinstance(likelihood, sps.HeteroscedasticStudentT):
        outputs, scale = np.split(outputs, 2, axis=-1)
        scale = softplus(scale) + likelihood.minimum
    else:
        scale = np.exp(sites["likelihood.log_scale"].numpy())[:, None, :]
    if isinstance(likelihood, sps.Gaussian):
        return stats.norm(outputs, scale).logpdf(y)
    df = 5.0 if likelihood.initial_df else likelihood.least + np.exp(sites["likelihood.log_df"].numpy())[:, None, :]
    return stats.t(df, outputs, scale).logpdf(y)


@pytest.mark.parametrize("likelihood", SAMPLED, ids=NAMES)
def test_sampled_sites_and_their_densities_by_hand(likelihood):
    bnn, x, y = sampled_model(likelihood)
    sites = prior_draws(bnn, 5, 0)
    own = {name: value for name, value in sites.items() if name.startswith("likelihood.")}
    assert own.keys() == bnn.likelihood.starts().keys()
    weights = {name: value for name, value in sites.items() if name not in own}
    expected = sum(
        stats.norm(0, 2 / math.sqrt(bnn.topology[name].fan_in)).logpdf(value).sum(-1) for name, value in weights.items()
    )
    expected = expected + expected_prior(likelihood, {name: value.numpy() for name, value in own.items()})
    np.testing.assert_allclose(log_prior(bnn, sites).numpy(), expected, rtol=1e-10)

    outputs = bnn.function(bnn.assemble(sites), x)
    logs = expected_likelihood(likelihood, own, outputs, y)
    np.testing.assert_allclose(bnn.likelihood.at(sites).elementwise(outputs).log_prob(y).numpy(), logs, rtol=1e-9)

    target = Target.of(bnn, x, y)
    assert target.params == {}  # what is sampled is no parameter
    flat = target.flat(sites)
    np.testing.assert_allclose(-target.energy(flat).numpy(), expected + logs.sum((1, 2)), rtol=1e-9)
    np.testing.assert_allclose(target.log_likelihood(flat).numpy(), logs.sum((1, 2)), rtol=1e-9)


@pytest.mark.parametrize("likelihood", SAMPLED, ids=NAMES)
def test_sampled_sites_in_pyro(likelihood):
    """Particles, Predictive and NUTS of the model as it is."""
    bnn, x, y = sampled_model(likelihood)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    trace = pyro.poutine.trace(bnn).get_trace(x, y)
    assert trace.param_nodes == []
    guide = sps.AutoSPSNormal(bnn)
    for elbo in (Trace_ELBO(4, vectorize_particles=True), sps.MeanFieldELBO(4)):
        assert math.isfinite(SVI(bnn, guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(x, y))
    for parallel in (False, True):
        drawn = Predictive(bnn, guide=guide, num_samples=3, parallel=parallel)(x)
        assert drawn["obs"].shape == (3, 6, 2)
    mcmc = MCMC(NUTS(bnn, max_tree_depth=2), num_samples=3, warmup_steps=2, disable_progbar=True)
    mcmc.run(x, y)
    assert set(bnn.likelihood.starts()) < set(mcmc.get_samples())


def test_sampling_is_switched_on_by_a_flag():
    bnn, x, y = sampled_model(sps.Gaussian(0.3, learn=True))
    assert bnn.likelihood.starts() == {}
    assert "likelihood.scale" in Target.of(bnn, x, y).params
    sampled = bnn.copy()
    sampled.likelihood.sampled = True
    torch.testing.assert_close(sampled.likelihood.starts()["likelihood.log_scale"].exp().item(), 0.3)
    assert "likelihood.log_scale" in [site.name for site in Target.of(sampled, x, y).problem.sites]
    known, _, _ = sampled_model(sps.Gaussian(0.3))
    known.likelihood.sampled = True  # of a scale that is known nothing is sampled
    assert known.likelihood.starts() == {}
    assert known.likelihood.at({}) is known.likelihood


def test_posterior_of_the_noise_by_quadrature():
    """With all weights fixed but one the posterior is over two numbers, of which one can be integrated out."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(10, 1, generator=generator, dtype=torch.float64)
    y = 0.5 * x + 0.2 * torch.randn(10, 1, generator=generator, dtype=torch.float64)
    net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    likelihood = sps.Gaussian(0.3, learn=True, prior=(-1.0, 0.7), sampled=True)
    bnn = sps.BNN(net, sps.Unmasked(), likelihood=likelihood, prior_scale=1.0)

    def density(log_scale):
        """p(log σ) p(y | log σ): y is normal with covariance σ² + x xᵀ."""
        covariance = math.exp(2 * log_scale) * np.eye(10) + (x @ x.T).numpy()
        return math.exp(stats.multivariate_normal(np.zeros(10), covariance).logpdf(y[:, 0].numpy())) * stats.norm(
            -1.0, 0.7
        ).pdf(log_scale)

    grid = np.linspace(-4, 1, 400)
    values = np.array([density(z) for z in grid])
    mean = (values * grid).sum() / values.sum()
    std = math.sqrt((values * (grid - mean) ** 2).sum() / values.sum())
    nuts = sps.sample(
        bnn,
        x,
        y,
        kernel="nuts",
        starts="prior",
        num_samples=300,
        warmup=200,
        chains=2,
        standardize=False,
        progress=False,
    )
    draws = nuts.samples["likelihood.log_scale"][..., 0]
    ess = pyro.ops.stats.effective_sample_size(draws, 0, 1).item()
    assert abs(draws.mean().item() - mean) < 5 * std / math.sqrt(ess)
    assert abs(draws.std().item() / std - 1) < 5 / math.sqrt(ess)
    # The noise of a prediction is that of its draws.
    expected = (draws.exp().square().mean() + nuts.weights()["weight"].var(unbiased=False)).sqrt()
    prediction = nuts.predict(torch.ones(1, 1), 4000)
    assert prediction.std.item() == pytest.approx(expected.item(), rel=0.1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sps.Gaussian(0.1, sampled=True), "sampled=True needs learn=True"),
        (lambda: sps.StudentT(4.0, sampled=True), "sampled=True needs learn=True"),
        (lambda: sps.Ordinal(3, learn=False, sampled=True), "sampled=True needs learn=True"),
        (lambda: sps.Gaussian(prior=(1.0,)), r"prior must be a mean and a standard deviation, got \(1.0,\)"),
        (lambda: sps.Gaussian(prior=(1.0, 0.0)), "standard deviation of prior must be a positive finite number"),
        (lambda: sps.Gaussian(prior=(math.nan, 1.0)), "the mean of prior must be a finite number"),
        (lambda: sps.StudentT(df_prior="ab"), "the mean of df_prior|df_prior must be a mean and"),
        (lambda: sps.StudentT(2.0), "df must be a number above 2"),
        (lambda: sps.StudentT(True), "df must be a number above 2"),
        (lambda: sps.StudentT(None), "df=None needs learn=True"),
        (lambda: sps.HeteroscedasticStudentT(1.5), "df must be a number above 2"),
        (lambda: sps.HeteroscedasticStudentT(4.0, sampled=True), "sampled=True needs df=None"),
        (lambda: sps.HeteroscedasticStudentT(least=1.0), "least must be a number of at least 2"),
        (lambda: sps.HeteroscedasticStudentT(minimum=-1.0), "minimum must be a non-negative finite number"),
        (lambda: sps.StudentT(4.0, -1.0), "scale must be a positive finite number"),
        (lambda: sps.Ordinal(3, prior_std=0.0), "prior_std must be a positive finite number"),
        (lambda: sps.Gaussian(learn=True, sampled=True).at({}), "sites must have .'likelihood.log_scale'"),
        (lambda: sps.HeteroscedasticGaussian([0.1]).check_targets(torch.zeros(3, 2), 4), "minimum has 1 numbers"),
    ],
)
def test_errors_of_what_is_sampled_and_given(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# --- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, "1", True, None])
def test_gaussian_scale_errors(scale):
    with pytest.raises(ValueError, match=f"scale must be a positive finite number, got {scale!r}"):
        sps.Gaussian(scale)


@pytest.mark.parametrize("per_output", [0, -1, 1.5, True])
def test_gaussian_per_output_errors(per_output):
    with pytest.raises(ValueError, match=f"per_output must be None or the number of outputs, got {per_output!r}"):
        sps.Gaussian(1.0, per_output=per_output)


@pytest.mark.parametrize("minimum", [-0.1, math.nan, math.inf])
def test_heteroscedastic_minimum_errors(minimum):
    with pytest.raises(ValueError, match="minimum must be a non-negative finite number"):
        sps.HeteroscedasticGaussian(minimum)


@pytest.mark.parametrize("likelihood", ALL, ids=lambda value: type(value).__name__)
def test_good_targets_pass(likelihood):
    likelihood.check_targets(targets(likelihood), 4)


@pytest.mark.parametrize(
    ("likelihood", "y", "says"),
    [
        (sps.Gaussian(), torch.zeros(5), r"y must have shape \(rows, 4\) for Gaussian on this network, got \(5,\)"),
        (sps.Gaussian(), torch.zeros(5, 3), r"y must have shape \(rows, 4\) for Gaussian .* got \(5, 3\)"),
        (sps.Gaussian(), torch.zeros(5, 4, 1), r"got \(5, 4, 1\)"),
        (sps.Gaussian(per_output=3), torch.zeros(5, 4), "per_output is 3, but the network has 4 outputs"),
        (sps.Gaussian(), torch.tensor([[0.0] * 4, [1.0, math.nan, 0, 0]]), "finite numbers, got .* in row 1"),
        (sps.HeteroscedasticGaussian(), torch.zeros(5, 4), r"shape \(rows, 2\) for HeteroscedasticGaussian"),
        (sps.HeteroscedasticGaussian(), torch.full((5, 2), math.inf), "finite numbers"),
        (sps.Categorical(), torch.zeros(5, 1), r"y must have shape \(rows,\) for Categorical, got \(5, 1\)"),
        (sps.Categorical(), torch.tensor([0, 3, 4]), "labels from 0 to 3, got 4 in row 2"),
        (sps.Categorical(), torch.tensor([0, -1]), "labels from 0 to 3, got -1 in row 1"),
        (sps.Categorical(), torch.tensor([0.5, 1.0]), "integer labels for Categorical, got fractions"),
        (sps.Categorical(), torch.tensor([math.nan, 1.0]), "integer labels"),
        (sps.Bernoulli(), torch.tensor([[0.0, 1.0, 0.5, 1.0]]), "zeros and ones, got .* in row 0"),
        (sps.Bernoulli(), torch.tensor([[0.0, 1.0, math.nan, 1.0]]), "zeros and ones"),
        (sps.Poisson(), torch.tensor([[0.0] * 4, [0.0, 1.0, -1.0, 2.0]]), "counts .* in row 1"),
        (sps.Poisson(), torch.tensor([[0.0, 1.0, 1.5, 2.0]]), "counts"),
        (sps.Ordinal(3), torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 1.0, 3.0, 2.0]]), "grades among .* in row 1"),
        (sps.Ordinal([1, 2]), torch.tensor([[1.0, 1.5, 1.0, 2.0]]), "grades among"),
        (sps.Ordinal(3), torch.zeros(5), r"y must have shape \(rows, 4\) for Ordinal"),
    ],
)
def test_bad_targets(likelihood, y, says):
    with pytest.raises(ValueError, match=says):
        likelihood.check_targets(y, 4)


def test_heteroscedastic_needs_an_even_number_of_outputs():
    with pytest.raises(ValueError, match="even number of network outputs, got 3"):
        sps.HeteroscedasticGaussian().num_targets(3)


@pytest.mark.parametrize("likelihood", [sps.Bernoulli(), sps.Poisson(), sps.Categorical()])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_targets_of_any_dtype_in_the_model(likelihood, dtype):
    bnn = sps.BNN(sps.mlp([3, 2]), sps.Unmasked(), likelihood=likelihood)
    y = torch.tensor([0, 1, 1, 0]) if likelihood.event_dim == 0 else torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])
    x = torch.randn(4, 3)

    def log_prob(y):
        torch.manual_seed(1)
        return pyro.poutine.trace(bnn).get_trace(x, y).log_prob_sum()

    torch.testing.assert_close(log_prob(y.to(dtype)), log_prob(y if likelihood.event_dim == 0 else y.float()))


@pytest.mark.parametrize("likelihood", ["Gaussian", sps.Gaussian, torch.nn.Linear(1, 1)])
def test_likelihood_must_be_a_likelihood(likelihood):
    with pytest.raises(TypeError, match="likelihood must be a likelihood such as"):
        sps.BNN(sps.mlp([3, 2]), sps.Unmasked(), likelihood=likelihood)
