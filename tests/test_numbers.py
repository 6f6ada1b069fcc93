"""Bad numbers and hard posteriors: a named error, or finite results; never NaN without a word."""

import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import pyro_sps as sps
from pyro_sps.cli import main

ROWS = 12
X = np.random.default_rng(0).normal(size=(ROWS, 2))
Y = X[:, :1] + 1
LABELS = np.arange(ROWS) % 3
QUICK = {"num_steps": 2, "num_particles": 2, "progress": False}


def small(outputs=1, dtype=None, **options):
    free = {"scheme": sps.Unmasked(), "values": sps.Zero()}
    return sps.BNN(sps.mlp([2, 3, outputs], dtype=dtype, device="meta"), **free | options)


@pytest.fixture(scope="module")
def fits():
    """A fit of numbers and one of labels."""
    return (
        sps.fit(small(), X, Y, **QUICK),
        sps.fit(small(3, likelihood=sps.Categorical()), X, LABELS, **QUICK),
    )


def put(value, array=X):
    """The array with one entry changed, in row 3."""
    changed = array.astype(float if isinstance(value, float) else object)
    changed[3, 0] = value
    return changed


def frame(kind, missing=False):
    table = pd.DataFrame({"a": np.arange(ROWS), "b": np.arange(ROWS) + 1}).astype(kind)
    if missing:
        table.loc[3, "a"] = pd.NA
    return table


def read_only():
    array = X.copy()
    array.flags.writeable = False
    return array


