"""A fit that leaves in its noise what can be predicted says so; a good one does not."""

import warnings
from dataclasses import replace

import pytest
import torch

import pyro_sps as sps
from pyro_sps.inference.underfit import _deviation, _residuals, warn_of_underfit


def table(rows, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + noise * torch.randn(rows, 1, generator=generator)


def with_noise(x, y, scale):
    """A fit whose learned noise is set, in standard deviations of the targets."""
    return sps.fit(linear_net(scale), x, y, num_steps=1, learning_rate=1e-9, progress=False)


def test_a_small_linear_table_is_told():
    """The default on 50 rows with a noise of 0.1: a learned noise of more than half of the targets' scale."""
    x, y = table(50, 0.1)
    with pytest.warns(UserWarning, match=r"seems to underfit.*a linear model leaves 0\.0.*Try") as caught:
        with_noise(x, y, 0.9)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("rows", "noise", "scale"), [(50, 0.1, 0.05), (50, 3.0, 0.8), (8, 0.1, 0.9), (500, 1.5, 0.6)])
def test_good_fits_are_left_alone(rows, noise, scale):
    x, y = table(rows, noise)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with_noise(x, y, scale)


def test_what_the_network_itself_predicts_is_told():
    x = torch.linspace(-3, 3, 200).reshape(-1, 1)
    y = (3 * x).cos()  # of which a line explains nothing
    bnn = sps.BNN(sps.mlp([1, 3, 1]), sps.Unmasked(), sps.Zero(), sps.Gaussian(0.9, learn=True))
    fit = sps.fit(bnn, x, y, num_steps=1, learning_rate=1e-9, progress=False)
    with torch.no_grad():
        fit.guide.scale_unconstrained.fill_(-20.0)
    own = fit.predict(x, 3).mean
    known = replace(fit, y=fit.standardizer.targets(own) / fit.standardizer.targets(own).std())
    known.bnn.likelihood.scale = torch.tensor(0.9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_underfit(known)
    left = (fit.standardizer.targets(own) - known.y).square().mean().sqrt()
    assert bool(caught) == bool(left < 0.3)


def test_held_out_rows_are_what_is_looked_at():
    """A line that the network has not found, on rows that no step saw; not where the line fits by chance alone."""
    x, y = table(60, 0.1)
    fit = sps.fit(linear_net(0.9), x[:40], y[:40], validation=(x[40:], y[40:]), num_steps=1, progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_underfit(fit, (x[40:], y[40:]))
        warn_of_underfit(fit, (x[40:], 50 * torch.randn(20, 1, generator=torch.Generator().manual_seed(1))))
    assert len(caught) == 1
    assert "a linear model leaves 0.0" in str(caught[0].message)


def test_worse_than_a_line_on_held_out_rows_is_told_for_any_noise():
    x, y = table(200, 0.1)
    bnn = sps.BNN(sps.mlp([3, 8, 1]), sps.Unmasked(), sps.Zero(), sps.Gaussian(0.5))
    with pytest.warns(UserWarning, match="worse than a linear model: its error is.*that of the line 0.0"):
        sps.fit(bnn, x[:100], y[:100], validation=(x[100:], y[100:]), num_steps=1, learning_rate=1e-9, progress=False)


def linear_net(scale):
    return sps.BNN(sps.mlp([3, 8, 1]), sps.Unmasked(), sps.Zero(), sps.Gaussian(scale, learn=True))


def test_least_squares_are_those_of_torch():
    x, y = table(40, 0.5)
    design = torch.cat([x, torch.ones(40, 1)], 1).double()
    residual = torch.linalg.lstsq(design, y.double(), driver="gels").residuals
    rows = x.double(), y.double()
    torch.testing.assert_close(_deviation(_residuals(rows, rows), 4), (residual / 36).sqrt())
