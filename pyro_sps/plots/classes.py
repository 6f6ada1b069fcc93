"""Figures of predicted classes against those that were observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.arrays import to_numpy
from ..posterior.predict import Prediction
from .axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More classes than this have no numbers in their cells.
_MOST_NUMBERS = 12


def plot_reliability(prediction: Prediction, y: Any, ax: Axes | None = None, bins: int = 10) -> Axes:
    """Draw how often the most probable class is right against its probability, in bins of equal width.

    Calibrated predictions lie on the diagonal. Bars hold 95 % of what chance alone would give them, bin by bin.

    Args:
        prediction: Predictions of labels.
        y: Observed labels, shape (rows,).
        ax: Where to draw; default: a new figure.
        bins: Number of bins between 0 and 1; empty ones are left out.

    Returns:
        The axes.

    Raises:
        ValueError: If `y` does not fit, the targets are no labels, or `bins` is not positive.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.plots import plot_reliability
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 2]), sps.Unmasked(), likelihood=sps.Categorical())
        >>> fit = sps.fit(bnn, x, (x[:, 0] > 0).long(), num_steps=5, progress=False)
        >>> plot_reliability(fit.predict(x), (x[:, 0] > 0).long()).get_ylabel()
        'share of these rows that are right'
    """
    from scipy.stats import binom

    if bins < 1:
        raise ValueError(f"bins must be positive, got {bins!r}")
    probabilities, observed = _classes(prediction, y)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == observed
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    used = np.unique(number)
    mean = np.array([confidence[number == one].mean() for one in used])
    share = np.array([right[number == one].mean() for one in used])
    counts = np.array([(number == one).sum() for one in used])
    own = ax is None
    ax = new_axes(1, 4.6, 4.2)[0] if ax is None else ax
    low, high = binom.interval(0.95, counts, np.clip(mean, 0, 1))
    ax.plot([0, 1], [0, 1], "--", color="0.4", linewidth=1.0, label="calibrated")
    ax.vlines(mean, low / counts, high / counts, color="0.75", linewidth=4, label="95 % of calibrated ones")
    ax.plot(mean, share, "o-", color="tab:blue", markersize=3, label=f"observed, {len(observed):,} rows")
    ax.set(
        xlabel="probability of the most probable class",
        ylabel="share of these rows that are right",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    if own:
        ax.legend(fontsize="small", frameon=False, loc="upper left")
    return ax


def plot_confusion(prediction: Prediction, y: Any, labels: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw how many rows of each observed class are predicted as which, as shares of the observed class.

    Args:
        prediction: Predictions of labels.
        y: Observed labels, shape (rows,).
        labels: Names of the classes; default: those that the prediction knows, or their numbers.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If `y` does not fit, or the targets are no labels.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.plots import plot_confusion
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 2]), sps.Unmasked(), likelihood=sps.Categorical())
        >>> fit = sps.fit(bnn, x, (x[:, 0] > 0).long(), num_steps=5, progress=False)
        >>> plot_confusion(fit.predict(x), (x[:, 0] > 0).long(), ["no", "yes"]).get_ylabel()
        'observed class'
    """
    probabilities, observed = _classes(prediction, y)
    classes = probabilities.shape[1]
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (observed, probabilities.argmax(1)), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    known = getattr(prediction, "classes", None)
    names = [str(name) for name in (labels if labels is not None else range(classes) if known is None else known)]
    ax = new_axes(1, 4.6, 4.2)[0] if ax is None else ax
    ax.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    if classes <= _MOST_NUMBERS:
        for row, column in np.ndindex(classes, classes):
            colour = "white" if shares[row, column] > 0.6 else "black"
            ax.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize="small")
        ax.set_xticks(range(classes), names, rotation=45, ha="right")
        ax.set_yticks(range(classes), names)
    ax.set(xlabel="predicted class", ylabel="observed class")
    return ax


def _classes(prediction: Prediction, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, shape (rows, classes), and numbers of the observed classes."""
    if prediction.members[0].bnn.likelihood.event_dim != 0:
        raise ValueError("the targets are numbers, not labels: see plot_predicted and plot_calibration")
    return to_numpy(prediction.mean), to_numpy(prediction.check_targets(y)).astype(int)
