"""Diagnostics against closed forms: a linear model whose exact posterior is the mean-field guide's."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from network.networks import NETWORKS

import pyro_sps as sps
from pyro_sps.data.arrays import Standardizer
from pyro_sps.diagnostics.convergence import convergence
from pyro_sps.diagnostics.density import Data
from pyro_sps.diagnostics.findings import _symmetry_warnings
from pyro_sps.diagnostics.generations import has_data_tree
from pyro_sps.diagnostics.predictive import check_predictions
from pyro_sps.model.guides import AutoSPSNormal
from pyro_sps.symmetry.report import SymmetryClass

arviz = pytest.importorskip("arviz")
NOISE = 0.5


def with_guide(fit, loc, scale):
    """The fit with a guide of given means and standard deviations."""
    guide = AutoSPSNormal(fit.bnn)
    scale = torch.as_tensor(scale, dtype=torch.float64)
    guide.adopt(fit.guide, torch.as_tensor(loc, dtype=torch.float64), scale + torch.log(-torch.expm1(-scale)))
    return replace(fit, guide=guide)


@pytest.fixture(scope="module")
def linear():
    """A linear model with orthogonal inputs: its posterior is a product of normals, which a guide can be exactly.

    Returns the fit with that guide, its means and its standard deviation.
    """
    x = torch.tensor([[a, b, a * b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)], dtype=torch.float64).repeat(4, 1)
    y = x @ torch.tensor([[1.0], [-0.5], [0.2]], dtype=torch.float64) + 0.7
    y = y + NOISE * torch.from_numpy(np.random.default_rng(0).normal(size=(16, 1)))
    net = sps.mlp([3, 1], dtype=torch.float64)
    bnn = sps.BNN(net, scheme=sps.Unmasked(), likelihood=sps.Gaussian(NOISE), prior_scale=1.0)
    fit = sps.fit(bnn, x, y, num_steps=2, standardize=False, progress=False)
    precision = 1 + 16 / NOISE**2
    features = torch.cat([x, torch.ones_like(y)], 1)
    mean = ((features.T @ y) / NOISE**2 / precision).squeeze(1)
    return with_guide(fit, mean, [precision**-0.5] * 4), mean, precision**-0.5


def test_exact_guide_has_equal_weights_whose_ratio_is_the_evidence(linear):
    fit, _, _ = linear
    found = sps.diagnose(fit, draws=200).importance[0]
    features = torch.cat([fit.x, torch.ones_like(fit.y)], 1).numpy()
    covariance = NOISE**2 * np.eye(16) + features @ features.T
    evidence = scipy.stats.multivariate_normal(np.zeros(16), covariance).logpdf(fit.y.numpy()[:, 0])
    np.testing.assert_allclose(found.log_ratios, evidence, rtol=1e-10)
    assert found.khat == -np.inf
    assert found.reading == "good"
    assert found.ess == pytest.approx(200)


def test_narrow_guide_is_far_and_wide_guide_is_near(linear):
    fit, mean, scale = linear
    narrow = sps.diagnose(with_guide(fit, mean, [0.3 * scale] * 4), draws=4000)
    assert narrow.importance[0].khat > 0.7
    assert narrow.importance[0].reading in ("bad", "very bad")
    assert any("Pareto" in warning for warning in narrow.warnings)
    # The ratios of a guide that is wider in every direction are bounded.
    wide = sps.diagnose(with_guide(fit, mean, [1.3 * scale] * 4), draws=4000)
    assert wide.importance[0].khat < 0.5
    assert wide.importance[0].reading == "good"
    assert not any("Pareto" in warning for warning in wide.warnings)


def test_corrected_expectations_are_the_posteriors(linear):
    fit, mean, scale = linear
    off = with_guide(fit, mean + 0.7 * scale, [1.4 * scale] * 4)
    found = sps.diagnose(off, draws=4000).importance[0]
    means = torch.cat([found.weight_means()[name].flatten() for name in ("0.weight", "0.bias")])
    error = scale / found.ess**0.5
    assert ((means - mean).abs() < 4 * error).all()
    assert ((means - off.guide.loc.detach()).abs() > 4 * error).all()  # and the guide's are not
    features = torch.cat([fit.x, torch.ones_like(fit.y)], 1)
    corrected = found.predictive_mean(fit.x)
    assert corrected.shape == fit.y.shape
    assert ((corrected.squeeze(1) - features @ mean).abs() < 4 * 2 * error).all()  # four weights, each ±1
    square = found.expectation(found.member.sites["0.bias"] ** 2).item()
    exact = scale**2 + mean[3].item() ** 2
    assert abs(square - exact) < 4 * 2 * abs(mean[3].item()) * error * 1.5
    with pytest.raises(ValueError, match="one row for each of 4000 draws, got 3"):
        found.expectation(torch.zeros(3))


def test_loo_is_the_closed_form_of_leaving_rows_out(linear):
    fit, _, _ = linear
    features = torch.cat([fit.x, torch.ones_like(fit.y)], 1).numpy()
    y = fit.y.numpy()[:, 0]
    exact = 0.0
    for row in range(len(y)):
        rest = np.arange(len(y)) != row
        precision = np.eye(4) + features[rest].T @ features[rest] / NOISE**2
        own = np.linalg.solve(precision, features[rest].T @ y[rest] / NOISE**2)
        spread = NOISE**2 + features[row] @ np.linalg.solve(precision, features[row])
        exact += scipy.stats.norm.logpdf(y[row], features[row] @ own, spread**0.5)
    data = fit.to_arviz(4000, groups=["posterior", "log_likelihood"])
    error = data.log_likelihood["obs"].values[0].std(0).sum() / 4000**0.5
    loo = arviz.loo(data)
    assert abs((loo.elpd if has_data_tree() else loo.elpd_loo) - exact) < 4 * error


# --- predictive checks -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(linear):
    """A guide that knows the weights, so that targets are independent given the inputs; a thousand new rows."""
    fit, mean, _ = linear
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(1000, 3)))
    center = x @ mean[:3, None] + mean[3]
    return with_guide(fit, mean, [1e-6] * 4), x, center


def noisy(center, scale, seed=2):
    return center + scale * torch.from_numpy(np.random.default_rng(seed).normal(size=center.shape))


def uniformity(pit):
    """p value of Pearson's test that PIT values are uniform."""
    return scipy.stats.chisquare(np.histogram(pit, 20, (0, 1))[0]).pvalue


