"""Predictions against direct computation."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import pyro_sps as sps
from pyro_sps.data.arrays import Standardizer
from pyro_sps.diagnostics.density import prior_draws
from pyro_sps.posterior import outputs as module
from pyro_sps.posterior.outputs import Member
from pyro_sps.posterior.predict import Prediction


@pytest.fixture(scope="module")
def fit():
    x = torch.linspace(-2, 2, 30, dtype=torch.float64).unsqueeze(1)
    y = torch.cat([x.sin(), x.cos()], 1) * 5 + 20
    bnn = sps.BNN(
        sps.mlp([1, 6, 6, 2], dtype=torch.float64), sps.Heavy(), sps.Constant(1.0, learn=True), sps.Gaussian(0.2)
    )
    return sps.fit(bnn, x, y, num_steps=100, standardize=True, progress=False, num_particles=4), x, y


@torch.no_grad()
def direct(fit, x, num_samples, seed=0):
    """Function draws in original units, one weight draw at a time, from the guide's own blocks of draws."""
    prediction = fit.predict(x, num_samples, seed)
    means = []
    for block, _ in prediction._outputs._blocks(0):
        count = next(iter(block.values())).shape[0]
        for index in range(count):
            weights = {name: value[index] for name, value in block.items()}
            out = fit.bnn.function(weights, fit.standardizer.inputs(x))
            means.append(out * fit.standardizer.y_scale + fit.standardizer.y_mean)
    return torch.stack(means)


def test_moments_and_scores_equal_direct_computation(fit):
    fit, x, y = fit
    prediction = fit.predict(x, num_samples=150, seed=3)
    means = direct(fit, x, 150, 3)
    noise = 0.2 * fit.standardizer.y_scale
    torch.testing.assert_close(prediction.function_draws, means)
    torch.testing.assert_close(prediction.mean, means.mean(0))
    torch.testing.assert_close(prediction.std, (means.var(0, unbiased=False) + noise**2).sqrt())
    assert prediction.rmse(y) == pytest.approx(((means.mean(0) - y) ** 2).mean(0).sqrt().mean().item())
    density = scipy.stats.norm.pdf(y.numpy(), means.numpy(), noise.numpy()).mean(0)
    assert prediction.lpp(y) == pytest.approx(np.log(density).mean())
    lower, upper = prediction.interval(0.9)
    expected = np.quantile(prediction.draws.numpy(), [0.05, 0.95], axis=0)
    np.testing.assert_allclose(torch.stack([lower, upper]).numpy(), expected)
    inside = ((y >= lower) & (y <= upper)).double().mean().item()
    assert prediction.coverage(y, 0.9) == pytest.approx(inside)
    assert len(prediction) == 30


def test_draws_scatter_around_the_function_with_the_noise(fit):
    fit, x, _ = fit
    prediction = fit.predict(x, num_samples=2000)
    residual = (prediction.draws - prediction.function_draws) / (0.2 * fit.standardizer.y_scale)
    count = residual.numel()
    assert abs(residual.mean()) < 4 / count**0.5
    assert abs(residual.var() - 1) < 4 * (2 / count) ** 0.5


def test_chunks_do_not_change_anything(fit, monkeypatch):
    fit, x, y = fit
    whole = fit.predict(x, num_samples=70)
    results = whole.mean, whole.std, whole.lpp(y)
    monkeypatch.setattr(module, "_ELEMENTS", 70 * 2 * 7)
    parts = fit.predict(x, num_samples=70)
    assert len(list(parts._outputs.chunks())) > 3
    # The blocks of weight draws depend on the budget for this network size, so compare through the same draws.
    parts._outputs.__dict__["_cached_blocks"] = whole._outputs._cached_blocks
    for one, other in zip(results, (parts.mean, parts.std, parts.lpp(y)), strict=True):
        torch.testing.assert_close(one, other)


