"""Targets that do not all count the same: weights, error bars, gaps."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_sps as sps
from pyro_sps.data.observed import Extras
from pyro_sps.data.trees import rows_of
from pyro_sps.inference.job import prepare_job
from pyro_sps.inference.members import members_of
from pyro_sps.inference.settings import FitSettings
from pyro_sps.model.density import pyro_session
from pyro_sps.model.target import Target

ROWS, FEATURES = 12, 3


def table(outputs=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64)
    return x, x[:, :outputs].sin() + 0.1 * torch.randn(ROWS, outputs, generator=generator, dtype=torch.float64)


def network(likelihood=None, outputs=2):
    likelihood = sps.Gaussian(0.3, learn=True) if likelihood is None else likelihood
    return sps.BNN(sps.mlp([FEATURES, 4, outputs]).double(), sps.Unmasked(), sps.Zero(), likelihood=likelihood)


def quick(bnn, x, y, **options):
    return sps.fit(bnn, x, y, **{"num_steps": 15, "batch_size": None, "progress": False, **options})


def same(one, other, rtol=1e-5):
    torch.testing.assert_close(one.guide.loc, other.guide.loc, rtol=rtol, atol=1e-7)
    torch.testing.assert_close(one.guide.scale, other.guide.scale, rtol=rtol, atol=1e-7)
    np.testing.assert_allclose(one.losses, other.losses, rtol=rtol)
    for name in ("x_mean", "x_scale", "y_mean", "y_scale"):
        torch.testing.assert_close(getattr(one.standardizer, name), getattr(other.standardizer, name))


LIKELIHOODS = {
    "Gaussian": (sps.Gaussian(0.3, learn=True, per_output=2), 2),
    "HeteroscedasticGaussian": (sps.HeteroscedasticGaussian(0.01), 4),
    "StudentT": (sps.StudentT(), 2),
    "Categorical": (sps.Categorical(), 2),
    "Bernoulli": (sps.Bernoulli(), 2),
    "Poisson": (sps.Poisson(), 2),
    "Ordinal": (sps.Ordinal([0, 1, 2]), 2),
}


def targets_for(name, y):
    if name == "Categorical":
        return (y[:, 0] > 0).long()
    return {
        "Bernoulli": (y > 0).double(),
        "Poisson": (3 * y).abs().round(),
        "Ordinal": (y > 0) + (y > 0.5).double(),
    }.get(name, y)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_model_counts_each_target_as_often_as_it_should(name):
    (likelihood, outputs), (x, y) = LIKELIHOODS[name], table()
    y = targets_for(name, y)
    bnn = network(likelihood, outputs)
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(ROWS, generator=generator).double() * 3
    weights[2] = 0
    measured = torch.rand(y.shape, generator=generator) > 0.3
    bars = torch.rand(y.shape, generator=generator).double() if "Gaussian" in name else None
    observed = sps.Observed(y, weights, bars, measured)
    trace = poutine.trace(bnn).get_trace(x, observed, num_data=3 * ROWS)
    trace.compute_log_prob()
    with torch.no_grad():
        law = bnn.likelihood.elementwise(
            bnn.function(bnn.assemble({n: trace.nodes[n]["value"] for n in trace.stochastic_nodes}), x)
        )
        if bars is not None:
            law = torch.distributions.Normal(law.loc, (law.scale**2 + bars**2).sqrt())
        expected = 0.0
        logs = law.log_prob(y).reshape(ROWS, -1)
        for row in range(ROWS):
            for column in range(logs.shape[1]):
                if measured.reshape(ROWS, -1)[row, column]:
                    expected += 3 * weights[row].item() * logs[row, column].item()
    assert trace.nodes["obs"]["log_prob_sum"].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["Gaussian", "Categorical"])
def test_a_weight_of_two_is_the_row_twice_and_none_is_the_row_left_out(name):
    (likelihood, outputs), (x, y) = LIKELIHOODS[name], table()
    y, bnn = targets_for(name, y), network(likelihood, outputs)
    weights = torch.ones(ROWS)
    weights[3], weights[5] = 2, 0
    rows = [row for row in range(ROWS) if row != 5] + [3]
    same(quick(bnn, x, y, weights=weights), quick(bnn, x[rows], y[rows]))
    if name != "Gaussian":
        return
    options = {"num_steps": 10, "progress": False}
    one = sps.map_estimate(bnn, x, y, weights=weights, **options)
    other = sps.map_estimate(bnn, x[rows], y[rows], **options)
    for tensor, value in one.items():
        torch.testing.assert_close(value, other[tensor], rtol=1e-5, atol=1e-7)


def test_sampling_weighs_rows():
    x, y = table()
    weights = torch.ones(ROWS)
    weights[3], weights[5] = 2, 0
    rows = [row for row in range(ROWS) if row != 5] + [3]
    options = {"chains": 2, "num_samples": 3, "thinning": 2, "warmup": 20, "starts": "prior", "progress": False}
    one = sps.sample(network(), x, y, weights=weights, **options)
    other = sps.sample(network(), x[rows], y[rows], **options)
    for site, value in one.samples.items():
        torch.testing.assert_close(value, other.samples[site], rtol=1e-6, atol=1e-8)
    assert torch.equal(one.row_weights, weights.double())
    started = sps.sample(
        network(), x, y, weights=weights, missing="ignore", **options | {"starts": "map", "map_steps": 50}
    )
    assert started.energies.isfinite().all()


def test_rows_without_a_target_are_left_out():
    x, y = table()
    gaps, kept = y.clone(), [row for row in range(ROWS) if row not in (1, 7)]
    gaps[[1, 7]] = math.nan
    # Inputs are standardised by all rows: of these, much is known.
    one = quick(network(), x, gaps, missing="ignore", standardize=False)
    same(one, quick(network(), x[kept], y[kept], standardize=False))
    assert torch.equal(one.y.isnan(), gaps.isnan())
    labels = (y[:, 0] > 0).long()
    unknown = labels.clone()
    unknown[[1, 7]] = -1
    bnn = network(sps.Categorical())
    one = quick(bnn, x, unknown, missing="ignore", standardize=False)
    same(one, quick(bnn, x[kept], labels[kept], standardize=False))
    assert torch.equal(one.y, unknown)


def linear(features):
    return sps.BNN(
        nn.Linear(features, 2, bias=False).double(),
        scheme=sps.Unmasked(),
        values=sps.Zero(),
        likelihood=sps.Gaussian(0.05),
        prior_scale=1.0,
    )


def test_error_bars_weights_and_gaps_lead_to_the_exact_posterior_of_weighted_least_squares():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(3, 2, generator=generator, dtype=torch.float64) + 0.2 * torch.randn(30, 2, generator=generator)
    bars = 0.1 + torch.rand(30, 2, generator=generator, dtype=torch.float64)
    weights = 2 * torch.rand(30, generator=generator, dtype=torch.float64)
    y[torch.rand(30, 2, generator=generator) < 0.2] = math.nan
    extras = Extras(weights, bars)
    asked = FitSettings(standardize=False, missing="ignore", progress=False)
    member = members_of(linear(3), x, y, asked, extras=extras)[0]
    target = Target.of(member.bnn, member.x, member.y)
    with pyro_session():  # minus the log posterior is quadratic: its derivatives at any point say all
        point = torch.zeros(6, dtype=torch.float64)
        precision = torch.func.hessian(target.energy)(point)
        mean = -torch.linalg.solve(precision, torch.func.grad(target.energy)(point))
    for output in range(2):
        known = ~y[:, output].isnan()
        of_rows = weights[known] / (0.05**2 + bars[known, output] ** 2)
        expected = (x[known].T * of_rows) @ x[known] + torch.eye(3, dtype=torch.float64)
        own = slice(3 * output, 3 * output + 3)
        torch.testing.assert_close(precision[own, own], expected)
        torch.testing.assert_close(mean[own], torch.linalg.solve(expected, (x[known].T * of_rows) @ y[known, output]))


def test_error_bars_are_in_the_units_of_the_targets():
    """Targets in other units, and their error bars with them, make the same network."""
    x, y = table()
    bars = torch.linspace(0.1, 0.5, ROWS).double()
    one = quick(network(), x, y, y_scale=bars)
    other = quick(network(), x, 1000 * y + 5, y_scale=1000 * bars)
    torch.testing.assert_close(one.guide.loc, other.guide.loc, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(other.y_scale, one.y_scale)


def test_minibatches_estimate_the_objective_without_bias():
    x, y = table()
    y[0, 0] = math.nan
    bars, weights = torch.rand(ROWS, 2).double(), torch.rand(ROWS).double()
    asked = FitSettings(batch_size=3, missing="ignore", progress=False)
    job = prepare_job(network(), x, y, None, asked, None, Extras(weights, bars))
    whole = prepare_job(
        network(), x, y, None, FitSettings(batch_size=None, missing="ignore"), None, Extras(weights, bars)
    )
    start, noise = job.start("random", 0), torch.randn(4, job.problem.size).double()
    member = job.members[0]
    with pyro_session(), torch.no_grad():
        parts = [
            job.objective(start, noise, *rows_of((member.x, member.y), slice(first, first + 3)))
            for first in range(0, ROWS, 3)
        ]
        full = whole.objective(start, noise, whole.members[0].x, whole.members[0].y)
    torch.testing.assert_close(torch.stack(parts).mean(), full, rtol=1e-12, atol=0)


def test_replicas_with_weights_of_their_own_equal_single_fits():
    x, y = table()
    weights = torch.rand(2, ROWS)
    xs, ys = torch.stack([x, x.flip(0)]), torch.stack([y, y.flip(0)])
    fits = quick(network(), xs, ys, weights=weights, replicas=2, batch_size=4)
    for replica in range(2):
        alone = quick(network(), xs[replica], ys[replica], weights=weights[replica], seed=replica, batch_size=4)
        torch.testing.assert_close(fits[replica].guide.loc, alone.guide.loc, rtol=1e-8, atol=1e-10)


def test_predictions_have_the_error_bars_of_new_rows():
    x, y = table()
    fit = quick(network(), x, y)
    bars = torch.linspace(0.1, 1.0, ROWS).double()
    plain, barred = fit.predict(x, 200), fit.predict(x, 200, y_scale=bars)
    torch.testing.assert_close(barred.std**2, plain.std**2 + bars[:, None] ** 2)
    torch.testing.assert_close(barred.mean, plain.mean)
    parts = plain.uncertainty(), barred.uncertainty()
    torch.testing.assert_close(parts[1].epistemic, parts[0].epistemic)
    torch.testing.assert_close(parts[1].aleatoric, parts[0].aleatoric + bars[:, None] ** 2)
    # Variances of 200 draws have a standard error of a tenth; over 24 of them the mean ratio has one of 0.02.
    ratio = (barred.draws - barred.function_draws).var(0) / (barred.uncertainty().aleatoric)
    assert abs(ratio.mean().item() - 1) < 0.1
    noise = (fit.bnn.likelihood.noise_scale * fit.standardizer.y_scale) ** 2
    logs = torch.distributions.Normal(barred.function_draws, (noise + bars[:, None] ** 2).sqrt()).log_prob(y)
    expected = logs.logsumexp(0) - math.log(200)
    torch.testing.assert_close(barred.log_prob(y), expected.detach())


def test_scores_are_of_what_was_measured(tmp_path):
    x, y = table()
    gaps = y.clone()
    gaps[0, 0] = gaps[4, 1] = math.nan
    known = ~gaps.isnan()
    fit = quick(network(), x, gaps, missing="ignore", validation=(x, gaps), validate_every=5)
    assert all(math.isfinite(check["lpp"]) and math.isfinite(check["rmse"]) for check in fit.validation)
    fit.save(tmp_path)
    for one in (fit, sps.load(tmp_path, network().function.skeleton)):
        prediction = one.predict(x, 50)
        log = prediction.log_prob(y)
        assert prediction.lpp(gaps) == pytest.approx(log[known].mean().item())
        error = (prediction.mean - y).square()
        expected = [error[known[:, output], output].mean().sqrt() for output in range(2)]
        assert prediction.rmse(gaps) == pytest.approx(torch.stack(expected).mean().item())
        assert torch.equal(prediction.pit(gaps).isnan(), ~known)
        assert 0 <= prediction.coverage(gaps) <= 1
    strict = quick(network(), x, y).predict(x)
    with pytest.raises(ValueError, match="row 0, column 0"):
        strict.lpp(gaps)


def test_arviz_and_diagnoses_know_weights_error_bars_and_gaps():
    x, y = table()
    gaps = y.clone()
    gaps[0, 0] = math.nan
    weights, bars = torch.rand(ROWS).double(), torch.rand(ROWS, 2).double()
    fit = quick(network(), x, gaps, missing="ignore", weights=weights, y_scale=bars)
    data = fit.to_arviz(20)
    log = data.log_likelihood["obs"].values[0]
    w = torch.tensor(data.posterior["w"].values[0])
    free = [weight for weight in fit.bnn.weights if weight.num_free]
    sites = dict(zip([one.name for one in free], w.split([one.num_free for one in free], 1), strict=True))
    with torch.no_grad():
        units, inputs = fit.standardizer, fit.standardizer.inputs(x)
        law = fit.bnn.likelihood.elementwise(fit.bnn.function(fit.bnn.assemble(sites), inputs))
        law = torch.distributions.Normal(
            law.loc * units.y_scale + units.y_mean, ((law.scale * units.y_scale) ** 2 + bars**2).sqrt()
        )
        expected = law.log_prob(y)
        expected[:, 0, 0] = 0
        expected = expected.sum(-1) * weights
    np.testing.assert_allclose(log, expected.numpy(), rtol=1e-6)
    assert np.isnan(data.observed_data["obs"].values[0, 0])
    np.testing.assert_allclose(data.constant_data["row_weights"].values, weights)
    np.testing.assert_allclose(data.constant_data["y_scale"].values[~gaps.isnan()], bars[~gaps.isnan()])
    # The evidence lower bound of ArviZ's statistics is that of the fit, up to the Jacobian of the scaling.
    jacobian = -(weights[:, None] * ~gaps.isnan() * fit.standardizer.y_scale.log()).sum().item()
    elbo = data.sample_stats["elbo"].values
    assert elbo.mean() == pytest.approx(fit.elbo + jacobian, abs=4 * elbo.std() / math.sqrt(20))
    found = sps.diagnose(fit, draws=20)
    assert math.isfinite(found.predictive.lpp)
    assert np.isfinite(found.predictive.calibration.rmse).all()
    chains = sps.sample(
        network(),
        x,
        gaps,
        missing="ignore",
        weights=weights,
        y_scale=bars,
        chains=2,
        num_samples=4,
        warmup=20,
        starts="prior",
        progress=False,
    )
    assert np.isfinite(chains.to_arviz().log_likelihood["obs"].values).all()
    assert math.isfinite(sps.diagnose(chains).predictive.lpp)


def test_resumed_with_the_same_weights_only(tmp_path):
    x, y = table()
    weights, bars = torch.rand(ROWS), torch.rand(ROWS)
    options = {"weights": weights, "y_scale": bars, "batch_size": 4}
    whole = quick(network(), x, y, **options, num_steps=20)
    halfway = lambda step, losses: step == 9  # noqa: E731
    quick(network(), x, y, **options, num_steps=20, checkpoint=tmp_path, callbacks=[halfway])
    with pytest.raises(sps.LoadError, match="x and y are"):
        sps.resume(tmp_path, network(), x, y)
    rest = sps.resume(tmp_path, network(), x, y, weights=weights, y_scale=bars, num_steps=21, progress=False)
    np.testing.assert_allclose(rest.losses[:10], whole.losses[:10])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.ones(3)}, "weights must have one number for each of 12 rows"),
        ({"weights": -torch.ones(ROWS)}, "weights must not be negative, got -1 in row 0"),
        ({"weights": torch.zeros(ROWS)}, "weights are all zero"),
        ({"weights": [math.nan] * ROWS}, "weights must be finite"),
        ({"y_scale": torch.ones(3)}, "y_scale must have one number for each of 12 rows"),
        ({"y_scale": -torch.ones(ROWS)}, "y_scale must not be negative"),
        ({"y_scale": torch.ones(ROWS, 3)}, "y_scale must have one number"),
        ({"missing": "drop"}, "missing must be 'error' or 'ignore'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    x, y = table()
    with pytest.raises(ValueError, match=message):
        quick(network(), x, y, **change)


def test_what_cannot_be_is_said():
    x, y = table()
    with pytest.raises(ValueError, match="StudentT does not have"):
        quick(network(sps.StudentT()), x, y, y_scale=torch.ones(ROWS))
    empty = y.clone()
    empty[:, 1] = math.nan
    with pytest.raises(ValueError, match="no measured value in column 1"):
        quick(network(), x, empty, missing="ignore")
    with pytest.raises(ValueError, match="must be finite"):
        quick(network(), x, empty)
    empty[:, 1] = math.inf
    with pytest.raises(ValueError, match="must be finite"):
        quick(network(), x, empty, missing="ignore")


def test_gaps_of_every_kind_are_gaps():
    x, y = table(outputs=1)
    gaps = torch.where(torch.arange(ROWS)[:, None] == 4, math.nan, y)
    expected = quick(network(outputs=1), x, gaps, missing="ignore")
    array = y.numpy().copy()
    as_object = array.astype(object)
    as_object[4, 0] = None
    frame = pd.DataFrame({"y": pd.array(array[:, 0], dtype="Float64")})
    frame.loc[4, "y"] = pd.NA
    for gaps in (as_object, frame, np.ma.masked_array(array, mask=np.arange(ROWS)[:, None] == 4)):
        assert torch.equal(quick(network(outputs=1), x, gaps, missing="ignore").guide.loc, expected.guide.loc)