def test_calibrated_predictions(known):
    fit, x, center = known
    y = noisy(center, NOISE)
    found = sps.diagnose(fit, held_out=(x, y), draws=400)
    check = found.predictive.calibration
    assert found.predictive.held_out
    assert uniformity(check.pit) > 1e-3
    np.testing.assert_allclose(check.histogram().sum(), 1)
    prediction = found.prediction
    for level, coverage, width in zip(check.levels, check.coverage, check.widths, strict=True):
        assert coverage == prediction.coverage(y, level)
        assert abs(coverage - level) < 4 * check.coverage_error(level)
        exact = 2 * NOISE * scipy.stats.norm.ppf((1 + level) / 2)
        # A quantile at p of S draws has standard error √(p(1-p)/S)/density; their mean over rows a smaller one.
        tail = (1 - level) / 2
        error = (tail * (1 - tail) / 400) ** 0.5 / scipy.stats.norm.pdf(scipy.stats.norm.ppf(tail)) * NOISE
        assert abs(width[0] - exact) < 2 * error
    assert not any("Intervals" in warning for warning in found.warnings)
    assert found.predictive.lpp == pytest.approx(prediction.lpp(y))
    assert check.rmse[0] == pytest.approx(prediction.rmse(y))


@pytest.mark.parametrize(("factor", "word"), [(1.6, "narrow"), (0.6, "wide")])
def test_miscalibrated_predictions_are_told(known, factor, word):
    fit, x, center = known
    found = sps.diagnose(fit, held_out=(x, noisy(center, factor * NOISE)), draws=400)
    assert uniformity(found.predictive.calibration.pit) < 1e-6
    assert any(f"too {word}" in warning for warning in found.warnings)
    bars = found.predictive.calibration.histogram()
    assert (bars[0] + bars[-1] > bars[4] + bars[5]) == (word == "narrow")


def test_crps_and_sharpness_are_those_of_the_normal(known):
    from scoringrules import crps_normal

    fit, x, center = known
    y = noisy(center, NOISE)
    check = check_predictions(fit.predict(x, 1000), y, True, 0).calibration
    exact = crps_normal(y.numpy(), center.numpy(), NOISE)
    # The empirical distribution of S draws adds, on average, the mean distance of two draws over 2S.
    expected = exact.mean() + NOISE / np.pi**0.5 / 1000
    assert abs(check.crps[0] - expected) < 4 * NOISE / 1000**0.5 / 1000**0.5
    assert check.std[0] == pytest.approx(NOISE, rel=1e-4)


