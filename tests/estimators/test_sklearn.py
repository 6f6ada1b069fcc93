"""The estimators keep scikit-learn's contract."""

import pickle

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import BaggingRegressor
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import pyro_sps as sps

SMALL = {
    "hidden": (8,),
    "scheme": "none",
    "values": "zero",
    "method": "fit",
    "replicas": 1,
    "num_steps": 150,
    "progress": False,
}
TINY = SMALL | {"hidden": (3,), "num_steps": 10, "num_samples": 20, "random_state": 0}

#: Checks that cannot hold, and why.
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "weights are repetitions, but rows are drawn in another order",
    "check_dataframe_column_names_consistency": "columns of a table in another order are put right, not refused",
}


@pytest.fixture(scope="module")
def line():
    x = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    return x, x[:, 0] + 0.1 * x[:, 1]


def numpy_state():
    return np.random.get_state()[1].copy()  # noqa: NPY002 - that very state


@parametrize_with_checks(
    [sps.BNNRegressor(likelihood="gaussian", **SMALL), sps.BNNClassifier(**SMALL)],
    expected_failed_checks=lambda estimator: EXPECTED,
)
def test_contract(estimator, check):
    check(estimator)


def test_clones_search_and_pipelines(line):
    x, y = line
    search = GridSearchCV(
        make_pipeline(StandardScaler(), sps.BNNRegressor(likelihood="gaussian", **TINY)),
        {"bnnregressor__hidden": [(2,), (4, 4)], "bnnregressor__scheme": ["none", "heavy"]},
        cv=2,
    ).fit(x, y)
    best = search.best_estimator_[-1]
    assert best.hidden == search.best_params_["bnnregressor__hidden"]
    assert clone(best).get_params() == best.get_params()
    assert not hasattr(clone(best), "posterior_")


@pytest.mark.slow
def test_folds_in_other_processes_give_the_same_scores(line):
    x, y = line
    model = sps.BNNRegressor(likelihood="gaussian", **TINY)
    here, there = (cross_val_score(model, x, y, cv=2, n_jobs=jobs) for jobs in (1, 2))
    np.testing.assert_allclose(here, there, rtol=1e-6)


def test_inside_other_estimators(line):
    x, y = line
    model = sps.BNNRegressor(likelihood="gaussian", **TINY)
    assert BaggingRegressor(model, 2).fit(x, y).predict(x).shape == (60,)
    assert TransformedTargetRegressor(model, func=np.exp, inverse_func=np.log1p).fit(x, y).predict(x).shape == (60,)


def test_an_integer_seed_repeats_and_the_global_states_stay(line):
    import torch

    x, y = line
    torch.manual_seed(3)
    before = torch.get_rng_state(), numpy_state()
    model = sps.BNNRegressor(likelihood="gaussian", **TINY)
    first, second = model.fit(x, y).predict(x), clone(model).fit(x, y).predict(x)
    assert (first == second).all()
    assert (torch.get_rng_state() == before[0]).all()
    assert (numpy_state() == before[1]).all()
    other = clone(model).set_params(random_state=1).fit(x, y).predict(x)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("cls", [sps.BNNRegressor, sps.BNNClassifier])
def test_pickled_and_dumped_models_predict_the_same(line, cls, tmp_path):
    x, y = line
    model = cls(**TINY).fit(x, y if cls is sps.BNNRegressor else y > 0)
    joblib.dump(model, tmp_path / "model")
    for again in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model")):
        assert (again.predict(x) == model.predict(x)).all()


@pytest.mark.parametrize("cls", [sps.BNNRegressor, sps.BNNClassifier])
def test_weights_count_as_repetitions(cls):
    """Nearly all the weight on the rows of one of two laws: that is the one that is learned."""
    x = np.linspace(-1, 1, 80)[:, None]
    first = np.arange(80) % 2 == 0
    y = np.where(first, x[:, 0], -x[:, 0])
    y = y if cls is sps.BNNRegressor else y > 0
    model = cls(**SMALL | {"random_state": 0, "num_steps": 400})
    one = model.fit(x, y, sample_weight=np.where(first, 1.0, 0.01)).score(x[first], y[first])
    other = clone(model).fit(x, y, sample_weight=np.where(first, 0.01, 1.0)).score(x[first], y[first])
    assert one > 0.9
    assert other < 0.2
    zero = clone(model).set_params(num_steps=20).fit(x, y, sample_weight=first).predict(x)
    assert np.array_equal(zero, clone(model).set_params(num_steps=20).fit(x[first], y[first]).predict(x))


def test_weights_are_routed(line):
    import sklearn

    x, y = line
    weights = np.random.default_rng(1).random(60)
    with sklearn.config_context(enable_metadata_routing=True):
        model = sps.BNNRegressor(likelihood="gaussian", **TINY)
        model.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        routed = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), model).fit(
            x, y, sample_weight=weights
        )
    scaled = StandardScaler().fit_transform(x)
    alone = sps.BNNRegressor(likelihood="gaussian", **TINY).fit(scaled, y, sample_weight=weights)
    assert np.array_equal(routed[-1].predict(scaled), alone.predict(scaled))


@pytest.mark.parametrize(("weights", "message"), [([-1.0] * 60, "Negative"), ([0.0] * 60, "at least one non-zero")])
def test_bad_weights(line, weights, message):
    with pytest.raises(ValueError, match=message):
        sps.BNNRegressor(**TINY).fit(*line, sample_weight=weights)
