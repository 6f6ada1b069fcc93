"""Predictions against data: bands, intervals, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.checks import require_count
from ..data.arrays import to_numpy
from ..posterior.fit import Fit, Fits
from ..posterior.predict import Prediction
from .axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_bands(
    source: Prediction | Fit | Fits,
    data: tuple[Any, Any] | None = None,
    truth: Any = None,
    *,
    target: int = 0,
    level: float = 0.95,
    draws: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Draw the predictive mean and interval of a network of one input, with draws of the function and data.

    Args:
        source: A prediction at inputs of one feature, or a fit, of which the range of its training data and a fifth
            more is shown.
        data: Inputs and targets to show, in original units; default: the training data of a fit.
        truth: The true function at the prediction's inputs, if it is known.
        target: Which target to draw.
        level: Probability of the interval (noise included).
        draws: Number of draws of the function (without noise) to draw as thin lines.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If the network has more than one input or no such target, or if the fit was loaded from a file,
            which does not hold training data (give a prediction).

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.plots import plot_bands
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> plot_bands(fit).get_xlabel()
        'input x'
    """
    if not isinstance(source, Prediction):
        source, known = _over_training_range(source)
        data = known if data is None else data
    if source.x[0].numel() != 1:
        raise ValueError(f"plot_bands needs a network of one input, got {source.x[0].numel()}; use plot_predicted")
    lower, upper = source.interval(level)
    _check_target(target, lower.shape[1])
    x = to_numpy(source.x).reshape(-1)
    order = np.argsort(x)
    x = x[order]
    own = ax is None
    ax = new_axes()[0] if ax is None else ax
    low, high = (to_numpy(end[:, target])[order] for end in (lower, upper))
    ax.fill_between(x, low, high, color="0.82", linewidth=0, label=f"{100 * level:g} % interval")
    if draws:
        functions = source.function_draws[..., target]
        chosen = np.unique(np.linspace(0, len(functions) - 1, draws).round().astype(int))  # of all members
        lines = ax.plot(x, to_numpy(functions[chosen])[:, order].T, color="tab:blue", linewidth=0.5, alpha=0.6)
        lines[0].set_label("draws of the function")
    ax.plot(x, to_numpy(source.mean[:, target])[order], color="tab:blue", linewidth=1.6, label="predictive mean")
    if truth is not None:
        true = to_numpy(truth).reshape(len(x), -1)[order]
        ax.plot(x, true[:, min(target, true.shape[1] - 1)], "--", color="black", linewidth=0.9, label="true function")
    if data is not None:
        points = to_numpy(data[0]).reshape(-1), to_numpy(data[1]).reshape(len(data[0]), -1)[:, target]
        ax.plot(*points, "o", color="black", markersize=3, label="data")
    ax.set(xlabel="input x", ylabel="target y", xlim=(x[0], x[-1]))
    if own:
        ax.legend(fontsize="small", frameon=False)
    return ax


def plot_predicted(
    prediction: Prediction, y: Any, target: int = 0, level: float = 0.95, ax: Axes | None = None
) -> Axes:
    """Draw predicted against observed targets with their intervals; those that miss are marked.

    Args:
        prediction: The predictive distribution.
        y: Observed targets in original units.
        target: Which target to draw.
        level: Probability of the intervals (noise included).
        ax: Where to draw; default: a new figure.

    Returns:
        The axes. The title says how many targets lie in their interval.

    Raises:
        ValueError: If `y` does not fit, or there is no such target.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.plots import plot_predicted
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> plot_predicted(fit.predict(x), x**2).get_xlabel()
        'observed target y'
    """
    lower, upper = (to_numpy(end) for end in prediction.interval(level))
    _check_target(target, lower.shape[1])
    observed, mean = to_numpy(prediction.check_targets(y))[:, target], to_numpy(prediction.mean)[:, target]
    lower, upper = lower[:, target], upper[:, target]
    inside = (observed >= lower) & (observed <= upper)
    own = ax is None
    ax = new_axes(1, 4.6, 4.2)[0] if ax is None else ax
    looks = ((inside, "o", "0.45", "inside the interval"), (~inside, "s", "black", "outside"))
    for these, marker, colour, label in looks:
        if these.any():
            ax.vlines(observed[these], lower[these], upper[these], color=colour, linewidth=0.7, alpha=0.7)
            ax.plot(observed[these], mean[these], marker, color=colour, markersize=3, label=label)
    ax.axline((float(observed.mean()),) * 2, slope=1.0, color="tab:blue", linewidth=1.0, linestyle="--", zorder=0)
    ax.set_title(f"{inside.sum()} of {len(inside)} in their {100 * level:g} % interval", fontsize="medium")
    ax.set(xlabel="observed target y", ylabel="predicted: mean and interval")
    if own:
        ax.legend(fontsize="small", frameon=False)
    return ax