def test_pit_of_counts_is_uniform():
    bnn = sps.BNN(sps.mlp([1, 1], dtype=torch.float64), scheme=sps.Unmasked(), likelihood=sps.Poisson())
    x = torch.zeros(1500, 1, dtype=torch.float64)
    y = torch.from_numpy(np.random.default_rng(3).poisson(1.5, (1500, 1)).astype(float))
    fit = with_guide(
        sps.fit(bnn, x, y, num_steps=2, standardize=False, progress=False), [0.0, np.log(1.5)], [1e-6, 1e-6]
    )
    check = check_predictions(fit.predict(x, 300), y, False, 0).calibration
    assert uniformity(check.pit) > 1e-3


@pytest.mark.parametrize("likelihood", [sps.Categorical(), sps.Bernoulli()])
def test_labels_leave_out_what_is_not_defined(likelihood):
    bnn = sps.BNN(sps.mlp([1, 3, 2]), scheme=sps.Unmasked(), likelihood=likelihood)
    x = torch.linspace(-1, 1, 12).unsqueeze(1)
    y = (x[:, 0] > 0).long() if isinstance(likelihood, sps.Categorical) else torch.cat([x > 0, x < 0], 1)
    found = sps.diagnose(sps.fit(bnn, x, y, num_steps=30, replicas=2, standardize=False, progress=False), draws=50)
    assert found.predictive.calibration is None
    assert 0 <= found.predictive.accuracy <= 1
    assert any("not defined for labels" in reason for reason in found.left_out)
    assert "accuracy" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


# --- convergence and replicas ----------------------------------------------------------------------


def ending(fit, elbos):
    return convergence(replace(fit, losses=-np.asarray(elbos, dtype=float)), Data(fit.x, fit.y), 0)


def test_convergence_of_a_known_history(linear):
    fit, _, _ = linear
    steps = np.arange(1000)
    falling = ending(fit, -1000 + 2.0 * steps)
    assert falling.change == pytest.approx(200)
    assert falling.converged is False
    flat = ending(fit, np.where(steps < 100, -1e4, -30.0))
    assert flat.change == 0
    assert flat.converged is True
    # Less than a hundredth of a nat for each of 16 numbers, about an ELBO of zero: no cause for alarm.
    assert ending(fit, 1e-3 * (steps - 1000)).converged is True
    assert ending(fit, steps[:10]).converged is None
    noise = 5000 * np.random.default_rng(0).normal(size=40)
    assert ending(fit, noise).converged is None  # a few per cent, which four steps cannot tell from none
    assert np.isnan(ending(fit, np.where(steps < 990, 0.0, np.nan)).change)


def test_final_elbo_and_its_standard_error(linear):
    fit, mean, scale = linear
    off = with_guide(fit, mean, [2 * scale] * 4)
    found = convergence(off, Data(fit.x, fit.y), 0)
    # ELBO = evidence - KL(q, posterior), in closed form.
    evidence = sps.diagnose(fit, draws=10).importance[0].log_ratios[0]
    kl = 4 * (0.5 * (4 - 1) - np.log(2))
    assert abs(found.elbo - (evidence - kl)) < 4 * found.standard_error
    assert found.elbo == pytest.approx(off.elbo)


def test_scatter_beyond_the_noise_of_the_draws_is_unstable(linear):
    fit, mean, scale = linear
    fit = with_guide(fit, mean, [2 * scale] * 4)
    single = convergence(fit, Data(fit.x, fit.y), 0).standard_error * 256**0.5
    noise = np.random.default_rng(5).normal(size=2000) * single / fit.settings["num_particles"] ** 0.5
    calm, wild = ending(fit, noise), ending(fit, 20 * noise)
    # The scatter of 200 losses is known to 5 %, that of 256 draws to a few.
    assert calm.spread == pytest.approx(1, abs=0.3)
    assert calm.stable is True
    assert wild.stable is False
    found = sps.diagnose(replace(fit, losses=-20 * noise), draws=20)
    assert any("unstable" in warning and "lower learning rate" in warning for warning in found.warnings)


