"""Errors say what was wrong, where, and what to do next."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_sps as sps
from pyro_sps.model.likelihoods import Likelihood

X = torch.linspace(-1, 1, 20).reshape(-1, 1)
QUICK = {"num_steps": 1, "progress": False}


def small(likelihood=None, outputs=1, **options):
    return sps.BNN(sps.mlp([1, 3, outputs]), sps.Unmasked(), sps.Zero(), likelihood, **options)


class PerRow(Likelihood):
    """A known noise for each row of the data."""

    def elementwise(self, outputs):
        return dist.Normal(outputs, torch.full((20, 1), 0.1))


@pytest.mark.parametrize("values", [sps.Zero(), sps.MAP(num_steps=2)])
def test_a_noise_for_each_row_needs_all_rows(values):
    bnn = sps.BNN(
        sps.mlp([1, 3, 1]), sps.Random(like=0.5) if values != sps.Zero() else sps.Unmasked(), values, PerRow()
    )
    with pytest.raises(ValueError, match=r"something for each of the 20 rows.*a step sees 7 of them.*batch_size=None"):
        sps.fit(bnn, X, X, batch_size=7, **QUICK)
    assert sps.fit(bnn, X, X, batch_size=None, **QUICK).losses.shape == (1,)


def test_a_flag_of_forward_is_no_second_input():
    class Flagged(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x, flag=False):
            return self.layer(x)

    net = Flagged()
    bnn = sps.BNN(net, sps.Unmasked(), sps.Zero())  # which leaves the flag at its default
    x = torch.ones(2, 1)
    torch.testing.assert_close(bnn.function(dict(net.named_parameters()), x), net(x))


def test_labels():
    with pytest.raises(ValueError, match="Categorical needs an output for each class, but the network has 1"):
        sps.fit(small(sps.Categorical()), X, torch.zeros(20), **QUICK)
    with pytest.raises(ValueError, match="y must hold labels from 0 to 2, got 1 to 3: subtract 1"):
        sps.fit(small(sps.Categorical(), 3), X, torch.arange(20) % 3 + 1, **QUICK)
    with pytest.raises(ValueError, match="y must hold zeros and ones, got 1 and 2: use y == 2 instead"):
        sps.fit(small(sps.Bernoulli()), X, torch.arange(20) % 2 + 1, **QUICK)
    with pytest.raises(ValueError, match="y must hold zeros and ones, got -1 and 1: use y == 1 instead"):
        sps.fit(small(sps.Bernoulli()), X, torch.arange(20) % 2 * 2 - 1, **QUICK)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "NaN or infinity in row 3 of column 'age': drop such rows or fill them"),
        ("old", "got 'old' in row 3 of column 'age': encode it as numbers"),
        (None, "in row 3 of column 'age': drop such rows or fill them"),
    ],
)
def test_errors_of_tables_name_the_column(value, words):
    table = pd.DataFrame({"size": np.arange(20.0), "age": pd.Series(np.arange(20.0), dtype=object)})
    table.loc[3, "age"] = value
    if isinstance(value, float):
        table = table.astype(float)
    with pytest.raises((ValueError, TypeError), match=words):
        sps.fit(sps.BNN(sps.mlp([2, 3, 1]), sps.Unmasked(), sps.Zero()), table, X, **QUICK)


def test_accuracy_and_labels_of_a_likelihood_of_ones_own():
    class Mine(sps.Bernoulli):
        pass

    fit = sps.fit(small(Mine()), X, torch.arange(20) % 2, **QUICK)
    assert 0 <= fit.predict(X, 9).accuracy(torch.arange(20) % 2) <= 1
    assert sps.diagnose(fit, draws=20).predictive.accuracy is not None


def test_one_row_has_no_standard_error():
    found = sps.diagnose(sps.fit(small(), X, X, **QUICK), held_out=(X[:1], X[:1]), draws=20)
    assert "one row has no standard error" in str(found)
    assert "nan" not in str(found)


def test_a_model_is_no_prior():
    bnn = sps.BNN(sps.mlp([1, 3, 1]), sps.Unmasked())
    with pytest.raises(TypeError, match=r"prior must be .* got a BNN; the model that Fit.as_prior\(\) gives has"):
        sps.BNN(sps.mlp([1, 3, 1]), sps.Unmasked(), prior=bnn)
