"""Partially stochastic weights, and Bayesian neural networks made of them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ..base.checks import require_positive
from ..base.process import process_lock, silenced, warn_user
from ..masks.schemes import Random, Scheme, SymmetryWarning, Unmasked, make_masks
from ..masks.values import MAP, FixedValues, RandomConstant, Values, Zero, make_values
from ..network.topology import WeightTensor
from ..network.trace import trace
from ..symmetry.certificate import certify, warn_of_symmetries
from ..symmetry.report import SymmetryReport
from .likelihoods import Gaussian, Likelihood
from .partial import PartialWeight
from .priors import OrderedNormal, Prior, _free_entries

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
        """The network as a pure function `(weights, x) -> outputs`; see `pyro_sps.network.trace.trace`."""
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
    def awaits_map(self) -> bool:
        """Whether the constants are MAP values that are not known yet: the next fit looks for them."""
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

        They stay from then on, in fits too. `set_fixed(sps.MAP())` asks the next fit to look for new ones.

        Args:
            values: New constants by tensor name, in full shapes, or a rule for them.

        Raises:
            ValueError: If they do not fit, or if the network learns its c.
        """
        if self.learns_scale:
            raise ValueError("the fixed values have a learned scale; give sps.Given(values) to BNN instead")
        new = make_values(values, self.topology, self.masks)
        if new.learn:
            raise ValueError(
                "set_fixed cannot make the scale of the fixed values a parameter; give values to BNN instead"
            )
        self.hold(new)
        self.values = values
        self._awaits_map = isinstance(values, MAP) and self.num_fixed > 0

    def hold(self, values: FixedValues) -> None:
        """Set the fixed weights to the constants that the rule of the network led to."""
        new = values.tensors(self.like.dtype)
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
            warn_user(
                "the fixed weights are zero until their MAP values are known: sps.fit finds them; before any other "
                "inference call bnn.set_fixed(sps.map_estimate(bnn, x, y)), or choose another `values`",
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
        if not isinstance(self.scheme, Unmasked | Mapping) and not isinstance(self.values, MAP):
            warn_of_symmetries(self.symmetry(time_limit=1.0), self.scheme)