def test_minibatches_scatter_for_other_reasons(linear):
    fit, _, _ = linear
    fit = replace(fit, settings={**fit.settings, "batch_size": 4})
    assert ending(fit, np.random.default_rng(0).normal(size=100)).stable is None


@pytest.fixture(scope="module")
def copies():
    """A fit of a tanh network, and its copy with the signs of two hidden units flipped."""
    x = torch.linspace(-2, 2, 30, dtype=torch.float64).unsqueeze(1)
    bnn = sps.BNN(sps.mlp([1, 2, 1], dtype=torch.float64), scheme=sps.Unmasked(), likelihood=sps.Gaussian(0.1))
    fit = sps.fit(bnn, x, x.sin(), num_steps=400, num_particles=4, standardize=False, progress=False)
    loc, scale = (value.detach() for value in fit.guide.parameters_of_sites())
    sign = torch.ones_like(loc)
    for site in fit.guide.sites:
        if site.name != "2.bias":
            sign[site.start : site.stop] = -1
    return [fit, with_guide(fit, sign * loc, scale)]


def test_copies_of_a_mode_differ_in_weights_but_not_in_function(copies):
    found = sps.diagnose(copies, draws=200)
    weights, predictions = found.replicas.medians
    assert weights > 1.5
    assert predictions < 1.05
    assert found.replicas.gap == pytest.approx(weights - predictions)
    assert found.replicas.prediction_spread < 0.3  # two means of 200 draws differ by 0.1 of their spread
    assert any("several modes that are the same function" in warning for warning in found.warnings)
    closed = sps.diagnose([copies[0], copies[0]], draws=200)
    assert max(closed.replicas.medians) < 1.05
    assert not any("several modes" in warning for warning in closed.warnings)


def test_rhat_is_that_of_arviz(copies):
    found = sps.diagnose(copies, draws=200)
    values = [
        torch.cat([one.member.sites[site.name] for site in copies[0].guide.sites], 1).numpy()
        for one in found.importance
    ]
    expected = arviz.rhat(arviz.convert_to_dataset({"w": np.stack(values)}))["w"].values
    np.testing.assert_allclose(found.replicas.rhat_weights, expected)
    functions = [
        one.member.bnn.function(one.member.bnn.assemble(one.member.sites), copies[0].x) for one in found.importance
    ]
    expected = arviz.rhat(arviz.convert_to_dataset({"f": torch.stack(functions)[..., 0].detach().numpy()}))["f"].values
    np.testing.assert_allclose(found.replicas.rhat_predictions, expected)


def test_replicas_that_predict_differently_are_told(copies):
    fit = copies[0]
    loc, scale = (value.detach() for value in fit.guide.parameters_of_sites())
    other = with_guide(fit, loc + 5 * scale, scale)
    found = sps.diagnose([fit, other], draws=100)
    assert found.replicas.prediction_spread > 1
    assert any("differ in what they predict" in warning for warning in found.warnings)


# --- warnings and the rest -------------------------------------------------------------------------


def test_symmetries_left_are_told():
    x = torch.linspace(-1, 1, 10).unsqueeze(1)

    def warnings(activation, **options):
        bnn = sps.BNN(sps.mlp([1, 4, 4, 1], activation), **options)
        found = sps.diagnose(sps.fit(bnn, x, x, num_steps=2, standardize=False, progress=False), draws=20)
        return [warning for warning in found.warnings if "left" in warning.split(":")[0]]

    assert "147,456 signed permutations" in warnings("tanh", scheme=sps.Unmasked())[0]  # (2^4 4!)^2
    assert warnings("tanh", scheme=sps.Rigid(signs=True), values=sps.Constant(1.0)) == []
    scalings = warnings("relu", scheme=sps.Unmasked())
    assert "576 permutations" in scalings[0]
    assert "in 8 dimensions" in scalings[1]