def plot_calibration(prediction: Prediction, y: Any, ax: Axes | None = None) -> Axes:
    """Draw the share of targets inside central intervals against the intervals' nominal probability.

    The grey band holds 95 % of what chance alone would give a calibrated prediction, level by level, if targets
    were independent. All targets of a row count.

    Args:
        prediction: The predictive distribution.
        y: Observed targets in original units.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If `y` does not fit or holds labels.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.plots import plot_calibration
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> plot_calibration(fit.predict(x), x**2).get_ylabel()
        'share of targets inside'
    """
    from scipy.stats import binom

    # A target lies in the central interval of a level if its rank is that close to the middle.
    ranks = to_numpy(prediction.pit(y)).reshape(-1)
    distance = np.sort(2 * np.abs(ranks[~np.isnan(ranks)] - 0.5))
    count = len(distance)
    levels = np.linspace(0.05, 0.95, 19)
    observed = np.searchsorted(distance, levels, side="right") / count
    own = ax is None
    ax = new_axes(1, 4.6, 4.2)[0] if ax is None else ax
    fine = np.linspace(0.001, 0.999, 200)
    low, high = binom.interval(0.95, count, fine)
    ax.fill_between(fine, low / count, high / count, color="0.85", linewidth=0, label="95 % of calibrated ones")
    ax.plot([0, 1], [0, 1], "--", color="0.4", linewidth=1.0, label="calibrated")
    ax.plot(levels, observed, "o-", color="tab:blue", markersize=3, label=f"observed, {count:,} targets")
    ax.set(xlabel="nominal probability of the interval", ylabel="share of targets inside", xlim=(0, 1), ylim=(0, 1))
    if own:
        ax.legend(fontsize="small", frameon=False, loc="upper left")
    return ax


def plot_pit(prediction: Prediction, y: Any, bins: int = 10, ax: Axes | None = None) -> Axes:
    """Draw the histogram of probability integral transforms, which is flat for a calibrated prediction.

    A ∪ says that the prediction is too sure, a hump that it is not sure enough, a slope that it is biased. The band
    holds 95 % of what chance alone would give a calibrated prediction, bin by bin, if targets were independent.

    Args:
        prediction: The predictive distribution.
        y: Observed targets in original units.
        bins: Number of bins.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If `y` does not fit or holds labels, or `bins` is not a positive integer.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.plots import plot_pit
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> len(plot_pit(fit.predict(x), x**2).patches)
        10
    """
    from scipy.stats import binom

    require_count("bins", bins)
    ranks = to_numpy(prediction.pit(y)).reshape(-1)
    ranks = ranks[~np.isnan(ranks)]
    own = ax is None
    ax = new_axes()[0] if ax is None else ax
    counts, edges = np.histogram(ranks, bins, range=(0.0, 1.0))
    ax.bar(edges[:-1], counts, 1 / bins, align="edge", color="0.6", edgecolor="white", label="observed")
    low, high = binom.interval(0.95, len(ranks), 1 / bins)
    ax.fill_between([0, 1], low, high, color="tab:blue", alpha=0.2, linewidth=0, label="95 % of calibrated ones")
    ax.axhline(len(ranks) / bins, color="tab:blue", linestyle="--", linewidth=1.2, label="calibrated")
    ax.set(xlabel="rank of the target in its predictive distribution", ylabel=f"number of {len(ranks):,} targets")
    ax.set_xlim(0, 1)
    if own:
        ax.legend(fontsize="small")
    return ax


def _over_training_range(source: Fit | Fits) -> tuple[Prediction, tuple[Any, Any]]:
    """A fit's prediction on a grid, and its training data in original units."""
    fit: Any = source[0] if isinstance(source, Sequence) else source
    if fit.x is None or fit.y is None:
        raise ValueError(
            "this fit holds no training data (it was loaded from a file, or reads it in pieces); give a Prediction"
        )
    units = fit.standardizer
    x, y = units.x_mean + units.x_scale * fit.x, units.y_mean + units.y_scale * fit.y
    low, high = float(x.min()), float(x.max())
    margin = 0.1 * (high - low)
    grid = x.new_tensor(np.linspace(low - margin, high + margin, 201)).unsqueeze(1)
    if x[0].numel() != 1:
        raise ValueError(f"plot_bands needs a network of one input, got {x[0].numel()}; use plot_predicted")
    return source.predict(grid), (x, y)


def _check_target(target: int, count: int) -> None:
    if not 0 <= target < count:
        raise ValueError(f"target must be one of 0 ... {count - 1}, got {target!r}")
