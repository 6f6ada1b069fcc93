"""Whether Markov chains have mixed, in weights and in what they predict, and what that means in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.files import write_atomically
from ..data.observed import shown_of
from ..posterior.predict import Prediction
from ..posterior.samples import Samples
from ..symmetry.report import SymmetryReport
from .convergence import RHAT
from .density import Data, chain_seed
from .generations import bulk_ess, rank_rhat
from .predictive import PredictiveCheck, check_predictions

# ArviZ takes a millisecond for each R-hat.
_MOST_WEIGHTS, _MOST_ROWS = 300, 50

# Effective draws of predictions below which their means are not to be trusted.
FEW_DRAWS = 100

# Share of steps taken back, or of trajectories that diverged, above which step sizes are too large.
MANY_FAILURES = 0.01


@dataclass(frozen=True)
class ChainDiagnosis:
    """What `pyro_sps.diagnose` found of samples; prints as a report.

    Attributes:
        samples: The samples.
        symmetry: The certificate of what the masks leave: only where nothing is left do weights of chains compare.
        rhat_weights: R-hat of stochastic weights, of all or 300 spread evenly over them; NaN for a single chain.
        rhat_predictions: R-hat of the network's functions, of all rows or 50 spread evenly over them.
        ess_weights: Effective sample size of the same weights.
        ess_predictions: Of the same predictions.
        rhat_energy: R-hat of the energy.
        predictive: Checks of predictions.
        warnings: What to worry about, in words.
        prediction: The predictions that were checked.
        targets: Against what.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> samples = sps.sample(bnn, x, x**2, chains=2, num_samples=5, warmup=50, map_steps=50, progress=False)
        >>> print(str(sps.diagnose(samples)).splitlines()[0])
        2 chains of 5 draws (mclmc) of a 1-5-5-1 network, 10 of 46 weights fixed
    """

    samples: Samples = field(repr=False)
    symmetry: SymmetryReport = field(repr=False)
    rhat_weights: np.ndarray = field(repr=False)
    rhat_predictions: np.ndarray = field(repr=False)
    ess_weights: np.ndarray = field(repr=False)
    ess_predictions: np.ndarray = field(repr=False)
    rhat_energy: float
    predictive: PredictiveCheck
    warnings: tuple[str, ...]
    prediction: Prediction = field(repr=False)
    targets: Tensor = field(repr=False)

    def __str__(self) -> str:
        samples, bnn = self.samples, self.samples.bnn
        widths = "-".join(str(group.size) for group in bnn.topology.groups)
        lines = [
            f"{samples.num_chains} chains of {samples.num_samples} draws ({samples.kernel}) of a {widths} network, "
            f"{bnn.num_fixed:,} of {bnn.topology.num_weights:,} weights fixed",
            "",
        ]
        lines += [_row(name, *values) for name, values in self._table()]
        rates = samples.acceptance_rates
        lines += ["", f"Kept: {min(rates):.1%} to {max(rates):.1%} of the steps of a chain"]
        steps = samples.tuning.get("step_size", [])
        if steps:
            lines.append(f"Step sizes: {min(steps):.3g} to {max(steps):.3g}")
        if samples.errors.numel():
            lines.append(f"Energy error: {samples.errors.mean().item():.3g} (mean square of a step for each direction)")
        data = "held-out" if self.predictive.held_out else "training"
        lines.append(f"LPP of {data} data: {self.predictive.lpp:.3f} ± {self.predictive.lpp_error:.3f}")
        if samples.approximate:
            lines.append(f"Approximate: {samples.approximate}")
        found = [f"- {warning}" for warning in self.warnings]
        return "\n".join([*lines, "", *(["Warnings:", *found] if found else ["No warnings."])])

    def _table(self) -> list[tuple[str, tuple[str, ...]]]:
        rows: list[tuple[str, tuple[str, ...]]] = [("", ("R-hat, median", "largest", "effective draws, median"))]
        for name, rhat, ess in (
            ("weights", self.rhat_weights, self.ess_weights),
            ("predictions", self.rhat_predictions, self.ess_predictions),
        ):
            rows.append((name, (_number(rhat, np.median), _number(rhat, np.max), _number(ess, np.median, ".0f"))))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON, where None stands for what is not known; R-hat and effective draws are medians."""
        values = {
            "rhat_weights": self.rhat_weights,
            "rhat_predictions": self.rhat_predictions,
            "ess_weights": self.ess_weights,
            "ess_predictions": self.ess_predictions,
        }
        known = {name: value[np.isfinite(value)] for name, value in values.items()}
        medians: dict[str, Any] = {n: float(np.median(v)) if len(v) else None for n, v in known.items()}
        return medians | {
            "rhat_energy": self.rhat_energy if math.isfinite(self.rhat_energy) else None,
            "lpp": self.predictive.lpp,
            "acceptance_rates": list(self.samples.acceptance_rates),
            "restarted": list(self.samples.restarted),
            "warnings": list(self.warnings),
        }

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


