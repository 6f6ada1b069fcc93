"""Posterior predictive draws and scores, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..base.checks import require_count
from ..base.plain import plain_torch
from ..data.arrays import make_generator
from ..data.names import in_order, require_same_rows, row_names
from ..data.observed import Observed, observed_of
from ..data.trees import rows_of
from ..model.bnn import BNN
from ..model.checks import check_error_bars, check_inputs, check_observed
from ..model.likelihoods import Bernoulli, Ordinal
from .derived import Uncertainty, gradient_of_mean, split_entropy, split_variance
from .outputs import Member, Outputs, Rows, announced, quantiles
from .reading import SourceRows, inputs_of

# More draws than this take very long and tell nothing more.
MAX_SAMPLES = 1_000_000


@dataclass(frozen=True)
class Prediction:
    """The posterior predictive distribution at some inputs.

    Nothing is computed before it is asked for, and rows are worked through in chunks: memory is bounded whatever the
    number of draws and rows, but for `draws` and `function_draws`, which hold what their name says. The same seed
    gives the same numbers. All numbers are in the original units of the targets. Numbers that left the range of the
    network's dtype are announced by a `RuntimeWarning`.

    Attributes:
        members: The fitted networks; draws are divided equally among them.
        x: Inputs, shape (rows, ...), in original units; of a data set, what reads them when they are needed.
        num_samples: Number of posterior draws S.
        seed: Seeds the draws.
        rows: Index of the inputs, if they came as a DataFrame; that of targets must be equal.
        y_scale: Known error bars of targets there, shape (rows, targets), in original units: noise on top of what the
            likelihood has. None for none.

    Where the network was fitted with `missing="ignore"`, scores are of the targets that were measured. Scores of a data
    set that has targets too need no `y`.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> prediction = fit.predict(x, num_samples=100)
        >>> prediction.draws.shape
        torch.Size([100, 20, 1])
        >>> lower, upper = prediction.interval(0.9)
        >>> bool((lower < prediction.mean).all()), bool((prediction.mean < upper).all())
        (True, True)
        >>> scores = prediction.rmse(x**2), prediction.lpp(x**2), prediction.coverage(x**2, 0.9)
    """

    members: Sequence[Member] = field(repr=False)
    x: Any = field(repr=False)
    num_samples: int
    seed: int
    rows: Any = field(default=None, repr=False)
    y_scale: Tensor | None = field(default=None, repr=False)

    @staticmethod
    def of(members: Sequence[Member], x: Any, num_samples: int, seed: int, y_scale: Any = None) -> Prediction:
        """Check the arguments.

        Raises:
            ValueError: If `x` does not fit the network, or `num_samples` is not at least the number of members.
        """
        bnn = members[0].bnn
        require_count("num_samples", num_samples, len(members))
        if num_samples > MAX_SAMPLES:
            raise ValueError(
                f"num_samples must be at most {MAX_SAMPLES:,}, got {num_samples:,}: means over draws are as exact as "
                "the spread of the draws divided by the square root of their number"
            )
        make_generator("cpu", seed)
        inputs: Any = inputs_of(x, members[0].features, bnn)
        if inputs is None:
            inputs = check_inputs("x", in_order("x", x, members[0].features), bnn)
        elif y_scale is None:
            y_scale = inputs.column("y_scale")
        bars = None
        if y_scale is not None:
            targets = bnn.like.new_zeros(len(inputs), bnn.likelihood.num_targets(bnn.num_outputs))
            bars = check_error_bars("y_scale", y_scale, targets, None, bnn)
        rows = None if isinstance(inputs, SourceRows) else row_names(x)
        return Prediction(tuple(members), inputs, num_samples, seed, rows, bars)

    @property
    def _bnn(self) -> BNN:
        return self.members[0].bnn

    @cached_property
    def _outputs(self) -> Outputs:
        return Outputs(self.members, self.x, self.num_samples, self.seed, self.y_scale)

    def __len__(self) -> int:
        return len(self.x)

    # --- draws ------------------------------------------------------------------------------------

    @cached_property
    def draws(self) -> Tensor:
        """Draws from the posterior predictive, noise included, shape (S, rows, targets), or (S, rows) for labels."""
        return announced("draws", torch.cat([draws for _, draws in self.draws_by_rows()], dim=1))

    def draws_by_rows(self) -> Iterator[tuple[slice, Tensor]]:
        """`draws` in chunks of rows, so that they need not be in memory at once: (which rows, their draws)."""
        for start, stop, outputs in self._outputs.chunks():
            yield slice(start, stop), self._outputs.targets_of(start, outputs)

    @cached_property
    def function_draws(self) -> Tensor:
        """The likelihood's mean under each posterior draw, without noise, shape (S, rows, targets or classes)."""
        return announced("function draws", torch.cat([draws for _, draws in self.function_draws_by_rows()], dim=1))

    def function_draws_by_rows(self) -> Iterator[tuple[slice, Tensor]]:
        """`function_draws` in chunks of rows: (which rows, their draws)."""
        for start, stop, outputs in self._outputs.chunks():
            yield slice(start, stop), self._outputs.means_of(outputs)

    # --- summaries --------------------------------------------------------------------------------

    @cached_property
    @plain_torch()
    @torch.no_grad()
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, computed about `centre` in units of `unit`, so that squares stay in range."""
        centre = self.members[0].standardizer.y_mean
        unit = torch.stack([member.standardizer.y_scale for member in self.members]).amax(0)
        means, stds = Rows(len(self)), Rows(len(self))
        for start, _, outputs in self._outputs.chunks():
            draws, noise = [], []
            for part in outputs:
                units = part.member.standardizer
                scale = units.y_scale / unit
                draws.append((units.y_mean - centre) / unit + part.likelihood.mean(part.outputs) * scale)
                noise.append(self._outputs.variance(part, start) * scale**2)
            every = torch.cat(draws)
            means.add(centre + every.mean(0) * unit)
            stds.add((torch.cat(noise).mean(0) + every.var(0, unbiased=False)).sqrt() * unit)
        return announced("means", means.all), announced("standard deviations", stds.all)

    @property
    def mean(self) -> Tensor:
        """Mean of the posterior predictive, shape (rows, targets); class probabilities, (rows, classes), for labels."""
        return self._moments[0]

    @property
    def std(self) -> Tensor:
        """Standard deviation of the posterior predictive, noise included; same shape as `mean`."""
        return self._moments[1]

    @cached_property
    @plain_torch()
    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """Predictive probabilities, of classes, (rows, classes), or of grades (`Ordinal`), (rows, targets, grades).

        Raises:
            ValueError: If the targets are neither.
        """
        if self._bnn.likelihood.event_dim == 0:
            return self.mean
        if not isinstance(self._bnn.likelihood, Ordinal):
            name = type(self._bnn.likelihood).__name__
            raise ValueError(f"probabilities are those of classes or grades; {name} has neither")
        return torch.cat(
            [
                torch.cat([part.likelihood.probabilities(part.outputs) for part in outputs]).mean(0)
                for _, _, outputs in self._outputs.chunks()
            ]
        )

    def uncertainty(self, measure: str = "variance") -> Uncertainty:
        """The predictive uncertainty, and its parts: from not knowing the weights, and from the noise.

        Args:
            measure: `"variance"`, in the units of the targets squared (of one-hot encoded labels), or `"entropy"`, in
                nats, for classes and yes/no answers, where the epistemic part is the mutual information of target and
                weights.

        Returns:
            `total`, `epistemic` and `aleatoric`, each of the shape of `mean`; entropies of classes (rows,).

        Raises:
            ValueError: If `measure` is neither, or the entropy of other targets is asked for.
        """
        if measure == "variance":
            return split_variance(self._outputs)
        likelihood = self._bnn.likelihood
        if measure != "entropy":
            raise ValueError(f"measure must be 'variance' or 'entropy', got {measure!r}")
        if likelihood.event_dim and not isinstance(likelihood, Bernoulli):
            raise ValueError(f"entropy is for labels; with {type(likelihood).__name__} use measure='variance'")
        return split_entropy(self._outputs, likelihood.event_dim == 0)

    def gradient(self) -> Any:
        """Derivatives of `mean` by the inputs, original units, shape (rows, targets or classes) + an input's shape.

        Of several inputs a tuple or dictionary of such, with None for whole numbers and masks.
        """
        return gradient_of_mean(self._outputs)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central interval of the posterior predictive, noise included, from quantiles of its draws.

        Args:
            level: Probability inside, in (0, 1).

        Returns:
            Lower and upper ends, each of shape (rows, targets).

        Raises:
            ValueError: If `level` is not in (0, 1) or the targets are labels.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), got {level!r}")
        self._require_vectors("interval")
        levels = self._bnn.like.new_tensor([(1 - level) / 2, (1 + level) / 2])
        ends = [quantiles(draws, levels) for _, draws in self.draws_by_rows()]
        lower, upper = announced("intervals", torch.cat(ends, dim=1)).unbind()
        return lower, upper

    # --- scores -----------------------------------------------------------------------------------

    def log_prob(self, y: Any = None) -> Tensor:
        """Log posterior predictive density of targets: log (1/S) Σ p(y | x, w_s), per row and target.

        Args:
            y: Targets in original units.

        Returns:
            Shape (rows, targets), or (rows,) for labels; minus infinity where no draw gives a target any density that
            the network's dtype can hold; 0 where none was measured.
        """
        logs = Rows(len(self))
        for _, part in self.log_likelihoods_by_rows(y):
            logs.add(part.logsumexp(0))
        return announced("log densities", logs.all - math.log(self.num_samples), infinite=True)

    def log_likelihoods_by_rows(self, y: Any = None) -> Iterator[tuple[slice, Tensor]]:
        """Log densities of targets under each posterior draw, in chunks of rows: (which rows, log p(y | x, w_s)).

        Args:
            y: Targets in original units, in which the densities are too; or `Observed`, with weights by which they are
                multiplied. What was not measured has 0.

        Yields:
            Rows, and tensors of float64 of shape (S, these rows, targets), or (S, these rows) for labels.
        """
        if not isinstance(y, Observed):
            y = observed_of(self.check_targets(y), None, self.y_scale)
        for start, stop, outputs in self._outputs.chunks():
            yield slice(start, stop), self._outputs.logs_of(outputs, rows_of(y, slice(start, stop)))

    def rmse(self, y: Any = None) -> float:
        """Root mean squared error of the predictive mean, per target, averaged over targets, in their units."""
        self._require_vectors("rmse")
        y = self.check_targets(y)
        known = _measured(y)
        squared = (self.mean - y).double().square().where(known, 0.0)
        return (squared.sum(0) / known.sum(0)).sqrt().mean().item()

    def lpp(self, y: Any = None) -> float:
        """Mean over rows and targets of log (1/S) Σ p(y | x, w_s), the log posterior predictive density, in nats."""
        return self.log_prob(y)[_measured(self.check_targets(y))].mean().item()

    def coverage(self, y: Any = None, level: float = 0.95) -> float:
        """Share of targets inside the central interval of that level."""
        lower, upper = self.interval(level)
        y = self.check_targets(y)
        return ((y >= lower) & (y <= upper))[_measured(y)].double().mean().item()

    def pit(self, y: Any = None) -> Tensor:
        """Probability integral transforms: the rank of each target among its predictive draws, in (0, 1).

        They are uniform if the prediction is calibrated. Ties, as counts have them, are broken at random
        (Czado, Gneiting and Held 2009, Predictive model assessment for count data).

        Args:
            y: Targets in original units.

        Returns:
            Shape (rows, targets); NaN where none was measured.

        Raises:
            ValueError: If `y` does not fit or holds labels.
        """
        self._require_vectors("pit")
        y = self.check_targets(y)
        parts = []
        for start, stop, outputs in self._outputs.chunks():
            draws, target = self._outputs.targets_of(start, outputs), y[start:stop]
            below, ties = (draws < target).sum(0), (draws == target).sum(0)
            generator = make_generator(y.device, self.seed, 2, start)
            place = torch.rand(below.shape, generator=generator, dtype=y.dtype, device=y.device)
            parts.append((below + place * (ties + 1)) / (self.num_samples + 1))
        return torch.cat(parts).where(_measured(y), torch.nan)

    def accuracy(self, y: Any = None) -> float:
        """Share of labels or grades that have the highest predictive probability, or of right yes/no answers."""
        likelihood = self._bnn.likelihood
        y = self.check_targets(y)
        known = _measured(y)
        if likelihood.event_dim == 0:
            return (self.mean.argmax(-1) == y)[known].double().mean().item()
        if isinstance(likelihood, Ordinal):
            best = self.mean.new_tensor(likelihood.levels)[self.probabilities.argmax(-1)]
            return (best == y)[known].double().mean().item()
        if not isinstance(likelihood, Bernoulli):
            raise ValueError(f"accuracy is for labels and grades; with {type(likelihood).__name__} use rmse or lpp")
        return ((self.mean > 0.5) == (y > 0.5))[known].double().mean().item()

    def check_targets(self, y: Any = None) -> Tensor:
        """Targets at these inputs as a tensor of shape (rows, targets), or (rows,) for labels.

        Gaps are NaN, of labels -1, where the network was fitted with `missing="ignore"`.

        Raises:
            ValueError: If they do not fit the network or the rows.
        """
        if y is None:
            if not isinstance(self.x, SourceRows):
                raise ValueError("y is missing: give the targets")
            y = self._own_targets
        require_same_rows("x", self.rows, "y", row_names(y))
        given = in_order("y", y, self.members[0].targets)
        targets = check_observed("y", given, self._bnn, len(self.x), missing=self.members[0].missing)
        return targets if isinstance(targets, Tensor) else targets.shown

    @cached_property
    def _own_targets(self) -> Any:
        targets = self.x.column("y")
        if targets is None:
            raise ValueError(f"{self.x.source.name} has no targets: give them as y")
        return targets

    def _require_vectors(self, what: str) -> None:
        if self._bnn.likelihood.event_dim == 0:
            raise ValueError(f"{what} is not defined for labels; use lpp or accuracy")


def _measured(y: Tensor) -> Tensor:
    """Which targets there are, of `Prediction.check_targets`."""
    return ~y.isnan() if y.is_floating_point() else y >= 0
