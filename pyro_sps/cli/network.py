"""The network that `pyro-sps fit` is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import click

from .files import FORMAT, MAX_LAYERS, MAX_WEIGHTS, network_of, too_large
from .options import make_scheme, make_values_rule
from .table import Training

LIKELIHOODS = ("gaussian", "heteroscedastic", "student-t", "poisson", "bernoulli", "categorical")

# Those of which half of the outputs are scales of the noise.
HALF_FOR_NOISE = ("heteroscedastic", "student-t")


@dataclass(frozen=True)
class Settings:
    """The options of a network."""

    hidden: list[int]
    activation: str
    scheme: str
    fraction: float | None
    values: str
    scale: float | None
    likelihood: str | None
    noise: str | None
    prior_scale: float | None
    method: str

    def __post_init__(self) -> None:
        if self.noise is not None and self.likelihood not in (None, "gaussian"):
            raise click.UsageError(f"--noise is for --likelihood gaussian, not {self.likelihood}")
        make_scheme(self.scheme, self.fraction)
        if self.scheme == "none" and self.values not in ("auto", "zero"):
            raise click.UsageError(f"--values {self.values} has no effect with --scheme none, which fixes nothing")
        make_values_rule(self.values, self.scale)
        self._noise()

    def _noise(self) -> tuple[float, bool]:
        """Standard deviation of the noise, and whether it is learned."""
        if self.noise is None or self.noise == "learned":
            return 0.1, True
        try:
            noise = float(self.noise)
        except ValueError:
            noise = -1.0
        if not 0 < noise < float("inf"):
            raise click.UsageError(f"--noise must be a positive number or 'learned', got {self.noise!r}")
        return noise, False

    def task_of(self, task: str) -> str:
        """The task, of which the likelihood may say something too."""
        own = {None: task, "categorical": "classification"}.get(self.likelihood, "regression")
        if task not in ("auto", own):
            raise click.UsageError(f"--likelihood {self.likelihood} is not for --task {task}")
        return own

    def of(self, training: Training) -> Settings:
        """The same with a likelihood."""
        if training.classes is not None and self.noise is not None:
            raise click.UsageError("--noise is for targets that are numbers")
        return replace(self, likelihood=self.likelihood or ("categorical" if training.classes else "gaussian"))

    @property
    def real_valued(self) -> bool:
        """Whether targets are numbers that may be scaled."""
        return self.likelihood in ("gaussian", *HALF_FOR_NOISE)

    def model(self, training: Training) -> dict[str, Any]:
        """What `predict` must know besides the fit."""
        from ..estimators.methods import has_linear_path

        targets = len(training.classes) if training.classes else len(training.targets)
        outputs = targets * (2 if self.likelihood in HALF_FOR_NOISE else 1)
        rows, features = training.x.shape
        widths = [features, *self.hidden, outputs]
        if too_large(widths):
            raise click.UsageError(
                f"networks of more than {MAX_LAYERS:,} layers or {MAX_WEIGHTS:,} weights are for the Python interface"
            )
        return {
            "format": FORMAT,
            "features": list(training.features),
            "targets": list(training.targets),
            "widths": widths,
            "activation": self.activation,
            "skip": has_linear_path(self.method, rows, labels=training.classes is not None),
            "classes": list(training.classes) if training.classes else None,
            "encoder": None if training.encoder is None else training.encoder.to_json(),
            "fill": list(training.fill),
        }

    def bnn(self, model: Mapping[str, Any], seed: int) -> Any:
        """The network's model; its skeleton takes no memory."""
        import pyro_sps as sps

        scale, learn = self._noise()
        likelihoods: dict[str, Callable[[], Any]] = {
            "gaussian": lambda: sps.Gaussian(scale, learn=learn),
            "heteroscedastic": sps.HeteroscedasticGaussian,
            "student-t": sps.HeteroscedasticStudentT,
            "poisson": sps.Poisson,
            "bernoulli": sps.Bernoulli,
            "categorical": sps.Categorical,
        }
        assert self.likelihood is not None
        return sps.BNN(
            network_of(model),
            scheme=make_scheme(self.scheme, self.fraction),
            values=make_values_rule(self.values, self.scale),
            likelihood=likelihoods[self.likelihood](),
            # As in the estimators: chains find how much each layer does, mean field does not.
            prior=sps.Hierarchical() if self.method == "sample" and self.prior_scale is None else None,
            prior_scale=self.prior_scale,
            seed=seed,
        )

    def describe(self, bnn: Any) -> str:
        """The network in one line."""
        widths = "-".join(str(group.size) for group in bnn.topology.groups)
        fixed = f"{bnn.num_fixed:,} of {bnn.topology.num_weights:,} weights fixed"
        how = f" ({self.scheme}, {self.values})" if bnn.num_fixed else ""
        return f"{widths} network, {self.activation}, {fixed}{how}"
