"""The unnormalised posterior of a network as a function of one flat vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from ..data.observed import Observed
from .bnn import BNN
from .density import Params, Problem, latents_of, negative_log_joint, prepare, pyro_session, run_model
from .guides import AutoSPSNormal


@dataclass(frozen=True)
class Target:
    """The unnormalised posterior of a network's stochastic weights, in unconstrained space.

    Parameters of the model (a learned c, a learned noise) are held at the values that the network has.

    Attributes:
        bnn: The model.
        problem: The layout of its sites in the flat vector.
        params: Values of the model's parameters.
        x: Inputs, in the units of the network.
        y: Targets, likewise.
        num_data: Size of the whole data set if these rows are some of it, drawn at random: they stand for all then.
    """

    bnn: BNN
    problem: Problem
    params: Params = field(repr=False)
    x: Tensor = field(repr=False)
    y: Tensor | Observed = field(repr=False)
    num_data: int | None = None

    @staticmethod
    def of(bnn: BNN, x: Tensor, y: Tensor | Observed, num_data: int | None = None) -> Target:
        """The target of checked data."""
        problem, own = prepare(bnn, AutoSPSNormal(bnn), x, y)
        return Target(bnn, problem, problem.constrain(own), x, y, num_data)

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the weights; inputs may be whole numbers."""
        return self.bnn.like

    @property
    def rows(self) -> int:
        """Number of rows of the data."""
        return len(self.x) if self.num_data is None else self.num_data

    def energy(self, flat: Tensor) -> Tensor:
        """Minus the log density with respect to the unconstrained weights: shape () for (n,), (S,) for (S, n)."""
        return self.energy_on(flat, self.x, self.y, self.num_data)

    def energy_on(self, flat: Tensor, x: Tensor, y: Tensor | Observed, num_data: int | None = None) -> Tensor:
        """`energy` on other data.

        Args:
            flat: Unconstrained weights, shape (n,) or (S, n).
            x: Inputs, in the units of the network.
            y: Targets, likewise.
            num_data: Size of the whole data set if this is a minibatch of it.
        """
        energy = negative_log_joint(self.problem, flat, (x, y), {"num_data": num_data}, self.params)
        for site in self.problem.sites:
            if site.support is not None:  # such as ordered biases
                transform = biject_to(site.support)
                value = site.view(flat)
                log_det = transform.log_abs_det_jacobian(value, transform(value))
                energy = energy - log_det.reshape((*flat.shape[:-1], -1)).sum(-1)
        return energy

    @torch.no_grad()
    def log_likelihoods(self, flat: Tensor, x: Tensor, y: Tensor | Observed) -> Tensor:
        """Log densities of the targets of each row given draws, shape (S, rows), whatever else the model samples.

        What does not count like all others, counts in them as often as it does.

        Args:
            flat: Unconstrained weights, shape (S, n).
            x: Inputs, in the units of the network.
            y: Targets, likewise.
        """
        with pyro_session():
            node = run_model(self.problem, latents_of(self.problem, flat), (x, y), None, self.params)["obs"]
            log_prob: Tensor = node["fn"].log_prob(node["value"])
        if isinstance(y, Observed) and y.weights is not None:
            log_prob = log_prob * y.weights
        return log_prob.reshape(-1, len(x)).expand(len(flat), -1)

    def sites(self, flat: Tensor) -> dict[str, Tensor]:
        """Values of the sample sites, B + (entries,), from B + (n,)."""
        return {site.name: site.constrain(site.view(flat)) for site in self.problem.sites}

    def log_likelihood(self, flat: Tensor) -> Tensor:
        """Log density of the targets given the weights, shape B for B + (n,)."""
        sites = self.sites(flat)
        outputs = self.bnn.function(self.bnn.assemble(sites), self.x)
        log: Tensor = self.bnn.likelihood.at(sites).log_density(outputs, self.y)
        return log.flatten(-1 - self.bnn.likelihood.event_dim).sum(-1)

    def flat(self, sites: Mapping[str, Tensor]) -> Tensor:
        """The opposite of `sites`.

        Raises:
            ValueError: If a site is missing or has another size.
        """
        parts = []
        for site in self.problem.sites:
            value = sites.get(site.name)
            if value is None or value.shape[value.dim() - len(site.shape) :] != site.shape:
                found = "nothing" if value is None else f"shape {tuple(value.shape)}"
                raise ValueError(f"site {site.name!r} must have values of shape {tuple(site.shape)}, got {found}")
            value = value.detach().to(self.like)
            value = site.unconstrain(value)
            parts.append(value.reshape((*value.shape[: value.dim() - len(site.shape)], -1)))
        return torch.cat(parts, dim=-1)

    def prior_draws(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws of the prior in unconstrained space, shape (num_samples, n)."""
        devices = [self.x.device] if self.x.is_cuda else []
        with pyro_session(), torch.random.fork_rng(devices), torch.no_grad(), poutine.block():
            torch.manual_seed(generator.initial_seed())
            with poutine.trace() as tracer, pyro.plate("draws", num_samples, dim=-2):
                self.bnn(self.x[:1])
        nodes: Any = tracer.trace.nodes
        values = {site.name: nodes[site.name]["value"].reshape(num_samples, *site.shape) for site in self.problem.sites}
        return self.flat(values)
