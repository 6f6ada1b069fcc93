"""Observation models: how targets scatter around the network's outputs.

A likelihood is a `PyroModule` from outputs of shape B + (rows, outputs) to a distribution over targets with batch
shape B + (rows,). `elementwise` is the same without joining the outputs of a row, for scores per output.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor


class Likelihood(PyroModule):
    """Base of the observation models: a subclass defines `elementwise`, and `num_targets` if a target has many outputs.

    Example:
        >>> import pyro.distributions as dist, pyro_sps as sps
        >>> from pyro_sps.model.likelihoods import Likelihood
        >>> class Laplace(Likelihood):
        ...     real_valued = True
        ...     def elementwise(self, outputs):
        ...         return dist.Laplace(outputs, 0.1)
        >>> bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), likelihood=Laplace())
    """

    #: Number of event dimensions of a target row, 1 for vectors, 0 for labels.
    event_dim = 1
    #: Whether targets are real numbers that may be standardised.
    real_valued = False

    def elementwise(self, outputs: Tensor) -> dist.TorchDistribution:
        """Distribution of every single target given outputs of shape B + (rows, outputs)."""
        raise NotImplementedError

    def num_targets(self, num_outputs: int) -> int:
        """Number of target columns that this many network outputs describe."""
        return num_outputs

    def kinds(self, num_outputs: int) -> tuple[int, ...]:
        """What each output of the network is for, numbered from 0: means of targets 0, scales of noise 1."""
        return (0,) * num_outputs

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Distribution of the targets of every row, batch shape B + (rows,)."""
        return self.elementwise(outputs).to_event(self.event_dim)

    def mean(self, outputs: Tensor) -> Tensor:
        """Mean of the targets given the outputs (class probabilities for labels)."""
        return self.elementwise(outputs).mean

    def variance(self, outputs: Tensor) -> Tensor:
        """Variance of the targets given the outputs."""
        return self.elementwise(outputs).variance

    def config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {}

    def check_targets(self, y: Tensor, num_outputs: int) -> None:
        """Check targets against the network before any work is done.

        Raises:
            ValueError: If their shape or their values do not fit.
        """
        expected = self.num_targets(num_outputs)
        name = type(self).__name__
        if self.event_dim == 0:
            if y.dim() != 1:
                raise ValueError(f"y must have shape (rows,) for {name}, got {tuple(y.shape)}")
        elif y.dim() != 2 or y.shape[1] != expected:
            raise ValueError(f"y must have shape (rows, {expected}) for {name} on this network, got {tuple(y.shape)}")
        self._check_support(y, num_outputs)

    def _check_support(self, y: Tensor, num_outputs: int) -> None:
        """Raise if a target is outside the distribution's support."""
        _require(y, y.isfinite(), "finite numbers")


class Gaussian(Likelihood):
    """Normal noise with one scale, or one scale an output.

    Args:
        scale: Standard deviation of the noise, in units of the (possibly standardised) targets; where it is
            learned, its initial value.
        learn: Whether it is a parameter optimised with the ELBO.
        per_output: None for one shared scale, or the number of outputs, each of which gets its own.

    Raises:
        ValueError: If `scale` is not positive and finite or `per_output` is not a positive integer.

    Example:
        >>> import pyro_sps as sps, torch
        >>> sps.Gaussian(0.1, learn=True)(torch.zeros(5, 2)).batch_shape
        torch.Size([5])
    """

    real_valued = True

    def __init__(self, scale: float = 0.1, learn: bool = False, per_output: int | None = None) -> None:
        super().__init__()
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise ValueError(f"scale must be a positive finite number, got {scale!r}")
        if per_output is not None and (
            isinstance(per_output, bool) or not isinstance(per_output, int) or per_output < 1
        ):
            raise ValueError(f"per_output must be None or the number of outputs, got {per_output!r}")
        self.initial_scale, self.learn, self.per_output = scale, learn, per_output
        # In double precision, so that a network of whatever dtype gets this very scale, rounded once.
        value = torch.full(() if per_output is None else (per_output,), float(scale), dtype=torch.float64)
        if learn:
            self.scale = PyroParam(value, constraint=constraints.positive)
        else:
            self.register_buffer("scale", value)

    def elementwise(self, outputs: Tensor) -> dist.Normal:
        """Normal(outputs, scale)."""
        return dist.Normal(outputs, self.noise_scale.to(outputs.dtype))

    @property
    def noise_scale(self) -> Tensor:
        """Standard deviation of the noise, shape () or (outputs,)."""
        scale: Any = self.scale
        return scale

    def config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {"scale": self.initial_scale, "learn": self.learn, "per_output": self.per_output}

    def check_targets(self, y: Tensor, num_outputs: int) -> None:
        """Check targets, and that `per_output` is the number of outputs."""
        if self.per_output not in (None, num_outputs):
            raise ValueError(f"per_output is {self.per_output}, but the network has {num_outputs} outputs")
        super().check_targets(y, num_outputs)