# What may come as inputs, and what shall happen: nothing, or an error that says so.
INPUTS = {
    "NaN": (put(np.nan), ValueError, "x must be finite, got NaN or infinity in row 3"),
    "infinity": (put(np.inf), ValueError, "row 3"),
    "None": (put(None), ValueError, "missing value None in row 3"),
    "pandas NA": (put(pd.NA), ValueError, "missing value <NA> in row 3"),
    "NaT": (put(pd.NaT), ValueError, "missing value NaT in row 3"),
    "text among objects": (put("1.5"), TypeError, "got '1.5' in row 3"),
    "a date among objects": (put(np.datetime64("2020-01-01")), TypeError, "in row 3"),
    "complex among objects": (put(1j), TypeError, "got 1j in row 3"),
    "a list among objects": (put([1]), TypeError, r"got \[1\] in row 3"),
    "a huge integer": (put(10**400), ValueError, "too large"),
    "a Decimal": (put(Decimal("1.5")), None, ""),
    "constant columns": (np.ones((ROWS, 2)), None, ""),
    "zero rows": (X[:0], ValueError, r"x is empty: its shape is \(0, 2\)"),
    "zero columns": (X[:, :0], ValueError, "x is empty"),
    "too many columns": (np.hstack([X, X]), ValueError, "x must have 2 features a row, as the network has, got 4"),
    "scale 1e12": (1e12 * X, None, ""),
    "scale 1e-30": (1e-30 * X, None, ""),
    "scale 1e300": (1e300 * X, ValueError, "out of the range of torch.float32"),
    **{dtype: (X.round().astype(dtype), None, "") for dtype in ("float16", "float32", "longdouble", "int8", "int64")},
    **{dtype: (X.round().astype(dtype), None, "") for dtype in ("bool", ">f4", ">i8", "object")},
    **{dtype: (np.abs(X.round()).astype(dtype), None, "") for dtype in ("uint8", "uint16", "uint64")},
    "complex": (X.astype(complex), TypeError, "dtype complex128"),
    "text": (X.astype(str), TypeError, "x must hold real numbers"),
    "bytes": (X.astype("S3"), TypeError, "x must hold real numbers"),
    "dates": (np.full((ROWS, 2), np.datetime64("2020-01-01")), TypeError, "datetime64"),
    "durations": (np.full((ROWS, 2), np.timedelta64(1, "D")), TypeError, "timedelta64"),
    "records": (np.zeros(ROWS, dtype=[("a", float), ("b", float)]), TypeError, "real numbers"),
    "read-only": (read_only(), None, ""),
    "negative strides": (X[::-1, ::-1], None, ""),
    "column order": (np.asfortranarray(X), None, ""),
    "not contiguous": (np.repeat(X, 2, axis=1)[:, ::2], None, ""),
    "masked": (np.ma.masked_array(X, X > 1), ValueError, "x has masked values"),
    "masked nowhere": (np.ma.masked_array(X, False), None, ""),
    "duplicated names": (pd.DataFrame(X, columns=["a", "a"]), None, ""),  # columns count by position
    "Int64": (frame("Int64"), None, ""),
    "Float64 with NA": (frame("Float64", missing=True), ValueError, "missing value <NA> in row 3"),
    "boolean": (frame("bool").astype("boolean"), None, ""),
    "categories": (frame("category"), None, ""),
    "pyarrow": (frame("int64[pyarrow]"), None, ""),
    "strings": (frame("string"), TypeError, "got '0' in row 0"),
    "nested lists": (X.tolist(), None, ""),
    "ragged lists": ([*X.tolist()[:-1], [1.0]], ValueError, "x must be an array of numbers"),
    "nothing": (None, TypeError, "got NoneType"),
    "a word": ("abc", (TypeError, ValueError), "there is no file abc|real numbers"),
    "a dict": ({"a": 1}, ValueError, "x must be one tensor or array, got a dict"),
    "a number": (3.0, ValueError, "single number"),
    "one dimension": (X[:, 0], ValueError, r"x must have shape \(rows, features\)"),
    "three dimensions": (X.reshape(ROWS, 1, 2), ValueError, r"x must have shape \(rows, features\)"),
    "four dimensions": (X.reshape(ROWS, 1, 1, 2), ValueError, r"x must have shape \(rows, features\)"),
    "a tensor with gradient": (torch.tensor(X, requires_grad=True), None, ""),
    "bfloat16": (torch.tensor(X).bfloat16(), None, ""),
    "float8": (torch.tensor(X).to(torch.float8_e4m3fn), None, ""),
    "another device": (torch.zeros(ROWS, 2, device="meta"), ValueError, "x is on the meta device"),
    "a sparse tensor": (torch.tensor(X).to_sparse(), TypeError, "x must be a dense tensor"),
    "an expanded tensor": (torch.zeros(1, 2).expand(ROWS, 2), None, ""),
    "tensors with gradients": ([torch.ones(2, requires_grad=True)] * ROWS, ValueError, "x must be an array"),
}


# Inputs are checked by one function; these are also fitted to, and the predictions of the others looked at.
FITTED = ("constant columns", "scale 1e12", "duplicated names", "boolean")


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(fits, name):
    x, error, message = INPUTS[name]
    if error is None:
        assert fits[0].predict(x, 3).mean.isfinite().all()
        if name in FITTED:
            assert np.isfinite(sps.fit(small(), x, Y, **QUICK).losses).all()
        return
    calls = (
        lambda: sps.fit(small(), x, Y, **QUICK),
        lambda: sps.fit(small(), X, Y, validation=(x, Y), **QUICK),
        lambda: sps.map_estimate(small(), x, Y, num_steps=2, progress=False),
        lambda: fits[0].predict(x, 3).mean,
    )
    for call in calls:
        with pytest.raises(error, match=message):
            call()


