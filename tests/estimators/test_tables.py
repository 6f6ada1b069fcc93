"""What users put into the estimators, and what they get."""

import dataclasses
import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.preprocessing import StandardScaler
from small_estimators import TINY

import pyro_sps as sps
from pyro_sps.data.frames import typed
from pyro_sps.estimators import methods
from pyro_sps.estimators.preprocessing import default_preprocessing, encoder_of

ROWS = 60


def regressor(**options):
    return sps.BNNRegressor(**{"likelihood": "gaussian", **TINY, **options})


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "number": rng.normal(size=ROWS),
            "huge": np.exp(20 * rng.normal(size=ROWS)),
            "gappy": np.where(rng.random(ROWS) < 0.3, np.nan, rng.normal(size=ROWS)),
            "text": rng.choice(["u", "v"], ROWS),
            "holes": rng.choice(["u", "v", None], ROWS),
            "date": pd.date_range("2020-01-01", periods=ROWS, freq="9D"),
            "flag": rng.random(ROWS) > 0.5,
            "constant": 1.0,
            "duration": pd.to_timedelta(rng.normal(size=ROWS), unit="h"),
        }
    )


@pytest.fixture
def y(table):
    return table["number"] + table["flag"]


def test_every_library_gives_the_same_predictions(table, y):
    model = regressor().fit(table, y)
    expected = model.predict(table)
    for other in (pl.from_pandas(table), pa.Table.from_pandas(table), table[table.columns[::-1]]):
        np.testing.assert_array_equal(model.predict(other), expected)
    polars = pl.from_pandas(table)
    np.testing.assert_array_equal(regressor().fit(polars, pl.Series(y.to_numpy())).predict(polars), expected)


def test_columns_become_what_they_hold(table, y):
    model = regressor().fit(table, y)
    assert model.columns_ == {
        **dict.fromkeys(["number", "huge", "gappy", "flag", "constant", "duration"], "number"),
        **dict.fromkeys(["text", "holes"], "text"),
        "date": "date",
    }
    numbers = model.preprocessing_.transform(typed(table)[0])
    numbers = pd.DataFrame(numbers, columns=model.preprocessing_.get_feature_names_out())
    assert set(numbers) == {
        "numbers__number",
        "numbers__gappy",
        "numbers__flag",
        "numbers__constant",
        "numbers__duration",
        "skewed__huge",
        "text__text_u",
        "text__text_v",
        "text__holes_u",
        "text__holes_v",
        "text__holes_nan",
        "missing__missingindicator_gappy",
        *(f"dates__date_{part}" for part in ("days", "year_sin", "year_cos", "week_sin", "week_cos")),
    }
    filled = numbers["numbers__gappy"][table["gappy"].isna()]
    whole = table["gappy"].fillna(table["gappy"].median())
    np.testing.assert_allclose(filled, (table["gappy"].median() - whole.mean()) / whole.std(ddof=0))
    assert numbers.abs().to_numpy().max() < 6  # huge numbers too
    words = dict(model.describe(table))
    for name, word in (("gappy", "median"), ("constant", "constant"), ("text", "2 levels"), ("date", "time of year")):
        assert word in words[name]


