"""What would take for ever is refused or estimated, with its error."""

import math

import pytest
import torch

import pyro_sps as sps
from pyro_sps.posterior import fit as fits


@pytest.fixture(scope="module")
def fitted():
    x = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    y = x.sum(1, keepdim=True).sin() + 0.3 * x[:, :1] ** 2
    return sps.fit(sps.BNN(sps.mlp([2, 4, 1]), sps.Unmasked(), sps.Zero()), x, y, num_steps=30, progress=False), x


def test_the_elbo_of_many_rows_is_estimated_within_its_error(fitted, monkeypatch):
    fit, _ = fitted
    exact = fit.elbo_draws(256).mean().item()
    assert fit.elbo == exact  # of few rows it is what it was
    monkeypatch.setattr(fits, "ELBO_ROWS", 400)
    errors = []
    for seed in range(12):  # of the rows that stand for all
        monkeypatch.setattr(
            fits, "make_generator", lambda device, *key, _s=seed: torch.Generator(device).manual_seed(_s)
        )
        vars(fit).pop("_elbo", None)
        estimate, error = fit._elbo
        assert 0 < error < abs(exact)
        errors.append((estimate - exact) / error)
    # Independent standard normals, nearly: the mean square of 12 is below 2.8 with probability 0.999.
    assert sum(error**2 for error in errors) / len(errors) < 2.8
    vars(fit).pop("_elbo", None)


def test_more_draws_than_tell_anything_are_refused(fitted):
    fit, x = fitted
    with pytest.raises(ValueError, match="num_samples must be at most 1,000,000, got 1,000,000,000: means over draws"):
        fit.predict(x, num_samples=10**9)


def test_the_error_of_a_small_elbo_is_that_of_its_draws(fitted):
    fit, _ = fitted
    draws = fit.elbo_draws(256)
    assert fit.elbo_error == pytest.approx(draws.std().item() / math.sqrt(256))
