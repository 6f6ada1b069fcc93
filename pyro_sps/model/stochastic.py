"""All weight tensors of a network, a part of each of them stochastic: constants, priors and sample sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor

from ..base.plain import plain_torch
from ..masks.values import MAP, FixedValues, Point, Values, make_values
from ..network.topology import Topology
from ..network.units import WeightTensor
from .hierarchy import Hierarchical
from .likelihoods import Likelihood
from .partial import PartialWeight
from .priors import Prior
from .weights import Part, Priors, parts_of, with_equal_batches


class StochasticWeights(PyroModule):
    """The weight tensors of a network: what they are fixed to, their priors, and how sample sites make them up.

    A `BNN` is these and the network that they are the weights of.

    Attributes:
        topology: The network's `Topology`.
        masks: Stochastic masks by tensor name.
        likelihood: The observation model, which says which outputs are for what.
        values: What the fixed weights were set to.
        deterministic: Names of the tensors without a posterior.
        learns_scale: Whether the scale of the constants is a parameter.
    """

    topology: Topology
    likelihood: Likelihood
    values: Values
    learns_scale: bool
    prior: Prior | Hierarchical | Mapping[str, Prior] | None
    prior_scale: float
    scale_by_fan_in: bool
    ordered_biases: bool
    _awaits_map: bool
    # What models pickled by version 0.1 lack.
    deterministic: tuple[str, ...] = ()
    _point_names: Mapping[str, str] = MappingProxyType({})

    @property
    def masks(self) -> dict[str, Tensor]:
        """Stochastic masks by tensor name."""
        return {weight.name: weight.mask for weight in self.weights}

    @property
    def fixed(self) -> dict[str, Tensor]:
        """Current constants by tensor name, in full shape; zero where the weight is stochastic."""
        return {part.weight.name: part.constants().detach() for part in self._parts}

    @property
    def weights(self) -> list[PartialWeight]:
        """The weight tensors, in order of computation."""
        return list(self.__dict__["_modules"]["partial"])

    @property
    def awaits_map(self) -> bool:
        """Whether the constants are MAP values that are not known yet; the next fit looks for them."""
        return self._awaits_map

    @property
    def num_stochastic(self) -> int:
        """Number of stochastic weights."""
        return sum(weight.num_free for weight in self.weights)

    @property
    def num_fixed(self) -> int:
        """Number of fixed weights."""
        return self.topology.num_weights - self.num_stochastic

    @property
    def like(self) -> Tensor:
        """A tensor on the module's device and of its dtype."""
        return self.weights[0].fixed

    def constant_scale(self) -> Tensor | None:
        """The learned c (or scale of normal draws), or None if it is not learned.

        Returns:
            A tensor of shape (), or with `per_layer` one entry a weight tensor that has fixed entries.
        """
        scale: Any = self.fixed_scale if self.learns_scale else None
        return scale

    @property
    def scaled(self) -> list[str]:
        """Names of the weight tensors that the scheme fixes entries of, in the order of the scales of `per_layer`."""
        return [w.name for w in self.weights if w.num_free < w.mask.numel() and w.name not in self.deterministic]

    @property
    def _parts(self) -> list[Part]:
        # Inside the model, looking one up asks Pyro for a parameter.
        points = {name: getattr(self.point_values, own) for name, own in self._point_names.items()}
        return parts_of(self.weights, self.constant_scale(), self.scaled, points)

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the tensors whose fixed entries are parameters; see `pyro_sps.Point`."""
        return tuple(self._point_names)

    @property
    def priors(self) -> Priors:
        """The priors of the weight tensors."""
        kinds, outputs = self.likelihood.kinds(self.num_outputs), self.topology.matrices[-1].groups[0]
        return Priors(self.prior, self.prior_scale, self.scale_by_fan_in, self._ordered, self.like, kinds, outputs)

    def prior_of(self, tensor: WeightTensor) -> torch.distributions.Distribution:
        """The prior of the entries of one weight tensor; under a hierarchical one, of its site's."""
        return self.priors.of(tensor)

    @plain_torch()
    def set_fixed(self, values: Values) -> None:
        """Replace the constants of the fixed weights, for instance by MAP values.

        They stay from then on, in fits too. `set_fixed(sps.MAP())` asks the next fit to look for new ones.

        Args:
            values: New constants by tensor name, in full shapes, or a rule for them.

        Raises:
            ValueError: If they do not fit, or if the network learns its c.
        """
        if self.learns_scale:
            raise ValueError("the fixed values have a learned scale; give sps.Given(values) to BNN instead")
        if isinstance(self.values, Point):
            raise ValueError("the fixed weights are parameters, sps.Point(); give sps.Given(values) to BNN instead")
        masks = {w.name: torch.ones_like(w.mask) if w.name in self.deterministic else w.mask for w in self.weights}
        new = make_values(values, self.topology, masks)
        if new.learn:
            raise ValueError(
                "set_fixed cannot make the scale of the fixed values a parameter; give values to BNN instead"
            )
        self.hold(new)
        self.values = values
        self._awaits_map = isinstance(values, MAP) and bool(self.scaled)

    def hold(self, values: FixedValues) -> None:
        """Set the fixed weights to the constants that the rule of the network led to."""
        new = values.tensors(self.like.dtype)
        self._awaits_map = False
        for weight in self.weights:
            if weight.name not in self.deterministic:
                # A new tensor, since copies of the network may share the old one.
                weight.fixed = new[weight.name].to(weight.fixed)

    @contextmanager
    def constants_as(self, fixed: Sequence[Tensor]) -> Iterator[None]:
        """Other constants of the fixed weights for a while.

        Args:
            fixed: A full tensor for every weight tensor, zero where it is stochastic; or nothing, to leave all.
        """
        own = [weight.fixed for weight in self.weights]
        try:
            for weight, value in zip(self.weights, fixed, strict=False):
                weight.fixed = value
            yield
        finally:
            for weight, value in zip(self.weights, own, strict=True):
                weight.fixed = value

    @property
    def num_outputs(self) -> int:
        """Number of the network's outputs."""
        return self.topology.num_outputs

    def assemble(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weight tensors from values of the sample sites, outside of any handler.

        Args:
            sites: By site name, values of shape B + the site's.

        Returns:
            Tensors of shape B + shape, by name.
        """
        priors, tensors = self.priors, self.topology.tensors
        full = {
            tensor.name: part.assemble(priors.free(tensor, part.weight, sites))
            for tensor, part in zip(tensors, self._parts, strict=True)
        }
        return with_equal_batches(self.topology, full)

    def free_weights(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stochastic weights from values of the sample sites, which differ from them under a hierarchical prior.

        Args:
            sites: By site name, values of shape B + the site's.

        Returns:
            Tensors of shape B + (free entries,), by name of the weight tensor; those with nothing stochastic are left
            out.
        """
        priors, every = self.priors, zip(self.topology.tensors, self.weights, strict=True)
        found = {tensor.name: priors.free(tensor, weight, sites) for tensor, weight in every if weight.num_free}
        return {name: value for name, value in found.items() if value is not None}

    def sites_of(self, weights: Mapping[str, Tensor], sites: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Values of the sample sites of weights: the opposite of `assemble`.

        Args:
            weights: Weight tensors of shape B + shape, by name. What they have at fixed entries is not looked at.
            sites: Under a hierarchical prior, values of the sites of scales.

        Returns:
            By site name, values of shape B + (free entries,).
        """
        priors, every = self.priors, zip(self.topology.tensors, self.weights, strict=True)
        return {t.name: priors.site_of(t, w, weights[t.name], sites or {}) for t, w in every if w.num_free}

    def sample_weights(self) -> dict[str, Tensor]:
        """Sample every stochastic weight and put the tensors together.

        Returns:
            Weight tensors by name, each with the leading batch dimensions (particles, posterior draws) of the
            sample sites but without the dimension of the `data` plate.
        """
        priors = self.priors
        weights = {
            tensor.name: priors.sample(tensor, part)
            for tensor, part in zip(self.topology.tensors, self._parts, strict=True)
        }
        # Dimension -1 is that of the `data` plate, of size 1. `Predictive` reshapes draws to (draws, entries) as if
        # entries were a plate: nothing is dropped there.
        return with_equal_batches(
            self.topology, weights, lambda batch: batch[:-1] if batch and batch[-1] == 1 else batch
        )

    def noise_head(self) -> dict[str, Tensor]:
        """The stochastic weights that do nothing but let the scale of the noise depend on the inputs.

        Set to zero they leave noise of one scale, if the constants beside them are zero too. Biases are not among them.

        Returns:
            Boolean tensors of shape (free entries,), by name of the weight tensors that lead to the outputs. Empty
            unless some outputs are for the noise, as with `HeteroscedasticGaussian`.
        """
        priors, every = self.priors, zip(self.topology.tensors, self.weights, strict=True)
        several = [(t, w) for t, w in every if t.is_matrix and w.num_free and priors.num_kinds(t) > 1]
        return {tensor.name: priors.kinds_of(tensor, weight) == 1 for tensor, weight in several}

    @property
    def _ordered(self) -> tuple[str, ...]:
        if not self.ordered_biases:
            return ()
        hidden = self.topology.hidden
        return tuple(t.name for t in self.topology.tensors if not t.is_matrix and t.groups[0] in hidden)
