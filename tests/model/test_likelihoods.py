import copy
import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from scipy import stats

import pyro_sps as sps
from pyro_sps.model.likelihoods import LIKELIHOODS, Likelihood

ALL = [
    sps.Gaussian(0.3),
    sps.Gaussian(0.3, learn=True),
    sps.Gaussian(0.3, learn=True, per_output=4),
    sps.HeteroscedasticGaussian(),
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
    return torch.randn(shape, dtype=torch.float64)


def softplus(x):
    return np.log1p(np.exp(x))


def by_scipy(likelihood, outputs):
    """The distribution of every target as a frozen scipy distribution, from outputs as a numpy array."""
    if isinstance(likelihood, sps.HeteroscedasticGaussian):
        loc, scale = np.split(outputs, 2, axis=-1)
        return stats.norm(loc, softplus(scale) + likelihood.minimum)
    if isinstance(likelihood, sps.Gaussian):
        return stats.norm(outputs, 0.3)
    if isinstance(likelihood, sps.Bernoulli):
        return stats.bernoulli(1 / (1 + np.exp(-outputs)))
    return stats.poisson(np.exp(outputs))


def log_density(distribution, y):
    return distribution.logpdf(y) if hasattr(distribution.dist, "logpdf") else distribution.logpmf(y)


REAL = [likelihood for likelihood in ALL if not isinstance(likelihood, sps.Categorical)]


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