def _row(name: str, *values: str) -> str:
    return f"{name:<12}" + "".join(f"{value:>26}" for value in values)


def _number(values: np.ndarray, how: Any, form: str = ".2f") -> str:
    known = values[np.isfinite(values)]
    return format(float(how(known)), form) if len(known) else "-"


def diagnose_chains(
    samples: Samples,
    data: Data,
    held_out: bool,
    draws: int,
    time_limit: float,
    seed: int,
) -> ChainDiagnosis:
    """Check samples; see `pyro_sps.diagnose`.

    Args:
        samples: The samples.
        data: The rows on which predictions are checked.
        held_out: Whether they are no training rows.
        draws: Draws for these.
        time_limit: Seconds after which the symmetry certificate gives up.
        seed: Seeds predictive draws.
    """
    chain_seed(seed, 0)
    inputs = data.x
    shown, bars = shown_of(data.y)
    weights = torch.cat([value.flatten(2) for value in samples.samples.values()], dim=2).double().cpu().numpy()
    chosen = np.unique(np.linspace(0, weights.shape[2] - 1, _MOST_WEIGHTS).astype(int))
    functions = _functions(samples, inputs)
    prediction = samples.predict(inputs, min(draws, samples.num_chains * samples.num_samples), seed, y_scale=bars)
    energy = samples.energies.double().cpu().numpy()[..., None]
    enough, nothing = samples.num_samples >= 4, np.full(1, np.nan)

    def rhat(values: np.ndarray) -> np.ndarray:
        return rank_rhat(values) if enough and samples.num_chains > 1 else nothing

    def ess(values: np.ndarray) -> np.ndarray:
        return bulk_ess(values) if enough else nothing

    found = (rhat(weights[..., chosen]), rhat(functions), ess(weights[..., chosen]), ess(functions))
    symmetry = samples.bnn.symmetry(time_limit=time_limit)
    predictive = check_predictions(prediction, shown, held_out, seed)
    rhat_energy = float(rhat(energy)[0])
    warnings = _warnings(samples, symmetry, *found, rhat_energy)
    observed = prediction.check_targets(shown)
    return ChainDiagnosis(samples, symmetry, *found, rhat_energy, predictive, tuple(warnings), prediction, observed)


def _functions(samples: Samples, x: Tensor) -> np.ndarray:
    """Means of the targets at some rows under each draw, shape (chains, draws, values)."""
    rows = np.unique(np.linspace(0, len(x) - 1, _MOST_ROWS).astype(int))
    every = []
    for chain in range(samples.num_chains):
        member = samples.chain(chain).member(samples.num_samples)
        every.append(Prediction.of([member], x[rows], samples.num_samples, 0).function_draws.flatten(1))
    return torch.stack(every).double().cpu().numpy()


def _warnings(
    samples: Samples,
    symmetry: SymmetryReport,
    rhat_weights: np.ndarray,
    rhat_predictions: np.ndarray,
    ess_weights: np.ndarray,
    ess_predictions: np.ndarray,
    rhat_energy: float,
) -> list[str]:
    found = []
    known = (values[np.isfinite(values)] for values in (rhat_predictions, rhat_weights))
    predictions, weights = (float(np.median(values)) if len(values) else math.nan for values in known)
    if predictions > RHAT:
        found.append(
            f"Chains differ in what they predict (median R-hat {predictions:.2f}): they are in different modes, or too "
            "short. Give more num_samples and thinning, or more chains; predict with all of them."
        )
    elif weights > RHAT:
        left = any(one.after != 1 for one in symmetry.classes)
        why = "the masks leave symmetries, so that chains in copies of one mode differ" if left else "several modes"
        found.append(f"Chains agree in what they predict but not in their weights (median R-hat {weights:.2f}): {why}.")
    if np.isfinite(ess_predictions).any() and np.nanmedian(ess_predictions) < FEW_DRAWS:
        found.append(
            f"Predictions have {np.nanmedian(ess_predictions):.0f} effective draws in the median: raise thinning, then "
            "num_samples."
        )
    failures = samples.failures.double().mean().item()
    if samples.kernel != "mams" and failures > MANY_FAILURES:
        remedy = "lower energy_error" if samples.kernel == "mclmc" else "raise target_accept"
        found.append(f"{failures:.1%} of the steps were taken back or diverged: {remedy}.")
    if samples.restarted:
        found.append(f"Chains {list(samples.restarted)} began again in the warm-up: they were stuck or far away.")
    if samples.stopped:
        found.append(f"Sampling ended early: {samples.stopped}.")
    return found
