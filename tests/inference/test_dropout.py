"""Dropout at its usual work: in fits, in predictions, in files, and where it has no place."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive
from torch import nn

import pyro_sps as sps

RATE, NOISE, PRIOR = 0.3, 0.5, 0.8
X = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([[1.0], [-0.5], [0.2]], dtype=torch.float64)


def linear(dropout="train", **options):
    """A linear model whose inputs are dropped."""
    net = nn.Sequential(nn.Dropout(RATE), nn.Linear(3, 1, bias=False)).double()
    return sps.BNN(
        net,
        sps.Unmasked(),
        sps.Zero(),
        sps.Gaussian(NOISE),
        prior_scale=PRIOR,
        scale_by_fan_in=False,
        example=X[:2],
        dropout=dropout,
        **options,
    )


def hidden(dropout="train", scheme=None):
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(RATE), nn.Linear(6, 1)).double()
    return sps.BNN(net, scheme or sps.Unmasked(), sps.Zero(), dropout=dropout)


QUICK = {"num_steps": 40, "num_particles": 3, "batch_size": 10, "progress": False}


def precision():
    """Of the exact optimum: E|y − Xz w|² over masks is |y − Xw|² + p/(1−p) Σ (x_i w_i)² (Wager et al. 2013, 2)."""
    gram = X.T @ X
    return (gram + RATE / (1 - RATE) * gram.diag().diag()) / NOISE**2 + torch.eye(3, dtype=X.dtype) / PRIOR**2


def test_a_linear_model_has_the_closed_form():
    fit = sps.fit(
        linear(),
        X,
        Y,
        num_steps=2000,
        num_particles=8,
        batch_size=15,
        learning_rate=0.02,
        final_learning_rate=0.002,
        average_steps=1000,
        standardize=False,
        progress=False,
    )
    loc, scale = fit.guide.parameters_of_sites()
    mean = torch.linalg.solve(precision(), X.T @ Y).flatten() / NOISE**2
    # Without the masks' penalty it is 4 to 5 times as far away as this.
    torch.testing.assert_close(loc, mean, atol=0.01, rtol=0)
    torch.testing.assert_close(scale, precision().diag().rsqrt(), atol=0, rtol=0.05)


def test_a_map_estimate_has_it_too():
    found = sps.map_estimate(
        linear(), X, Y, num_steps=2500, learning_rate=0.02, batch_size=None, standardize=False, progress=False
    )
    mean = torch.linalg.solve(precision(), X.T @ Y).T / NOISE**2
    torch.testing.assert_close(found["1.weight"], mean, atol=0.03, rtol=0)


def test_predictions_are_made_with_masks_only_on_request():
    draws = 20_000
    for dropout, extra in (("train", 1.0), ("always", 1 / (1 - RATE))):
        fit = sps.fit(linear(dropout), X, Y, num_steps=20, standardize=False, progress=False)
        loc, scale = fit.guide.parameters_of_sites()
        found = fit.predict(X[:5], draws, seed=2).function_draws[..., 0]
        variance = X[:5].square() @ ((loc.square() + scale.square()) * extra - loc.square())
        centred = (found - X[:5] @ loc).square()
        assert ((centred.mean(0) - variance).abs() <= 5 * centred.std(0) / math.sqrt(draws)).all()


OPTIONS = [
    {"optimizer": "ivon"},
    pytest.param({"init": "map", "map_steps": 30}, marks=pytest.mark.slow),
    pytest.param({"compile": True}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_fit_is_repeated_by_its_seed_and_every_step_has_masks_of_its_own(options):
    bnn = hidden("always")
    state = torch.get_rng_state()
    first, again = (sps.fit(bnn, X, Y, **QUICK, **options) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.mode == ("compiled" if "compile" in options else "recorded")
    assert (first.losses == again.losses).all()
    without = sps.fit(hidden("ignore"), X, Y, **QUICK, **options)
    ratio = first.losses / without.losses
    assert len(set(ratio.round(6))) == len(ratio)
    prediction = first.predict(X, 20, seed=1)
    assert torch.equal(prediction.draws, again.predict(X, 20, seed=1).draws)
    assert not torch.equal(prediction.function_draws, first.predict(X, 20, seed=2).function_draws)


def test_replicas_are_the_fits_of_their_seeds():
    fits = sps.fit(hidden(), X, Y, **QUICK, replicas=2, seed=4)
    for index, one in enumerate(fits):
        alone = sps.fit(hidden(), X, Y, **QUICK, seed=4 + index)
        torch.testing.assert_close(torch.tensor(one.losses), torch.tensor(alone.losses))


def test_a_fit_goes_on_from_a_checkpoint_and_from_a_file(tmp_path):
    whole = sps.fit(hidden("always"), X, Y, **QUICK)
    options = {**QUICK, "checkpoint": tmp_path / "run", "checkpoint_every": 5}

    def crash(step, losses):
        if step == 17:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        sps.fit(hidden("always"), X, Y, **options, callbacks=[crash])
    resumed = sps.resume(tmp_path / "run", hidden("always"), X, Y, progress=False)
    assert (resumed.losses == whole.losses).all()
    with pytest.raises(sps.LoadError, match=r"likelihoods differ.*dropout='always'"):
        sps.resume(tmp_path / "run", hidden("ignore"), X, Y, progress=False)
    whole.save(tmp_path / "fit")
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(RATE), nn.Linear(6, 1)).double()
    again = sps.load(tmp_path / "fit", net)
    assert again.bnn.dropout == "always"
    assert torch.equal(again.predict(X, 20, seed=3).draws, whole.predict(X, 20, seed=3).draws)
    net[2].p = 0.4
    with pytest.raises(sps.LoadError, match=r"dropout of rates \[0.4\], the saved one of \[0.3\]"):
        sps.load(tmp_path / "fit", net)


def test_a_plain_pyro_model_follows_its_mode():
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        bnn = linear()
        guide = sps.AutoSPSNormal(bnn)
        svi = SVI(bnn, guide, pyro.optim.Adam({"lr": 0.01}), sps.MeanFieldELBO(4))
        losses = [svi.evaluate_loss(X, Y) for _ in range(2)]
        assert losses[0] != losses[1]
        assert math.isfinite(svi.step(X, Y))
        weights = {"1.weight": torch.ones(50, 1, 3, dtype=X.dtype)}
        for training in (True, False):
            bnn.train(training)
            outputs = Predictive(bnn, {"1.weight": weights["1.weight"]}, return_sites=["_RETURN"])(X)["_RETURN"]
            assert (outputs.std(0) > 0).all() == training


@pytest.mark.parametrize("kernel", ["mclmc", "nuts"])
def test_samplers_refuse_it(kernel):
    with pytest.raises(ValueError, match="sample needs one density, but with BNN\\(dropout='train'\\)"):
        sps.sample(linear(), X, Y, kernel=kernel, progress=False)


def test_what_cannot_be_done_names_the_argument():
    with pytest.raises(ValueError, match="dropout must be one of 'ignore', 'train', 'always', got True"):
        linear(True)
    with pytest.raises(ValueError, match=r"accumulate must be 1 with BNN\(dropout='train'\), got 2"):
        sps.fit(hidden(), X, Y, **QUICK, accumulate=2)
    with pytest.raises(ValueError, match="gradient is that of a network without masks"):
        sps.fit(hidden("always"), X, Y, **QUICK).predict(X).gradient()
