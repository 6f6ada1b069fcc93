"""Scores of predictive distributions that are mixtures of normals: one component a posterior draw or network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.arrays import make_generator


@dataclass(frozen=True, eq=False)
class Mixture:
    """An equally weighted mixture of independent normals for every held-out row and target.

    Attributes:
        means: Shape (components, rows, targets).
        scales: Standard deviations, of a shape that broadcasts against it.
    """

    means: Tensor = field(repr=False)
    scales: Tensor = field(repr=False)

    def first(self, rows: int) -> Mixture:
        """The mixture of the first rows alone."""
        return Mixture(self.means[:, :rows], self.scales.expand_as(self.means)[:, :rows])


def score(mixture: Mixture, y: Tensor, seed: int = 0) -> dict[str, float]:
    """RMSE of the mean, LPP, CRPS, coverage and width of central 95 % intervals (DESIGN 2.5), averaged over targets.

    Args:
        mixture: What was predicted.
        y: Targets, shape (rows, targets).
        seed: Seeds the draws that CRPS and intervals are estimated from: at least 1,000, noise included.
    """
    import scoringrules

    means, y = mixture.means.double(), y.double()
    scales = mixture.scales.double().expand_as(means)
    logs = torch.distributions.Normal(means, scales).log_prob(y).logsumexp(0) - math.log(len(means))
    repeats = -(-1000 // len(means))
    generator = make_generator(y.device, seed, 7)
    noise = torch.randn((repeats, *means.shape), generator=generator, dtype=y.dtype, device=y.device)
    draws = (means + scales * noise).flatten(0, 1)
    lower, upper = draws.quantile(draws.new_tensor([0.025, 0.975]), dim=0)
    return {
        "rmse": (means.mean(0) - y).square().mean(0).sqrt().mean().item(),
        "lpp": logs.mean().item(),
        "crps": float(scoringrules.crps_ensemble(y.cpu().numpy(), draws.movedim(0, -1).cpu().numpy()).mean()),
        "coverage": ((y >= lower) & (y <= upper)).double().mean().item(),
        "interval": (upper - lower).mean().item(),
    }
