"""Importance sampling from the guide to the posterior: how far apart they are, and expectations that account for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..posterior.outputs import Member
from ..posterior.predict import Prediction
from .density import Data, Draws
from .generations import pareto_smoothed


@dataclass(frozen=True)
class Importance:
    """Pareto smoothed importance sampling of one fit (Yao, Vehtari, Simpson and Gelman 2018, arXiv 1802.02538).

    Attributes:
        khat: Pareto k̂, the shape of the tail of the importance ratios.
        log_ratios: lp - lq of each draw, in nats up to the log evidence, shape (S,).
        log_weights: Logs of the smoothed normalised weights, shape (S,).
        member: The network with the draws.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> importance = sps.diagnose(fit, draws=100).importance[0]
        >>> importance.reading, 1 <= importance.ess <= 100
        ('very bad', True)
        >>> importance.predictive_mean(x).shape
        torch.Size([20, 1])
    """

    khat: float
    log_ratios: np.ndarray = field(repr=False)
    log_weights: np.ndarray = field(repr=False)
    member: Member = field(repr=False)

    @property
    def threshold(self) -> float:
        """k̂ above which corrected expectations are not to be trusted, min(1 - 1/log10 S, 0.7) (Vehtari et al. 2024)."""
        return min(1 - 1 / math.log10(max(2, len(self.log_weights))), 0.7)

    @property
    def reading(self) -> str:
        """What k̂ means, `good` below 0.5, `ok` below the threshold, `bad` below 1, `very bad` above."""
        if not self.khat < 1:
            return "very bad"
        return "good" if self.khat < min(0.5, self.threshold) else "ok" if self.khat < self.threshold else "bad"

    @property
    def ess(self) -> float:
        """Effective number of draws behind corrected expectations, 1/Σw²."""
        return float(np.exp(-np.logaddexp.reduce(2 * self.log_weights)))

    def expectation(self, values: Tensor) -> Tensor:
        """Corrected posterior expectation.

        Args:
            values: A function's value at each draw, shape (S, ...).

        Returns:
            Shape (...).

        Raises:
            ValueError: If there is not one value a draw.
        """
        if len(values) != len(self.log_weights):
            raise ValueError(f"values must have one row for each of {len(self.log_weights)} draws, got {len(values)}")
        weights = torch.from_numpy(np.exp(self.log_weights)).to(values)
        return torch.tensordot(weights, values, dims=1)

    def weight_means(self) -> dict[str, Tensor]:
        """Corrected posterior means of the stochastic weights, by name of the weight tensor."""
        assert self.member.sites is not None
        weights = self.member.bnn.free_weights(self.member.sites)
        return {name: self.expectation(value) for name, value in weights.items()}

    def predictive_mean(self, x: Any) -> Tensor:
        """Corrected mean of the posterior predictive.

        Args:
            x: Inputs in original units, shape (rows, features).

        Returns:
            Shape (rows, targets or classes), in original units.
        """
        prediction = Prediction.of([self.member], x, len(self.log_weights), 0)
        return torch.cat([self.expectation(draws) for _, draws in prediction.function_draws_by_rows()])


def importance(draws: Draws, data: Data) -> Importance:
    """Smoothed importance weights of a fit's draws.

    Args:
        draws: Draws from its guide.
        data: The training data.
    """
    log_ratios = (draws.log_joint(data) - draws.log_guide).cpu().numpy()
    log_weights, khat = pareto_smoothed(log_ratios)
    return Importance(khat, log_ratios, log_weights, draws.member)