TARGETS = {
    "NaN": (put(np.nan, Y), ValueError, "y must be finite, got NaN or infinity in row 3"),
    "missing": (put(pd.NA, Y), ValueError, "missing value"),
    "one dimension": (Y[:, 0], None, ""),
    "a series": (pd.Series(Y[:, 0], index=range(20, 20 + ROWS)), None, ""),  # rows count by position
    "too few rows": (Y[:3], ValueError, "y must have as many rows as x, 12, got 3"),
    "too many columns": (X, ValueError, r"y must have shape \(rows, 1\)"),
    "three dimensions": (Y[:, :, None], ValueError, r"y must have shape \(rows, 1\)"),
    "text": (Y.astype(str), TypeError, "y must hold real numbers"),
    "scale 1e12": (1e12 * Y, None, ""),
    "scale 1e300": (1e300 * Y, ValueError, "out of the range"),
    "constant": (np.ones((ROWS, 1)), None, ""),
    "integers": (Y.round().astype(int), None, ""),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets(fits, name):
    y, error, message = TARGETS[name]
    prediction = fits[0].predict(X, 3)
    if error is None:
        assert np.isfinite([prediction.rmse(y), prediction.lpp(y), prediction.coverage(y)]).all()
        if name in FITTED:
            assert np.isfinite(sps.fit(small(), X, y, **QUICK).losses).all()
        return
    for call in (lambda: sps.fit(small(), X, y, **QUICK), lambda: prediction.rmse(y), lambda: prediction.lpp(y)):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS, None),
        (LABELS.astype(float), None),
        (LABELS[:, None], None),
        (pd.Series(LABELS, dtype="Int64"), None),
        (pd.Series(LABELS).astype("category"), None),
        (LABELS > 0, None),
        (LABELS - 1, "y must hold labels from 0 to 2, got -1 in row 0"),
        (LABELS + 1, "y must hold labels from 0 to 2, got 1 to 3: subtract 1"),
        (LABELS + 0.5, "y must hold integer labels, got fractions"),
        (LABELS * 1e300, "labels from 0 to 2"),
        (np.eye(3)[LABELS], r"y must have shape \(rows,\) for Categorical"),
        (LABELS.astype("uint64") + np.uint64(2**63), "labels from 0 to 2"),
    ],
    ids=str,
)
def test_labels(fits, labels, message):
    prediction = fits[1].predict(X, 3)
    if message is None:
        assert np.isfinite(prediction.lpp(labels))
        return
    for call in (lambda: sps.fit(fits[1].bnn, X, labels, **QUICK), lambda: prediction.lpp(labels)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("scale", [1e-30, 1e37])
def test_units_do_not_matter_to_standardised_fits(scale):
    """Neither squares of large numbers nor those of small ones leave the range."""
    one = sps.fit(small(), X, Y, standardize=True, **QUICK).predict(X, 20)
    other = sps.fit(small(), scale * X, scale * Y, standardize=True, **QUICK).predict(scale * X, 20)
    for name in ("mean", "std"):
        expected = scale * getattr(one, name).double()
        torch.testing.assert_close(getattr(other, name).double(), expected, rtol=1e-3, atol=1e-4 * scale)
    assert other.lpp(scale * Y) == pytest.approx(one.lpp(Y) - np.log(scale), rel=1e-3, abs=0.01)


def test_a_variation_that_is_lost_in_rounding_is_refused():
    message = r"{} column 0 goes from .* to .*, a variation that torch.float32 cannot resolve; subtract an offset"
    for name, x, y in (("x", X + 1e9, Y), ("y", X, Y + 1e9)):
        with pytest.raises(ValueError, match=message.format(name)):
            sps.fit(small(), x, y, standardize=True, **QUICK)
    fit = sps.fit(small(dtype=torch.float64), X + 1e9, Y + 1e9, standardize=True, **QUICK)
    assert fit.predict(X + 1e9, 3).mean.isfinite().all()
    # Columns that are constant, and those of which rounding takes little, are nobody's concern.
    sps.fit(small(), np.column_stack([np.full(ROWS, 0.1), X[:, 0] + 1e3]), Y, **QUICK)


@pytest.mark.parametrize("standardize", [False, True])
def test_one_row_is_enough(standardize):
    prediction = sps.fit(small(), X[:1], Y[:1], standardize=standardize, **QUICK).predict(X, 3)
    assert prediction.mean.isfinite().all()


# --- the command line ------------------------------------------------------------------------------

ONES = "1,1,1\n" * 6
TABLES = {
    "NaN": ("1,2,nan\n" * 6, "0 rows of data, too few"),
    "infinity": ("1,2,inf\n" + ONES, "infinite values"),
    "1e400": ("1,2,1e400\n" + ONES, "infinite values"),
    "constant": ("".join(f"1,{i},{i}\n" for i in range(9)), "constant columns"),
    "one row": ("1,2,3\n", "1 rows of data, too few"),
    "no row": ("", "0 rows of data, too few"),
    "offset": ("".join(f"{10**12 + i},{i},{i}\n" for i in range(9)), "single precision cannot resolve"),
    "text": ("".join(f"{i},{i},{i}\n" for i in range(30)) + "three,2,2\n", "holds numbers, but in 1 cells"),
    "a longer row": ("1,2,3,4\n" + ONES, "4 cells"),
}


@pytest.mark.parametrize("name", [*TABLES, "duplicated names", "negative counts", "labels", "scale"])
def test_tables_of_the_command_line(tmp_path, name):
    rows, words = TABLES.get(name, ("".join(f"{i},{i * i % 7},{i % 4 - 1}\n" for i in range(20)), ""))
    data, options = tmp_path / "data.csv", []
    header = "a,a,y\n" if name == "duplicated names" else "a,b,y\n"
    if name == "negative counts":
        options, words = ["--likelihood", "poisson"], "y must hold counts 0, 1, 2, ..., got [-1.0] in row 0"
    elif name == "labels":
        options, words = ["--likelihood", "bernoulli"], "y must hold zeros and ones"
    elif name == "duplicated names":
        words = "several columns named 'a'"
    elif name == "scale":
        rows = "".join(f"{i}e12,{i * i % 7}e-12,{i % 4}e12\n" for i in range(20))
    data.write_text(header + rows)
    quick = [
        "--method",
        "fit",
        "--hidden",
        "3",
        "--steps",
        "2",
        "--scheme",
        "none",
        "--quiet",
        "--test-fraction",
        "0.2",
    ]
    result = CliRunner().invoke(
        main, ["fit", str(data), "--target", "y", *quick, *options, "--out", str(tmp_path / "o")]
    )
    assert result.exit_code == (2 if words else 0), result.output
    assert words in result.output
    assert "Traceback" not in result.output


# --- hard posteriors -------------------------------------------------------------------------------


def masks(free):
    """A scheme that leaves whole tensors stochastic: those for whose names `free` is true."""
    return lambda topology, generator: {
        tensor.name: torch.full(tensor.shape, free(tensor.name)) for tensor in topology.tensors
    }


def hard(widths=(2, 4, 4, 1), activation="tanh", dtype=None, **options):
    learned = {"scheme": sps.Heavy(), "values": sps.Constant(1.0, learn=True), "likelihood": sps.Gaussian(0.1)}
    options = learned | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sps.SymmetryWarning)
        return sps.BNN(sps.mlp(list(widths), activation, dtype=dtype, device="meta"), **options)


