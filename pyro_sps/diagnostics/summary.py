"""A diagnosis as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from ..base.text import columns_of
from ..posterior.fit import Fit
from ..symmetry.report import SymmetryReport
from .convergence import Replicas
from .diagnosis import Baseline, Diagnosis
from .findings import class_name
from .predictive import PredictiveCheck

_VERDICTS = {True: "converged", False: "still moving", None: "within noise"}


def summary(diagnosis: Diagnosis) -> str:
    """A short report.

    Args:
        diagnosis: What `pyro_sps.diagnose` found.
    """
    sections = [
        _title(diagnosis.fits),
        _symmetry_text(diagnosis.symmetry),
        _fits_text(diagnosis),
        _replicas_text(diagnosis.replicas),
        _predictive_text(diagnosis.predictive),
        _baseline_text(diagnosis.baseline),
        _list_text("Warnings:", diagnosis.warnings) or "No warnings.",
        _list_text("Not checked:", diagnosis.left_out),
    ]
    return "\n\n".join(section for section in sections if section)


def _title(fits: Sequence[Fit]) -> str:
    bnn = fits[0].bnn
    widths = "-".join(str(group.size) for group in bnn.topology.groups)
    count = "A fit" if len(fits) == 1 else f"{len(fits)} fits"
    return f"{count} of a {widths} network, {bnn.num_fixed:,} of {bnn.topology.num_weights:,} weights fixed"


def _symmetry_text(symmetry: SymmetryReport) -> str:
    rows = [("Symmetries", "before", "left")]
    rows += [(class_name(one), one.text(after=False), one.text(after=True)) for one in symmetry.classes]
    return columns_of(rows)


def _fits_text(diagnosis: Diagnosis) -> str:
    rows = [("Fit", "ELBO, nats", "last tenth", "", "scatter / noise", "Pareto k", "ESS of draws")]
    for index, one in enumerate(diagnosis.convergence):
        weighted = diagnosis.importance[index] if diagnosis.importance else None
        rows.append(
            (
                str(index),
                "" if math.isnan(one.elbo) else f"{one.elbo:,.1f} ± {one.standard_error:.1f}",
                "" if math.isnan(one.change) else f"{one.change:+,.1f} ({one.relative_change:+.2%})",
                "" if math.isnan(one.change) else _VERDICTS[one.converged],
                "" if math.isnan(one.spread) else f"{one.spread:.1f}",
                "" if weighted is None else f"{weighted.khat:.2f} {weighted.reading}",
                "" if weighted is None else f"{weighted.ess:,.0f} of {len(weighted.log_weights):,}",
            )
        )
    return columns_of(rows)


def _replicas_text(replicas: Replicas | None) -> str:
    if replicas is None:
        return ""
    rows = [("R-hat over replicas", "median", "largest")]
    for name, values in (("weights", replicas.rhat_weights), ("predictions", replicas.rhat_predictions)):
        if np.isfinite(values).any():
            rows.append((name, f"{np.nanmedian(values):.2f}", f"{np.nanmax(values):.2f}"))
    lines = [columns_of(rows)]
    if replicas.num_weights > len(replicas.rhat_weights):
        lines.append(f"(of {len(replicas.rhat_weights):,} of {replicas.num_weights:,} weights)")
    lines.append(
        f"Means of predictions differ by {replicas.prediction_spread:.2g} posterior standard deviations"
        + ("." if math.isnan(replicas.elbo_spread) else f", ELBOs by {replicas.elbo_spread:.3g} nats.")
    )
    return "\n".join(lines)


def _predictive_text(check: PredictiveCheck) -> str:
    where = "held-out rows" if check.held_out else "training rows (which is no test)"
    head = f"Predictions for {check.num_rows:,} {where}: LPP {check.lpp:.4g}"
    head += " nats (one row has no standard error)" if math.isnan(check.lpp_error) else f" ± {check.lpp_error:.2g} nats"
    if check.accuracy is not None:
        head += f", accuracy {check.accuracy:.1%}"
    if check.calibration is None:
        return head
    numbers = check.calibration
    scores = [("target", "RMSE", "CRPS", "mean std", *(f"{level:.0%} width" for level in numbers.levels))]
    for index in range(len(numbers.rmse)):
        values = numbers.rmse[index], numbers.crps[index], numbers.std[index], *numbers.widths[:, index]
        scores.append((str(index), *(f"{value:.4g}" for value in values)))
    coverage = [
        ("interval", *(f"{level:.0%}" for level in numbers.levels)),
        ("targets inside", *(f"{share:.1%}" for share in numbers.coverage)),
        ("± if calibrated", *(f"{numbers.coverage_error(level):.1%}" for level in numbers.levels)),
    ]
    bars = ("PIT, tenths", *(f"{share:.0%}" for share in numbers.histogram()))
    return "\n".join([head, columns_of(scores), "", columns_of(coverage), "", "  ".join(bars)])


def _baseline_text(baseline: Baseline | None) -> str:
    if baseline is None:
        return ""
    return (
        f"LPP of the baseline: {baseline.lpp:.4g} nats; the fit's is {baseline.difference:+.3g} ± "
        f"{baseline.standard_error:.2g} from it"
    )


def _list_text(head: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    wrapped = [textwrap.fill(item, 110, initial_indent="- ", subsequent_indent="  ") for item in items]
    return "\n".join([head, *wrapped])
