"""Priors of weights, and what of them is left where some entries are fixed."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..network.units import WeightTensor

Prior = torch.distributions.Distribution | Callable[[WeightTensor], torch.distributions.Distribution]


def free_entries(
    prior: torch.distributions.Distribution, mask: Tensor, index: Tensor, like: Tensor
) -> dist.TorchDistribution:
    """The prior of the free entries of a tensor, as one vector.

    Args:
        prior: Univariate distribution whose batch shape broadcasts against B + mask.shape.
        mask: Stochastic mask of the tensor.
        index: Flat indices of its free entries, shape (n,).
        like: A tensor whose device and dtype the result follows.

    Returns:
        A distribution with batch shape B and event shape (n,).
    """
    if not isinstance(prior, torch.distributions.Distribution):
        raise ValueError(f"the prior must be a distribution, got {prior!r}")
    while isinstance(prior, torch.distributions.Independent):
        prior = prior.base_dist
    family = type(prior).__name__
    support: Any = prior.support
    if prior.event_shape or support.is_discrete:
        raise ValueError(
            f"the prior of a partially fixed tensor must be univariate and continuous, got {family} "
            f"with event shape {tuple(prior.event_shape)}"
        )
    ndim, given = mask.dim(), prior.batch_shape
    if any(size not in (1, own) for size, own in zip(reversed(given), reversed(mask.shape), strict=False)):
        raise ValueError(
            f"the prior's batch shape {tuple(given)} does not fit a tensor of shape {tuple(mask.shape)}; particles "
            "and other batch dimensions go to the left of it"
        )
    batch = given[: max(0, len(given) - ndim)]
    shape = (*batch, *mask.shape)
    arguments = {}
    for name in prior.arg_constraints:
        # A distribution is asked only for the arguments it was built with: others (probs next to logits) are derived.
        if name not in prior.__dict__ and not isinstance(prior, torch.distributions.TransformedDistribution):
            continue
        value = getattr(prior, name)
        if not isinstance(value, Tensor):
            raise ValueError(f"the prior {family} has an argument {name} that is not a tensor")
        value = value.to(device=like.device, dtype=like.dtype)
        if any(size != 1 for size in value.shape[-ndim:]):
            value = value.expand(shape).reshape((*batch, mask.numel()))[..., index]
        elif value.dim():
            value = value.reshape((*value.shape[: max(0, value.dim() - ndim)], 1))
        arguments[name] = value
    try:
        # Pyro's class of the same name, where a plain torch distribution was given.
        constructor: Any = type(prior) if hasattr(prior, "to_event") else getattr(dist, family)
        if options := _options(constructor) - set(prior.arg_constraints):
            raise TypeError(f"it has the arguments {sorted(options)}, which are no parameters")
        restricted = constructor(**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the prior {family} cannot be restricted to the free entries ({error}); "
            "use an independent univariate distribution such as Normal, Laplace or StudentT"
        ) from error
    return restricted.expand((*batch, len(index))).to_event(1)


@functools.cache
def _options(family: type) -> set[str]:
    """Names of a distribution's constructor arguments."""
    return set(inspect.signature(family).parameters) - {"validate_args"}


class OrderedNormal(dist.TorchDistribution):
    """Independent normals conditioned on being in increasing order.

    The density is n! times the product of the normal densities on the ordered region, so that a posterior under
    it is the posterior under independent normals with one of the n! orders picked. Autoguides and HMC work in
    the unconstrained space of Pyro's ordered transform.

    Args:
        loc: Mean of the normals.
        scale: Standard deviation.
        size: Number of values n.

    Example:
        >>> import torch
        >>> from pyro_sps.model.priors import OrderedNormal
        >>> value = OrderedNormal(torch.tensor(0.0), torch.tensor(1.0), 5).sample()
        >>> bool((value.diff() >= 0).all())
        True
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.ordered_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, size: int, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, torch.Size([size]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OrderedNormal:
        """The same distribution with a larger batch shape."""
        return OrderedNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.event_shape[0])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws: sorted independent normals."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return (self.loc.unsqueeze(-1) + self.scale.unsqueeze(-1) * noise).sort(-1).values

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; minus infinity where the values are not in order."""
        normal = torch.distributions.Normal(self.loc.unsqueeze(-1), self.scale.unsqueeze(-1), validate_args=False)
        log_prob = normal.log_prob(value).sum(-1) + math.lgamma(self.event_shape[0] + 1)
        return log_prob.masked_fill((value.diff(dim=-1) < 0).any(-1), -math.inf)
