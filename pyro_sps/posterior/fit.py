"""What comes out of a fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.plain import plain_torch
from ..data.arrays import Standardizer, make_generator, some_of
from ..data.observed import Observed, observed_of
from ..data.sources import Source
from ..data.trees import num_rows, rows_of
from ..model.bnn import BNN
from ..model.density import elbo_terms, prepare, pyro_session
from ..model.guides import AutoSPSNormal
from ..model.streams import stream_of
from .derived import MeanNetwork, mean_network
from .outputs import Member
from .predict import Prediction
from .updating import updated_model

# Draws and rows that `elbo` is taken of, and blocks of rows whose scatter says how exact it is.
ELBO_DRAWS, ELBO_ROWS, ELBO_BLOCKS = 256, 20_000, 20

# Bytes of these rows, where the data is read in pieces.
ELBO_BYTES = 1 << 28

# Activations of a layer, in elements, that estimates of the ELBO have at once: 16 MB of float32.
ELBO_ELEMENTS = 1 << 22


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite.

    Attributes:
        fit: The result with the last finite state.
        step: The step at which it happened, from 0 on.
        site: The sample site whose term is not finite, or `KL`.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> try:
        ...     sps.fit(bnn, x, x**2 * 1e30, num_steps=5, standardize=False, progress=False)
        ... except sps.NonFiniteLossError as error:
        ...     print(error.step, error.site)
        0 obs
    """

    def __init__(self, message: str, fit: Fit, step: int, site: str) -> None:
        super().__init__(message)
        self.fit, self.step, self.site = fit, step, site


