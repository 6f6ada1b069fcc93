"""Toy data against its definition; UCI files against their checksums and independent readers."""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import requests

import pyro_sps as sps
from pyro_sps.data import remote
from pyro_sps.data.datasets import UCI, DataError, load_uci, toy_cubic, toy_gp

SHAPES = {"energy": (768, 8, 2), "concrete": (1030, 8, 1), "power-plant": (9568, 4, 1), "wine-red": (1599, 11, 1)}
SHAPES["kin8nm"] = (8192, 8, 1)


# --- toys ------------------------------------------------------------------------------------------


def test_the_gap_has_no_training_data_and_its_share_of_held_out_data():
    shares = []
    for seed in range(50):
        toy = toy_gp(seed)
        assert toy.x.shape == toy.y.shape == (30, 1)
        assert ((np.abs(toy.x) >= 0.75) & (np.abs(toy.x) <= 2.5)).all()
        assert (np.abs(toy.x_test) <= 2.5).all()
        shares.append(toy.in_gap.mean())
    # 200 uniform inputs each, of which 1.5 / 5 lie in the gap.
    assert abs(np.mean(shares) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / (50 * 200))


def test_training_inputs_are_uniform_outside_the_gap():
    x = np.concatenate([toy_gp(seed, num_rows=200, num_test=1).x for seed in range(20)])[:, 0]
    position = np.where(x < 0, x + 2.5, x + 2.5 - 1.5) / 3.5  # the range pushed together, scaled to [0, 1]
    gap = np.abs(np.sort(position) - (np.arange(len(x)) + 0.5) / len(x)).max()
    assert gap < 1.95 / np.sqrt(len(x))  # Kolmogorov-Smirnov at the level 0.001


def test_functions_have_the_covariance_of_the_kernel():
    repeats = 400
    functions = np.stack([toy_gp(seed, num_test=1).f_grid[:, 0] for seed in range(repeats)])
    grid = toy_gp(0).x_grid[:, 0]
    assert grid[0] == -2.5
    assert grid[-1] == 2.5
    for lag in (0, 10, 20, 40):  # grid points of 0.01
        expected = np.exp(-0.5 * (lag * 0.01 / 0.2) ** 2)
        products = functions[:, 100] * functions[:, 100 + lag]
        # The variance of a product of two standard normals with correlation r is 1 + r².
        assert abs(products.mean() - expected) < 4 * np.sqrt((1 + expected**2) / repeats)


def test_the_noise_has_its_size_and_the_grid_is_the_truth():
    toy = toy_gp(3, num_rows=400, num_test=400, noise=0.05)
    for x, y in ((toy.x, toy.y), (toy.x_test, toy.y_test)):
        residuals = y[:, 0] - np.interp(x[:, 0], toy.x_grid[:, 0], toy.f_grid[:, 0])
        # Linear interpolation errs by at most h²/8 |f''|: below 0.0002 here, far below the noise.
        assert abs(residuals.std() / 0.05 - 1) < 4 / np.sqrt(2 * 400)
        assert abs(residuals.mean()) < 4 * 0.05 / np.sqrt(400)


def test_the_seed_decides_and_the_number_of_held_out_points_changes_no_inputs():
    np.testing.assert_array_equal(toy_gp(1).y, toy_gp(1).y)
    np.testing.assert_array_equal(toy_gp(1).x, toy_gp(1, num_test=7).x)
    assert not np.array_equal(toy_gp(1).y, toy_gp(2).y)


def test_the_cubic():
    toy = toy_cubic(0, num_rows=2000, num_test=2000)
    np.testing.assert_array_equal(toy.f_grid, toy.x_grid**3)
    assert np.abs(toy.x).max() <= 4
    assert np.abs(toy.x_test).max() <= 6
    assert not toy.in_gap.any()
    for x, y in ((toy.x, toy.y), (toy.x_test, toy.y_test)):
        assert abs((y - x**3).std() / 3 - 1) < 4 / np.sqrt(2 * 2000)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_rows": 0},
        {"num_test": 1.5},
        {"noise": 0.0},
        {"lengthscale": -1.0},
        {"limit": float("inf")},
        {"gap": (0.5, 0.1)},
        {"gap": (-3.0, 1.0)},
    ],
)
def test_bad_toy_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        toy_gp(**arguments)


def test_fit_takes_the_arrays_as_they_are():
    toy = toy_gp(0)
    fit = sps.fit(sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero()), toy.x, toy.y, num_steps=3, progress=False)
    assert fit.predict(toy.x_test, num_samples=5).mean.shape == (200, 1)


# --- UCI -------------------------------------------------------------------------------------------


@pytest.fixture
def uci():
    if not os.environ.get("PYRO_SPS_DATA"):
        pytest.skip("PYRO_SPS_DATA names no folder with the UCI files")
    return Path(os.environ["PYRO_SPS_DATA"])


