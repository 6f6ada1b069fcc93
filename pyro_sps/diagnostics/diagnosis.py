"""What a diagnosis holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.files import write_atomically
from ..posterior.fit import Fit
from ..posterior.predict import Prediction
from ..symmetry.report import SymmetryReport
from .convergence import Convergence, Replicas
from .importance import Importance
from .predictive import PredictiveCheck


@dataclass(frozen=True)
class Baseline:
    """The fit against another, such as one with nothing fixed, on the same targets.

    Attributes:
        lpp: Mean log posterior predictive density under the other, nats.
        difference: That of the fit less that of the other.
        standard_error: Standard error of the difference over rows.

    Example:
        >>> from pyro_sps.diagnostics.diagnosis import Baseline
        >>> baseline = Baseline(lpp=-1.34, difference=0.1, standard_error=0.02)
        >>> baseline.difference > 2 * baseline.standard_error  # more than chance would give
        True
    """

    lpp: float
    difference: float
    standard_error: float


@dataclass(frozen=True)
class Diagnosis:
    """What `pyro_sps.diagnose` found; prints as a report.

    Attributes:
        fits: The fits.
        symmetry: The certificate of what the masks leave.
        convergence: How the optimisation of each fit ended.
        importance: Importance sampling of each fit; empty without training data.
        replicas: How much the fits differ; None for a single one.
        predictive: Checks of predictions.
        baseline: The comparison with the baseline, if one was given.
        warnings: What to worry about, in words.
        left_out: What was not checked, and why.
        prediction: The predictions that were checked (the mixture's, of several fits).
        targets: What they were checked against.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> diagnosis = sps.diagnose(fit, draws=100)
        >>> print(str(diagnosis).splitlines()[0])
        A fit of a 1-5-5-1 network, 10 of 46 weights fixed
        >>> print(diagnosis.left_out[0])
        R-hat and spread over replicas: there is one fit; fit(..., replicas=4) makes several
    """

    fits: tuple[Fit, ...] = field(repr=False)
    symmetry: SymmetryReport
    convergence: tuple[Convergence, ...]
    importance: tuple[Importance, ...]
    replicas: Replicas | None
    predictive: PredictiveCheck
    baseline: Baseline | None
    warnings: tuple[str, ...]
    left_out: tuple[str, ...]
    prediction: Prediction = field(repr=False)
    targets: Tensor = field(repr=False)

    def __str__(self) -> str:
        from .summary import summary

        return summary(self)

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON, where None stands for what is not known; `rhat_…` are medians."""
        check, replicas = self.predictive, self.replicas
        numbers: dict[str, Any] = {
            "symmetry": self.symmetry.to_dict(),
            "elbo": [one.elbo for one in self.convergence],
            "elbo_standard_error": [one.standard_error for one in self.convergence],
            "elbo_change": [one.change for one in self.convergence],
            "elbo_relative_change": [one.relative_change for one in self.convergence],
            "loss_spread": [one.spread for one in self.convergence],
            "pareto_k": [one.khat for one in self.importance],
            "importance_ess": [one.ess for one in self.importance],
            "held_out": check.held_out,
            "lpp": check.lpp,
            "lpp_standard_error": check.lpp_error,
            "accuracy": check.accuracy,
            "warnings": list(self.warnings),
            "left_out": list(self.left_out),
        }
        if replicas is not None:
            numbers["rhat_weights"], numbers["rhat_predictions"] = replicas.medians
            numbers |= {"prediction_spread": replicas.prediction_spread, "elbo_spread": replicas.elbo_spread}
        if check.calibration is not None:
            arrays = {name: getattr(check.calibration, name) for name in ("rmse", "crps", "std", "coverage")}
            numbers |= {name: value.tolist() for name, value in arrays.items()}
            numbers |= {"levels": list(check.calibration.levels), "pit": check.calibration.histogram().tolist()}
        if self.baseline is not None:
            numbers |= {"baseline_lpp": self.baseline.lpp, "baseline_difference": self.baseline.difference}
        return _finite(numbers)

    def save_html(self, path: str | Path, labels: Sequence[str] | None = None) -> None:
        """Write the report with its figures as one self-contained page.

        Args:
            path: The file.
            labels: Names of the classes, where there are some; default: their numbers.

        Raises:
            OSError: If it cannot be written.
        """
        from .page import page

        write_atomically(Path(path), page(self, labels).encode())


def _finite(value: Any) -> Any:
    """Numbers that are not finite, for which JSON has no name, as None."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
