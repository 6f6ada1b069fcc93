"""What differs between the generations of ArviZ: 0.2x has `InferenceData`, 1.x has xarray's `DataTree`.

Everything here takes and returns arrays and knows nothing of networks, so that it can be tested with either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Of fewer draws importance weights are not smoothed.
FEWEST_DRAWS = 25

# Names of the dimensions, and the values.
Variable = tuple[Sequence[str], np.ndarray]


def inference_data(
    groups: Mapping[str, Mapping[str, Variable]],
    coords: Mapping[str, Sequence[Any] | np.ndarray],
    attrs: Mapping[str, Any],
) -> Any:
    """Arrays as what the installed ArviZ works with.

    Args:
        groups: Variables by name, by group.
        coords: Coordinates by dimension; dimensions without one are counted from 0.
        attrs: Text and numbers that are kept with the whole and with its group `posterior`.

    Returns:
        An `arviz.InferenceData` (0.2x) or an `xarray.DataTree` (1.x).

    Example:
        >>> import numpy as np
        >>> from pyro_sps.diagnostics.generations import inference_data
        >>> draws = np.zeros((4, 100, 2))
        >>> posterior = {"w": (("chain", "draw", "weight"), draws)}
        >>> data = inference_data({"posterior": posterior}, {"weight": ["a", "b"]}, {})
        >>> data.posterior["w"].sel(weight="b").shape
        (4, 100)
    """
    import arviz
    import xarray

    datasets = {
        name: _dataset(variables, coords, attrs if name == "posterior" else {}) for name, variables in groups.items()
    }
    if has_data_tree():
        return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=dict(attrs)), **datasets})
    return arviz.InferenceData(attrs=dict(attrs), **datasets)


def has_data_tree() -> bool:
    """Whether the installed ArviZ is of the generation 1.x."""
    import arviz

    # Asking for its names does not tell: 1.x answers to some of the old ones.
    return int(arviz.__version__.split(".")[0]) >= 1


def _dataset(variables: Mapping[str, Variable], coords: Mapping[str, Any], attrs: Mapping[str, Any]) -> Any:
    import xarray

    sizes = {dim: size for dims, value in variables.values() for dim, size in zip(dims, value.shape, strict=True)}
    index = {dim: np.asarray(coords[dim]) if dim in coords else np.arange(size) for dim, size in sizes.items()}
    return xarray.Dataset({name: (tuple(dims), value) for name, (dims, value) in variables.items()}, index, dict(attrs))


def pareto_smoothed(log_ratios: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto smoothed importance weights (Vehtari, Simpson, Gelman, Yao and Gabry 2024), by ArviZ.

    Args:
        log_ratios: Log density ratios of draws, up to a constant, shape (draws,).

    Returns:
        Logs of the normalised weights, shape (draws,), and Pareto k̂. Ratios that are all equal have k̂ = -inf, those
        of fewer than 25 draws are not smoothed and have k̂ = inf: a fifth of them is too few to fit a tail to.

    Example:
        >>> import numpy as np
        >>> from pyro_sps.diagnostics.generations import pareto_smoothed
        >>> log_weights, khat = pareto_smoothed(np.random.default_rng(0).normal(size=1000))
        >>> bool(abs(np.exp(log_weights).sum() - 1) < 1e-9), bool(khat < 0.7)
        (True, True)
    """
    import arviz

    ratios = np.asarray(log_ratios, dtype=np.float64)
    # To rounding all weights are equal: there is no tail, to which ArviZ would fit one.
    if np.ptp(ratios) < 1e-9 * max(1.0, float(np.abs(ratios).max())):
        return np.full(len(ratios), -np.log(len(ratios))), -np.inf
    if len(ratios) < FEWEST_DRAWS:  # where ArviZ 1 ends with an error
        return ratios - np.logaddexp.reduce(ratios), np.inf
    if has_data_tree():
        from arviz_stats.base import array_stats

        # It takes log likelihoods, of which leave-one-out ratios are the inverse.
        smoothed, khat = array_stats.psislw(-ratios)
    else:
        smoothed, khat = arviz.psislw(ratios.copy())
    smoothed = np.asarray(smoothed)
    return smoothed - np.logaddexp.reduce(smoothed), float(khat)


def rank_rhat(values: np.ndarray) -> np.ndarray:
    """Rank-normalised split R-hat (Vehtari et al. 2021) of each of n quantities, by ArviZ.

    Args:
        values: Shape (chains, draws, n), at least two chains.

    Returns:
        Shape (n,); NaN for quantities that do not vary.

    Example:
        >>> import numpy as np
        >>> from pyro_sps.diagnostics.generations import rank_rhat
        >>> draws = np.random.default_rng(0).normal(size=(4, 250, 1))
        >>> bool(abs(rank_rhat(draws)[0] - 1) < 0.02)
        True
    """
    import arviz
    import xarray

    return arviz.rhat(xarray.Dataset({"value": (("chain", "draw", "n"), values)}))["value"].values


def bulk_ess(values: np.ndarray) -> np.ndarray:
    """Bulk effective sample size (Vehtari et al. 2021) of each of n quantities, by ArviZ.

    Args:
        values: Shape (chains, draws, n), at least four draws.

    Returns:
        Shape (n,).

    Example:
        >>> import numpy as np
        >>> from pyro_sps.diagnostics.generations import bulk_ess
        >>> draws = np.random.default_rng(0).normal(size=(4, 250, 1))
        >>> bool(700 < bulk_ess(draws)[0] < 1500)
        True
    """
    import arviz
    import xarray

    found: np.ndarray = arviz.ess(xarray.Dataset({"value": (("chain", "draw", "n"), values)}))["value"].values
    return found