HARD = {
    "c 1e6": {"values": sps.Constant(1e6, learn=True)},
    "c 1e6, relu": {"values": sps.Constant(1e6), "activation": "relu"},
    "c 1e30": {"values": sps.Constant(1e30, learn=True)},
    "c 1e30, relu": {"values": sps.Constant(1e30), "activation": "relu"},
    "c 1e300": {"values": sps.Constant(1e300)},
    "learned c 1e300": {"values": sps.Constant(1e300, learn=True)},
    "learned c 1e-50": {"values": sps.Constant(1e-50, learn=True)},
    "noise 1e-12": {"likelihood": sps.Gaussian(1e-12)},
    "noise 1e-25": {"likelihood": sps.Gaussian(1e-25)},
    "learned noise 1e-50": {"likelihood": sps.Gaussian(1e-50, learn=True)},
    "noise 1e30": {"likelihood": sps.Gaussian(1e30)},
    "prior 0": {"prior_scale": 0},
    "prior infinity": {"prior_scale": float("inf")},
    "prior of another kind": {"prior_scale": "1"},
    "prior 1e-50": {"prior_scale": 1e-50},
    "prior 1e-30": {"prior_scale": 1e-30},
    "prior 1e-10": {"prior_scale": 1e-10},
    "prior 1e30": {"prior_scale": 1e30},
    "prior 1e300": {"prior_scale": 1e300},
    "ordered, prior 1e30": {"prior_scale": 1e30, "ordered_biases": True},
    "all fixed": {"scheme": masks(lambda name: False)},
    "one weight free": {"scheme": masks(lambda name: name == "4.bias")},
    "first layer fixed": {"scheme": masks(lambda name: name[0] != "0")},
    "middle layer zero": {"scheme": masks(lambda name: name[0] != "2"), "values": sps.Zero()},
    "last layer fixed": {"scheme": masks(lambda name: name[0] != "4")},
    "width 1": {"widths": (2, 1, 1, 1)},
    "no hidden layer": {"widths": (2, 1)},
    "float64": {"dtype": torch.float64},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16, noise 1e-4": {"dtype": torch.float16, "likelihood": sps.Gaussian(1e-4)},
    "Poisson": {"likelihood": sps.Poisson()},
}