def fitted_plan(frame, kinds):
    """Numbers by scikit-learn's transformers and by the plan that is saved, which are the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transformer, left_out = default_preprocessing(frame, kinds)
        numbers = transformer.fit_transform(frame)
    np.testing.assert_allclose(encoder_of(transformer, kinds, left_out).transform(frame), numbers, rtol=1e-9, atol=1e-9)
    return numbers


def test_a_number_that_is_mostly_zero_keeps_what_the_others_are():
    rng = np.random.default_rng(0)
    gain = np.where(rng.random(2000) < 0.9, 0.0, rng.lognormal(8, 1.5, 2000))
    numbers = fitted_plan(pd.DataFrame({"gain": gain}), {"gain": "number"})[:, 0]
    others = numbers[gain > 0]
    low, high = np.quantile(others, [0.25, 0.75])
    assert high - low > 0.5
    assert np.all(np.diff(others[np.argsort(gain[gain > 0])]) >= 0)
    assert np.abs(numbers).max() < 20
    assert numbers[gain == 0].max() < others.min()


@pytest.mark.parametrize(("rows", "kept"), [(1000, 20), (4000, 20), (10_000, 50), (40_000, 100)])
def test_large_tables_keep_more_levels(rows, kept):
    levels = np.array([f"level {i}" for i in range(150)])
    frame = pd.DataFrame({"text": levels[np.minimum(np.random.default_rng(0).exponential(30, rows), 149).astype(int)]})
    assert fitted_plan(frame, {"text": "text"}).shape == (rows, kept + 1)


def test_text_that_differs_in_each_row_is_left_out(table, y):
    with pytest.warns(UserWarning, match="left out: name") as caught:
        model = regressor().fit(table.assign(name=[f"row {i}" for i in range(ROWS)]), y)
    assert caught[0].filename == __file__
    assert model.left_out_ == ["name"]
    with pytest.raises(ValueError, match="no columns but"):
        regressor().fit(pd.DataFrame({"name": [f"row {i}" for i in range(ROWS)]}), y)


def test_rows_far_outside_are_marked_and_announced_once(table, y):
    model = regressor().fit(table, y)
    new = table.copy()
    new.loc[3, "number"], new.loc[5, "text"], new.loc[8, "constant"] = 50.0, "new", 2.0
    new.loc[9, "number"] = table["number"].max() + 0.5 * table["number"].std()  # outside, but not far
    with pytest.warns(UserWarning, match="3 of 60 rows are far outside") as caught:
        prediction = model.prediction(new)
    assert len(caught) == 1
    assert np.flatnonzero(prediction.extrapolates).tolist() == [3, 5, 8]
    assert not model.prediction(table).extrapolates.any()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda t: t.drop(columns="number"), ValueError, "(?s)yet now missing.*number"),
        (lambda t: t.assign(extra=1), ValueError, "(?s)unseen at fit time.*extra"),
        (lambda t: t.assign(number="x"), ValueError, "column 'number' of X holds numbers, but 'x' in row 0"),
        (lambda t: t.assign(number=np.inf), ValueError, "infinity: column 'number', row 0"),
        (lambda t: t.assign(date="soon"), ValueError, "column 'date' of X holds dates"),
        (lambda t: t.iloc[:0], ValueError, "0 sample"),
        (lambda t: t["number"], ValueError, "2"),
    ],
)
def test_other_tables_are_refused(table, y, change, error, words):
    with pytest.raises(error, match=words):
        regressor().fit(table, y).predict(change(table))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden": (0,)}, "hidden must be"),
        ({"hidden": 5}, "hidden must be"),
        ({"activation": "wavy"}, "activation must be one of"),
        ({"likelihood": "categorical"}, "likelihood must be"),
        ({"likelihood": sps.Categorical()}, "real numbers"),
        ({"scheme": "wavy"}, "scheme must be one of"),
        ({"values": "wavy"}, "values must be one of"),
        ({"method": "wavy"}, "method must be"),
        ({"replicas": 0}, "replicas must be"),
        ({"num_samples": 1}, "num_samples must be at least"),
        ({"time_limit": -1}, "time_limit must be"),
    ],
)
def test_options_are_checked_first(table, y, options, words):
    with pytest.raises(ValueError, match=words):
        regressor(**options).fit(table, y)


def test_several_targets_keep_their_shape_and_units(table, y):
    both = np.stack([y, 1000 + 100 * y], axis=1)
    model = regressor(num_steps=300).fit(table, both)
    mean, std = model.predict(table, return_std=True)
    assert mean.shape == std.shape == both.shape
    assert model.predict_quantiles(table, [0.1, 0.9]).shape == (ROWS, 2, 2)
    lower, upper = model.predict_interval(table, 0.8)
    np.testing.assert_allclose(np.stack([lower, upper], -1), model.predict_quantiles(table, [0.1, 0.9]))
    assert abs(mean[:, 1].mean() - both[:, 1].mean()) < both[:, 1].std()
    assert regressor().fit(table, both[:, :1]).predict(table).shape == (ROWS, 1)
    assert np.isfinite(model.prediction(table).lpp(both))
    with pytest.raises(ValueError, match="level"):
        model.predict_interval(table, 1.5)
    with pytest.raises(ValueError, match="quantiles"):
        model.predict_quantiles(table, [0.0])


@pytest.mark.parametrize(
    "labels", [["u", "v"], [True, False], [1, 2], [3.0, 7.0], np.array(["p", "q"], object), pd.Categorical(["a", "b"])]
)
def test_labels_of_any_type(table, labels):
    y = np.asarray(labels)[table["flag"].to_numpy().astype(int)]
    model = sps.BNNClassifier(**{**TINY, "num_steps": 300}).fit(table, y)
    assert model.classes_.tolist() == sorted(np.asarray(labels).tolist())
    assert (model.predict(table) == y).mean() > 0.9
    prediction = model.prediction(table)
    assert prediction.accuracy(y) == model.score(table, y)
    own = model.predict_proba(table)[np.arange(ROWS), np.searchsorted(model.classes_, y)]
    np.testing.assert_allclose(prediction.lpp(y), np.log(own).mean(), rtol=1e-6)


def test_labels_that_cannot_be_learned(table):
    model = sps.BNNClassifier(**TINY)
    with pytest.raises(ValueError, match="one class: \\['a'\\]"):
        model.fit(table, ["a"] * ROWS)
    with pytest.raises(ValueError, match="None in row 1"):
        model.fit(table, ["a", None] * (ROWS // 2))
    with pytest.raises(ValueError, match="labels that training did not have"):
        model.fit(table, ["a", "b"] * (ROWS // 2)).prediction(table).lpp(["c"] * ROWS)


def test_nothing_to_learn_from(table):
    """Constant columns and targets are no error: what is predicted is the mean."""
    model = regressor(num_steps=300).fit(np.ones((20, 2)), np.full(20, 7.0))
    np.testing.assert_allclose(model.predict(np.ones((3, 2))), 7, atol=1)
    with pytest.raises(ValueError, match="1 sample"):
        regressor().fit(table.iloc[:1], [1.0])


def test_preprocessing_of_ones_own(table, y):
    own = make_column_transformer((StandardScaler(), ["number"]), remainder="drop")
    model = regressor(preprocessing=own).fit(table, y)
    assert model.preprocessing_.transform(table).shape == (ROWS, 1)
    assert not hasattr(own, "transformers_")  # the user's is left as it was
    with pytest.raises(ValueError, match="text"):
        regressor(preprocessing=None).fit(table, y)
    numbers = table[["number", "flag"]]
    assert regressor(preprocessing=None).fit(numbers, y).predict(numbers).shape == (ROWS,)


def test_time_limit_ends_a_fit(table, y):
    model = regressor(num_steps=1_000_000, time_limit=1.0).fit(table, y)
    assert model.posterior_[0].stopped
    assert np.isfinite(model.predict(table)).all()


@pytest.mark.slow
def test_noise_that_depends_on_inputs_is_found():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (400, 2))
    scale = np.where(x[:, 1] > 0, 1.0, 0.05)
    noisy, even = x[:, 0] + scale * rng.normal(size=400), x[:, 0] + 0.3 * rng.normal(size=400)
    model = regressor(likelihood="auto", num_steps=1000, replicas=1)
    found = [type(model.fit(x, targets).likelihood_) for targets in (noisy, even)]
    assert found == [sps.HeteroscedasticGaussian, sps.Gaussian]


def test_noise_of_sampled_tables():
    """Under the hierarchical prior it depends on the inputs where there are rows to say so."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (120, 2))
    model = regressor(likelihood="auto", method="sample", chains=1, num_steps=30)
    found = [type(model.fit(x[:rows], x[:rows, 0]).likelihood_) for rows in (99, 120)]
    assert found == [sps.Gaussian, sps.HeteroscedasticStudentT]
    assert {"skip.weight", "skip.weight_log_scale"} <= set(model.posterior_.samples)


