"""Checks of predictions against data: are they calibrated, how sharp and how good are they?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..model.likelihoods import Bernoulli
from ..posterior.outputs import quantiles
from ..posterior.predict import Prediction

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Calibration:
    """How predictive distributions fit targets that are numbers, in original units (Gneiting et al. 2007).

    Attributes:
        num_rows: Number of rows.
        rmse: Root mean squared error of each target.
        crps: Mean continuous ranked probability score of each target, by `scoringrules`.
        std: Sharpness: mean predictive standard deviation of each target.
        levels: Nominal levels of central intervals.
        widths: Sharpness: mean width of the intervals, shape (levels, targets).
        coverage: Share of targets inside, at each level, over all rows and targets.
        pit: Probability integral transforms, shape (rows, targets): where each target lies among the predictive draws,
            uniform on (0, 1) if the predictions are calibrated. Ties are broken at random.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> calibration = sps.diagnose(fit, draws=100).predictive.calibration
        >>> calibration.levels, calibration.coverage.shape, calibration.pit.shape
        ((0.5, 0.8, 0.9, 0.95, 0.99), (5,), (20, 1))
    """

    num_rows: int
    rmse: np.ndarray
    crps: np.ndarray
    std: np.ndarray
    levels: tuple[float, ...]
    widths: np.ndarray = field(repr=False)
    coverage: np.ndarray
    pit: np.ndarray = field(repr=False)

    def coverage_error(self, level: float) -> float:
        """Standard error of the coverage at a level if the predictions are calibrated and rows independent.

        The targets of a row count as one, for they may depend on each other.
        """
        return math.sqrt(level * (1 - level) / self.num_rows)

    def histogram(self, bins: int = 10) -> np.ndarray:
        """Shares of PIT values in bins of equal width; all are 1/bins if the predictions are calibrated."""
        return np.histogram(self.pit, bins, (0, 1))[0] / self.pit.size


@dataclass(frozen=True)
class PredictiveCheck:
    """Predictions against targets.

    Attributes:
        held_out: Whether the targets were held out; else they are what the network was fitted to.
        num_rows: Number of rows.
        lpp: Mean log posterior predictive density over rows and targets, nats.
        lpp_error: Its standard error over rows.
        accuracy: Share of right labels; None for numbers.
        calibration: Checks of intervals and distributions; None for labels, of which there are none.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> check = sps.diagnose(fit, held_out=(x, x**2), draws=100).predictive
        >>> check.held_out, check.num_rows, check.accuracy
        (True, 20, None)
    """

    held_out: bool
    num_rows: int
    lpp: float
    lpp_error: float
    accuracy: float | None
    calibration: Calibration | None


def check_predictions(
    prediction: Prediction, y: Any, held_out: bool, seed: int, levels: Sequence[float] = LEVELS
) -> PredictiveCheck:
    """Check predictions against targets.

    Args:
        prediction: Predictions.
        y: Targets at the same inputs, in original units.
        held_out: Whether the network was fitted without them.
        seed: Seeds the breaking of ties.
        levels: Of central intervals.
    """
    labels = is_label(prediction.members[0].bnn.likelihood)
    logs = row_means(prediction, y)
    return PredictiveCheck(
        held_out=held_out,
        num_rows=len(logs),
        lpp=float(logs.mean()),
        lpp_error=float(logs.std(ddof=1)) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan,
        accuracy=prediction.accuracy(y) if labels else None,
        calibration=None if labels else _calibration(prediction, y, seed, levels),
    )


def row_means(prediction: Prediction, y: Any) -> np.ndarray:
    """Mean log predictive density of the targets of each row of which some were measured."""
    logs, targets = prediction.log_prob(y), prediction.check_targets(y)
    known = (~targets.isnan() if targets.is_floating_point() else targets >= 0).reshape(len(logs), -1)
    some = known.any(1)
    means: np.ndarray = (logs.reshape(len(logs), -1).sum(1) / known.sum(1))[some].cpu().numpy()
    return means


def _calibration(prediction: Prediction, y: Any, seed: int, levels: Sequence[float]) -> Calibration:
    """All checks in one pass over chunks of rows, so that not all draws are in memory at once."""
    from scoringrules import crps_ensemble

    generator = np.random.default_rng(seed)
    ends = torch.tensor(
        [*((1 - level) / 2 for level in levels), *((1 + level) / 2 for level in levels)],
        dtype=torch.float64,
    )
    targets = prediction.check_targets(y)
    known = ~targets.isnan().cpu().numpy()
    pit, crps, widths, inside = [], [], [], []
    for rows, draws in prediction.draws_by_rows():
        own = targets[rows]
        lower, upper = quantiles(draws, ends.to(draws)).unflatten(0, (2, -1))
        widths.append((upper - lower).cpu().numpy())
        inside.append(((own >= lower) & (own <= upper)).cpu().numpy())
        below, equal = (draws < own).sum(0).cpu().numpy(), (draws == own).sum(0).cpu().numpy()
        # The rank of the target among S draws has S + 1 values; within it, and among ties, its place is random.
        pit.append((below + generator.random(below.shape) * (equal + 1)) / (len(draws) + 1))
        crps.append(crps_ensemble(own.double().cpu().numpy(), draws.double().cpu().numpy(), m_axis=0))
    return Calibration(
        num_rows=len(prediction),
        rmse=(prediction.mean - targets).double().square().nanmean(0).sqrt().cpu().numpy(),
        crps=np.nanmean(np.concatenate(crps), 0),
        std=prediction.std.double().mean(0).cpu().numpy(),
        levels=tuple(levels),
        widths=np.concatenate(widths, axis=1).mean(1),
        coverage=np.concatenate(inside, axis=1)[:, known].mean(1),
        pit=np.concatenate(pit)[known].reshape(-1, targets.shape[1]) if known.all() else np.concatenate(pit)[known],
    )


def is_label(likelihood: Any) -> bool:
    """Whether targets are classes or yes/no answers, for which intervals say nothing."""
    return likelihood.event_dim == 0 or isinstance(likelihood, Bernoulli)
