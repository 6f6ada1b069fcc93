"""Observation models of real numbers: what is added to the network's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor

from ...base.checks import is_number, require_positive
from ...data.arrays import grid_of
from .base import Latent, Likelihood

#: Mean and standard deviation of log σ a priori, where it is sampled.
NOISE_PRIOR = (-2.0, 1.5)
#: The same of log(df - 2) of Student's t, and by how much learned degrees of freedom begin above the least.
DF_PRIOR, FIRST_ABOVE = (1.5, 1.0), 2.0


class _Scaled(Likelihood):
    """Noise of one scale, or of one scale an output."""

    real_valued = True
    prior: tuple[float, float] = NOISE_PRIOR

    def __init__(
        self, scale: float, learn: bool, per_output: int | None, prior: Sequence[float], sampled: bool
    ) -> None:
        super().__init__()
        require_positive("scale", scale)
        if per_output is not None and (
            isinstance(per_output, bool) or not isinstance(per_output, int) or per_output < 1
        ):
            raise ValueError(f"per_output must be None or the number of outputs, got {per_output!r}")
        if sampled and not learn:
            raise ValueError("sampled=True needs learn=True: a given scale is not sampled")
        self.initial_scale, self.learn, self.per_output = scale, learn, per_output
        self.prior, self.sampled = check_prior("prior", prior), sampled
        # In double precision, so that a network of whatever dtype gets this very scale, rounded once.
        value = torch.full(() if per_output is None else (per_output,), float(scale), dtype=torch.float64)
        if learn:
            self.scale = PyroParam(value, constraint=constraints.positive)
        else:
            self.register_buffer("scale", value)

    @property
    def noise_scale(self) -> Tensor:
        """Scale of the noise: shape () or (outputs,); where it is sampled (`at`), B + (1, 1) or B + (1, outputs)."""
        given = self._given.get("log_scale")
        scale: Any = self.scale if given is None else given.exp().unsqueeze(-2)
        return scale

    def latents(self) -> dict[str, Latent]:
        """The logarithm of a learned scale: one, or one an output."""
        if not self.learn:
            return {}
        return {"log_scale": Latent(self._unconstrained("scale").reshape(-1), *self.prior)}

    def config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        own: dict[str, Any] = {"scale": self.initial_scale, "learn": self.learn, "per_output": self.per_output}
        # Only what was asked for, so that checkpoints of versions that did not have these are known again.
        own |= {"prior": list(self.prior)} if self.prior != NOISE_PRIOR else {}
        return own | ({"sampled": True} if self.sampled else {})

    def check_targets(self, y: Tensor, num_outputs: int) -> None:
        """Check targets, and that `per_output` is the number of outputs."""
        if self.per_output not in (None, num_outputs):
            raise ValueError(f"per_output is {self.per_output}, but the network has {num_outputs} outputs")
        super().check_targets(y, num_outputs)


class Gaussian(_Scaled):
    """Normal noise with one scale, or one scale an output.

    Args:
        scale: Standard deviation of the noise, in units of the (possibly standardised) targets; where it is
            learned, its initial value.
        learn: Whether it is learned: as a parameter, optimised with the ELBO, or sampled.
        per_output: None for one shared scale, or the number of outputs, each of which gets its own.
        prior: Mean and standard deviation of the normal prior of log σ, where it is sampled.
        sampled: Whether a learned scale is a sample site, `likelihood.log_scale`, and no parameter.

    Raises:
        ValueError: If `scale` is not positive and finite, `per_output` is not a positive integer, or a scale that is
            not learned should be sampled.

    Example:
        >>> import pyro_sps as sps, torch
        >>> sps.Gaussian(0.1, learn=True)(torch.zeros(5, 2)).batch_shape
        torch.Size([5])
        >>> bnn = sps.BNN(sps.mlp([8, 50, 2]), likelihood=sps.Gaussian(0.1, learn=True, sampled=True))
        >>> bnn.likelihood.starts()
        {'likelihood.log_scale': tensor([-2.3026])}
    """

    def __init__(
        self,
        scale: float = 0.1,
        learn: bool = False,
        per_output: int | None = None,
        prior: Sequence[float] = NOISE_PRIOR,
        sampled: bool = False,
    ) -> None:
        super().__init__(scale, learn, per_output, prior, sampled)

    def elementwise(self, outputs: Tensor) -> dist.Normal:
        """Normal(outputs, scale)."""
        return dist.Normal(outputs, self.noise_scale.to(outputs.dtype))


class _HeavyTails(Likelihood):
    """Degrees of freedom, given or learned."""

    df_prior: tuple[float, float] = DF_PRIOR
    initial_df: float | None = None
    least: float = 2.0

    def _set_degrees(self, df: float | None, df_prior: Sequence[float]) -> None:
        if df is not None and (not is_number(df) or not 2 < df < math.inf):
            raise ValueError(f"df must be a number above 2, of which the variance exists, or None, got {df!r}")
        self.initial_df, self.df_prior = df, check_prior("df_prior", df_prior)
        value = torch.tensor(self.least + FIRST_ABOVE if df is None else float(df), dtype=torch.float64)
        if df is None:
            self.df = PyroParam(value, constraint=constraints.greater_than(self.least))
        else:
            self.register_buffer("df", value)

    @property
    def degrees(self) -> Tensor:
        """Degrees of freedom, shape (); where they are sampled (`at`), B + (1, 1)."""
        given = self._given.get("log_df")
        df: Any = self.df if given is None else self.least + given.exp().unsqueeze(-2)
        return df

    def _latent_degrees(self) -> dict[str, Latent]:
        if self.initial_df is not None:
            return {}
        return {"log_df": Latent(self._unconstrained("df").reshape(1), *self.df_prior)}


class _SharedDegrees(dist.StudentT):
    """Student's t with the gamma functions of its degrees of freedom for those that differ, not for each row."""

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor) -> None:
        super().__init__(df, loc, scale)
        self.shared = df

    def expand(self, batch_shape: Any, _instance: Any = None) -> _SharedDegrees:
        """The same for more rows."""
        return _SharedDegrees(self.shared, self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        df = self.shared
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - (df * math.pi).log() / 2
        square = ((value - self.loc) / self.scale).square()
        return constant - self.scale.log() - (df + 1) / 2 * torch.log1p(square / df)


class StudentT(_Scaled, _HeavyTails):
    """Noise of Student's t distribution, which forgives targets far from all others.

    Args:
        df: Degrees of freedom, above 2, so that the variance exists; None to learn them with the scale, from 4 on.
        scale: Scale of the noise (not its standard deviation), as for `Gaussian`.
        learn: Whether it is learned.
        per_output: None for one shared scale, or the number of outputs, each of which gets its own.
        prior: Mean and standard deviation of the normal prior of log σ, where it is sampled.
        df_prior: The same of log(df - 2).
        sampled: Whether what is learned are sample sites, `likelihood.log_scale` and `likelihood.log_df`.

    Raises:
        ValueError: If `df` is not above 2, or as for `Gaussian`.

    Example:
        >>> import pyro_sps as sps, torch
        >>> sps.StudentT(4.0, 0.1).variance(torch.zeros(1, 1))
        tensor([[0.0200]])
    """

    def __init__(
        self,
        df: float | None = 4.0,
        scale: float = 0.1,
        learn: bool = False,
        per_output: int | None = None,
        prior: Sequence[float] = NOISE_PRIOR,
        df_prior: Sequence[float] = DF_PRIOR,
        sampled: bool = False,
    ) -> None:
        super().__init__(scale, learn, per_output, prior, sampled)
        if df is None and not learn:
            raise ValueError("df=None needs learn=True: it is learned with the scale")
        self._set_degrees(df, df_prior)

    def latents(self) -> dict[str, Latent]:
        """The logarithms of a learned scale and of learned degrees of freedom less 2."""
        return super().latents() | self._latent_degrees()

    def elementwise(self, outputs: Tensor) -> dist.StudentT:
        """Student's t around the outputs."""
        return _SharedDegrees(self.degrees.to(outputs.dtype), outputs, self.noise_scale.to(outputs.dtype))

    def config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {"df": self.initial_df, **super().config(), "df_prior": list(self.df_prior)}


#: Smallest scale of `HeteroscedasticGaussian` where nothing was said.
MINIMUM = 1e-3

#: Least degrees of freedom of `HeteroscedasticStudentT` where nothing was said. Free, they fell to 2.3 on energy and
#: concrete, and RMSE on energy rose from 0.042 to 0.068 (0.045 with eight).
LEAST_DF = 8.0


class HeteroscedasticGaussian(Likelihood):
    """Normal noise whose scale the network predicts: its second half of outputs, through softplus.

    Targets that lie on a grid, such as whole numbers, would let the scale collapse onto the grid's values: densities
    without bound for numbers that are known to half a step. The smallest scale must not be below the error of rounding
    to the grid, step/√12, and by default it is not.

    Args:
        minimum: Smallest standard deviation, in units of the (possibly standardised) targets, added to the softplus so
            that the density stays bounded; or one a target. Default: 0.001, or step/√12 where the training targets are
            found to lie on a coarser grid (`pyro_sps.data.arrays.grid_of`), from when they are known on.

    Raises:
        ValueError: If `minimum` is negative or not finite.

    Example:
        >>> import pyro_sps as sps, torch
        >>> likelihood = sps.HeteroscedasticGaussian()
        >>> likelihood(torch.zeros(5, 4)).event_shape
        torch.Size([2])
        >>> likelihood.adapt(torch.tensor([[0.0], [1.0], [3.0], [3.0]]))
        >>> likelihood.minimum
        [0.2886751345948129]
    """

    real_valued = True
    automatic = False
    _constant = False

    def __init__(self, minimum: float | Sequence[float] | None = None) -> None:
        super().__init__()
        self.automatic = minimum is None
        self.minimum: Any = MINIMUM if minimum is None else minimum
        if isinstance(minimum, Sequence) and not isinstance(minimum, str):
            self.minimum = list(minimum)
        for value in self.minimum if isinstance(self.minimum, list) else [self.minimum]:
            if not is_number(value) or not 0 <= value < math.inf:
                raise ValueError(f"minimum must be a non-negative finite number, or one a target, got {minimum!r}")

    def elementwise(self, outputs: Tensor) -> dist.Normal:
        """Normal with both arguments from the outputs."""
        loc, scale = outputs.chunk(2, dim=-1)
        if self._constant:
            scale = scale.mean(-2, keepdim=True)
        minimum = outputs.new_tensor(self.minimum) if isinstance(self.minimum, list) else self.minimum
        return dist.Normal(loc, F.softplus(scale) + minimum)

    def num_targets(self, num_outputs: int) -> int:
        """Half of the outputs.

        Raises:
            ValueError: If their number is odd.
        """
        if num_outputs % 2:
            raise ValueError(f"HeteroscedasticGaussian needs an even number of network outputs, got {num_outputs}")
        return num_outputs // 2

    def kinds(self, num_outputs: int) -> tuple[int, ...]:
        """Means first, then scales."""
        first = -(-num_outputs // 2)
        return (0,) * first + (1,) * (num_outputs - first)

    @contextmanager
    def constant_noise(self) -> Iterator[None]:
        """The scale comes from the mean of its outputs over the rows for a while, so that it is the same for all rows.

        With a scale that may depend on the inputs from the start, a network explains by noise what its means have not
        learned yet. `BNN.noise_head` says which weights are of no use meanwhile.
        """
        before = self._constant
        self._constant = True
        try:
            yield
        finally:
            self._constant = before

    def adapt(self, targets: Tensor) -> None:
        """Raise a smallest scale that was left open to the error of rounding to the targets' grid."""
        if self.automatic:
            self.minimum = [max(MINIMUM, step / math.sqrt(12)) for step in grid_of(targets).tolist()]

    def check_targets(self, y: Tensor, num_outputs: int) -> None:
        """Check targets, and that there is one `minimum`, or one a target."""
        super().check_targets(y, num_outputs)
        if not self.automatic and isinstance(self.minimum, list) and len(self.minimum) != y.shape[1]:
            raise ValueError(f"minimum has {len(self.minimum)} numbers, but there are {y.shape[1]} targets")

    def config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {"minimum": self.minimum}


class HeteroscedasticStudentT(HeteroscedasticGaussian, _HeavyTails):
    """Noise of Student's t distribution, its scale from the network: `HeteroscedasticGaussian` that forgives outliers.

    A normal law whose scale the network may shrink is very sure where rows of equal inputs agreed; one held-out row
    that disagrees there costs a hundred nats, and under a t law of eight degrees of freedom less than twenty.

    Args:
        df: Degrees of freedom, above 2, so that the variance exists; None to learn them.
        minimum: Smallest scale, as for `HeteroscedasticGaussian`.
        df_prior: Mean and standard deviation of the normal prior of log(df - least), where they are sampled.
        sampled: Whether learned degrees are a sample site, `likelihood.log_df`, and no parameter.
        least: Learned degrees are above this, and begin at 2 more. Near 2 they take what the network has not found yet
            for outliers, and its mean predicts worse.

    Raises:
        ValueError: If `df` is not above 2, `least` is below 2, or `minimum` is negative or not finite.

    Example:
        >>> import pyro_sps as sps, torch
        >>> likelihood = sps.HeteroscedasticStudentT(df=4.0)
        >>> likelihood(torch.zeros(5, 4)).event_shape
        torch.Size([2])
        >>> bool(likelihood.log_density(torch.zeros(1, 2), torch.full((1, 1), 50.0)) > -20)
        True
    """

    def __init__(
        self,
        df: float | None = None,
        minimum: float | Sequence[float] | None = None,
        df_prior: Sequence[float] = DF_PRIOR,
        sampled: bool = False,
        least: float = LEAST_DF,
    ) -> None:
        super().__init__(minimum)
        if sampled and df is not None:
            raise ValueError("sampled=True needs df=None: given degrees of freedom are not sampled")
        if not is_number(least) or not 2 <= least < math.inf:
            raise ValueError(f"least must be a number of at least 2, got {least!r}")
        self.least = float(least)
        self._set_degrees(df, df_prior)
        self.sampled = sampled

    def latents(self) -> dict[str, Latent]:
        """The logarithm of learned degrees of freedom less 2."""
        return self._latent_degrees()

    def elementwise(self, outputs: Tensor) -> dist.TorchDistribution:
        """Student's t around the first half of the outputs."""
        normal = super().elementwise(outputs)
        return _SharedDegrees(self.degrees.to(outputs.dtype), normal.loc, normal.scale)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        own = {"df": self.initial_df, **super().config(), "df_prior": list(self.df_prior), "least": self.least}
        return own | ({"sampled": True} if self.sampled else {})


def check_prior(name: str, prior: Any) -> tuple[float, float]:
    """Mean and standard deviation of a normal prior.

    Raises:
        ValueError: If they are not two numbers, the second of them positive.
    """
    if isinstance(prior, str) or not isinstance(prior, Sequence) or len(prior) != 2:
        raise ValueError(f"{name} must be a mean and a standard deviation, got {prior!r}")
    if not is_number(prior[0]) or not math.isfinite(prior[0]):
        raise ValueError(f"the mean of {name} must be a finite number, got {prior[0]!r}")
    require_positive(f"the standard deviation of {name}", prior[1])
    return prior[0], prior[1]
