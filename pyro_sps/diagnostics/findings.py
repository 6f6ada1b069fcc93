"""What numbers mean: warnings in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..posterior.fit import Fit
from ..symmetry.report import SymmetryClass, SymmetryReport
from .convergence import RELATIVE_CHANGE, RHAT, SPREAD, Convergence, Replicas
from .diagnosis import Baseline
from .importance import Importance
from .predictive import Calibration, PredictiveCheck


def warnings_of(
    fits: Sequence[Fit],
    symmetry: SymmetryReport,
    endings: Sequence[Convergence],
    weighted: Sequence[Importance],
    replicas: Replicas | None,
    predictive: PredictiveCheck,
    baseline: Baseline | None,
) -> list[str]:
    """What to worry about, in words: the signatures of failure of the paper first.

    Args:
        fits: The fits.
        symmetry: What the masks leave.
        endings: How the optimisation of each fit ended.
        weighted: Importance sampling of each fit, or nothing.
        replicas: How much the fits differ, of several.
        predictive: Checks of predictions.
        baseline: The comparison with a baseline, if there is one.
    """
    found = [*_symmetry_warnings(symmetry), *_optimisation_warnings(fits, endings)]
    if baseline is not None and baseline.difference < -2 * baseline.standard_error:
        bnn = fits[0].bnn
        found.append(
            f"Predictions are worse than the baseline's, by {-baseline.difference:.3g} ± {baseline.standard_error:.2g} "
            f"nats a target: {bnn.num_fixed:,} of {bnn.topology.num_weights:,} weights fixed seem to be too many, or "
            "their constants too large, for this network. Try a wider network, Light or Rigid masks, or a smaller c."
        )
    if bad := [str(index) for index, one in enumerate(weighted) if one.reading.endswith("bad")]:
        which = f" of fit{'s' if len(bad) > 1 else ''} {', '.join(bad)}" if len(fits) > 1 else ""
        worst = max(one.khat for one in weighted)
        found.append(
            f"Pareto k̂{which} is {'up to ' if len(bad) > 1 else ''}{worst:.2f}, above {weighted[0].threshold:.2f}: in "
            "the space of all weights the guide is far from the posterior, and corrected expectations are not to be "
            "trusted. With many weights this is the rule; the checks of predictions say how much it matters."
        )
    if replicas is not None:
        found += _replica_warnings(replicas)
    return found + _calibration_warnings(predictive.calibration)


def _symmetry_warnings(symmetry: SymmetryReport) -> list[str]:
    found = []
    if any(one.is_rigid is None for one in symmetry.classes):
        found.append("It was not determined in time whether symmetries are left; give a larger time_limit.")
    left = [one for one in symmetry.classes if one.is_rigid is False]
    if copies := [one for one in left if not one.continuous]:
        largest = max(copies, key=lambda one: one.after or 0)
        found.append(
            f"Symmetries are left: {largest.text(after=True)} {largest.name}. The posterior has that many copies of "
            "each mode, of which a fit covers one; fits from other seeds may land in others. Rigid(signs=True) with "
            "constants other than zero leaves none, or the fewest."
        )
    if symmetry.uncounted:
        found.append(
            f"The sign of {', '.join(symmetry.uncounted)} is left: one number for several units each, whose signs go "
            "with it. Rigid(signs=True) fixes it."
        )
    for one in left:
        if one.continuous:
            what = "Rescalings" if one.name == "scalings" else "Linear maps"
            found.append(
                f"{what} of hidden units are left, in {one.text(after=True)} dimensions: ridges of the likelihood, "
                "along which only the prior holds the weights."
            )
    return found


def class_name(one: SymmetryClass) -> str:
    """What is counted of a class of symmetries."""
    return "dimensions of scalings" if one.continuous else one.name


def _optimisation_warnings(fits: Sequence[Fit], endings: Sequence[Convergence]) -> list[str]:
    found = []

    def which(indices: Sequence[int]) -> str:
        return f"fit{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}: " if len(fits) > 1 else ""

    lost = [index for index, fit in enumerate(fits) if not np.isfinite(fit.losses).all()]
    unstable = [index for index, one in enumerate(endings) if one.stable is False]
    if lost or unstable:
        parts = []
        if lost:
            parts.append(f"{which(lost)}the loss stopped being finite.")
        if unstable:
            worst = max(endings[index].spread for index in unstable)
            parts.append(
                f"{which(unstable)}at the end the loss still scatters {worst:.0f} times as much as the noise of its "
                f"draws explains (more than {SPREAD:.0f} times counts as unstable)."
            )
        parts.append(_remedy(fits[(lost + unstable)[0]]))
        found.append(f"The optimisation is unstable. {' '.join(parts)}")
    if moving := [i for i, one in enumerate(endings) if one.converged is False and i not in lost + unstable]:
        largest = max(abs(endings[index].relative_change) for index in moving)
        found.append(
            f"The ELBO has not converged: {which(moving)}it still changed by {largest:.1%} over the last tenth of the "
            f"steps (less than {RELATIVE_CHANGE:.0%} counts as converged). Give more steps."
        )
    return found


def _remedy(fit: Fit) -> str:
    largest = max(float(value.abs().max()) for value in fit.bnn.fixed.values())
    if largest > 0:
        return f"The constants are up to {largest:.3g} in size: try a smaller c, or a lower learning rate."
    return "Try a lower learning rate."


def _replica_warnings(replicas: Replicas) -> list[str]:
    weights, predictions = replicas.medians
    if weights > RHAT >= predictions:
        return [
            f"Replicas agree in what they predict (median R-hat {predictions:.2f}) but not in their weights (median "
            f"{weights:.2f}): the posterior has several modes that are the same function."
        ]
    if predictions > RHAT:
        return [
            f"Replicas differ in what they predict (median R-hat {predictions:.2f}, means "
            f"{replicas.prediction_spread:.2g} posterior standard deviations apart): a single fit understates the "
            "uncertainty. Predict with all of them."
        ]
    return []


def _calibration_warnings(check: Calibration | None) -> list[str]:
    if check is None:
        return []
    errors = [check.coverage_error(level) for level in check.levels]
    off = (check.coverage - np.array(check.levels)) / np.array(errors)
    worst = int(np.abs(off).argmax())
    if abs(off[worst]) <= 3:
        return []
    word = "narrow" if off[worst] < 0 else "wide"
    return [
        f"Intervals are too {word}: {check.coverage[worst]:.1%} of targets are inside {check.levels[worst]:.0%} "
        f"intervals, {abs(off[worst]):.0f} standard errors off."
    ]
