r"""A mean-field normal guide over the stochastic weights.

For every latent site with value :math:`w` of the model the guide samples :math:`w \sim \mathcal N(m, s^2)` directly.
All means are one flat vector and all scales another, of which the sites are views: sampling, the KL divergence and the
optimiser each are one operation, however many tensors the network has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from pyro.nn import PyroParam
from torch import Generator, Tensor, nn
from torch.distributions import biject_to

from ..base.checks import require_positive


@dataclass(frozen=True)
class Site:
    """Where one latent site lies in the guide's flat vectors.

    Attributes:
        name: Name of the site.
        start: Its first position.
        shape: Shape of the value in unconstrained space.
        event_dim: Number of event dimensions in unconstrained space.
        support: Constraint of the value, or None if it is unconstrained.
    """

    name: str
    start: int
    shape: torch.Size
    event_dim: int
    support: Any = None

    @property
    def stop(self) -> int:
        """One past its last position."""
        return self.start + math.prod(self.shape)

    def view(self, flat: Tensor) -> Tensor:
        """This site's part of B + (n,) as B + shape."""
        return flat[..., self.start : self.stop].reshape(flat.shape[:-1] + self.shape)

    def constrain(self, value: Tensor) -> Tensor:
        """Map an unconstrained value to the site's support."""
        return value if self.support is None else biject_to(self.support)(value)

    def unconstrain(self, value: Tensor) -> Tensor:
        """Map a value of the site's support to an unconstrained one."""
        return value if self.support is None else biject_to(self.support).inv(value)