@pytest.mark.parametrize("name", sorted(UCI))
def test_real_files(uci, name):
    data = load_uci(name)
    rows, features, targets = SHAPES[name]
    assert data.x.shape == (rows, features)
    assert data.y.shape == (rows, targets)
    assert len(data.feature_names) == features
    assert len(data.target_names) == targets
    assert len({*data.feature_names, *data.target_names}) == features + targets
    assert np.isfinite(data.x).all()
    assert (data.x.std(0) > 0).all()
    assert (data.y.std(0) > 0).all()


def test_real_numbers_are_those_of_other_readers(uci):
    wine = np.genfromtxt(uci / "winequality-red.csv", delimiter=";", skip_header=1)
    data = load_uci("wine-red")
    np.testing.assert_array_equal(np.hstack([data.x, data.y]), wine)
    kin = np.array((uci / "kin8nm.data").read_text().split(), dtype=float).reshape(-1, 9)
    data = load_uci("kin8nm")
    np.testing.assert_array_equal(np.hstack([data.x, data.y]), kin)
    assert load_uci("energy").target_names == ("Y1", "Y2")
    # The published range of the concrete's strength (Yeh, 1998, as described by the repository), in MPa.
    concrete = load_uci("concrete")
    assert "strength" in concrete.target_names[0]
    assert concrete.y.min() == pytest.approx(2.33, abs=0.005)
    assert concrete.y.max() == pytest.approx(82.6, abs=0.005)


def test_the_checksums_are_those_of_the_data_folder(uci):
    readme = (uci / "README.md").read_text()
    for source in UCI.values():
        assert f"| {source.file} |" in readme
        assert source.sha256 in readme


CSV = b"a;b\n1;2\n3;4\n"


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A small data set `fake` in a zip archive, an empty cache, no folder; the list of downloads."""
    archive = tmp_path / "served.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("Readme.txt", "about")
        file.writestr("folder/fake.csv", CSV)
    source = remote.Remote("fake.csv", hashlib.sha256(CSV).hexdigest(), "https://example.org/fake.zip", "Fake")
    monkeypatch.setitem(UCI, "fake", source)
    monkeypatch.setattr(remote, "cache", lambda: tmp_path / "cache" / "pyro_sps")
    monkeypatch.delenv("PYRO_SPS_DATA", raising=False)
    fetched = []

    def retrieve(url, known_hash, fname, path):
        fetched.append(url)
        target = Path(path, fname)
        target.write_bytes(archive.read_bytes())
        return str(target)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    return fetched


def test_the_cache_is_where_pooch_has_it(monkeypatch, tmp_path):
    import pooch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remote.cache() == Path(pooch.os_cache("pyro_sps"))


def test_a_download_is_unpacked_checked_and_cached(fake, tmp_path):
    for _ in range(2):
        data = load_uci("fake")
        np.testing.assert_array_equal(np.hstack([data.x, data.y]), [[1, 2], [3, 4]])
    assert fake == ["https://example.org/fake.zip"]
    assert [path.name for path in (tmp_path / "cache" / "pyro_sps").iterdir()] == ["fake.csv"]


def test_the_folder_comes_first(fake, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "fake.csv").write_bytes(CSV)
    monkeypatch.setenv("PYRO_SPS_DATA", str(tmp_path / "mine"))
    assert len(load_uci("fake")) == 2
    assert fake == []
    (tmp_path / "mine" / "fake.csv").write_bytes(CSV + b"5;6\n")
    with pytest.raises(DataError, match=r"mine/fake\.csv is not the original"):
        load_uci("fake")
    (tmp_path / "mine" / "fake.csv").unlink()
    assert len(load_uci("fake")) == 2
    assert len(fake) == 1


def test_a_damaged_cache_is_noticed(fake, tmp_path):
    load_uci("fake")
    (tmp_path / "cache" / "pyro_sps" / "fake.csv").write_bytes(CSV[:-1])
    with pytest.raises(DataError, match=r"cache/pyro_sps/fake\.csv is not the original"):
        load_uci("fake")


def test_another_file_from_the_network_is_refused_and_not_kept(fake, tmp_path, monkeypatch):
    monkeypatch.setitem(UCI, "fake", remote.Remote("fake.csv", "0" * 64, "https://example.org/fake.zip", "Fake"))
    with pytest.raises(DataError, match="is not the original"):
        load_uci("fake")
    assert list((tmp_path / "cache" / "pyro_sps").iterdir()) == []
    monkeypatch.setitem(UCI, "fake", remote.Remote("other.csv", "0" * 64, "https://example.org/fake.zip", "Fake"))
    with pytest.raises(DataError, match=r"holds no other\.csv"):
        load_uci("fake")


@pytest.mark.parametrize("error", [requests.ConnectionError("no route"), PermissionError("read-only"), TimeoutError()])
def test_offline_the_error_says_where_to_put_which_file(fake, tmp_path, monkeypatch, error):
    def retrieve(*args, **kwargs):
        raise error

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(DataError) as caught:
        load_uci("fake")
    for word in ("fake.csv", "https://example.org/fake.zip", "PYRO_SPS_DATA", str(tmp_path / "cache"), "SHA-256"):
        assert word in str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"concrete.*'boston'"):
        load_uci("boston")
