"""Whether optimisation has come to rest, and whether replicas have come to the same place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..data.observed import fields_of
from ..posterior.fit import ELBO_ROWS, Fit
from ..posterior.outputs import Member
from ..posterior.predict import Prediction
from .density import Data, Draws
from .generations import rank_rhat

#: Fewest steps of which the last two tenths say anything.
MIN_STEPS = 20
#: Relative change of the ELBO between the last two tenths of the steps below which it counts as converged.
RELATIVE_CHANGE = 0.01
#: Spread of the loss, relative to that of its Monte Carlo noise, above which the optimisation counts as unstable.
SPREAD = 3.0
#: R-hat above which replicas count as different. Optimisers come to rest less exactly than Markov chains mix.
RHAT = 1.1

# ArviZ takes a millisecond for each R-hat of three chains of this many (independent) draws.
_MOST_DRAWS = 250
_MOST_WEIGHTS = 1000
_MOST_ROWS = 100


@dataclass(frozen=True)
class Convergence:
    """How the optimisation of one fit ended. ELBOs are in nats, in the units of the network.

    Attributes:
        elbo: Final ELBO from fresh draws; NaN without training data.
        standard_error: Its standard error.
        change: Mean ELBO of the last tenth of the steps less that of the tenth before; NaN for very short fits.
        relative_change: `change` relative to the ELBO's size, or to one nat for each number observed if that is more:
            an ELBO may be about zero.
        noise: Standard error of `change`, from the scatter around a straight line through each tenth.
        spread: Standard deviation of the loss around a straight line through the last tenth, relative to what the
            Monte Carlo noise of a guide at rest makes of it; NaN where that is not known (minibatches, no data).

    Example:
        >>> from pyro_sps.diagnostics.convergence import Convergence
        >>> end = Convergence(
        ...     elbo=-100.0, standard_error=0.5, change=3.0, relative_change=0.03, noise=0.2, spread=1.1
        ... )
        >>> end.converged, end.stable
        (False, True)
    """

    elbo: float
    standard_error: float
    change: float
    relative_change: float
    noise: float
    spread: float

    @property
    def converged(self) -> bool | None:
        """Whether the ELBO changed by less than 1 %; None where more is within noise, or for very short fits."""
        if abs(self.relative_change) < RELATIVE_CHANGE:
            return True
        return False if abs(self.change) >= 2 * self.noise else None

    @property
    def stable(self) -> bool | None:
        """Whether the loss scattered no more than its noise explains; None where that is not known."""
        return None if math.isnan(self.spread) else self.spread < SPREAD


def convergence(fit: Fit, data: Data | None, seed: int, num_draws: int = 256) -> Convergence:
    """How the optimisation of a fit ended.

    Args:
        fit: The fit.
        data: Training data, or None. Of more than 20,000 rows the ELBO is `Fit.elbo`, for which some stand for all.
        seed: Seeds the fresh draws.
        num_draws: Number of fresh draws.
    """
    elbo = error = single = math.nan
    if data is not None and data.whole is not None:
        told = replace(fit, source=data.whole.source)
        elbo, error = told.elbo, told.elbo_error
    elif data is not None:
        if fit.x is None:
            units = fit.standardizer
            fit = replace(fit, x=units.inputs(data.x), source=None, **fields_of(units.targets(data.y)))
        if data.num_rows > ELBO_ROWS:
            elbo, error = fit.elbo, fit.elbo_error
        else:
            values = fit.elbo_draws(num_draws, seed).cpu().numpy()
            elbo, single = float(values.mean()), float(values.std(ddof=1))
            error = single / math.sqrt(num_draws)
    window = len(fit.losses) // 10
    if len(fit.losses) < MIN_STEPS or not np.isfinite(fit.losses[-2 * window :]).all():
        return Convergence(elbo, error, math.nan, math.nan, math.nan, math.nan)
    before, last = -fit.losses[-2 * window : -window], -fit.losses[-window:]
    scatter = _scatter(last)
    noise = math.hypot(_scatter(before), scatter) / math.sqrt(window)
    change = float(last.mean() - before.mean())
    batch = fit.settings.get("batch_size")
    full = fit.x is not None and (not isinstance(batch, int) or batch >= len(fit.x))
    # A guide at rest scatters as its draws do; minibatches add a scatter of their own, which is not known.
    spread = scatter / (single / math.sqrt(fit.settings["num_particles"])) if full and single > 0 else math.nan
    observed = fit.y.numel() if fit.y is not None else 0 if data is None else data.num_entries
    size = max(abs(float(before.mean())), float(observed))
    relative = change / max(size, np.finfo(float).tiny)
    return Convergence(elbo, error, change, relative, noise, spread)


def _scatter(values: np.ndarray) -> float:
    """Standard deviation around a straight line."""
    steps = np.arange(len(values))
    residual = values - np.polyval(np.polyfit(steps, values, 1), steps)
    return float(residual.std(ddof=2)) if len(values) > 2 else 0.0


@dataclass(frozen=True)
class Replicas:
    """How much replicas differ.

    Attributes:
        rhat_weights: R-hat of stochastic weights, shape (weights,): all, or 1,000 spread evenly over them.
        num_weights: Number of stochastic weights.
        rhat_predictions: R-hat of the network's predictions at inputs, shape (rows · targets,): of all rows, or 100
            spread evenly over them.
        prediction_spread: Standard deviation between replicas' predictive means, relative to the posterior standard
            deviation within a replica (root mean squares over rows and targets).
        elbo_spread: Standard deviation of the ELBO between replicas, nats; NaN without training data.

    Example:
        >>> import numpy as np
        >>> from pyro_sps.diagnostics.convergence import Replicas
        >>> replicas = Replicas(
        ...     rhat_weights=np.array([1.5, 2.5]), num_weights=2, rhat_predictions=np.array([1.0]),
        ...     prediction_spread=0.1, elbo_spread=0.3,
        ... )
        >>> replicas.medians, replicas.gap  # the same predictions with other weights
        ((2.0, 1.0), 1.0)
    """

    rhat_weights: np.ndarray = field(repr=False)
    num_weights: int
    rhat_predictions: np.ndarray = field(repr=False)
    prediction_spread: float
    elbo_spread: float

    @property
    def medians(self) -> tuple[float, float]:
        """Median R-hat in weight space and in function space."""
        return _median(self.rhat_weights), _median(self.rhat_predictions)

    @property
    def gap(self) -> float:
        """Median R-hat in weight space less that in function space.

        Replicas in different copies of one mode predict the same with different weights: the gap is large. Breaking
        the symmetries is meant to close it.
        """
        weights, predictions = self.medians
        return weights - predictions


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def compare_replicas(draws: Sequence[Draws], x: Tensor, elbos: Sequence[float]) -> Replicas:
    """Differences between replicas in weight space and in function space.

    Args:
        draws: Draws of each replica.
        x: Inputs in original units at which predictions are compared.
        elbos: ELBO of each.
    """
    members = [_shortened(one) for one in draws]
    weights = np.stack([_flat(member) for member in members])
    chosen = np.unique(np.linspace(0, weights.shape[2] - 1, _MOST_WEIGHTS).astype(int))
    rhat_weights = rank_rhat(weights[:, :, chosen])
    rows = np.unique(np.linspace(0, len(x) - 1, _MOST_ROWS).astype(int))
    every = [Prediction.of([member], x[rows], weights.shape[1], 0).function_draws for member in members]
    functions = torch.stack(every).double().flatten(2).cpu().numpy()
    rhat_predictions = rank_rhat(functions)
    between, within = functions.mean(1).var(0, ddof=1).mean(), functions.var(1).mean()
    ratio = math.sqrt(between / max(within, np.finfo(float).tiny))
    return Replicas(rhat_weights, weights.shape[2], rhat_predictions, ratio, float(np.std(elbos, ddof=1)))


def _shortened(draws: Draws) -> Member:
    assert draws.member.sites is not None
    return replace(draws.member, sites={name: value[:_MOST_DRAWS] for name, value in draws.member.sites.items()})


def _flat(member: Member) -> np.ndarray:
    """Draws of all stochastic weights, shape (draws, weights)."""
    assert member.sites is not None
    weights = member.bnn.free_weights(member.sites)
    return torch.cat([value.flatten(1) for value in weights.values()], dim=1).cpu().numpy()