def test_labels_of_many_rows_have_no_linear_path():
    """For numbers of as many it stays."""
    x = np.random.default_rng(0).uniform(-1, 1, (201, 2))
    options = TINY | {"method": "sample", "chains": 1, "num_steps": 30}
    found = []
    for model, y in [(sps.BNNClassifier(**options), x[:, 0] > 0), (sps.BNNRegressor(**options), x[:, 0])]:
        found += ["skip.weight" in model.fit(x[:rows], y[:rows]).posterior_.samples for rows in (200, 201)]
    assert found == [True, False, True, True]


def test_classes_are_predicted_by_chains_and_the_networks_that_they_start_from(table, tmp_path):
    model = sps.BNNClassifier(**TINY | {"method": "sample", "chains": 3, "num_steps": 300})
    model.fit(table, table["number"] > 0)
    numbers, posterior = model.preprocessing_.transform(typed(table)[0]), model.posterior_
    parts = [posterior.member(15), posterior.starting_member(3)]
    means = [sps.Prediction.of([part], numbers, len(part.sites["0.bias"]), 0).mean.numpy() for part in parts]
    assert np.abs(means[0] - means[1]).max() > 0.01
    np.testing.assert_allclose(model.predict_proba(table), (means[0] + means[1]) / 2, atol=1e-3)
    model.save(tmp_path)
    np.testing.assert_allclose(sps.load(tmp_path).predict_proba(table), model.predict_proba(table), rtol=1e-11)