class HeteroscedasticGaussian(Likelihood):
    """Normal noise whose scale the network predicts: its second half of outputs, through softplus.

    Args:
        minimum: Smallest standard deviation, added to the softplus so that the density stays bounded.

    Raises:
        ValueError: If `minimum` is negative or not finite.

    Example:
        >>> import pyro_sps as sps, torch
        >>> sps.HeteroscedasticGaussian()(torch.zeros(5, 4)).event_shape
        torch.Size([2])
    """

    real_valued = True

    def __init__(self, minimum: float = 1e-3) -> None:
        super().__init__()
        if not 0 <= minimum < math.inf:
            raise ValueError(f"minimum must be a non-negative finite number, got {minimum!r}")
        self.minimum = minimum

    def elementwise(self, outputs: Tensor) -> dist.Normal:
        """Normal with both arguments from the outputs."""
        loc, scale = outputs.chunk(2, dim=-1)
        return dist.Normal(loc, F.softplus(scale) + self.minimum)

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

    def config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {"minimum": self.minimum}


class Categorical(Likelihood):
    """One of as many classes as the network has outputs, which are logits. Targets have shape (rows,).

    Example:
        >>> import pyro_sps as sps, torch
        >>> sps.Categorical()(torch.zeros(5, 3)).batch_shape
        torch.Size([5])
    """

    event_dim = 0

    def elementwise(self, outputs: Tensor) -> dist.Categorical:
        """Categorical with the outputs as logits."""
        return dist.Categorical(logits=outputs)

    def mean(self, outputs: Tensor) -> Tensor:
        """Class probabilities."""
        return outputs.softmax(-1)

    def variance(self, outputs: Tensor) -> Tensor:
        """Variance of the one-hot encoded label."""
        probabilities = outputs.softmax(-1)
        return probabilities * (1 - probabilities)

    def num_targets(self, num_outputs: int) -> int:
        """One label."""
        return 1

    def _check_support(self, y: Tensor, num_outputs: int) -> None:
        if y.is_floating_point() and not (y == y.round()).all():
            raise ValueError("y must hold integer labels for Categorical, got fractions")
        _require(y, (y >= 0) & (y < num_outputs), f"labels from 0 to {num_outputs - 1}")


class Bernoulli(Likelihood):
    """Independent yes/no targets (0 or 1) with the outputs as logits.

    Example:
        >>> import pyro_sps as sps, torch
        >>> sps.Bernoulli().mean(torch.zeros(1, 1))
        tensor([[0.5000]])
    """

    def elementwise(self, outputs: Tensor) -> dist.Bernoulli:
        """Bernoulli with the outputs as logits."""
        return dist.Bernoulli(logits=outputs)

    def _check_support(self, y: Tensor, num_outputs: int) -> None:
        _require(y, (y == 0) | (y == 1), "zeros and ones")


class Poisson(Likelihood):
    """Counts with the outputs as log rates.

    Example:
        >>> import pyro_sps as sps, torch
        >>> sps.Poisson().mean(torch.zeros(1, 1))
        tensor([[1.]])
    """

    def elementwise(self, outputs: Tensor) -> dist.Poisson:
        """Poisson with rate exp(outputs)."""
        return dist.Poisson(outputs.exp())

    def _check_support(self, y: Tensor, num_outputs: int) -> None:
        _require(y, (y >= 0) & (y == y.round()), "counts 0, 1, 2, ...")


def _require(y: Tensor, valid: Tensor, expected: str) -> None:
    if not valid.all():
        row = int((~valid).reshape(len(y), -1).any(-1).nonzero()[0])
        raise ValueError(f"y must hold {expected}, got {y[row].tolist()} in row {row}")


LIKELIHOODS: dict[str, type[Likelihood]] = {
    cls.__name__: cls for cls in (Gaussian, HeteroscedasticGaussian, Categorical, Bernoulli, Poisson)
}
