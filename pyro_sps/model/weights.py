"""The weights of a model: their priors, and putting sampled and fixed entries together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ..base.process import process_lock
from ..network.topology import Topology
from ..network.units import WeightTensor
from .hierarchy import Hierarchical
from .partial import PartialWeight
from .priors import OrderedNormal, Prior, free_entries


@dataclass(frozen=True)
class Part:
    """A weight tensor, and what its fixed entries are made of beside constants.

    Attributes:
        weight: Mask and constants.
        scale: Learned factor of the constants; None for 1.
        point: The fixed entries where they are parameters; None where they are constants.
    """

    weight: PartialWeight
    scale: Tensor | None = None
    point: Tensor | None = None

    def constants(self) -> Tensor:
        """The fixed entries in full shape, zero where the tensor is stochastic."""
        if self.point is not None:
            flat = torch.zeros_like(self.weight.fixed).flatten().scatter(0, self.weight.fixed_index, self.point)
            return flat.reshape(self.weight.mask.shape)
        return self.weight.fixed if self.scale is None else self.weight.fixed * self.scale

    def assemble(self, free: Tensor | None) -> Tensor:
        """The full tensor from its free entries; None if there are none."""
        return self.weight.assemble(free, self.scale, self.point)


@dataclass(frozen=True)
class Priors:
    """The priors of all weight tensors of a network.

    Attributes:
        given: What the user gave: a distribution, a function of a tensor, a dict of these by name, `Hierarchical()`, or
            None.
        scale: Standard deviation of the default prior.
        by_fan_in: Whether that is divided by √fan-in.
        ordered: Names of the biases that are constrained to increase.
        like: A tensor whose device and dtype default priors follow.
        kinds: For each output of the network which kind of output it is, from 0 on.
        outputs: The group of the outputs.
    """

    given: Prior | Hierarchical | Mapping[str, Prior] | None
    scale: float
    by_fan_in: bool
    ordered: tuple[str, ...]
    like: Tensor
    kinds: tuple[int, ...] = (0,)
    outputs: int = -1

    def of(self, tensor: WeightTensor) -> torch.distributions.Distribution:
        """The prior of the entries of a weight tensor; under a hierarchical one, of the entries before they are scaled.

        Raises:
            ValueError: If what was given is neither a distribution nor a function.
        """
        if isinstance(self.given, Hierarchical):
            return self.given.base(tensor, self.like)
        prior = self.given.get(tensor.name) if isinstance(self.given, Mapping) else self.given
        if prior is None:
            scale = self.scale / (math.sqrt(tensor.fan_in) if self.by_fan_in else 1)
            return dist.Normal(self.like.new_zeros(()), self.like.new_full((), scale))
        if isinstance(prior, torch.distributions.Distribution):
            return prior
        if not callable(prior):
            raise ValueError(
                f"the prior must be a distribution or a function from a WeightTensor to one, got {prior!r}"
            )
        return prior(tensor)

    def sample(self, tensor: WeightTensor, part: Part) -> Tensor:
        """Sample the stochastic entries of a tensor and put it together.

        Fixed entries that are parameters have their log prior density added to the model's.

        Args:
            tensor: The tensor.
            part: Its mask and fixed entries.

        Returns:
            The tensor, with the batch dimensions of the site on the left.
        """
        weight = part.weight
        if part.point is not None:
            prior = free_entries(self.of(tensor), ~weight.mask, weight.fixed_index, weight.fixed)
            pyro.factor(f"{tensor.name}_point", prior.log_prob(part.point))
        if not weight.num_free:
            return part.assemble(None)
        if isinstance(self.given, Hierarchical):
            factor = self.given.sample(tensor.name, self.num_kinds(tensor), self.like)
            free = pyro.sample(tensor.name, free_entries(self.of(tensor), weight.mask, weight.index, weight.fixed))
            return part.assemble(free * self._by_entry(tensor, weight, factor))
        if tensor.name not in self.ordered:
            return weight(self.of(tensor), part.scale, part.point)
        normal: Any = self.of(tensor)
        loc, width = normal.loc.to(self.like), normal.scale.to(self.like)
        value: Tensor = pyro.sample(tensor.name, OrderedNormal(loc, width, weight.num_free))
        return value

    def free(self, tensor: WeightTensor, weight: PartialWeight, sites: Mapping[str, Tensor]) -> Tensor | None:
        """The stochastic entries of a tensor from values of the sample sites.

        Args:
            tensor: The tensor.
            weight: Its mask.
            sites: Values by site name, of shape B + the site's.

        Returns:
            Shape B + (free entries,); None if there is no value of its site.
        """
        free = sites.get(tensor.name)
        if free is None or not weight.num_free or not isinstance(self.given, Hierarchical):
            return free
        return free * self._by_entry(tensor, weight, self.given.factor(tensor.name, sites))

    def site_of(self, tensor: WeightTensor, weight: PartialWeight, full: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """The value of a tensor's site that gives its stochastic entries: the opposite of `free`.

        Args:
            tensor: The tensor.
            weight: Its mask.
            full: The tensor's value, shape B + its shape.
            sites: Values of the sites of scales, if there are some.
        """
        free = full.flatten(-len(tensor.shape))[..., weight.index]
        if not isinstance(self.given, Hierarchical):
            return free
        return free / self._by_entry(tensor, weight, self.given.factor(tensor.name, sites))

    def num_kinds(self, tensor: WeightTensor) -> int:
        """Number of kinds of outputs that a tensor leads to, each with a scale under a hierarchical prior."""
        return max(self.kinds) + 1 if tensor.groups[0] == self.outputs else 1

    def kinds_of(self, tensor: WeightTensor, weight: PartialWeight) -> Tensor:
        """The kind of output that each free entry of a tensor leads to, shape (free entries,)."""
        return torch.tensor(self.kinds, device=weight.index.device)[weight.index // tensor.fan_in]

    def _by_entry(self, tensor: WeightTensor, weight: PartialWeight, factor: Tensor) -> Tensor:
        """Factors of the free entries, from those of the kinds of outputs."""
        if factor.shape[-1] == 1:  # common to all
            return factor
        if tensor.is_matrix and isinstance(self.given, Hierarchical):
            damping = [1.0] + [self.given.noise_scale] * (factor.shape[-1] - 1)
            factor = factor * factor.new_tensor(damping)
        # By a product with ones and zeros, for the gradient of a lookup changes a tensor in place, and what inductor of
        # torch 2.13 makes of that does not always compile (pytorch issue 196570).
        kinds = self.kinds_of(tensor, weight)
        return factor @ (torch.arange(factor.shape[-1], device=kinds.device).unsqueeze(1) == kinds).to(factor)

    def check(self, topology: Topology, weights: Sequence[PartialWeight]) -> None:
        """Make every prior once, so that one that does not fit is told now and not during a fit.

        Args:
            topology: The network's topology.
            weights: Masks and constants of its tensors.

        Raises:
            ValueError: If a prior does not fit its tensor.
        """
        if isinstance(self.given, Hierarchical) and self.ordered:
            raise ValueError("ordered_biases needs a normal prior of given scale, but the prior is hierarchical")
        names = [tensor.name for tensor in topology.tensors]
        if isinstance(self.given, Mapping) and (unknown := set(self.given) - set(names)):
            raise ValueError(f"prior names {sorted(unknown)}, which the network does not have")
        devices = [self.like.device] if self.like.is_cuda else []
        # A function may sample hyperpriors: neither handlers, parameters nor the random state shall know of this call.
        with process_lock(), poutine.block(), pyro.get_param_store().scope(), torch.random.fork_rng(devices):
            for tensor, weight in zip(topology.tensors, weights, strict=True):
                try:
                    self._check(tensor, weight)
                except ValueError as error:
                    raise ValueError(f"prior of {tensor.name!r}: {error}") from error

    def _check(self, tensor: WeightTensor, weight: PartialWeight) -> None:
        ordered = tensor.name in self.ordered
        if ordered and weight.num_free != tensor.numel:
            raise ValueError("ordered_biases needs stochastic biases, but the masks fix some of them")
        if weight.num_free:
            prior = self.of(tensor)
            free_entries(prior, weight.mask, weight.index, weight.fixed)
            if ordered and (not isinstance(prior, torch.distributions.Normal) or prior.batch_shape):
                raise ValueError(f"ordered_biases needs one normal prior for all biases of a layer, got {prior}")


def check_prior_options(prior: Any, prior_scale: float | None, scale_by_fan_in: bool) -> None:
    """Refuse options of the default prior that would be of no effect.

    Args:
        prior: The prior that was given, or None.
        prior_scale: Standard deviation of the default prior, or None.
        scale_by_fan_in: Whether that is divided by √fan-in.

    Raises:
        TypeError: If the prior is a module, such as another model.
        ValueError: If one of the last two is given in vain.
    """
    if isinstance(prior, nn.Module):
        raise TypeError(
            "prior must be a function of a weight tensor, a dict of such or Hierarchical(), got a "
            f"{type(prior).__name__}; the model that Fit.as_prior() gives has its prior already: fit that one, "
            "sps.fit(fit.as_prior(), x, y)"
        )
    if isinstance(prior, Hierarchical) and (prior_scale is not None or scale_by_fan_in):
        raise ValueError(
            "prior_scale and scale_by_fan_in are of no effect with prior=Hierarchical(); write "
            "Hierarchical(scale=..., bias_scale=...), of which the first is divided by √fan-in"
        )
    if prior is not None and not isinstance(prior, Mapping) and (prior_scale is not None or scale_by_fan_in):
        raise ValueError("prior_scale and scale_by_fan_in have no effect with a prior of your own: leave them out")
    if scale_by_fan_in and prior_scale is None:
        raise ValueError("scale_by_fan_in has no effect without prior_scale: the default prior is scaled by fan-in")


def parts_of(
    weights: Sequence[PartialWeight], scale: Tensor | None, names: Sequence[str], points: Mapping[str, Tensor]
) -> list[Part]:
    """Weight tensors with what their fixed entries are made of.

    Args:
        weights: The tensors.
        scale: The learned factor of constants, shape (), or one a tensor, shape (len(names),); None if none is learned.
        names: Names of the tensors whose constants have it.
        points: Fixed entries that are parameters, by tensor name.
    """
    factors: dict[str, Tensor] = {}
    if scale is not None:
        factors = dict(zip(names, scale.unbind(-1) if scale.dim() else [scale] * len(names), strict=True))
    return [Part(weight, factors.get(weight.name), points.get(weight.name)) for weight in weights]


def with_equal_batches(
    topology: Topology, weights: Mapping[str, Tensor], trim: Callable[[torch.Size], torch.Size] = lambda batch: batch
) -> dict[str, Tensor]:
    """Weight tensors whose batch shapes are trimmed and then expanded to one.

    Args:
        topology: The network's topology.
        weights: Tensors by name, each of a batch shape and its own.
        trim: What to make of a batch shape.
    """
    batches = {t.name: trim(weights[t.name].shape[: weights[t.name].dim() - len(t.shape)]) for t in topology.tensors}
    common = torch.broadcast_shapes(*batches.values())
    return {
        t.name: weights[t.name].reshape(batches[t.name] + t.shape).expand(common + t.shape) for t in topology.tensors
    }