class AutoSPSNormal(AutoGuide):
    """Mean-field normal guide with the interface of Pyro's `AutoNormal`.

    Unlike `AutoNormal`, which samples a Delta of a transformed auxiliary site, it samples each site directly, so that
    `TraceMeanField_ELBO` takes the KL divergence in closed form wherever one is known. Sites whose support is
    constrained get a transformed normal (and a sampled KL).

    Args:
        model: A Pyro model: a `BNN`, or any model whose latent sites are continuous.
        init_loc_fn: Initial value of each site; see Pyro's `pyro.infer.autoguide.initialization`.
        init_scale: Initial standard deviation in unconstrained space.
        create_plates: As in Pyro's autoguides.

    Attributes:
        loc: Means of all sites in unconstrained space, shape (n,).
        scale: Standard deviations, shape (n,).
        sites: Where each site lies in them.

    Raises:
        ValueError: If `init_scale` is not positive.
        NotImplementedError: On first use, if a latent site is discrete or lies in a subsampled plate. (Pyro's default
            initialisation raises a ValueError for discrete sites before that.)

    Example:
        >>> import torch, pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), sps.Heavy(), sps.Zero())
        >>> guide = sps.AutoSPSNormal(bnn, init_scale=0.1)
        >>> guide(torch.zeros(1, 8), torch.zeros(1, 2))["4.bias"].shape
        torch.Size([2])
    """

    scale_constraint = constraints.softplus_positive

    prototype_trace: Any

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        init_loc_fn: Callable[[Any], Tensor] = init_to_feasible,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        require_positive("init_scale", init_scale)
        self.init_loc_fn = init_loc_fn
        self.init_scale = init_scale
        self.sites: tuple[Site, ...] = ()
        super().__init__(InitMessenger(init_loc_fn)(model), create_plates=create_plates)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        sites, values, start = [], [], 0
        for name, node in self.prototype_trace.iter_stochastic_nodes():
            for frame in node["cond_indep_stack"]:
                if frame.full_size not in (None, frame.size):
                    raise NotImplementedError(
                        f"AutoSPSNormal does not support site {name!r} in the subsampled plate {frame.name!r}; "
                        "use pyro.infer.autoguide.AutoNormal for local variables"
                    )
            support = node["fn"].support
            if support.is_discrete:
                raise NotImplementedError(f"AutoSPSNormal does not support the discrete site {name!r}")
            value = node["value"].detach()
            event_dim = node["fn"].event_dim
            constrained = not _is_real(support)
            if constrained:
                transform = biject_to(support)
                value = transform.inv(value)
                event_dim += transform.domain.event_dim - transform.codomain.event_dim
            site = Site(name, start, value.shape, event_dim, support if constrained else None)
            sites.append(site)
            values.append(value.flatten())
            start = site.stop
        if not sites:
            raise ValueError("the model has no latent site: every weight is fixed, so that nothing is left to infer")
        self.sites = tuple(sites)
        loc = torch.cat(values)
        self.loc = nn.Parameter(loc)
        self.scale = PyroParam(torch.full_like(loc, self.init_scale), self.scale_constraint)

    def adopt(self, other: AutoSPSNormal, loc: Tensor, unconstrained_scale: Tensor) -> None:
        """Take over another guide's layout, with parameters of its own.

        Args:
            other: A guide of the same model that has seen its arguments.
            loc: Means, shape (n,).
            unconstrained_scale: What softplus makes the standard deviations of, shape (n,).
        """
        self.sites, self.prototype_trace = other.sites, other.prototype_trace
        self._prototype_frames = other._prototype_frames
        self.loc = nn.Parameter(loc.detach().clone())
        self.scale = PyroParam(torch.ones_like(loc), self.scale_constraint)
        self.scale_unconstrained = nn.Parameter(unconstrained_scale.detach().clone())

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; takes the model's arguments and returns a dict of values by site name."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        loc, scale = self.parameters_of_sites()
        values = {}
        for site in self.sites:
            with ExitStack() as stack:
                for frame in self.prototype_trace.nodes[site.name]["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                values[site.name] = pyro.sample(site.name, site_distribution(site, loc, scale))
        return values

    def parameters_of_sites(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of all sites in unconstrained space, each of shape (n,)."""
        scale: Any = self.scale
        return self.loc, scale

    def draws(self, num_samples: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """Posterior draws of every site, outside any handler.

        Args:
            num_samples: Number of draws S.
            generator: Source of randomness, on the guide's device.

        Returns:
            Tensors of shape (S,) + the site's shape, by site name.
        """
        with torch.no_grad():
            loc, scale = self.parameters_of_sites()
            noise = torch.randn((num_samples, len(loc)), generator=generator, dtype=loc.dtype, device=loc.device)
            flat = loc + scale * noise
            return {site.name: site.constrain(site.view(flat)) for site in self.sites}

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior median of every site, as in `AutoNormal`."""
        self._require_sites()
        loc = self.loc.clone()  # which the optimiser does not change any more
        return {site.name: site.constrain(site.view(loc)) for site in self.sites}

    @torch.no_grad()
    def quantiles(self, quantiles: list[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior quantiles of every site, as in `AutoNormal`.

        Args:
            quantiles: Numbers in (0, 1).
            *args: Not used.
            **kwargs: Not used.

        Returns:
            Tensors of shape (number of quantiles,) + the site's shape, by site name.
        """
        self._require_sites()
        loc, scale = self.parameters_of_sites()
        levels = torch.as_tensor(quantiles, dtype=loc.dtype, device=loc.device).reshape(-1, 1)
        flat = torch.distributions.Normal(loc, scale).icdf(levels)
        return {site.name: site.constrain(site.view(flat)) for site in self.sites}

    def _require_sites(self) -> None:
        if not self.sites:
            raise ValueError("the guide has not seen the model yet; call it once with the model's arguments")


def site_distribution(site: Site, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
    """The guide's distribution of one site, from the flat means and scales."""
    normal = dist.Normal(site.view(loc), site.view(scale)).to_event(site.event_dim)
    return normal if site.support is None else dist.TransformedDistribution(normal, biject_to(site.support))


def _is_real(support: Any) -> bool:
    while isinstance(support, torch.distributions.constraints.independent):
        support = support.base_constraint
    return support is constraints.real