def test_what_else_is_left_of_symmetries_is_told_by_its_name():
    """No number of an undetermined class; linear maps are no rescalings; a sign that is not counted has a name."""
    net = NETWORKS["residual gain"][0]()
    report = sps.BNN(net, sps.Rigid(signs=True), sps.Constant(1.0), example=torch.randn(2, 3)).symmetry()
    assert _symmetry_warnings(report) == []
    (told,) = _symmetry_warnings(replace(report, uncounted=("gain",)))
    assert told.startswith("The sign of gain is left")
    maps = SymmetryClass("linear maps", 9, 4, "")
    late = SymmetryClass("signed permutations", None, None, "not determined in time")
    told = _symmetry_warnings(replace(report, linear_maps=maps, signed_permutations=late))
    assert [text.split(",")[0].split(";")[0] for text in told] == [
        "It was not determined in time whether symmetries are left",
        "Linear maps of hidden units are left",
    ]


def test_worse_than_the_baseline(known):
    fit, x, center = known
    y = noisy(center, NOISE)
    worse = with_guide(fit, fit.guide.loc.detach() + 0.5, [1e-6] * 4)
    found = sps.diagnose(worse, held_out=(x, y), baseline=fit, draws=50)
    exact = scipy.stats.norm.logpdf(y.numpy(), center.numpy(), NOISE).mean()
    assert found.baseline.lpp == pytest.approx(exact, abs=1e-4)
    assert found.baseline.difference == pytest.approx(found.predictive.lpp - exact, abs=1e-4)
    assert any("worse than the baseline" in warning for warning in found.warnings)
    # One that is worse by less than the noise of the comparison is not told.
    close = with_guide(fit, fit.guide.loc.detach() + torch.tensor([0.0, 0.0, 0.0, 1e-3]), [1e-6] * 4)
    for other in (worse, close, None):
        better = sps.diagnose(fit, held_out=(x, y), baseline=other, draws=50)
        assert not any("baseline" in warning for warning in better.warnings)


def test_loaded_fits(linear, tmp_path):
    fit, _, _ = linear
    fit.save(tmp_path)
    loaded = sps.load(tmp_path, sps.mlp([3, 1], dtype=torch.float64))
    with pytest.raises(ValueError, match="holds no training data"):
        sps.diagnose(loaded)
    whole = sps.diagnose(loaded, fit.x, fit.y, draws=50)
    assert whole.to_dict()["elbo"] == pytest.approx(sps.diagnose(fit, draws=50).to_dict()["elbo"])
    part = sps.diagnose(loaded, held_out=(fit.x, fit.y), draws=50)
    assert part.importance == ()
    assert any("need the training data" in reason for reason in part.left_out)
    assert part.predictive.lpp == pytest.approx(whole.predictive.lpp)
    json.dumps(part.to_dict(), allow_nan=False)


def test_standardised_and_plain_units_agree(linear):
    """Importance ratios do not depend on the units; densities of targets do, by the scale."""
    plain, _, _ = linear
    scaling = Standardizer(*(torch.full((1,), value, dtype=torch.float64) for value in (3.0, 2.0, -1.0, 4.0)))
    scaled = replace(plain, standardizer=scaling)
    one, other = sps.diagnose(plain, draws=100), sps.diagnose(scaled, draws=100)
    shift = 16 * np.log(4)
    np.testing.assert_allclose(other.importance[0].log_ratios, one.importance[0].log_ratios - shift)
    assert other.predictive.lpp == pytest.approx(one.predictive.lpp - np.log(4))
    np.testing.assert_allclose(other.predictive.calibration.crps, 4 * one.predictive.calibration.crps)
    assert other.convergence[0].elbo == pytest.approx(one.convergence[0].elbo)


def test_same_seed_same_numbers_and_report(linear):
    fit, _, _ = linear
    state = torch.get_rng_state()
    one, same, other = (sps.diagnose(fit, draws=50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.to_dict() == same.to_dict() != other.to_dict()
    text = str(one)
    assert text == str(same)
    for part in ("A fit of a 3-1 network", "Pareto k", "Predictions for 16 training rows (which is no test)", "R-hat"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120


def test_bad_arguments(linear):
    fit, _, _ = linear
    for call, message in [
        (lambda: sps.diagnose(fit, draws=5), "draws must be an integer of at least 10, got 5"),
        (lambda: sps.diagnose(fit, held_out=fit.x), r"held_out must be a pair \(x, y\)"),
        (lambda: sps.diagnose(fit, held_out=(fit.x, fit.y[:3])), "held_out y must have as many rows as x, 16, got 3"),
        (lambda: sps.diagnose(fit, fit.x), "given together, got x alone"),
        (lambda: sps.diagnose(fit, seed=-1), "seed must be a non-negative integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