def test_memory_is_bounded_by_the_chunk(fit, monkeypatch):
    fit, _, _ = fit
    monkeypatch.setattr(module, "_ELEMENTS", 1 << 14)
    largest = 0
    original = fit.bnn.function

    class Watched:
        def __call__(self, weights, x):
            nonlocal largest
            result = original(weights, x)
            largest = max(largest, result.numel() * 3)  # width 6, 2 outputs
            return result

    monkeypatch.setitem(fit.bnn.__dict__, "_function", (Watched(),))
    prediction = fit.predict(torch.zeros(5000, 1), num_samples=100)
    assert prediction.mean.shape == (5000, 2)
    assert largest <= 1 << 14


def test_same_seed_same_draws_and_other_seed_others(fit):
    fit, x, _ = fit
    assert torch.equal(fit.predict(x, 20, 1).draws, fit.predict(x, 20, 1).draws)
    assert not torch.equal(fit.predict(x, 20, 1).draws, fit.predict(x, 20, 2).draws)


@pytest.mark.parametrize("likelihood", [sps.Bernoulli(), sps.Poisson(), sps.Categorical(), sps.Ordinal([0, 1, 3])])
def test_discrete_draws_have_the_predictive_mean(likelihood):
    bnn = sps.BNN(sps.mlp([1, 4, 3]), scheme=sps.Unmasked(), likelihood=likelihood)
    x = torch.linspace(-1, 1, 5).unsqueeze(1)
    y = torch.zeros(5) if isinstance(likelihood, sps.Categorical) else torch.zeros(5, 3)
    fit = sps.fit(bnn, x, y, num_steps=5, progress=False)
    samples = 4000
    prediction = fit.predict(x, samples)
    draws = prediction.draws
    if isinstance(likelihood, sps.Categorical):
        assert draws.shape == (samples, 5)
        draws = nn.functional.one_hot(draws, 3).float()
    error = prediction.std / samples**0.5
    assert ((draws.mean(0) - prediction.mean).abs() < 5 * error).all()
    if not isinstance(likelihood, sps.Poisson):
        assert 0 <= prediction.accuracy(y) <= 1
    if isinstance(likelihood, sps.Categorical):
        for call in (lambda: prediction.rmse(y), prediction.interval):
            with pytest.raises(ValueError, match="not defined for labels"):
                call()
    else:
        assert 0 <= prediction.coverage(y) <= 1


def _sampled(likelihood, seed=0):
    """A model with a sampled likelihood, its inputs and 50 draws of all sites."""
    bnn = sps.BNN(sps.mlp([1, 4, 2], dtype=torch.float64), sps.Unmasked(), likelihood=likelihood)
    x = torch.linspace(-1, 1, 7, dtype=torch.float64).unsqueeze(1)
    return bnn, x, prior_draws(bnn, 50, seed)


