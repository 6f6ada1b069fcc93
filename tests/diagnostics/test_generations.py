"""Both generations of ArviZ work on what `generations` makes of arrays.

This file needs neither torch nor pyro, so that it also runs where only ArviZ 1.x is installed (Python 3.12):
`python -m pytest --noconftest -c /dev/null --rootdir . tests/diagnostics/test_generations.py`.
"""

import sys

import numpy as np
import pytest

arviz = pytest.importorskip("arviz")

from pyro_sps.diagnostics.generations import has_data_tree, inference_data, pareto_smoothed, rank_rhat  # noqa: E402

OLD = not has_data_tree()
CHAINS, DRAWS, ROWS = 2, 400, 12


def generation(old):
    reason = f"this interpreter (Python {sys.version.split()[0]}) has ArviZ {arviz.__version__}"
    return pytest.mark.skipif(old != OLD, reason=reason)


@pytest.fixture(scope="module")
def arrays():
    """Exact posterior draws of a mean with noise 1 and a flat prior."""
    generator = np.random.default_rng(0)
    y = generator.normal(size=(ROWS, 1))
    w = generator.normal(y.mean(), ROWS**-0.5, (CHAINS, DRAWS, 1))
    mean = w[:, :, None, :]
    log_likelihood = (-0.5 * (y - mean) ** 2 - 0.5 * np.log(2 * np.pi)).sum(-1)
    predictive = mean + generator.normal(size=(CHAINS, DRAWS, ROWS, 1))
    sample = ("chain", "draw")
    return {
        "posterior": {"w": ((*sample, "weight"), w)},
        "posterior_predictive": {"obs": ((*sample, "row", "target"), predictive)},
        "log_likelihood": {"obs": ((*sample, "row"), log_likelihood)},
        "observed_data": {"obs": (("row", "target"), y)},
        "constant_data": {"0.weight.mask": (("output", "input"), np.array([[True, False]]))},
    }


@pytest.fixture(scope="module")
def data(arrays):
    attrs = {"scheme": "Heavy()", "fit_seeds": [0, 1], "symmetry": "two\nlines"}
    return inference_data(arrays, {"weight": ["0.weight[0, 0]"]}, attrs)


@pytest.fixture(autouse=True)
def _closed():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def test_groups_coordinates_and_attributes(data, arrays):
    for group, variables in arrays.items():
        for name, (dims, values) in variables.items():
            assert data[group][name].dims == tuple(dims)
            np.testing.assert_array_equal(data[group][name].values, values)
    assert data["posterior"]["w"].sel(weight="0.weight[0, 0]").shape == (CHAINS, DRAWS)
    assert list(data["posterior"]["draw"].values) == list(range(DRAWS))
    assert data.attrs["scheme"] == data["posterior"].attrs["scheme"] == "Heavy()"


def test_summary_and_rhat(data, arrays):
    table = arviz.summary(data)
    assert list(table.index) == ["w[0.weight[0, 0]]"]
    draws = arrays["posterior"]["w"][1]
    assert float(table["mean"].iloc[0]) == pytest.approx(draws.mean(), abs=6e-3)
    rhat = arviz.rhat(data)["w"].values
    np.testing.assert_allclose(rhat, rank_rhat(draws))
    assert 0.99 < rhat[0] < 1.02


def test_loo_and_compare(data, arrays):
    y = arrays["observed_data"]["obs"][1][:, 0]
    others = (y.sum() - y) / (ROWS - 1)  # mean and variance of the posterior without each row
    variance = 1 + 1 / (ROWS - 1)
    exact = (-0.5 * (y - others) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)).sum()
    loo = arviz.loo(data, pointwise=True)
    value = loo.elpd_loo if OLD else loo.elpd
    logs = arrays["log_likelihood"]["obs"][1].reshape(-1, ROWS)
    error = logs.std(0).sum() / (CHAINS * DRAWS) ** 0.5  # as if the errors of all rows had one sign
    assert abs(value - exact) < 4 * error
    table = arviz.compare({"one": data, "two": data})
    assert set(table.index) == {"one", "two"}


@generation(old=True)
def test_plots_of_the_old_generation(data):
    assert arviz.plot_ppc(data, num_pp_samples=5) is not None
    assert arviz.plot_trace(data).shape == (1, 2)
    assert isinstance(data, arviz.InferenceData)


@generation(old=False)
def test_plots_of_the_new_generation(data):
    import xarray

    assert isinstance(data, xarray.DataTree)
    assert arviz.plot_ppc_dist(data, num_samples=5, backend="matplotlib") is not None
    assert arviz.plot_trace(data, backend="matplotlib") is not None
    assert arviz.plot_trace_dist(data, backend="matplotlib") is not None


def test_netcdf_round_trip(data, arrays, tmp_path):
    path = str(tmp_path / "data.nc")
    data.to_netcdf(path)
    again = arviz.from_netcdf(path)
    for group, variables in arrays.items():
        for name, (dims, values) in variables.items():
            assert again[group][name].dims == tuple(dims)
            np.testing.assert_array_equal(again[group][name].values, values)
    assert again.attrs["symmetry"] == "two\nlines"
    assert list(again.attrs["fit_seeds"]) == [0, 1]
    assert list(again["posterior"]["weight"].values) == ["0.weight[0, 0]"]


@pytest.mark.parametrize("narrow", [0.3, 0.6])
def test_pareto_k_of_a_narrow_normal(narrow):
    """Draws of N(0, r²) for N(0, 1) have ratios exp(z²(1 - r²)/2) · const, whose tail has the shape 1 - r²."""
    z = np.random.default_rng(1).normal(size=20_000)
    _, khat = pareto_smoothed(0.5 * z**2 * (1 - narrow**2))
    tail = 3 * len(z) ** 0.5
    # The estimate has standard error (1 + k)/√tail, and a tail with a logarithmic factor a bias of the same kind.
    assert abs(khat - (1 - narrow**2)) < 4 * (2 - narrow**2) / tail**0.5


@pytest.mark.parametrize("draws", [1, 2, 24])
def test_few_draws_are_not_smoothed(draws):
    """ArviZ 1 ends with an error where a fifth of the draws is fewer than five."""
    ratios = 3 * np.random.default_rng(0).standard_normal(draws) + np.arange(draws)
    weights, khat = pareto_smoothed(ratios)
    np.testing.assert_allclose(np.exp(weights), np.exp(ratios) / np.exp(ratios).sum())
    assert khat == (np.inf if draws > 1 else -np.inf)


def test_pareto_smoothed_does_not_change_its_argument_and_ignores_constants():
    ratios = np.random.default_rng(2).normal(size=500)
    before = ratios.copy()
    weights, khat = pareto_smoothed(ratios)
    np.testing.assert_array_equal(ratios, before)
    shifted, other = pareto_smoothed(ratios + 1e4)
    assert other == pytest.approx(khat, abs=1e-6)
    np.testing.assert_allclose(shifted, weights, atol=1e-6)
    # Larger ratios have larger weights.
    assert (np.diff(weights[np.argsort(ratios)]) >= -1e-12).all()


def test_equal_ratios_have_equal_weights():
    weights, khat = pareto_smoothed(np.full(100, -3.0) + 1e-12 * np.arange(100))
    np.testing.assert_allclose(np.exp(weights), 0.01)
    assert khat == -np.inf
