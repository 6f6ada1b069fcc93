"""All checks of a fit at once, and what they mean in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.checks import require_count
from ..base.process import warn_user
from ..data.observed import shown_of
from ..data.opening import pairs_of
from ..posterior.fit import Fit
from ..posterior.predict import Prediction
from ..posterior.samples import Samples
from .chains import diagnose_chains
from .convergence import Convergence, Replicas, compare_replicas, convergence
from .convert import check_fits
from .density import Data, Draws, chain_seed, check_data, draw, training_data
from .diagnosis import Baseline, Diagnosis
from .findings import warnings_of
from .importance import importance
from .predictive import check_predictions, is_label, row_means

# Log densities (of a row under a draw) that importance sampling takes.
MOST_LOGS = 200_000_000


def diagnose(
    fits: Fit | Sequence[Fit] | Samples,
    x: Any = None,
    y: Any = None,
    *,
    held_out: Any = None,
    baseline: Fit | Sequence[Fit] | None = None,
    draws: int = 1000,
    time_limit: float = 10.0,
    seed: int = 0,
) -> Any:
    """Check whether the approximation is any good.

    - **Importance sampling**: Pareto k̂ of p(w, data)/q(w). Below 0.5 the guide is close to the posterior, above 0.7
      it is not, and corrected expectations (`diagnosis.importance[0].expectation`) are not to be trusted. With
      thousands of weights k̂ is nearly always large, for small errors add up; predictions can be good all the same.
    - **ELBO**: its change over the end of the run, its final value from fresh draws, its scatter.
    - **Replicas**: R-hat of the weights and of the predictions. Replicas in copies of one mode agree in the second
      and not in the first; breaking the symmetries is meant to close that gap.
    - **Predictions** against data: coverage, PIT, sharpness, CRPS; on held-out data if it is given.

    Args:
        fits: A fit, or several: replicas, or fits made one by one of networks with the same masks. Or what `sample`
            returned: then R-hat and effective sample sizes of weights and of predictions, energies and steps.
        x: The training inputs in original units, for fits that do not hold them (those loaded from a file). Data that
            is read in pieces is read again: predictions are checked on 20,000 rows of it, drawn at random where there
            are more, the ELBO is `Fit.elbo`, and importance sampling sees all rows (where there are not more than
            2 · 10⁸ rows times draws).
        y: The training targets, likewise; nothing where `x` is a data set that has them.
        held_out: Inputs and targets that the network was not fitted to, in original units, for the checks of
            predictions, or a data set of them, likewise. Without them they are made on the training data.
        baseline: A fit to compare predictions with: one of the same data with nothing fixed.
        draws: Posterior draws of each fit, and of the predictions.
        time_limit: Seconds after which the symmetry certificate gives up.
        seed: Seeds the draws.

    Returns:
        A `Diagnosis`, of samples a `ChainDiagnosis`; `print` shows it.

    Raises:
        ValueError: If an argument is out of range, the fits have different networks, masks or data, or there is
            neither training nor held-out data.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 50).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x[::2], x[::2]**2, num_steps=50, progress=False)
        >>> diagnosis = sps.diagnose(fit, held_out=(x[1::2], x[1::2]**2), draws=100)
        >>> diagnosis.importance[0].reading in ("good", "ok", "bad", "very bad")
        True
    """
    if isinstance(fits, Samples):
        if baseline is not None:
            raise ValueError("baseline is for fits; compare samples by predict(...).lpp(...)")
        if held_out is not None and (x is not None or y is not None):
            warn_user("x and y have no effect: samples are checked on held_out alone")
            x = y = None
        require_count("draws", draws)
        rows = training_data([fits], x, y) if held_out is None else _held_out(fits, held_out)
        return diagnose_chains(fits, rows, held_out is not None, draws, time_limit, seed)
    every = check_fits(fits)
    others = None if baseline is None else check_fits(baseline)
    require_count("draws", draws, 10)
    chain_seed(seed, 0)  # a wrong seed is told before any work
    data = _training(every, x, y, required=held_out is None)
    checked = data if held_out is None else _held_out(every[0], held_out)
    assert checked is not None
    left_out: list[str] = []
    if data is None:
        left_out.append("ELBO and importance sampling: they need the training data, x and y")
    judged = data
    if data is not None and data.num_rows * draws > MOST_LOGS:
        judged = None
        left_out.append(
            f"importance sampling: it needs each of {data.num_rows:,} rows under each of {draws:,} draws, more than "
            f"{MOST_LOGS:,} in all; fewer draws may do"
        )

    sources = [draw(fit, draws, chain_seed(seed, index)) for index, fit in enumerate(every)]
    endings = tuple(convergence(fit, data, seed) for fit in every)
    weighted = () if judged is None else tuple(importance(source, judged) for source in sources)
    replicas = _replicas(sources, checked.x, endings, left_out)
    shown, bars = shown_of(checked.y)
    prediction = _prediction(every, checked.x, draws, seed, bars)
    predictive = check_predictions(prediction, shown, held_out is not None, seed)
    likelihood = every[0].bnn.likelihood
    if is_label(likelihood):
        left_out.append(
            f"intervals, PIT, sharpness and CRPS: they are not defined for labels ({type(likelihood).__name__})"
        )
    comparison = None if others is None else _compare(prediction, others, (checked.x, shown), draws, seed)
    symmetry = every[0].bnn.symmetry(time_limit=time_limit)
    return Diagnosis(
        fits=tuple(every),
        symmetry=symmetry,
        convergence=endings,
        importance=weighted,
        replicas=replicas,
        predictive=predictive,
        baseline=comparison,
        warnings=tuple(warnings_of(every, symmetry, endings, weighted, replicas, predictive, comparison)),
        left_out=(*left_out, *_short_runs(every, endings)),
        prediction=prediction,
        targets=prediction.check_targets(shown),
    )


# --- the checks ------------------------------------------------------------------------------------


def _training(fits: Sequence[Fit], x: Any, y: Any, required: bool) -> Data | None:
    unknown = x is None and y is None and any(fit.num_data is None for fit in fits)
    if unknown and not required:
        return None
    return training_data(fits, x, y)


def _held_out(fit: Fit | Samples, held_out: Any) -> Data:
    pair = isinstance(held_out, tuple | list) and len(held_out) == 2
    x, y = held_out if pair else (held_out, None)
    if not pair and not isinstance(x, str | Path) and pairs_of(x, y, fit.features, fit.targets) is None:
        raise ValueError("held_out must be a pair (x, y), or a data set of such pairs")
    return check_data(fit.bnn, x, y, "held_out ", fit)


def _prediction(fits: Sequence[Fit], x: Tensor, draws: int, seed: int, y_scale: Tensor | None) -> Prediction:
    return Prediction.of([fit.member for fit in fits], x, max(draws, len(fits)), seed, y_scale)


def _replicas(
    sources: Sequence[Draws], x: Tensor, endings: Sequence[Convergence], left_out: list[str]
) -> Replicas | None:
    if len(sources) > 1:
        return compare_replicas(sources, x, [one.elbo for one in endings])
    left_out.append("R-hat and spread over replicas: there is one fit; fit(..., replicas=4) makes several")
    return None


def _compare(
    prediction: Prediction, others: Sequence[Fit], data: tuple[Tensor, Tensor], draws: int, seed: int
) -> Baseline:
    x, y = data
    own = row_means(prediction, y)
    other = row_means(_prediction(others, x, draws, seed, prediction.y_scale), y)
    difference = (own - other).astype(float)
    error = float(difference.std(ddof=1)) / math.sqrt(len(own)) if len(own) > 1 else math.nan
    return Baseline(float(other.mean()), float(difference.mean()), error)


def _short_runs(fits: Sequence[Fit], endings: Sequence[Convergence]) -> list[str]:
    if all(math.isnan(one.change) for one in endings):
        return [f"convergence: {len(fits[0].losses)} steps are too few to judge it"]
    return []
