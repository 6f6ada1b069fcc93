"""Names of columns and rows: put right where that is possible, refused where it is not, never ignored."""

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import pyro_sps as sps
from pyro_sps.data.names import column_names

QUICK = {"num_steps": 3, "num_particles": 1, "progress": False}
GENERATOR = np.random.default_rng(0)
X = pd.DataFrame(GENERATOR.normal(size=(20, 3)) * [1, 10, 100], columns=["a", "b", "c"])
Y = pd.DataFrame({"u": X["a"] * 2, "v": X["c"] - 5})
NET = sps.mlp([3, 4, 2])


def bnn():
    return sps.BNN(NET, sps.Unmasked(), sps.Zero())


@pytest.fixture(scope="module")
def fit():
    return sps.fit(bnn(), X, Y, **QUICK)


def test_names_are_remembered_and_saved(fit, tmp_path):
    assert fit.features == ("a", "b", "c")
    assert fit.targets == ("u", "v")
    fit.save(tmp_path)
    again = sps.load(tmp_path, NET)
    assert (again.features, again.targets) == (fit.features, fit.targets)
    assert sps.fit(bnn(), X.to_numpy(), Y.to_numpy(), **QUICK).features is None


@pytest.mark.parametrize("kind", [pd.DataFrame, pa.Table.from_pandas], ids=["pandas", "pyarrow"])
def test_columns_in_another_order_are_put_right(fit, tmp_path, kind):
    fit.save(tmp_path)
    fits = sps.fit(bnn(), X, Y, replicas=2, **QUICK)
    other_x, other_y = kind(X[["c", "a", "b"]]), kind(Y[["v", "u"]])
    for one in (fit, sps.load(tmp_path, NET), fits):
        straight, turned = one.predict(X, 20), one.predict(other_x, 20)
        assert torch.equal(straight.mean, turned.mean)
        assert straight.rmse(Y) == turned.rmse(other_y)
        assert turned.lpp(other_y) == straight.lpp(Y)
    valid = sps.fit(bnn(), X, Y, validation=(other_x, other_y), validate_every=1, **QUICK)
    assert valid.validation == sps.fit(bnn(), X, Y, validation=(X, Y), validate_every=1, **QUICK).validation
    own = sps.diagnose(fit, held_out=(X, Y), draws=20).predictive.lpp
    assert sps.diagnose(fit, held_out=(other_x, other_y), draws=20).predictive.lpp == own


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.rename(columns={"b": "d"}), r"\['b'\] are missing; \['d'\] are unknown"),
        (lambda x: x[["a", "b"]], r"\['c'\] are missing"),
        (lambda x: x.assign(d=1.0), r"\['d'\] are unknown, drop them"),
        (lambda x: x[["a", "a", "c"]], "come twice"),
    ],
)
def test_columns_that_are_others_are_refused(fit, change, words):
    with pytest.raises(ValueError, match=words):
        fit.predict(change(X))
    with pytest.raises(ValueError, match=r"must have the columns.*\['u'\] are missing"):
        fit.predict(X).rmse(Y.rename(columns={"u": "w"}))
    with pytest.raises(ValueError, match="validation x must have the columns"):
        sps.fit(bnn(), X, Y, validation=(X.rename(columns={"b": "d"}), Y), **QUICK)


def test_arrays_without_names_are_told(fit):
    with pytest.warns(UserWarning, match="x has no column names, but what the network was fitted to had"):
        fit.predict(X.to_numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit.predict(torch.tensor(X.to_numpy()))  # tensors never have names


def test_rows_of_unequal_indices_are_refused(fit):
    shuffled = Y.sample(frac=1, random_state=0)
    options = {"num_steps": 1, "progress": False}
    with pytest.raises(ValueError, match=r"the same rows in another order; use y\.loc\[x\.index\]"):
        sps.fit(bnn(), X, shuffled, **options)
    with pytest.raises(ValueError, match="it names other rows; reset the index"):
        sps.fit(bnn(), X, Y.set_index(Y.index + 1), **options)
    with pytest.raises(ValueError, match="the index of validation y is not that of validation x"):
        sps.fit(bnn(), X, Y, validation=(X, shuffled), **options)
    with pytest.raises(ValueError, match="the index of y is not that of x"):
        sps.map_estimate(bnn(), X, shuffled, num_steps=1, progress=False)
    with pytest.raises(ValueError, match="the index of y is not that of x"):
        fit.predict(X).lpp(shuffled)
    with pytest.raises(ValueError, match="the index of held_out y is not that of held_out x"):
        sps.diagnose(fit, held_out=(X, shuffled))
    fit.predict(X.loc[shuffled.index]).lpp(shuffled)  # equal ones, of whatever order


def test_names_that_are_no_text_are_none():
    assert column_names(pd.DataFrame([[1, 2]])) is None
    assert column_names(pd.Series([1.0], name="a")) is None
    assert column_names({"columns": 1}) is None


@pytest.mark.parametrize("standardize", [True, False])
def test_what_the_caller_changes_later_changes_nothing(standardize):
    x, y = torch.linspace(-1, 1, 12).reshape(-1, 1), torch.arange(12) % 2
    categorical = sps.BNN(sps.mlp([1, 3, 2]), sps.Unmasked(), sps.Zero(), sps.Categorical())
    masks, mine = {"0.weight": torch.ones(3, 1, dtype=torch.bool)}, {"2.bias": torch.ones(2)}
    fit = sps.fit(categorical, x, y, standardize=standardize, **QUICK)
    prediction = fit.predict(x, 20)
    before, elbo = fit.predict(x.clone(), 20).mean, fit.elbo_draws(5)
    network = sps.BNN(sps.mlp([1, 3, 2]), masks | {"2.bias": torch.zeros(2, dtype=torch.bool)}, mine)
    x.zero_()
    y.zero_()
    masks["0.weight"].zero_()
    mine["2.bias"].zero_()
    assert torch.equal(prediction.mean, before)
    assert torch.equal(fit.elbo_draws(5), elbo)
    assert network.masks["0.weight"].all()
    assert network.fixed["2.bias"].all()
