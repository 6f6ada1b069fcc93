"""Partially stochastic weights, and Bayesian neural networks made of them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.reparam.reparam import Reparam
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from .data import require_positive
from .likelihoods import Gaussian, Likelihood
from .process import process_lock, silenced
from .schemes import Random, Scheme, SymmetryWarning, Unmasked, make_masks
from .topology import WeightTensor, trace
from .values import MAP, RandomConstant, Values, Zero, make_values

if TYPE_CHECKING:
    from .symmetry import SymmetryReport

Prior = torch.distributions.Distribution | Callable[[WeightTensor], torch.distributions.Distribution]


def _free_entries(
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


class PartialWeight(nn.Module):
    """One weight tensor: constants where it is fixed, a Pyro sample site for the rest.

    The module holds buffers and no parameters, so it moves with `.to()` and costs no variational parameter.

    Args:
        name: Name of the sample site.
        mask: Boolean tensor of at least one dimension, True where the weight is stochastic.
        fixed: Floating-point tensor of the same shape, read where the mask is False.

    Raises:
        ValueError: If the mask is not Boolean or a scalar, the shapes differ or a fixed value is not finite.

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
        if mask.dim() == 0:
            raise ValueError(f"mask of {name!r} must have at least one dimension, got a scalar")
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

    def assemble(self, free: Tensor | None, scale: Tensor | None = None) -> Tensor:
        """The full tensor from its free entries.

        Args:
            free: Tensor of shape B + (num_free,); None if every entry is fixed.
            scale: Factor of the fixed entries, of shape () or B.

        Returns:
            Tensor of shape B + mask.shape.
        """
        fixed = self.fixed.flatten()
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

    def forward(self, prior: torch.distributions.Distribution, scale: Tensor | None = None) -> Tensor:
        """Sample the free entries at the site `name` and put the tensor together.

        Args:
            prior: Univariate prior of the entries; its batch shape broadcasts against that of the whole tensor
                (entries of the prior at fixed weights are not used), with batch dimensions to the left of it: a
                sampled scale `s` common to all entries enters as `Normal(0.0, s[..., None, None])` for a matrix.
            scale: Factor of the fixed entries, such as a learned c; shape () or the batch shape of the site.

        Returns:
            The weight tensor, with the batch dimensions of the site (particles, posterior draws) on the left.

        Raises:
            ValueError: If the prior is not univariate and continuous, or its shape does not fit.
        """
        if self.num_free == 0:
            return self.assemble(None, scale)
        return self.assemble(pyro.sample(self.name, _free_entries(prior, self.mask, self.index, self.fixed)), scale)

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
            free_prior = _free_entries(prior, weight.mask, weight.index, weight.fixed)
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
        >>> from pyro_sps.nn import OrderedNormal
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


# The recipe that study/README.md chose on validation rows.
_DEFAULT_SCHEME, _DEFAULT_VALUES = Random(like=0.85), MAP()
_DEFAULT_PRIOR_SCALE = 2.0  # divided by √fan-in


