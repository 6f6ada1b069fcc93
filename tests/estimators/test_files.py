"""Saved estimators, and files that somebody made up."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler
from small_estimators import TINY

import pyro_sps as sps
from pyro_sps.base.files import seal, unseal
from pyro_sps.data.encoding import Encoder
from pyro_sps.data.frames import typed
from pyro_sps.estimators.preprocessing import default_preprocessing, encoder_of

FILE = "fit.safetensors"


def make_table(rows=300):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "number": rng.normal(size=rows),
            "skewed": np.exp(4 * rng.normal(size=rows)) - 1,
            "gappy": np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows)),
            "empty": np.nan,
            "text": rng.choice(["u", "v", None], rows),
            "levels": rng.choice([f"level {i}" for i in range(40)], rows),
            "date": pd.date_range("2020-01-01", periods=rows, freq="31h"),
        }
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    table = make_table()
    model = sps.BNNRegressor(likelihood="gaussian", **TINY).fit(table, table["number"])
    directory = tmp_path_factory.mktemp("saved")
    model.save(directory)
    return model, table, directory


def test_the_plan_does_what_scikit_learn_does():
    """Also to rows with levels and gaps that training did not have."""
    table, kinds = typed(make_table())
    transformer, left_out = default_preprocessing(table, kinds)
    transformer.fit(table)
    encoder = Encoder.from_json(json.loads(json.dumps(encoder_of(transformer, kinds, left_out).to_json())))
    new = table.copy()
    new.loc[0, "text"], new.loc[1, "levels"], new.loc[2, "levels"] = "new", "new", None
    new.loc[3, "number"], new.loc[4, "date"], new.loc[5, "skewed"] = np.nan, None, -1e3
    for rows in (table, new):
        np.testing.assert_allclose(encoder.transform(rows), transformer.transform(rows), rtol=1e-9, atol=1e-12)
    assert encoder.num_inputs == transformer.transform(table).shape[1]
    assert [block["columns"] for what, block in encoder.blocks.items() if what == "skewed"] == [["skewed"]]


def test_a_loaded_model_predicts_the_same(saved):
    model, table, directory = saved
    again = sps.BNNRegressor.load(directory)
    # scikit-learn 1.6 rounds a transformed column otherwise than the plan does.
    np.testing.assert_allclose(again.predict(table[table.columns[::-1]]), model.predict(table), rtol=1e-11, atol=1e-13)
    assert again.get_params() == model.get_params()
    assert again.describe(table) == model.describe(table)
    far = table.assign(text="new")
    with pytest.warns(UserWarning, match="far outside"):
        assert again.prediction(far).extrapolates.all()
    again.save(directory / "again")
    np.testing.assert_array_equal(sps.BNNRegressor.load(directory / "again").predict(table), again.predict(table))
    assert again.fit(table, table["number"]).predict(table).shape == (len(table),)


@pytest.mark.parametrize("labels", [["u", "v"], [True, False], [1, 2], [3.0, 7.0]])
def test_labels_come_back(tmp_path, labels):
    x = np.random.default_rng(0).normal(size=(30, 2))
    y = np.asarray(labels)[(x[:, 0] > 0).astype(int)]
    model = sps.BNNClassifier(**TINY).fit(x, y)
    model.save(tmp_path)
    again = sps.load(tmp_path)
    assert isinstance(again, sps.BNNClassifier)
    assert again.classes_.dtype.kind == model.classes_.dtype.kind
    assert (again.predict(x) == model.predict(x)).all()
    with pytest.raises(sps.LoadError, match="no BNNRegressor but a BNNClassifier"):
        sps.BNNRegressor.load(tmp_path)


def test_samples_come_back(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 2))
    options = TINY | {"method": "sample", "chains": 2, "num_steps": 120}
    model = sps.BNNRegressor(likelihood="gaussian", **options).fit(x, x[:, 0])
    model.save(tmp_path)
    again = sps.load(tmp_path)
    assert again.method_ == "sample"
    with pytest.raises(ValueError, match="device must be None without net"):
        sps.load(tmp_path, device="cpu")
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_what_cannot_be_saved_says_so(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 2))
    own = sps.BNNRegressor(likelihood="gaussian", preprocessing=StandardScaler(), **TINY).fit(x, x[:, 0])
    with pytest.raises(ValueError, match="joblib"):
        own.save(tmp_path / "own")
    plain = sps.BNNRegressor(likelihood="gaussian", preprocessing=None, **TINY).fit(x, x)
    plain.save(tmp_path / "plain")
    assert (sps.BNNRegressor.load(tmp_path / "plain").predict(x) == plain.predict(x)).all()


def test_no_file_and_another_fit(tmp_path):
    with pytest.raises(sps.LoadError, match="no saved fit"):
        sps.BNNRegressor.load(tmp_path)
    x = np.random.default_rng(0).normal(size=(30, 2))
    sps.fit(sps.BNN(sps.mlp([2, 3, 1]), sps.Unmasked()), x, x[:, :1], num_steps=3, progress=False).save(tmp_path)
    with pytest.raises(sps.LoadError, match="holds no BNNRegressor"):
        sps.BNNRegressor.load(tmp_path)
    with pytest.raises(sps.LoadError, match=r"no BNNRegressor or BNNClassifier: pyro_sps.load\(directory, net\)"):
        sps.load(tmp_path)


def _set(content, place, value):
    *path, last = place
    for key in path:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), 99),
        (("widths",), [10**9, 10**9]),
        (("widths", 0), 3),
        (("activation",), "os.system"),
        (("options", "hidden"), "50"),
        (("options", "random_state"), {"a": 1}),
        (("options", "wavy"), 1),
        (("columns", 0), ["number", "text"]),
        (("columns",), None),
        (("encoder",), None),
        (("encoder", "blocks", 0, "scale", 0), 0.0),
        (("encoder", "blocks", 0, "scale", 0), "1"),
        (("encoder", "blocks", 0, "fill"), []),
        (("encoder", "blocks", 0, "what"), "exec"),
        (("encoder", "blocks", 0, "columns"), ["text"]),
        (("encoder", "blocks", 0, "more"), 1),
        (("encoder", "left_out"), 5),
        (("range", 0), [1.0]),
        (("range",), [[None]] * 3),
        (("levels",), {"number": ["a"]}),
        (("levels",), {"text": [1]}),
        (("seed",), -1),
        (("classes",), ["a"]),
    ],
)
def test_made_up_files_under_right_checksums_are_refused(saved, tmp_path, place, value):
    _, _, directory = saved
    header, tensors = unseal(directory / FILE, 1 << 30, "")
    header = copy.deepcopy(header)
    _set(header["extra"], place, value)
    (tmp_path / FILE).write_bytes(seal(tensors, header))
    with pytest.raises(sps.LoadError):
        sps.BNNRegressor.load(tmp_path)