def outcome(build, x, y, **options):
    """A fit, or None if it was refused in words or ended with the last finite state."""
    try:
        return sps.fit(build(), x, y, progress=False, **options)
    except ValueError as error:
        refused = str(error)
    except sps.NonFiniteLossError as error:
        refused, last = "", error.fit
        finite = last.guide.loc.isfinite().all() and last.guide.scale.isfinite().all()
    words = ("prior_scale must", "scale of the fixed", "noise scale", "every weight is fixed", "not finite at fixed")
    assert any(word in refused for word in words) if refused else finite, refused
    return None


@pytest.mark.parametrize("name", HARD)
def test_no_nan_leaves_unannounced(name):
    x, y = torch.tensor(X), torch.tensor(Y).abs().round()
    options = {"num_steps": 15, "num_particles": 4}
    if name.startswith(("width", "float")):
        options |= {"num_particles": 1, "batch_size": 1}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = outcome(lambda: hard(**HARD[name]), x, y, **options)
        if fit is None:
            return
        prediction = fit.predict(x, 20)
        results = {
            "means": prediction.mean,
            "standard deviations": prediction.std,
            "intervals": torch.stack(prediction.interval()),
            "draws": prediction.draws,
        }
        scores = [prediction.lpp(y), prediction.rmse(y), prediction.coverage(y), fit.elbo]
    assert np.isfinite(fit.losses).all()
    assert fit.guide.loc.isfinite().all()
    assert fit.guide.scale.isfinite().all()
    said = " ".join(str(warning.message) for warning in caught)
    for what, values in results.items():
        assert values.isfinite().all() or f"predictive {what} are not finite" in said
    assert np.isfinite(scores).all() or "not finite" in said


def test_hopeless_posteriors_are_told_before_the_fit():
    """The table above would pass if nothing were ever refused."""
    for name in ("c 1e300", "learned c 1e300", "prior 0", "prior infinity", "prior of another kind", "prior 1e300"):
        with pytest.raises(ValueError, match=r"prior_scale|fixed"):
            hard(**HARD[name])
    for name in ("c 1e30, relu", "prior 1e-30"):
        with pytest.raises(sps.NonFiniteLossError, match="the loss is not finite at step"):
            sps.fit(hard(**HARD[name]), X, Y, **QUICK)


def test_predictions_out_of_range_are_announced():
    fit = sps.fit(hard(activation="relu"), X, Y, **QUICK)
    with pytest.warns(RuntimeWarning, match=r"predictive means are not finite in torch.float32"):
        assert not fit.predict(X * 1e38, 50).mean.isfinite().all()
