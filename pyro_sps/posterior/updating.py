"""A posterior as the prior of the next data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..base.checks import is_number
from ..base.plain import plain_torch
from ..data.arrays import Standardizer
from ..model.bnn import BNN
from ..model.guides import AutoSPSNormal
from ..network.units import WeightTensor

# What files call the numbers of the prior of a model, and of the one that there was at first.
PRIORS = ("prior", "first_prior")


@plain_torch()
@torch.no_grad()
def updated_model(bnn: BNN, guide: AutoSPSNormal, units: Standardizer, forgetting: float) -> BNN:
    """A copy of a model whose prior is its posterior; see `pyro_sps.Fit.as_prior`.

    Args:
        bnn: The model.
        guide: Its posterior.
        units: Those of the posterior.
        forgetting: Forgetting factor.

    Raises:
        ValueError: As there.
    """
    if not is_number(forgetting) or not 0 < forgetting <= 1:
        raise ValueError(f"forgetting must be a number in (0, 1], 1 to forget nothing, got {forgetting!r}")
    tensors = {tensor.name: tensor for tensor in bnn.topology.tensors}
    if other := [site.name for site in guide.sites if site.name not in tensors or site.support is not None]:
        raise ValueError(
            f"as_prior needs a model of which only weights are sampled, of any sign, but {other} are sampled: use a "
            "normal prior of given scale, a noise that is a parameter, and no ordered biases"
        )
    loc, scale = (value.detach() for value in guide.parameters_of_sites())
    sites = {site.name: site for site in guide.sites}
    first: Mapping[str, Any] = bnn.first_prior or {n: bnn.prior_of(t) for n, t in tensors.items()}
    prior = dict(first)
    for weight in bnn.weights:
        name = weight.name
        if name not in sites:  # with nothing stochastic
            continue
        mean, precision = (sites[name].view(value).flatten() for value in (loc, scale.square().reciprocal()))
        before = normal_of(first[name], tensors[name], loc)
        if before is None and (forgetting < 1 or name in bnn.points):
            raise ValueError(
                f"as_prior with forgetting < 1 or sps.Point() needs a normal prior to go back to, but that of {name!r} "
                f"is {first[name]!r}"
            )
        centre, width = before or (torch.zeros_like(weight.fixed), torch.ones_like(weight.fixed))
        if forgetting < 1:
            old, old_precision = centre.flatten()[weight.index], width.flatten()[weight.index].square().reciprocal()
            kept, given_up = forgetting * precision, (1 - forgetting) * old_precision
            mean = (kept * mean + given_up * old) / (kept + given_up)
            precision = kept + given_up
        index, shape = weight.index, weight.mask.shape
        new_loc = centre.flatten().scatter(0, index, mean).reshape(shape)
        new_scale = width.flatten().scatter(0, index, precision.rsqrt()).reshape(shape)
        prior[name] = dist.Normal(new_loc, new_scale)
    new = bnn.copy()
    new.prior, new.first_prior, new.units = prior, first, units
    return new


def numbers_of(bnn: BNN) -> dict[str, Tensor] | None:
    """Means and standard deviations of all entries under a prior that is a posterior, as tensors by name.

    Those of the first prior, which `Fit.as_prior` goes back to, are beside them.

    Args:
        bnn: The model.

    Returns:
        None if the prior is no posterior, or the first one was not normal.
    """
    if bnn.first_prior is None:
        return None
    found: dict[str, Tensor] = {}
    for tensor in bnn.topology.tensors:
        for kind, prior in zip(PRIORS, (bnn.prior_of(tensor), bnn.first_prior[tensor.name]), strict=True):
            if (numbers := normal_of(prior, tensor, bnn.like)) is None:
                return None
            found |= {f"{kind}.{what}.{tensor.name}": n for what, n in zip(("loc", "scale"), numbers, strict=True)}
    return found


def normal_of(prior: Any, tensor: WeightTensor, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Means and standard deviations of all entries of a tensor under a normal prior; None under another one."""
    while isinstance(prior, torch.distributions.Independent):
        prior = prior.base_dist
    if not isinstance(prior, torch.distributions.Normal):
        return None
    return prior.loc.to(like).expand(tensor.shape), prior.scale.to(like).expand(tensor.shape)
