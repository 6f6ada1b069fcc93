"""Partially stochastic weights: constants where they are fixed, a Pyro sample site for the rest."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor, nn

from .priors import free_entries


class PartialWeight(nn.Module):
    """One weight tensor: constants where it is fixed, a Pyro sample site for the rest.

    The module holds buffers and no parameters, so it moves with `.to()` and costs no variational parameter.

    Args:
        name: Name of the sample site.
        mask: Boolean tensor, True where the weight is stochastic; of no dimensions for a single number.
        fixed: Floating-point tensor of the same shape, read where the mask is False.

    Raises:
        ValueError: If the mask is not Boolean, the shapes differ or a fixed value is not finite.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_sps import PartialWeight
        >>> w1 = PartialWeight("w1", torch.tensor([[True, False], [True, True]]), torch.full((2, 2), 7.0))
        >>> weight = w1(dist.Normal(0.0, 1.0))
        >>> weight.shape, weight[0, 1]
        (torch.Size([2, 2]), tensor(7.))
    """

    mask: Tensor
    fixed: Tensor
    index: Tensor

    def __init__(self, name: str, mask: Tensor, fixed: Tensor) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a non-empty string, got {name!r}")
        if mask.dtype != torch.bool:
            raise ValueError(f"mask of {name!r} must have dtype torch.bool, got {mask.dtype}")
        if mask.shape != fixed.shape:
            raise ValueError(
                f"fixed of {name!r} must have the mask's shape {tuple(mask.shape)}, got {tuple(fixed.shape)}"
            )
        if not fixed.is_floating_point():
            raise ValueError(f"fixed of {name!r} must have a floating-point dtype, got {fixed.dtype}")
        if not fixed[~mask].isfinite().all():
            raise ValueError(f"fixed of {name!r} has values that are not finite at fixed entries")
        self.name = name
        self.register_buffer("mask", mask.clone())
        # Zeros under the free entries, so that scaling by a learned c never meets a stray value.
        self.register_buffer("fixed", torch.where(mask, torch.zeros_like(fixed), fixed.detach()))
        self.register_buffer("index", mask.flatten().nonzero().flatten(), persistent=False)
        self.register_load_state_dict_post_hook(_refresh_index)

    @property
    def num_free(self) -> int:
        """Number of stochastic entries."""
        return len(self.index)

    @property
    def fixed_index(self) -> Tensor:
        """Flat positions of the fixed entries."""
        return (~self.mask).flatten().nonzero().flatten()

    def assemble(self, free: Tensor | None, scale: Tensor | None = None, point: Tensor | None = None) -> Tensor:
        """The full tensor from its free entries.

        Args:
            free: Tensor of shape B + (num_free,); None if every entry is fixed.
            scale: Factor of the fixed entries, of shape () or B.
            point: Values of the fixed entries in their order, shape (number of them,), in place of the constants.

        Returns:
            Tensor of shape B + mask.shape.
        """
        fixed = self.fixed.flatten()
        if point is not None:
            fixed = torch.zeros_like(fixed).scatter(0, self.fixed_index, point)
        if scale is not None:
            fixed = fixed * scale.unsqueeze(-1)
        if free is None or self.num_free == 0:
            return fixed.reshape((*fixed.shape[:-1], *self.mask.shape))
        batch = torch.broadcast_shapes(free.shape[:-1], fixed.shape[:-1])
        free = free.expand((*batch, self.num_free))
        if self.num_free == self.mask.numel():
            return free.reshape((*batch, *self.mask.shape))
        index = self.index.expand_as(free)
        if scale is None:
            full = fixed.expand((*batch, -1)).scatter(-1, index, free)
        else:  # a sum, since `fixed` is zero under the free entries: its derivative by the scale needs no copy of all
            full = free.new_zeros((*batch, self.mask.numel())).scatter(-1, index, free) + fixed
        return full.reshape((*batch, *self.mask.shape))

    def forward(
        self, prior: torch.distributions.Distribution, scale: Tensor | None = None, point: Tensor | None = None
    ) -> Tensor:
        """Sample the free entries at the site `name` and put the tensor together.

        Args:
            prior: Univariate prior of the entries; its batch shape broadcasts against that of the whole tensor
                (entries of the prior at fixed weights are not used), with batch dimensions to the left of it: a
                sampled scale `s` common to all entries enters as `Normal(0.0, s[..., None, None])` for a matrix.
            scale: Factor of the fixed entries, such as a learned c; shape () or the batch shape of the site.
            point: Values of the fixed entries, in place of the constants.

        Returns:
            The weight tensor, with the batch dimensions of the site (particles, posterior draws) on the left.

        Raises:
            ValueError: If the prior is not univariate and continuous, or its shape does not fit.
        """
        if self.num_free == 0:
            return self.assemble(None, scale, point)
        free = pyro.sample(self.name, free_entries(prior, self.mask, self.index, self.fixed))
        return self.assemble(free, scale, point)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.name!r}, {self.num_free} of {self.mask.numel()} stochastic"


class FixWeights(Reparam):
    """Make a site of any Pyro model partially stochastic.

    `poutine.reparam(model, {"w1": FixWeights(mask, values)})` replaces the site `w1` by a site `w1_free` of the
    free entries and makes the full tensor a deterministic site. The posterior is that of the model conditioned on
    the fixed entries. Initial values of an autoguide may be given for `w1` (Pyro warns if they differ from the fixed
    values) or for `w1_free`.

    Args:
        mask: Boolean tensor of the site's event shape, True where it is stochastic. (Where the distribution has a
            batch shape instead, write `.to_event()` in the model.)
        values: Tensor of the same shape, read where the mask is False; the site gets its device and dtype.

    Raises:
        ValueError: On use, if the site's prior is not a product of univariate continuous distributions, if the
            shapes differ or if the site is observed.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro import poutine
        >>> from pyro_sps import FixWeights
        >>> def model():
        ...     return pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        >>> mask = torch.tensor([True, False, True])
        >>> fixed = poutine.reparam(model, {"w": FixWeights(mask, torch.zeros(3))})
        >>> bool(fixed()[1] == 0)
        True
    """

    def __init__(self, mask: Tensor, values: Tensor) -> None:
        self.weight = PartialWeight("FixWeights", mask, values)

    def apply(self, msg: Any) -> Any:
        """Replace one site (called by `pyro.poutine.reparam`)."""
        name, prior, given = msg["name"], msg["fn"], msg["value"]
        weight, ndim = self.weight, self.weight.mask.dim()
        if msg["is_observed"]:
            raise ValueError(f"site {name!r} is observed; FixWeights makes latent sites partially stochastic")
        if prior.event_dim != ndim:
            raise ValueError(
                f"site {name!r} must have the shape of its mask, {tuple(weight.mask.shape)}, as event shape, got "
                f"batch shape {tuple(prior.batch_shape)} and event shape {tuple(prior.event_shape)}; "
                f"use .to_event({ndim})"
            )
        if prior.event_shape != weight.mask.shape:
            raise ValueError(f"site {name!r} has shape {tuple(prior.event_shape)}, its mask {tuple(weight.mask.shape)}")
        try:
            free_prior = free_entries(prior, weight.mask, weight.index, weight.fixed)
        except ValueError as error:
            raise ValueError(f"site {name!r} cannot be partially fixed: {error}") from error

        if weight.num_free:
            # Pyro marks initial values that it made up by itself. Of those that somebody chose the free entries
            # initialise the new site, which else gets an initial value of its own.
            chosen = given is not None and getattr(given, "_pyro_custom_init", True)
            initial = given.flatten(-ndim)[..., weight.index] if chosen else None
            full = weight.assemble(pyro.sample(f"{name}_free", free_prior, obs=initial, infer={"is_observed": False}))
        else:
            full = weight.assemble(None).expand(prior.shape())
        if given is not None and torch.equal(full, given):
            full = given  # the very tensor, from which Pyro sees that the initial value was respected
        return {"fn": dist.Delta(full, event_dim=ndim).mask(False), "value": full, "is_observed": True}


def _refresh_index(weight: PartialWeight, incompatible_keys: object) -> None:
    """Find the free entries again after another mask was loaded."""
    weight.index = weight.mask.flatten().nonzero().flatten()