@pytest.mark.parametrize(
    "likelihood",
    [
        sps.Gaussian(0.3, learn=True, sampled=True),
        sps.Gaussian(0.3, learn=True, per_output=2, sampled=True),
        sps.StudentT(None, 0.3, learn=True, sampled=True),
        sps.Ordinal(4, sampled=True),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("elements", [1 << 23, 300])
def test_every_draw_has_its_own_noise(likelihood, elements, monkeypatch):
    """A mixture with what is sampled against a loop over draws, each with a model of its own; also in small blocks."""
    monkeypatch.setattr(module, "_ELEMENTS", elements)
    bnn, x, sites = _sampled(likelihood)
    y = torch.randint(0, 4, (7, 2)).double()
    units = Standardizer.of(x, y, likelihood.real_valued)
    prediction = Prediction.of([Member(bnn, None, units, sites)], x, 50, 0)
    logs, means, variances = [], [], []
    for draw in range(50):
        one = {name: value[draw] for name, value in sites.items()}
        own, outputs = bnn.likelihood.at(one), bnn.function(bnn.assemble(one), units.inputs(x))
        logs.append(own.elementwise(outputs).log_prob(units.targets(y)) - units.y_scale.log())
        means.append(own.mean(outputs) * units.y_scale + units.y_mean)
        variances.append(own.variance(outputs) * units.y_scale**2)
    logs, means, variances = torch.stack(logs), torch.stack(means), torch.stack(variances)
    torch.testing.assert_close(prediction.log_prob(y), logs.logsumexp(0) - torch.tensor(50.0).double().log())
    torch.testing.assert_close(prediction.mean, means.mean(0))
    torch.testing.assert_close(prediction.std, (variances.mean(0) + means.var(0, unbiased=False)).sqrt())
    assert prediction.draws.shape == (50, 7, 2)
    if isinstance(likelihood, sps.Ordinal):
        shares = torch.stack(
            [
                bnn.likelihood.at({n: v[d] for n, v in sites.items()}).probabilities(
                    bnn.function(bnn.assemble({n: v[d] for n, v in sites.items()}), units.inputs(x))
                )
                for d in range(50)
            ]
        ).mean(0)
        torch.testing.assert_close(prediction.probabilities, shares)


def test_scores_of_grades():
    bnn = sps.BNN(sps.mlp([1, 2, 1]), sps.Unmasked(), likelihood=sps.Ordinal([1, 2, 4]))
    x = torch.linspace(-1, 1, 30).unsqueeze(1)
    y = torch.where(x < -0.3, 1.0, torch.where(x < 0.3, 2.0, 4.0))
    fit = sps.fit(bnn, x, y, num_steps=150, learning_rate=0.1, compile=False, progress=False)
    prediction = fit.predict(x, 200)
    assert prediction.accuracy(y) > 0.8
    grades = torch.tensor([1.0, 2.0, 4.0])
    best = grades[prediction.probabilities.argmax(-1)]
    assert prediction.accuracy(y) == (best == y).double().mean().item()
    torch.testing.assert_close(prediction.mean, prediction.probabilities @ grades)
    expected = prediction.probabilities.gather(-1, torch.searchsorted(grades, y).unsqueeze(-1)).log().mean()
    assert prediction.lpp(y) == pytest.approx(expected.item(), rel=1e-4)
    assert prediction.rmse(y) == pytest.approx((prediction.mean - y).square().mean().sqrt().item(), rel=1e-4)
    assert set(prediction.draws.unique().tolist()) <= {1.0, 2.0, 4.0}
    with pytest.raises(ValueError, match="probabilities are those of classes or grades; Gaussian has neither"):
        _ = sps.fit(sps.BNN(sps.mlp([1, 2, 1])), x, y, num_steps=1, progress=False).predict(x).probabilities


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda fit, x, y: fit.predict(x, 0), "num_samples must be a positive integer, got 0"),
        (lambda fit, x, y: fit.predict(x[:, :0]), "x is empty"),
        (lambda fit, x, y: fit.predict(x.expand(-1, 2)), "x must have 1 features a row"),
        (lambda fit, x, y: fit.predict(x).rmse(y[:3]), "y must have as many rows as x, 30, got 3"),
        (lambda fit, x, y: fit.predict(x).interval(1.0), r"level must be in \(0, 1\), got 1.0"),
        (lambda fit, x, y: fit.predict(x).accuracy(y), "accuracy is for labels"),
        (lambda fit, x, y: fit.predict(x, seed=-1), "seed must be"),
    ],
)
def test_bad_arguments(fit, call, message):
    with pytest.raises(ValueError, match=message):
        call(*fit)


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson"])
def test_pit_is_uniform_for_targets_from_the_prediction(fit, likelihood):
    fit, x, y = fit
    if likelihood == "poisson":  # counts with many ties
        bnn = sps.BNN(sps.mlp([1, 4, 2], dtype=torch.float64), scheme=sps.Unmasked(), likelihood=sps.Poisson())
        fit = sps.fit(bnn, x, torch.ones_like(y), num_steps=5, progress=False)
    x = x.repeat(40, 1)
    rows = torch.arange(len(x))
    drawn = fit.predict(x, num_samples=len(x), seed=8).draws[rows, rows]  # a draw of the weights for every row
    ranks = fit.predict(x, num_samples=200).pit(drawn)
    assert ranks.shape == drawn.shape
    assert ((ranks > 0) & (ranks < 1)).all()
    # Targets of one row share a draw of the weights, so that one output is tested.
    assert scipy.stats.kstest(ranks[:, 0].numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(ranks, fit.predict(x, num_samples=200).pit(drawn))
