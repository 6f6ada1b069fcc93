"""The vector that chains move in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.arrays import make_generator
from ..model.target import Target
from .langevin import FEWEST_DIMENSIONS, Gradient


@dataclass(frozen=True)
class Coordinates:
    """The vector that chains move in: the model's latent values, and padding.

    Attributes:
        target: The posterior.
        size: Number of latent values n.
        blocks: Block of each coordinate (its site, or the padding), shape (d,).
        sizes: Number of coordinates of each block, shape (blocks,).
        centre: Median of each block under the prior, shape (blocks,).
        spread: Scale of each block under the prior, shape (blocks,).
    """

    target: Target
    size: int
    blocks: Tensor
    sizes: Tensor
    centre: Tensor
    spread: Tensor

    @staticmethod
    def of(target: Target, seed: int) -> Coordinates:
        """Of a target, with what 256 draws of the prior say of scales.

        Args:
            target: The posterior.
            seed: Seeds them.
        """
        size, like = target.problem.size, target.like
        draws = target.prior_draws(256, make_generator("cpu", seed, 20))
        padding = max(0, FEWEST_DIMENSIONS - size)
        sizes = [site.stop - site.start for site in target.problem.sites] + [padding] * (padding > 0)
        quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        centre, spread = [], []
        for site in target.problem.sites:  # by quantiles, which heavy tails do not move
            own = draws[:, site.start : site.stop].double().flatten()[: 1 << 20].cpu()
            low, middle, high = torch.quantile(own, quartiles).tolist()
            centre.append(middle if abs(middle) > 0.2 * (high - low) else 0.0)
            spread.append(max((high - low) / 1.349, 1e-6))
        if padding:
            centre.append(0.0)
            spread.append(1.0)
        counts = torch.tensor(sizes)
        return Coordinates(
            target=target,
            size=size,
            blocks=torch.arange(len(sizes)).repeat_interleave(counts).to(like.device),
            sizes=counts.to(like),
            centre=torch.tensor(centre, dtype=torch.float64).to(like),
            spread=torch.tensor(spread, dtype=torch.float64).to(like),
        )

    @property
    def dimensions(self) -> int:
        """Number of coordinates d."""
        return len(self.blocks)

    def gradient(self, num_data: int | None) -> Gradient:
        """Gradients and energies of chains on data.

        Args:
            num_data: Size of the whole data set if the data is a minibatch of it.
        """

        def energy(position: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            energies = self.target.energy_on(position[:, : self.size], x, y, num_data)
            if self.dimensions > self.size:
                energies = energies + position[:, self.size :].square().sum(-1) / 2
            return energies.sum(), energies

        def both(position: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            gradient, energies = torch.func.grad(energy, has_aux=True)(position, x, y)
            return gradient, energies

        return both
