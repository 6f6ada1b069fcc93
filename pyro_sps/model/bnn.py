"""Bayesian neural networks: networks with partially stochastic weights as Pyro models."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ..base.checks import require_flag, require_positive
from ..base.plain import plain_torch
from ..base.process import warn_user
from ..data.arrays import Standardizer
from ..data.observed import Observed
from ..masks.schemes import Random, Scheme, Unmasked
from ..masks.values import MAP, RandomConstant, Values, Zero
from ..network.dropping import DROPOUT, check_dropout
from ..network.inputs import are_several, named_parts, pack
from ..network.trace import trace
from ..symmetry.certificate import certify, warn_of_symmetries
from ..symmetry.report import SymmetryReport
from .fixing import check_rules, fix_weights
from .hierarchy import Hierarchical
from .likelihoods import Gaussian, Likelihood
from .links import warn_of_link
from .partial import PartialWeight
from .priors import Prior
from .stochastic import StochasticWeights
from .weights import check_prior_options

# The recipe that study/README.md chose on validation rows.
_DEFAULT_SCHEME, _DEFAULT_VALUES = Random(like=0.85), MAP()

_DEFAULT_PRIOR_SCALE = 2.0  # divided by √fan-in


class BNN(StochasticWeights):
    """A Bayesian neural network of which a part of the weights is fixed: an ordinary Pyro model.

    Calling it samples the stochastic weights (one site a weight tensor, named as in `net.named_parameters()`, of
    the tensor's free entries as a vector), runs the network and observes `y` at the site `obs` in a plate `data`.
    With `prior=Hierarchical()` there are sites of scales too, and those of tensors hold weights before they are scaled.
    What the likelihood learns is a parameter, or with `likelihood.sampled` a site, `likelihood.NAME`.

    Args:
        net: Any supported `nn.Module`. It is read and left as it was; its parameters are a skeleton only: their
            device and dtype are those of the new module, their values are not used. It runs as in evaluation
            mode: batch norm keeps the running statistics that it has, and dropout does what `dropout` says.
        scheme: What picks the masks: a scheme, a function `(topology, generator) -> masks`, or a dict of masks.
            Default: `Random(like=0.85)`, 85 % of every weight matrix at random places.
        values: What the fixed weights are set to: a rule, a function or a dict of tensors. Default: `MAP()`, which
            needs `pyro_sps.fit`, or `set_fixed(map_estimate(...))` before any other inference.
        likelihood: Observation model; default `Gaussian(0.1, learn=True)`.
        prior: Prior of every stochastic weight: a univariate Pyro distribution, a function from a `WeightTensor`
            to one, a dict of these by tensor name, or `Hierarchical()`. Default: a normal around zero.
        prior_scale: Standard deviation of the default prior. Default: 2/√fan-in for weights and 2 for biases, so that
            what a unit reads has a scale that does not depend on how many units there are before it.
        scale_by_fan_in: Whether a given `prior_scale` is divided by √fan-in (which is 1 for biases).
        ordered_biases: Whether the biases of each hidden layer are constrained to increase, another way to
            break the permutations. Needs stochastic biases with a normal prior.
        deterministic: Parts of the network without a posterior: names of submodules (`"backbone"`), types of modules
            (`nn.BatchNorm2d`) or names of parameters. Their weights stay as they are in `net`, or with `values=Point()`
            are optimised with the posterior of the rest. A dict says for each part `None` (as they are) or `Point()`.
            In submodules without any other weights operations need not be known: see `Topology.of`.
        seed: Seeds the random signs, draws and places of scheme and values.
        example: Inputs that the network can be run with, of two rows or more, where they cannot be told from its
            layers: see `Topology.of`. Their values do not matter. Of several inputs a tuple of tensors (positional
            arguments of its forward) or a dictionary (by their names); data comes in the same form then, each with one
            row per observation and the rows of the example's shapes. Inside, all are kept side by side in one tensor.
        dropout: What layers and functions of dropout in `net` do. `"ignore"`: nothing, since the weights are random
            already. `"train"`: their usual work, random masks of their own for each row, particle and step of `fit` and
            `map_estimate`, and none in predictions. `"always"`: in predictions too, one set of masks for each posterior
            draw (MC dropout, Gal and Ghahramani 2016, arXiv 1506.02142). Masks come from the seeds of `fit` and
            `predict`. `Fit.elbo` looks at the network without masks, and `sample` refuses it. As a plain Pyro model the
            masks act while `bnn.training`, from torch's own random state: call `bnn.eval()` for `Predictive` without
            them, and for Pyro's NUTS, which needs a density that stays the same.

    Attributes:
        topology: The network's `Topology`.
        masks: Stochastic masks by tensor name.
        likelihood: The observation model.
        deterministic: Names of the tensors without a posterior.

    Raises:
        UnsupportedLayerError: If the network has a layer that is not supported.
        ValueError: If masks, values or priors do not fit the network, or with `dropout` it has none, or is random in
            other ways.

    Warns:
        SymmetryWarning: If the scheme was meant to break symmetries and hidden units can still be relabelled.

    Example:
        >>> import torch, pyro_sps as sps
        >>> net = sps.mlp([8, 50, 50, 2])
        >>> bnn = sps.BNN(net, scheme=sps.Heavy(), values=sps.Constant(1.0, learn=True), likelihood=sps.Gaussian(0.1))
        >>> bnn(torch.randn(5, 8)).shape
        torch.Size([5, 2])
    """

    # What models pickled by version 0.1 lack.
    dropout: str = "ignore"
    drop_rates: tuple[float, ...] = ()
    # Of a model whose prior is the posterior of a fit: the units of that, and the prior that there was at first.
    units: Standardizer | None = None
    first_prior: Mapping[str, Any] | None = None

    @plain_torch()
    def __init__(
        self,
        net: nn.Module,
        scheme: Scheme | Mapping[str, Tensor] = _DEFAULT_SCHEME,
        values: Values = _DEFAULT_VALUES,
        likelihood: Likelihood | None = None,
        prior: Prior | Hierarchical | Mapping[str, Prior] | None = None,
        prior_scale: float | None = None,
        scale_by_fan_in: bool = False,
        ordered_biases: bool = False,
        deterministic: Sequence[Any] | Mapping[Any, Any] = (),
        seed: int = 0,
        example: Any = None,
        dropout: str = "ignore",
    ) -> None:
        super().__init__()
        if dropout not in DROPOUT:
            raise ValueError(f"dropout must be one of {', '.join(map(repr, DROPOUT))}, got {dropout!r}")
        check_rules(deterministic)
        self.topology, function = trace(net, example, list(deterministic))
        parameters = dict(net.named_parameters())
        like = parameters[self.topology.tensors[0].name]
        device = torch.device("cpu") if like.device.type == "meta" else like.device
        if not like.is_floating_point():
            raise ValueError(f"net must have real floating-point parameters, got {like.dtype}")
        check_prior_options(prior, prior_scale, scale_by_fan_in)
        if prior_scale is None:
            prior_scale, scale_by_fan_in = _DEFAULT_PRIOR_SCALE, True
        require_positive("prior_scale", prior_scale)
        self.scheme, self.values = scheme, values
        self.prior_scale, self.scale_by_fan_in, self.ordered_biases = prior_scale, scale_by_fan_in, ordered_biases
        self.prior = prior

        self.dropout = dropout
        if dropout != "ignore":
            self.drop_rates = check_dropout(function, self.topology, like.detach().to(device))
        # In a tuple, so that it is no submodule. Only elementwise modules are referred to: no tensor of the net's.
        self._function = (function,)
        if not isinstance(likelihood, Likelihood | None):
            raise TypeError(f"likelihood must be a likelihood such as sps.Gaussian(0.1), got {likelihood!r}")
        self.likelihood: Likelihood = Gaussian(0.1, learn=True) if likelihood is None else copy.deepcopy(likelihood)

        generator = torch.Generator().manual_seed(seed)
        fixing = fix_weights(net, self.topology, scheme, values, deterministic, like.dtype, generator)
        self.deterministic, self.learns_scale = fixing.deterministic, fixing.learns_scale
        self._awaits_map = isinstance(values, MAP) and bool(fixing.masked)
        self.partial = nn.ModuleList(
            PartialWeight(tensor.name, fixing.masks[tensor.name], fixing.constants[tensor.name].to(like.dtype))
            for tensor in self.topology.tensors
        )
        if self.learns_scale:
            shape = (len(self.scaled),) if fixing.values.per_layer else ()
            scale = torch.tensor(fixing.values.scale, dtype=like.dtype).expand(shape).clone()
            self.fixed_scale = PyroParam(scale, constraint=constraints.positive)
        self._point_names = {name: f"p{index}" for index, name in enumerate(fixing.points)}
        if fixing.points:
            self.point_values = PyroModule("point_values")
            for weight in self.weights:
                if own := self._point_names.get(weight.name):
                    setattr(self.point_values, own, PyroParam(weight.fixed.flatten()[weight.fixed_index].clone()))
        self.to(device=device, dtype=like.dtype)
        self.check_scales()
        self.priors.check(self.topology, self.weights)
        self._warn_of_symmetries()
        warn_of_link(self.likelihood, function)

    @property
    def function(self) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
        """The network as a pure function `(weights, x) -> outputs`; see `pyro_sps.network.trace.trace`."""
        return self._function[0]

    def copy(self) -> BNN:
        """A copy with parameters of its own; masks and constants are shared with this one."""
        shared: dict[int, Any] = {id(buffer): buffer for weight in self.weights for buffer in weight.buffers()}
        shared |= {id(own): own for own in (self._function, self.topology, self.scheme, self.values)}
        return copy.deepcopy(self, shared)

    def unmasked(self) -> BNN:
        """A copy in which every weight is stochastic that the scheme fixed; deterministic parts stay so."""
        free = self.copy()
        free.scheme, free.values, free.learns_scale, free._awaits_map = Unmasked(), Zero(), False, False
        free.__dict__["_pyro_params"].pop("fixed_scale", None)
        free._parameters.pop("fixed_scale_unconstrained", None)
        free.partial = nn.ModuleList(
            weight
            if weight.name in self.deterministic
            else PartialWeight(weight.name, torch.ones_like(weight.mask), torch.zeros_like(weight.fixed))
            for weight in self.weights
        )
        return free

    @contextmanager
    def dropping(self, draws: Tensor | None) -> Iterator[None]:
        """Make the masks of dropout of these numbers for a while; in evaluation mode there are none else.

        Args:
            draws: Standard normal draws, shape B + (`num_dropout_draws` of the inputs,); None to make none.
        """
        self.__dict__["_draws"] = draws
        try:
            yield
        finally:
            self.__dict__.pop("_draws", None)

    def num_dropout_draws(self, x: Tensor) -> int:
        """How many numbers the masks of dropout take on these inputs, for each set of weights; 0 without them."""
        function: Any = self.function
        return 0 if self.dropout == "ignore" else function.num_draws(x, self.like)

    def _outputs(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs of the network in its present mode: with masks of dropout where they are to act."""
        draws = self.__dict__.get("_draws")
        if draws is None and self.training and (count := self.num_dropout_draws(x)):
            tensor = self.topology.tensors[0]
            batch = weights[tensor.name].shape[: weights[tensor.name].dim() - len(tensor.shape)]
            draws = torch.randn((*batch, count), dtype=self.like.dtype, device=self.like.device)
        function: Any = self.function
        outputs: Tensor = function(weights, x) if draws is None else function(weights, x, draws)
        return outputs

    def sample_latents(self) -> tuple[dict[str, Tensor], Likelihood]:
        """Sample all that is stochastic but the targets: the weights, and what the likelihood samples.

        Returns:
            The weights as `sample_weights` gives them, and the likelihood to observe targets under.
        """
        return self.sample_weights(), self.likelihood.sample()

    def forward(self, x: Any, y: Tensor | Observed | None = None, num_data: int | None = None) -> Tensor:
        """The Pyro model.

        Args:
            x: Inputs, shape (rows, features), or (rows, ...) as the network takes them; of several inputs a tuple, or a
                dictionary by name.
            y: Targets, shape (rows, outputs), or (rows,) for a categorical likelihood; `Observed` where they have
                weights, error bars or gaps; None to sample them.
            num_data: Size of the whole data set if `x` is a minibatch of it, so that the likelihood is scaled.

        Returns:
            The network's outputs, shape B + (rows, outputs) where B are batch dimensions of the sampled weights.

        Raises:
            ValueError: If `num_data` is smaller than the number of rows, `y` has another shape, or `x` is on another
                device than the model.

        Warns:
            UserWarning: If `y` is given and the fixed weights have no MAP values yet.
        """
        if are_several(self.topology.inputs) and not isinstance(x, Tensor):
            x = pack(self.topology.inputs, [part for _, part in named_parts(x)], self.like)
        if x.device != self.like.device:
            raise ValueError(f"x is on {x.device} and the model on {self.like.device}: move one of them, by .to(...)")
        rows = len(x)
        if y is not None and self._awaits_map:
            warn_user(
                "the fixed weights are zero until their MAP values are known: sps.fit finds them; before any other "
                "inference call bnn.set_fixed(sps.map_estimate(bnn, x, y)), or choose another `values`",
            )
        if num_data is not None and num_data < rows:
            raise ValueError(f"num_data must be at least the number of rows of x, {rows}, got {num_data}")
        weights, likelihood = self.sample_latents()
        outputs = self._outputs(weights, x)
        how: Any = nullcontext()
        if isinstance(y, Observed):
            observation = likelihood.of(outputs, y)
            if y.weights is not None:  # of which Pyro's checks want none to be zero
                how = poutine.scale(scale=y.weights.clamp(min=torch.finfo(outputs.dtype).tiny))
            y = y.y
        else:
            observation = likelihood(outputs)
        if y is not None:
            expected = (rows, *observation.event_shape)
            if y.shape[-len(expected) :] != expected:  # it could be broadcast, silently and wrongly
                raise ValueError(f"y must have shape {expected}, got {tuple(y.shape)}")
            if likelihood.event_dim:  # numbers, not labels: 0 and 1 may come as integers
                y = y.to(outputs.dtype)
        index = torch.arange(rows, device=x.device)
        size = rows if num_data is None else num_data
        with how, pyro.plate("data", size, subsample=index, dim=-1, device=str(x.device)):
            pyro.sample("obs", observation, obs=y)
        return outputs

    def symmetry(self, time_limit: float | None = None, verify: bool = False) -> SymmetryReport:
        """Which symmetries the masks leave; see `pyro_sps.certify`.

        Args:
            time_limit: Seconds after which the search gives up; what it did not determine is None in the report.
            verify: Whether to try what is claimed on numbers; the report's `verification` says what was tried.

        Example:
            >>> import pyro_sps as sps
            >>> bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), scheme=sps.Heavy(), values=sps.Constant(1.0))
            >>> bnn.symmetry().permutations.after
            1
        """
        # With a learned scale, `fixed` of the weights is the sign pattern: c counts as one value.
        pattern = {weight.name: weight.fixed for weight in self.weights}
        unknown = set(self._point_names)
        if self._awaits_map:
            unknown |= set(self.scaled)
        if unknown:  # values that an optimisation finds are all different with probability one
            stand_in = RandomConstant()(self.topology, self.masks, torch.Generator().manual_seed(0))
            pattern |= {name: value for name, value in stand_in.tensors(self.like.dtype).items() if name in unknown}
        require_flag("verify", verify)
        function = self.function if verify else None
        report = certify(self.topology, self.masks, pattern, time_limit, self._ordered, verify=function)
        if self._awaits_map:
            note = "The fixed weights have no MAP values yet; they are counted as all different."
            report = dataclasses.replace(report, notes=(*report.notes, note))
        return report

    def check_scales(self) -> None:
        """Check that prior, noise and learned c are positive finite numbers in the network's dtype.

        Raises:
            ValueError: If one has left its range.
        """
        noise: Tensor | None = getattr(self.likelihood, "noise_scale", None)
        prior = torch.tensor(float(self.prior_scale), dtype=torch.float64).to(self.like.dtype)
        scales = {
            "prior_scale": prior,
            "the scale of the fixed values": self.constant_scale(),
            "the noise scale": noise,
        }
        for name, value in scales.items():
            if value is not None and not (value.isfinite() & (value > 0)).all():
                raise ValueError(f"{name} must be positive and finite in {self.like.dtype}, got {value.tolist()}")

    def _warn_of_symmetries(self) -> None:
        """Certify what a symmetry-breaking scheme left and warn of it."""
        if not isinstance(self.scheme, Unmasked | Mapping) and not isinstance(self.values, MAP):
            warn_of_symmetries(self.symmetry(time_limit=1.0), self.scheme)
