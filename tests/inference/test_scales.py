"""Data far from the scales that priors are made for, and a noise in other units, are told."""

import warnings

import pytest
import torch

import pyro_sps as sps

X = torch.linspace(-1, 1, 60).reshape(-1, 1)
LONG = X.repeat(20, 1)


def fit(x, y, likelihood=None, **options):
    bnn = sps.BNN(sps.mlp([x.shape[1], 4, 1]), sps.Unmasked(), sps.Zero(), likelihood)
    return sps.fit(bnn, x, y, num_steps=1, progress=False, **options)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (X + 2000, X, "column 0 of x is large, of size 2e"),
        (X, 1e5 + 1e4 * X, "column 0 of y is large, of size 1e"),
        (X, 0.001 * X, "column 0 of y is small, at most 0.001"),
        (
            torch.cat([LONG, 100 * X[-1:]]),
            torch.cat([LONG, X[:1]]),
            "column 0 of x is dominated by outliers, up to 100",
        ),
    ],
)
def test_data_that_is_not_scaled_is_told(x, y, words):
    with pytest.warns(UserWarning, match=f"{words}.*use standardize=True"):
        fit(x, y, sps.Gaussian(0.5), standardize=False)


def test_an_outlier_that_scaling_does_not_help_is_told():
    x = torch.cat([LONG, torch.tensor([[1e4]])])
    with pytest.warns(UserWarning, match="column 0 of x is dominated by outliers.*transform or clip it"):
        fit(x, torch.cat([LONG, X[:1]]))


@pytest.mark.parametrize(("factor", "shown"), [(10.0, 0.587), (0.1, 0.00587)])
def test_a_given_noise_counts_in_standardised_units_and_that_is_told(factor, shown):
    """The standard deviation of 60 numbers from -1 to 1 is 0.587; of `factor` times these, factor times that."""
    with pytest.warns(UserWarning, match=rf"noise of 0\.1 counts in units of the stan.*is {shown}\d* in those of y"):
        fit(X, factor * X, sps.Gaussian(0.1))


@pytest.mark.parametrize("likelihood", [sps.Gaussian(0.1), sps.Gaussian(0.1, learn=True)])
def test_ordinary_data_is_not_warned_of(likelihood):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(X, X, likelihood)
        fit(X, 0.5 * X, sps.Gaussian(0.1), standardize=False)