class BNN(PyroModule):
    """A Bayesian neural network of which a part of the weights is fixed: an ordinary Pyro model.

    Calling it samples the stochastic weights (one site a weight tensor, named as in `net.named_parameters()`, of
    the tensor's free entries as a vector), runs the network and observes `y` at the site `obs` in a plate `data`.

    Args:
        net: Any supported `nn.Module`. It is read and left as it was; its parameters are a skeleton only: their
            device and dtype are those of the new module, their values are not used.
        scheme: What picks the masks: a scheme, a function `(topology, generator) -> masks`, or a dict of masks.
            Default: `Random(like=0.85)`, 85 % of every weight matrix at random places.
        values: What the fixed weights are set to: a rule, a function or a dict of tensors. Default: `MAP()`, which
            needs `pyro_sps.fit`, or `set_fixed(map_estimate(...))` before any other inference.
        likelihood: Observation model; default `Gaussian(0.1, learn=True)`.
        prior: Prior of every stochastic weight: a univariate Pyro distribution, a function from a `WeightTensor`
            to one, or a dict of these by tensor name. Default: a normal around zero.
        prior_scale: Standard deviation of the default prior. Default: 2/√fan-in for weights and 2 for biases, so that
            what a unit reads has a scale that does not depend on how many units there are before it.
        scale_by_fan_in: Whether a given `prior_scale` is divided by √fan-in (which is 1 for biases).
        ordered_biases: Whether the biases of each hidden layer are constrained to increase, another way to
            break the permutations. Needs stochastic biases with a normal prior.
        seed: Seeds the random signs, draws and places of scheme and values.

    Attributes:
        topology: The network's `Topology`.
        masks: Stochastic masks by tensor name.
        likelihood: The observation model.

    Raises:
        UnsupportedLayerError: If the network has a layer that is not supported.
        ValueError: If masks, values or priors do not fit the network.

    Warns:
        SymmetryWarning: If the scheme was meant to break symmetries and hidden units can still be relabelled.

    Example:
        >>> import torch, pyro_sps as sps
        >>> net = sps.mlp([8, 50, 50, 2])
        >>> bnn = sps.BNN(net, scheme=sps.Heavy(), values=sps.Constant(1.0, learn=True), likelihood=sps.Gaussian(0.1))
        >>> bnn(torch.randn(5, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        scheme: Scheme | Mapping[str, Tensor] = _DEFAULT_SCHEME,
        values: Values = _DEFAULT_VALUES,
        likelihood: Likelihood | None = None,
        prior: Prior | Mapping[str, Prior] | None = None,
        prior_scale: float | None = None,
        scale_by_fan_in: bool = False,
        ordered_biases: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.topology, function = trace(net)
        parameters = dict(net.named_parameters())
        like = parameters[self.topology.tensors[0].name]
        device = torch.device("cpu") if like.device.type == "meta" else like.device
        if not like.is_floating_point():
            raise ValueError(f"net must have real floating-point parameters, got {like.dtype}")
        if prior_scale is None:
            prior_scale, scale_by_fan_in = _DEFAULT_PRIOR_SCALE, True
        require_positive("prior_scale", prior_scale)
        self.scheme, self.values = scheme, values
        self.prior_scale, self.scale_by_fan_in, self.ordered_biases = prior_scale, scale_by_fan_in, ordered_biases
        self.prior = prior
        if isinstance(prior, Mapping) and (unknown := set(prior) - {t.name for t in self.topology.tensors}):
            raise ValueError(f"prior names {sorted(unknown)}, which the network does not have")

        # In a tuple, so that it is no submodule. Only elementwise modules are referred to: no tensor of the net's.
        self._function = (function,)
        if not isinstance(likelihood, Likelihood | None):
            raise TypeError(f"likelihood must be a likelihood such as sps.Gaussian(0.1), got {likelihood!r}")
        self.likelihood: Likelihood = Gaussian(0.1, learn=True) if likelihood is None else copy.deepcopy(likelihood)

        generator = torch.Generator().manual_seed(seed)
        with silenced(SymmetryWarning):  # the certificate below says more than the scheme's own count
            masks = make_masks(scheme, self.topology, values, generator)
        fixed = make_values(values, self.topology, masks, generator)
        self._awaits_map = isinstance(values, MAP) and any(not mask.all() for mask in masks.values())
        self.learns_scale = fixed.learn and any(not mask.all() for mask in masks.values())
        self._scale_per_layer = fixed.per_layer
        constants = fixed.pattern if self.learns_scale else fixed.tensors(like.dtype)
        self.partial = nn.ModuleList(
            PartialWeight(tensor.name, masks[tensor.name], constants[tensor.name].to(like.dtype))
            for tensor in self.topology.tensors
        )
        if self.learns_scale:
            shape = (len(self.scaled),) if fixed.per_layer else ()
            scale = torch.tensor(fixed.scale, dtype=like.dtype).expand(shape).clone()
            self.fixed_scale = PyroParam(scale, constraint=constraints.positive)
        self.to(device=device, dtype=like.dtype)
        self.check_scales()
        self._check_priors()
        self._warn_of_symmetries()

    @property
    def function(self) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
        """The network as a pure function `(weights, x) -> outputs`; see `pyro_sps.topology.trace`."""
        return self._function[0]

    @property
    def masks(self) -> dict[str, Tensor]:
        """Stochastic masks by tensor name."""
        return {weight.name: weight.mask for weight in self.weights}

    @property
    def fixed(self) -> dict[str, Tensor]:
        """Current constants by tensor name, in full shape; zero where the weight is stochastic."""
        return {w.name: (w.fixed if c is None else w.fixed * c).detach() for w, c in self._with_scales()}

    @property
    def weights(self) -> list[PartialWeight]:
        """The weight tensors, in order of computation."""
        return list(self.__dict__["_modules"]["partial"])

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
        """Names of the weight tensors that have fixed entries, in the order of the scales of `per_layer`."""
        return [weight.name for weight in self.weights if weight.num_free < weight.mask.numel()]

    def _with_scales(self) -> list[tuple[PartialWeight, Tensor | None]]:
        """The weight tensors, each with the learned factor of its constants."""
        scale = self.constant_scale()
        if scale is None or not self._scale_per_layer:
            return [(weight, scale) for weight in self.weights]
        of = dict(zip(self.scaled, scale.unbind(-1), strict=True))
        return [(weight, of.get(weight.name)) for weight in self.weights]

    def copy(self) -> BNN:
        """A copy with parameters of its own; masks and constants are shared with this one."""
        shared: dict[int, Any] = {id(buffer): buffer for weight in self.weights for buffer in weight.buffers()}
        shared |= {id(own): own for own in (self._function, self.topology, self.scheme, self.values)}
        return copy.deepcopy(self, shared)

    def unmasked(self) -> BNN:
        """A copy in which every weight is stochastic."""
        free = self.copy()
        free.scheme, free.values, free.learns_scale, free._awaits_map = Unmasked(), Zero(), False, False
        free.__dict__["_pyro_params"].pop("fixed_scale", None)
        free._parameters.pop("fixed_scale_unconstrained", None)
        free.partial = nn.ModuleList(
            PartialWeight(weight.name, torch.ones_like(weight.mask), torch.zeros_like(weight.fixed))
            for weight in self.weights
        )
        return free

    def set_fixed(self, values: Values) -> None:
        """Replace the constants of the fixed weights, for instance by MAP values.

        Args:
            values: New constants by tensor name, in full shapes.

        Raises:
            ValueError: If they do not fit, or if the network learns its c.
        """
        if self.learns_scale:
            raise ValueError("the fixed values have a learned scale; give sps.Given(values) to BNN instead")
        new = make_values(values, self.topology, self.masks).tensors(self.like.dtype)
        self._awaits_map = False
        for weight in self.weights:
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

    def prior_of(self, tensor: WeightTensor) -> torch.distributions.Distribution:
        """The prior of the entries of one weight tensor."""
        prior = self.prior.get(tensor.name) if isinstance(self.prior, Mapping) else self.prior
        if prior is None:
            scale = self.prior_scale / (math.sqrt(tensor.fan_in) if self.scale_by_fan_in else 1)
            like = self.like
            return dist.Normal(like.new_zeros(()), like.new_full((), scale))
        if isinstance(prior, torch.distributions.Distribution):
            return prior
        if not callable(prior):
            raise ValueError(
                f"the prior must be a distribution or a function from a WeightTensor to one, got {prior!r}"
            )
        return prior(tensor)

    @property
    def num_outputs(self) -> int:
        """Number of the network's outputs."""
        return self.topology.groups[self.topology.matrices[-1].groups[0]].size

    def assemble(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weight tensors from values of the sample sites, outside of any handler.

        Args:
            sites: By site name, values of shape B + (free entries,).

        Returns:
            Tensors of shape B + shape, by name.
        """
        full = {weight.name: weight.assemble(sites.get(weight.name), c) for weight, c in self._with_scales()}
        return self._with_equal_batches(full, lambda batch: batch)

    def _with_equal_batches(
        self, weights: Mapping[str, Tensor], trim: Callable[[torch.Size], torch.Size]
    ) -> dict[str, Tensor]:
        """Weight tensors whose batch shapes are trimmed and then expanded to one."""
        batches = {
            t.name: trim(weights[t.name].shape[: weights[t.name].dim() - len(t.shape)]) for t in self.topology.tensors
        }
        common = torch.broadcast_shapes(*batches.values())
        return {
            t.name: weights[t.name].reshape(batches[t.name] + t.shape).expand(common + t.shape)
            for t in self.topology.tensors
        }

    def sample_weights(self) -> dict[str, Tensor]:
        """Sample every stochastic weight and put the tensors together.

        Returns:
            Weight tensors by name, each with the leading batch dimensions (particles, posterior draws) of the
            sample sites but without the dimension of the `data` plate.
        """
        weights = {}
        for tensor, (weight, scale) in zip(self.topology.tensors, self._with_scales(), strict=True):
            if tensor.name in self._ordered and weight.num_free:
                prior: Any = self.prior_of(tensor)
                loc, scale_of_prior = prior.loc.to(self.like), prior.scale.to(self.like)
                weights[tensor.name] = pyro.sample(tensor.name, OrderedNormal(loc, scale_of_prior, weight.num_free))
            elif weight.num_free:
                weights[tensor.name] = weight(self.prior_of(tensor), scale)
            else:
                weights[tensor.name] = weight.assemble(None, scale)
        # Dimension -1 is that of the `data` plate, of size 1. `Predictive` reshapes draws to (draws, entries) as if
        # entries were a plate: nothing is dropped there.
        return self._with_equal_batches(weights, lambda batch: batch[:-1] if batch and batch[-1] == 1 else batch)

    def forward(self, x: Tensor, y: Tensor | None = None, num_data: int | None = None) -> Tensor:
        """The Pyro model.

        Args:
            x: Inputs, shape (rows, features).
            y: Targets, shape (rows, outputs), or (rows,) for a categorical likelihood; None to sample them.
            num_data: Size of the whole data set if `x` is a minibatch of it, so that the likelihood is scaled.

        Returns:
            The network's outputs, shape B + (rows, outputs) where B are batch dimensions of the sampled weights.

        Raises:
            ValueError: If `num_data` is smaller than the number of rows, or `y` has another shape.

        Warns:
            UserWarning: If `y` is given and the fixed weights have no MAP values yet.
        """
        rows = len(x)
        if y is not None and self._awaits_map:
            warnings.warn(
                "the fixed weights are zero until their MAP values are known: sps.fit finds them; before any other "
                "inference call bnn.set_fixed(sps.map_estimate(bnn, x, y)), or choose another `values`",
                UserWarning,
                stacklevel=3,
            )
        if num_data is not None and num_data < rows:
            raise ValueError(f"num_data must be at least the number of rows of x, {rows}, got {num_data}")
        outputs = self.function(self.sample_weights(), x)
        observation = self.likelihood(outputs)
        if y is not None:
            expected = (rows, *observation.event_shape)
            if y.shape[-len(expected) :] != expected:  # it could be broadcast, silently and wrongly
                raise ValueError(f"y must have shape {expected}, got {tuple(y.shape)}")
            if self.likelihood.event_dim:  # numbers, not labels: 0 and 1 may come as integers
                y = y.to(outputs.dtype)
        index = torch.arange(rows, device=x.device)
        with pyro.plate("data", rows if num_data is None else num_data, subsample=index, dim=-1, device=str(x.device)):
            pyro.sample("obs", observation, obs=y)
        return outputs

    def symmetry(self, time_limit: float | None = None) -> SymmetryReport:
        """Which symmetries the masks leave; see `pyro_sps.certify`.

        Args:
            time_limit: Seconds after which the search gives up; what it did not determine is None in the report.

        Example:
            >>> import pyro_sps as sps
            >>> bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), scheme=sps.Heavy(), values=sps.Constant(1.0))
            >>> bnn.symmetry().permutations.after
            1
        """
        from .symmetry import certify

        # With a learned scale, `fixed` of the weights is the sign pattern: c counts as one value.
        pattern = {weight.name: weight.fixed for weight in self.weights}
        if self._awaits_map:  # MAP values are all different with probability one
            stand_in = RandomConstant()(self.topology, self.masks, torch.Generator().manual_seed(0))
            pattern = stand_in.tensors(self.like.dtype)
        report = certify(self.topology, self.masks, pattern, time_limit=time_limit, ordered=self._ordered)
        if self._awaits_map:
            note = "The fixed weights have no MAP values yet; they are counted as all different."
            report = dataclasses.replace(report, notes=(*report.notes, note))
        return report

    @property
    def _ordered(self) -> tuple[str, ...]:
        if not self.ordered_biases:
            return ()
        hidden = self.topology.hidden
        return tuple(t.name for t in self.topology.tensors if not t.is_matrix and t.groups[0] in hidden)

    def check_scales(self) -> None:
        """Check that prior, noise and learned c are positive finite numbers in the network's dtype.

        Raises:
            ValueError: If one has left its range.
        """
        noise = self.likelihood.noise_scale if isinstance(self.likelihood, Gaussian) else None
        prior = torch.tensor(float(self.prior_scale), dtype=torch.float64).to(self.like.dtype)
        scales = {
            "prior_scale": prior,
            "the scale of the fixed values": self.constant_scale(),
            "the noise scale": noise,
        }
        for name, value in scales.items():
            if value is not None and not (value.isfinite() & (value > 0)).all():
                raise ValueError(f"{name} must be positive and finite in {self.like.dtype}, got {value.tolist()}")

    def _check_priors(self) -> None:
        """Make every prior once, so that one that does not fit is told now and not during a fit."""
        devices = [self.like.device] if self.like.is_cuda else []
        # A function may sample hyperpriors: neither handlers, parameters nor the random state shall know of this call.
        with process_lock(), poutine.block(), pyro.get_param_store().scope(), torch.random.fork_rng(devices):
            for tensor, weight in zip(self.topology.tensors, self.weights, strict=True):
                try:
                    self._check_prior(tensor, weight)
                except ValueError as error:
                    raise ValueError(f"prior of {tensor.name!r}: {error}") from error

    def _check_prior(self, tensor: WeightTensor, weight: PartialWeight) -> None:
        ordered = tensor.name in self._ordered
        if ordered and weight.num_free != tensor.numel:
            raise ValueError("ordered_biases needs stochastic biases, but the masks fix some of them")
        if weight.num_free:
            prior = self.prior_of(tensor)
            _free_entries(prior, weight.mask, weight.index, weight.fixed)
            if ordered and (not isinstance(prior, torch.distributions.Normal) or prior.batch_shape):
                raise ValueError(f"ordered_biases needs one normal prior for all biases of a layer, got {prior}")

    def _warn_of_symmetries(self) -> None:
        """Certify what a symmetry-breaking scheme left and warn of it."""
        from .symmetry import warn_of_symmetries

        if not isinstance(self.scheme, Unmasked | Mapping) and not isinstance(self.values, MAP):
            warn_of_symmetries(self.symmetry(time_limit=1.0), self.scheme)


def _refresh_index(weight: PartialWeight, incompatible_keys: object) -> None:
    """Find the free entries again after another mask was loaded."""
    weight.index = weight.mask.flatten().nonzero().flatten()
