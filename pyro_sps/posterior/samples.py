"""Draws of a posterior by a sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.arrays import Standardizer
from ..model.bnn import BNN
from .outputs import Member
from .predict import Prediction


@dataclass(frozen=True)
class NutsSamples:
    """Draws from the posterior of a network, with the interface of a `pyro.infer.MCMC` that has run.

    Attributes:
        bnn: The model.
        samples: Values of each sample site, shape (chains, draws, entries).
        divergences: For each chain the draws whose trajectory diverged.
        acceptance_rates: For each chain the share of accepted draws.
        standardizer: Shift and scale between the user's units and the network's.
        seconds: Wall time.
        settings: What `sample_nuts` was asked for.
        x: Training inputs, in the units of the network.
        y: Training targets, likewise.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 10, dtype=torch.float64).unsqueeze(1)
        >>> net = sps.mlp([1, 2, 1], dtype=torch.float64)
        >>> bnn = sps.BNN(net, scheme=sps.Rigid(), values=sps.Constant(1.0), likelihood=sps.Gaussian(0.5))
        >>> nuts = sps.sample_nuts(bnn, x, x, num_samples=5, warmup=5, num_chains=2, progress=False)
        >>> nuts.weights()["0.weight"].shape, nuts.predict(x, num_samples=10).mean.shape
        (torch.Size([2, 5, 2, 1]), torch.Size([10, 1]))
    """

    bnn: BNN
    samples: Mapping[str, Tensor] = field(repr=False)
    divergences: Sequence[Sequence[int]] = field(repr=False)
    acceptance_rates: Sequence[float]
    standardizer: Standardizer = field(repr=False)
    seconds: float
    settings: Mapping[str, Any] = field(repr=False)
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return len(self.acceptance_rates)

    @property
    def num_divergent(self) -> int:
        """Number of draws whose trajectory diverged, in all chains."""
        return sum(map(len, self.divergences))

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Values of the sample sites, as `pyro.infer.MCMC.get_samples` gives them.

        Args:
            num_samples: Number of draws, taken at random with replacement; None for all.
            group_by_chain: Whether to keep the dimension of the chains.

        Returns:
            Shape (draws, entries), or (chains, draws, entries), by site.
        """
        from pyro.infer.mcmc.util import select_samples

        selected: dict[str, Tensor] = select_samples(dict(self.samples), num_samples, group_by_chain)
        return selected

    def diagnostics(self) -> dict[str, Any]:
        """R-hat and effective sample size by site, divergences and acceptance rates by chain, as Pyro gives them."""
        from pyro.infer.mcmc.util import diagnostics

        found: dict[str, Any] = diagnostics(dict(self.samples))
        chains = [f"chain {index}" for index in range(self.num_chains)]
        found["divergences"] = dict(zip(chains, map(list, self.divergences), strict=True))
        found["acceptance rate"] = dict(zip(chains, self.acceptance_rates, strict=True))
        return found

    def weights(self) -> dict[str, Tensor]:
        """All weight tensors in full, fixed entries included: shape (chains, draws) + the tensor's, by name."""
        with torch.no_grad():
            return self.bnn.assemble(self.samples)

    def draws(self, num_samples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draws of every site at random, with replacement, as a guide gives them: shape (num_samples, entries)."""
        flat = {name: value.flatten(0, 1) for name, value in self.samples.items()}
        first = next(iter(flat.values()))
        index = torch.randint(len(first), (num_samples,), generator=generator, device=first.device)
        return {name: value[index] for name, value in flat.items()}

    def predict(self, x: Any, num_samples: int = 1000, seed: int = 0) -> Prediction:
        """The posterior predictive distribution at new inputs; see `Fit.predict`."""
        guide: Any = self
        return Prediction.of([Member(self.bnn, guide, self.standardizer)], x, num_samples, seed)