@dataclass(frozen=True)
class OptimizerState:
    """What an optimiser needs to go on, beside the parameters.

    Attributes:
        steps: Steps that it has done.
        first: Its first moments, one flat vector.
        second: Its second moments, likewise.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> fit = sps.fit(sps.BNN(sps.mlp([1, 5, 1]), sps.Unmasked()), x, x**2, num_steps=20, progress=False)
        >>> fit.optimizer.steps
        20
    """

    steps: int
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Fit:
    """A fitted Bayesian neural network.

    Attributes:
        bnn: The fitted model, a copy of the one given to `fit` with learned c and noise in it.
        guide: The fitted guide.
        losses: Negative ELBO before each step (sum over the data, in the units of the network), shape (steps,).
        standardizer: Shift and scale between the user's units and the network's.
        seconds: Wall time of each part: `prepare`, `map`, `optimise`.
        settings: What `fit` was asked for.
        validation: One dict a check: `step`, `rmse`, `lpp`.
        stopped: Why the fit ended before its last step; empty if it did not.
        mode: How steps were run: `compiled`, `recorded` or `traced`.
        x: Training inputs, standardised if that was asked for.
        y: Training targets, likewise.
        input_shape: Shape of a row of inputs.
        features: Names of the input columns, if the inputs had names.
        targets: Names of the target columns, likewise.
        optimizer: State of the optimiser, for `start=` of a further fit; None where the result is not its last state,
            and of a fit that was loaded.
        row_weights: How often each training row counts, if that was said.
        y_scale: Known error bars of the training targets, in the units of the network, likewise.
        source: What the training data is read from, where it was read in pieces; `x` and `y` are None then. Neither
            files nor pickles hold it.

    Where gaps in the targets were ignored, `y` has NaN there, of labels -1.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=20, progress=False)
        >>> fit.predict(x).mean.shape, fit.bnn.num_stochastic == len(fit.guide.loc), fit.settings["num_steps"]
        (torch.Size([20, 1]), True, 20)
    """

    bnn: BNN
    guide: AutoSPSNormal
    losses: np.ndarray = field(repr=False)
    standardizer: Standardizer = field(repr=False)
    seconds: Mapping[str, float]
    settings: Mapping[str, Any] = field(repr=False)
    validation: Sequence[Mapping[str, float]] = field(default=(), repr=False)
    stopped: str = ""
    mode: str = ""
    x: Tensor | None = field(default=None, repr=False)
    y: Tensor | None = field(default=None, repr=False)
    input_shape: tuple[int, ...] | None = field(default=None, repr=False)
    features: tuple[str, ...] | None = field(default=None, repr=False)
    targets: tuple[str, ...] | None = field(default=None, repr=False)
    optimizer: OptimizerState | None = field(default=None, repr=False)
    row_weights: Tensor | None = field(default=None, repr=False)
    y_scale: Tensor | None = field(default=None, repr=False)
    source: Source | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.x is not None and self.input_shape is None:
            object.__setattr__(self, "input_shape", tuple(self.x.shape[1:]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "source"}

    def predict(self, x: Any, num_samples: int = 1000, seed: int = 0, *, y_scale: Any = None) -> Prediction:
        """The posterior predictive distribution at new inputs.

        Args:
            x: Inputs in original units, in the form that they were fitted in: shape (rows, features), for instance, or
                a data set as for `fit`, whose rows are read when they are needed.
            num_samples: Number of posterior draws S.
            seed: Seeds them.
            y_scale: Known error bars of the targets there, one a row or entry, in their units: they are part of the
                predicted noise. Default: none.

        Returns:
            A lazy `Prediction`: `mean`, `std`, `interval`, `draws`, `rmse`, `lpp`, `coverage`.

        Raises:
            ValueError: If `x` does not fit the network.
        """
        return Prediction.of([self.member], x, num_samples, seed, y_scale)

    @property
    def member(self) -> Member:
        """What predictions need."""
        missing = str(self.settings.get("missing", "error"))
        return Member(self.bnn, self.guide, self.standardizer, None, self.features, self.targets, missing)

    @property
    def observed(self) -> Tensor | Observed | None:
        """The training targets with what says how each counts; targets alone where all count the same."""
        return None if self.y is None else observed_of(self.y, self.row_weights, self.y_scale)

    @property
    def num_data(self) -> int | None:
        """Rows of the training data; None of a fit that was loaded."""
        if self.source is not None:
            return self.source.num_rows
        return None if self.x is None else num_rows(self.x)

    @cached_property
    def elbo(self) -> float:
        """The final ELBO on the training data in nats, from 256 fresh draws (seed 0).

        Of more than 20,000 rows as many are drawn at random, and stand for all; `elbo_error` says how exact that is.
        Data that was read in pieces is read once more, when this is asked for.
        """
        return self._elbo[0]

    @property
    def elbo_error(self) -> float:
        """Standard error of `elbo`, of its draws and of the rows it was taken of."""
        return self._elbo[1]

    @cached_property
    def _elbo(self) -> tuple[float, float]:
        if self._rows() <= ELBO_ROWS:
            draws = self.elbo_draws(ELBO_DRAWS)
            return draws.mean().item(), draws.std().item() / math.sqrt(ELBO_DRAWS)
        data, count = self._some(), self._rows()
        every = torch.arange(num_rows(data)).chunk(ELBO_BLOCKS)
        most = len(every[0])
        parts = [self._elbo_terms([rows_of(data, rows.to(data[0].device))], most, ELBO_DRAWS, 0) for rows in every]
        blocks = torch.stack([observed for observed, _ in parts])  # of the same draws
        rest, seen = parts[0][1], num_rows(data)
        draws = blocks.sum(0) * (count / seen) + rest
        of_rows = blocks.mean(1).std().item() * math.sqrt(len(blocks)) * count / seen
        of_rows *= math.sqrt(1 - seen / count)  # drawn without replacement
        return draws.mean().item(), math.hypot(of_rows, draws.std().item() / math.sqrt(ELBO_DRAWS))

    def _rows(self) -> int:
        if (count := self.num_data) is None:
            raise ValueError(
                "this fit has no training data (it was loaded from a file): its ELBO is not known. "
                "diagnose(fit, x=..., y=...) tells that on data"
            )
        return count

    def _some(self) -> tuple[Tensor, Tensor | Observed]:
        """Rows of the training data, drawn at random, that stand for all, in the units of the network."""
        if self.source is None:
            (data,) = self._pieces()
            return rows_of(data, some_of(self._rows(), ELBO_ROWS).to(data[0].device))
        (x, y), _ = stream_of(self.source, self.bnn, self.member.missing).some(ELBO_ROWS, ELBO_BYTES)
        return self.standardizer.inputs(x), self.standardizer.targets(y)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor | Observed]]:
        """The training data in the units of the network, in one piece where it is in memory."""
        if self.source is None:
            targets = self.observed
            assert self.x is not None
            assert targets is not None
            yield self.x, targets
            return
        for x, y in stream_of(self.source, self.bnn, self.member.missing).in_order():
            yield self.standardizer.inputs(x), self.standardizer.targets(y)

    def elbo_draws(self, num_samples: int, seed: int = 0) -> Tensor:
        """Single-draw estimates of the ELBO on the whole training data, shape (num_samples,).

        Args:
            num_samples: Number of draws.
            seed: Seeds them.

        Raises:
            ValueError: If the fit was loaded from a file, which does not hold the training data.
        """
        observed, rest = self._elbo_terms(self._pieces(), self._rows(), num_samples, seed)
        return observed + rest

    @plain_torch()
    def _elbo_terms(
        self, pieces: Iterable[tuple[Tensor, Tensor | Observed]], count: int, num_samples: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Log likelihoods of these rows under some draws, and minus the KL divergence, each of shape (num_samples,)."""
        guide, bnn = self.guide, self.bnn
        loc, scale = (value.detach() for value in guide.parameters_of_sites())
        width = bnn.topology.width
        rows = max(1, min(count, ELBO_ELEMENTS // width))
        at_once = max(1, ELBO_ELEMENTS // max(width * rows, len(loc)))
        total = torch.zeros(num_samples, dtype=torch.float64, device=loc.device)
        rest, problem = torch.zeros_like(total), None
        with pyro_session(), torch.no_grad():
            for data in pieces:
                if problem is None:
                    problem, _ = prepare(bnn, guide, *rows_of(data, slice(1)))
                generator = make_generator(loc.device, seed, 2)  # for the same draws in every piece
                for first in range(0, num_samples, at_once):
                    draws = slice(first, min(first + at_once, num_samples))
                    shape = (draws.stop - first, 1, len(loc))
                    noise = torch.randn(shape, generator=generator, dtype=loc.dtype, device=loc.device)
                    for start in range(0, num_rows(data), rows):
                        batch = rows_of(data, slice(start, start + rows))
                        terms = torch.func.vmap(partial(elbo_terms, problem, loc, scale, args=batch))(noise)
                        total[draws] -= terms.pop("obs").double()
                        rest[draws] = -torch.stack(list(terms.values())).sum(0).double()
        return total, rest

    def mean_network(self) -> MeanNetwork:
        """The network with every weight at its posterior mean, as a plain `nn.Module` in original units.

        It can be exported (`torch.export`), and is no Bayesian prediction: that is a mean over posterior draws. Outputs
        are logits or log rates where the likelihood takes those.

        Raises:
            ValueError: If the likelihood takes some outputs as scales.
        """
        return mean_network(self.bnn, self.guide, self.standardizer)

    def as_prior(self, forgetting: float = 1.0) -> BNN:
        r"""The model of the next data set: its prior is this posterior (Bayesian updating, as for streams of data).

        With forgetting factor :math:`\lambda`, posterior :math:`q` and the prior :math:`p_0` that the first model of
        all had, the prior is proportional to :math:`q^\lambda p_0^{1 - \lambda}`: data of k data sets ago counts
        :math:`\lambda^k`, and :math:`p_0` always once (stabilised forgetting, Kulhavy and Zarrop 1993). In a
        linear model with orthogonal inputs and a given noise, fits to two halves of the data one after the other are
        the exact posterior of all of it.

        The model has the units of this fit (its standardisation): fits of it stay in them. What it learns beside the
        weights, such as a noise or c, starts at the values here, and has no memory of the data. Go on by
        `sps.fit(fit.as_prior(), new_x, new_y, start=fit)`, which starts at this posterior; without `start` fits start
        anew. A file of that fit holds its prior, but where the first one was not normal: give it then,
        `sps.load(directory, net, prior=fit.as_prior().prior)`.

        Args:
            forgetting: Forgetting factor in (0, 1]; 1 forgets nothing.

        Raises:
            ValueError: If `forgetting` is out of range, or the model samples more than weights with unconstrained
                values: with `Hierarchical()`, a sampled noise or ordered biases. With a factor below 1 also if the
                first prior was not normal.

        Example:
            >>> import torch, pyro_sps as sps
            >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
            >>> bnn = sps.BNN(sps.mlp([1, 5, 1]), sps.Unmasked(), sps.Zero())
            >>> first = sps.fit(bnn, x[::2], x[::2] ** 2, num_steps=5, progress=False)
            >>> both = sps.fit(first.as_prior(), x[1::2], x[1::2] ** 2, start=first, num_steps=5, progress=False)
        """
        return updated_model(self.bnn, self.guide, self.standardizer, forgetting)

    def to_arviz(self, draws: int = 1000, **options: Any) -> Any:
        """The fit as ArviZ's `InferenceData` or `DataTree`. See `pyro_sps.to_arviz`, which takes the same options."""
        from ..diagnostics.convert import to_arviz

        return to_arviz(self, draws, **options)

    def save(self, directory: str | Path) -> None:
        """Write the fit to a directory; `pyro_sps.load` reads it again. See `pyro_sps.posterior.save.save`."""
        from .save import save

        save(self, directory)


class Fits(tuple[Fit, ...]):
    """Independent fits of one model (replicas), and the mixture of their posteriors.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fits = sps.fit(bnn, x, x**2, num_steps=5, progress=False, replicas=2)
        >>> len(fits), fits.losses.shape, fits.predict(x).mean.shape
        (2, (2, 5), torch.Size([20, 1]))
        >>> best = max(fits, key=lambda fit: fit.elbo)
    """

    def predict(self, x: Any, num_samples: int = 1000, seed: int = 0, *, y_scale: Any = None) -> Prediction:
        """The mixture's posterior predictive distribution: draws are divided equally among the fits."""
        return Prediction.of([fit.member for fit in self], x, num_samples, seed, y_scale)

    def to_arviz(self, draws: int = 1000, **options: Any) -> Any:
        """The fits as chains of ArviZ's `InferenceData` or `DataTree`. See `pyro_sps.to_arviz`."""
        from ..diagnostics.convert import to_arviz

        return to_arviz(self, draws, **options)

    def save(self, directory: str | Path) -> None:
        """Write all of them to a directory; `pyro_sps.load` reads them again. See `pyro_sps.posterior.save.save`."""
        from .save import save

        save(self, directory)

    @property
    def losses(self) -> np.ndarray:
        """Negative ELBO of each fit, shape (replicas, steps)."""
        return np.stack([fit.losses for fit in self])