def test_chains_that_take_long_are_told_of(monkeypatch):
    forecast = methods.Forecast({"warmup": 100, "num_samples": 50, "thinning": 10})
    now = iter([0.0, 200.0, 0.0, 100.0])
    monkeypatch.setattr(methods.time, "monotonic", lambda: next(now))

    def run():
        for step in range(600):
            forecast(step, None)

    with pytest.warns(UserWarning, match="about 16 minutes more; time_limit= ends them before"):
        run()
    run()  # 480 seconds are no matter


def test_small_tables_are_sampled_and_large_ones_fitted(table, y):
    recipe = methods.Recipe("auto", (50, 50), "tanh", "auto", "auto", 10, 10, None, 0, None, False)
    small, large = recipe.resolved(9_000, 8, 1), recipe.resolved(30_000, 8, 1)
    assert (small.method, small.scheme) == ("sample", "none")
    assert (large.method, large.scheme, large.values) == ("fit", "random", "map")
    on_gpu = dataclasses.replace(recipe, device="cuda:1")  # which need not be there
    assert [on_gpu.resolved(rows, 8, 1).method for rows in (90_000, 110_000)] == ["sample", "fit"]
    assert dataclasses.replace(recipe, scheme="heavy").resolved(100, 8, 1).scheme == "heavy"
    model = regressor(method="auto", scheme="auto", values="auto", chains=2, num_steps=120).fit(table, y)
    assert model.method_ == "sample"
    assert model.posterior_.num_chains == 2
    mean, std = model.predict(table, return_std=True)
    numbers = model.preprocessing_.transform(typed(table)[0])
    posterior = model.posterior_.predict(numbers, num_samples=4)  # in single precision
    assert model.prediction(table).num_samples == 4  # all draws that there are
    np.testing.assert_allclose(mean, posterior.mean[:, 0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(std, posterior.std[:, 0], rtol=1e-3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(table), mean)
