"""Options that would have no effect, and values that no option can have, are named before any work."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import pyro_sps as sps

X = torch.linspace(-1, 1, 20).reshape(-1, 1)
Y = X.square()
QUICK = {"num_steps": 2, "num_particles": 1, "progress": False}


def small(**options):
    return sps.BNN(sps.mlp([1, 3, 1]), **{"scheme": sps.Unmasked(), "values": sps.Zero(), **options})


def no_work(*_):
    raise AssertionError("work was done")


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ({}, {"patience": 3}, "patience has no effect without validation"),
        ({}, {"validate_every": 3}, "validate_every has no effect without validation"),
        ({}, {"standardize": None}, "standardize must be True or False, got None"),
        ({}, {"progress": None}, "progress must be True or False, got None"),
        ({}, {"compile": "fast"}, "compile must be True or False, got 'fast'"),
        ({}, {"max_grad_norm": None}, "max_grad_norm must be a positive finite number"),
        ({}, {"max_grad_norm": math.nan}, "max_grad_norm must be a positive finite number"),
        ({}, {"max_grad_norm": -math.inf}, "max_grad_norm must be a positive finite number"),
        ({}, {"callbacks": None}, "callbacks must be a list of functions"),
        ({}, {"callbacks": [3]}, "callbacks must be a list of functions"),
        ({}, {"callbacks": no_work}, "callbacks must be a list of functions"),
    ],
)
def test_fit(monkeypatch, model, options, words):
    from pyro_sps.inference import loop

    monkeypatch.setattr(loop.Run, "__post_init__", no_work)
    with pytest.raises((ValueError, TypeError), match=words):
        sps.fit(small(**model), X, Y, **{**QUICK, **options})


@pytest.mark.parametrize(
    ("model", "init", "words"),
    [
        ({}, None, "use init='map'"),
        ({"scheme": sps.Random(like=0.5), "values": sps.MAP(num_steps=2)}, None, r"values=MAP\(num_steps=...\)"),
        ({"scheme": sps.Random(like=0.5), "values": sps.MAP(num_steps=2)}, "map", r"values=MAP\(num_steps=...\)"),
    ],
)
def test_steps_of_no_search(model, init, words):
    with pytest.warns(UserWarning, match=f"map_steps has no effect.*{words}"):
        fit = sps.fit(small(**model), X, Y, map_steps=2, init=init, **QUICK)
    if model:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sps.fit(fit.bnn, X, Y, map_steps=2, **QUICK)  # a search of the masked model, from known constants


@pytest.mark.parametrize("option", [{"checkpoint_every": 3}, {"checkpoint_errors": "stop"}])
def test_checkpoints(option):
    with pytest.warns(UserWarning, match="has no effect without checkpoint") as caught:
        sps.fit(small(), X, Y, **QUICK, **option)
    assert caught[0].filename == __file__


def test_every_option_that_may_be_none_may_be():
    """And no other: what an option cannot be is told before the first step, whatever it is."""
    from pyro_sps.inference.settings import FitSettings

    allowed = {name for name in FitSettings.names() if getattr(FitSettings, name) is None} | {"batch_size"}
    for name in FitSettings.names():
        if name in allowed:
            FitSettings(**{name: None})
        else:
            with pytest.raises(ValueError, match=f"{name} must be"):
                FitSettings(**{name: None})


def test_map_estimate():
    with pytest.raises(ValueError, match="noise_share has no effect without rows held out"):
        sps.map_estimate(small(), X, Y, noise_share=0.3, progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"prior": torch.distributions.Normal(0.0, 1.0), "prior_scale": 2.0},
            "have no effect with a prior of your own",
        ),
        ({"prior": torch.distributions.Normal(0.0, 1.0), "scale_by_fan_in": True}, "have no effect with a prior"),
        ({"scale_by_fan_in": True}, "scale_by_fan_in has no effect without prior_scale"),
    ],
)
def test_bnn(options, words):
    with pytest.raises(ValueError, match=words):
        small(**options)


@pytest.mark.parametrize(
    ("large", "dtype"),
    [(math.inf, torch.float64), (1e39, torch.float32), (np.float64(1e300), torch.bfloat16), (10**30, torch.float32)],
)
def test_a_bound_of_gradients_beyond_the_dtype_means_none(large, dtype):
    def losses(bound):
        bnn = sps.BNN(sps.mlp([1, 3, 1], dtype=dtype), sps.Unmasked(), sps.Zero())
        return sps.fit(bnn, X, Y, **{**QUICK, "num_steps": 5}, max_grad_norm=bound).losses

    np.testing.assert_allclose(losses(large), losses(1e30), rtol=4 * torch.finfo(dtype).eps)


# --- networks that do what the likelihood does ------------------------------------------------------


def ending(last, outputs=1):
    return nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, outputs), *([last] if last else []))


class Functional(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.layer, self.last = nn.Linear(1, 1), last

    def forward(self, x):
        return self.last(self.layer(x))


@pytest.mark.parametrize(
    ("net", "likelihood", "words"),
    [
        (ending(nn.Sigmoid()), sps.Bernoulli(), "ends in Sigmoid, but Bernoulli takes its outputs as logits"),
        (Functional(torch.sigmoid), sps.Bernoulli(), "ends in sigmoid, but Bernoulli"),
        (Functional(lambda x: x.sigmoid()), sps.Bernoulli(), "ends in sigmoid, but Bernoulli"),
        (ending(nn.ReLU()), sps.Bernoulli(), "ends in ReLU, but Bernoulli"),
        (ending(nn.Sigmoid(), 3), sps.Categorical(), "ends in Sigmoid, but Categorical"),
        (ending(nn.Softplus()), sps.Poisson(), "ends in Softplus, but Poisson takes its outputs as log rates"),
        (Functional(torch.exp), sps.Poisson(), "ends in exp, but Poisson"),
    ],
)
def test_squashing_twice_is_told(net, likelihood, words):
    with pytest.warns(UserWarning, match=words):
        sps.BNN(net, sps.Unmasked(), sps.Zero(), likelihood)


@pytest.mark.filterwarnings("error::UserWarning")
def test_what_squashes_once_is_not():
    warnings.filterwarnings("ignore", message="the fit seems to underfit")  # after so few steps
    for likelihood, outputs in ((sps.Bernoulli(), 1), (sps.Categorical(), 3), (sps.Poisson(), 1)):
        sps.BNN(ending(None, outputs), sps.Unmasked(), sps.Zero(), likelihood)
    bnn = sps.BNN(ending(nn.Sigmoid()), sps.Unmasked(), sps.Zero())
    sps.fit(bnn, X, X.sigmoid(), standardize=False, **QUICK)  # targets within its limits
    sps.fit(sps.BNN(ending(nn.LeakyReLU()), sps.Unmasked(), sps.Zero()), X, Y, **QUICK)
    sps.fit(sps.BNN(ending(None), sps.Unmasked(), sps.Zero()), X, Y, **QUICK)


def test_outputs_with_limits_cannot_reach_standardised_targets():
    with pytest.warns(UserWarning, match="ends in Sigmoid, which limits its outputs, but the targets are standardised"):
        sps.fit(sps.BNN(ending(nn.Sigmoid()), sps.Unmasked(), sps.Zero()), X, X.sigmoid(), **QUICK)
