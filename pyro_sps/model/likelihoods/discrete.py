"""Observation models of labels, yes/no answers and counts."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from .base import Likelihood, require


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
        if num_outputs == 1:
            raise ValueError(
                "Categorical needs an output for each class, but the network has 1: give it as many outputs as there "
                "are classes, or use Bernoulli for zeros and ones"
            )
        valid = (y >= 0) & (y < num_outputs)
        if not valid.all() and y.min() == 1 and y.max() == num_outputs:
            raise ValueError(f"y must hold labels from 0 to {num_outputs - 1}, got 1 to {num_outputs}: subtract 1")
        require(y, valid, f"labels from 0 to {num_outputs - 1}")


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
        if set(values := y.unique().tolist()) == {1, 2} or (len(values) == 2 and not {0, 1} >= set(values)):
            low, high = values
            raise ValueError(f"y must hold zeros and ones, got {low:g} and {high:g}: use y == {high:g} instead")
        require(y, (y == 0) | (y == 1), "zeros and ones")


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
        require(y, (y >= 0) & (y == y.round()), "counts 0, 1, 2, ...")
