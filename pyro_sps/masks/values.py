"""What the fixed weights are set to.

Values are callables `(topology, masks, generator) -> FixedValues`. Only the entries that a mask fixes count;
the others are zero in a `FixedValues`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from ..base.checks import is_number, require_count, require_learned, require_positive
from ..network.topology import Topology


@dataclass(frozen=True)
class FixedValues:
    """Constants for the fixed entries: `scale` times a pattern.

    Attributes:
        pattern: For each weight tensor a tensor of its full shape; zero where the weight is stochastic.
        scale: A common factor, positive.
        learn: Whether the factor is a parameter, optimised with the ELBO from `scale` on.
        per_layer: Whether each weight tensor learns a factor of its own.

    Raises:
        ValueError: If `scale` is not a positive finite number, or `per_layer` is set without `learn`.

    Example:
        >>> import pyro_sps as sps, torch
        >>> sps.FixedValues({"0.weight": torch.tensor([[1.0, -1.0]])}, scale=0.5).tensors()
        {'0.weight': tensor([[ 0.5000, -0.5000]])}
    """

    pattern: dict[str, Tensor]
    scale: float = 1.0
    learn: bool = False
    per_layer: bool = False

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)
        require_learned(self.learn, self.per_layer)

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The constants themselves: pattern times scale.

        Args:
            dtype: Their dtype, in which they are also multiplied; by default that of the pattern.
        """
        return {name: pattern.to(dtype or pattern.dtype) * self.scale for name, pattern in self.pattern.items()}


# A rule (topology, masks, generator) -> FixedValues or dict of tensors, or its result.
Values = Callable[..., Any] | FixedValues | Mapping[str, Tensor]


@dataclass(frozen=True)
class Zero:
    """Fixed weights are zero: pruning.

    Example:
        >>> import pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), scheme=sps.Heavy(), values=sps.Zero())
    """

    def __call__(
        self, topology: Topology, masks: Mapping[str, Tensor], generator: Generator | None = None
    ) -> FixedValues:
        """All zeros."""
        return FixedValues({tensor.name: torch.zeros(tensor.shape, dtype=torch.float32) for tensor in topology.tensors})


@dataclass(frozen=True)
class Constant:
    """Fixed weights are +c or -c, with a random sign each (arXiv 2405.17666).

    Args:
        c: The magnitude, positive.
        learn: Whether c is a parameter optimised with the ELBO, from this value on.
        per_layer: Whether each weight tensor learns a c of its own.

    Raises:
        ValueError: If `c` is not a positive finite number, or `per_layer` is set without `learn`.

    Example:
        >>> import pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), scheme=sps.Heavy(), values=sps.Constant(1.0, learn=True))
    """

    c: float = 1.0
    learn: bool = False
    per_layer: bool = False

    def __post_init__(self) -> None:
        require_positive("c", self.c)
        require_learned(self.learn, self.per_layer)

    def __call__(
        self, topology: Topology, masks: Mapping[str, Tensor], generator: Generator | None = None
    ) -> FixedValues:
        """A random sign for every fixed entry; `generator` decides which."""

        def signs(shape: tuple[int, ...]) -> Tensor:
            return torch.randint(0, 2, shape, generator=generator).to(torch.float32) * 2 - 1

        return FixedValues(_draw(topology, masks, signs), self.c, self.learn, self.per_layer)


@dataclass(frozen=True)
class RandomConstant:
    """Each fixed weight is one draw of Normal(0, scale²), made once.

    Args:
        scale: Standard deviation of the draws, positive.
        learn: Whether the scale is a parameter optimised with the ELBO; the draws stay.
        per_layer: Whether each weight tensor learns a scale of its own.

    Raises:
        ValueError: If `scale` is not a positive finite number, or `per_layer` is set without `learn`.

    Example:
        >>> import pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), scheme=sps.Heavy(), values=sps.RandomConstant(0.5))
    """

    scale: float = 1.0
    learn: bool = False
    per_layer: bool = False

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)
        require_learned(self.learn, self.per_layer)

    def __call__(
        self, topology: Topology, masks: Mapping[str, Tensor], generator: Generator | None = None
    ) -> FixedValues:
        """A standard normal draw for every fixed entry, from `generator`."""
        pattern = _draw(topology, masks, lambda shape: torch.randn(shape, generator=generator, dtype=torch.float32))
        return FixedValues(pattern, self.scale, self.learn, self.per_layer)


@dataclass(frozen=True)
class Given:
    """Fixed weights have the values of given tensors.

    Args:
        weights: Tensors by name of the weight tensor, in their full shapes. Tensors without a fixed
            entry may be left out; entries that are stochastic are not read.

    Example:
        >>> import pyro_sps as sps
        >>> net = sps.mlp([8, 50, 50, 2])
        >>> weights = {name: parameter.detach() for name, parameter in net.named_parameters()}
        >>> bnn = sps.BNN(net, scheme=sps.Heavy(), values=sps.Given(weights))
    """

    weights: Mapping[str, Tensor] = field(repr=False)

    def __call__(
        self, topology: Topology, masks: Mapping[str, Tensor], generator: Generator | None = None
    ) -> FixedValues:
        """The given values where the masks fix a weight.

        Raises:
            ValueError: If a tensor is missing, is not known, has the wrong shape or is not finite.
        """
        if unknown := sorted(set(self.weights) - {tensor.name for tensor in topology.tensors}):
            raise ValueError(f"weights name {unknown}, which the network does not have")
        pattern = {}
        for tensor in topology.tensors:
            fixed = ~masks[tensor.name].cpu()
            given = self.weights.get(tensor.name)
            if given is None:
                if fixed.any():
                    raise ValueError(f"weights lack {tensor.name!r}, of which the masks fix {int(fixed.sum())} entries")
                given = torch.zeros(tensor.shape, dtype=torch.float32)
            given = torch.as_tensor(given).detach().cpu()
            if given.shape != tensor.shape:
                raise ValueError(f"weights[{tensor.name!r}] must have shape {tensor.shape}, got {tuple(given.shape)}")
            value = torch.where(fixed, given, torch.zeros_like(given))
            if not value.isfinite().all():
                raise ValueError(f"weights[{tensor.name!r}] has values that are not finite at fixed entries")
            pattern[tensor.name] = value
        return FixedValues(pattern)


@dataclass(frozen=True)
class MAP:
    """Fixed weights have their maximum a posteriori values, from an optimisation with nothing fixed.

    The optimisation needs data, so `pyro_sps.fit` does it first and then sets the constants; before that they
    are zero. To share one optimisation between several networks, run `pyro_sps.map_estimate` and give its
    result to `Given`.

    Args:
        num_steps: Steps of Adam.
        learning_rate: Its learning rate, decaying to a tenth.
        held_out: Share of the rows that a first optimisation does not see, to find out at which step it predicts them
            best; a second one, on all rows, ends there (early stopping). If they are fewer than ten, there is neither
            early stopping nor an estimate of the noise.
        noise_share: Where a `Gaussian` noise is learned, its variance is held at this share of the mean squared error
            on these rows; the rest is ascribed to the network. The noise of the fit starts there.

    The weights are means over the last steps, at most 200 (exponentially weighted). Noise that may depend on the inputs
    (`HeteroscedasticGaussian`) has one scale meanwhile, or a network would explain by noise what its means have not
    learned yet; `pyro_sps.map_estimate` takes the model as it is.

    Raises:
        ValueError: If `num_steps` is not a positive integer, `learning_rate` not a positive finite number,
            `held_out` not in [0, 1) or `noise_share` not in (0, 1].

    Example:
        >>> import pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), scheme=sps.Heavy(), values=sps.MAP(num_steps=2000))
    """

    num_steps: int = 3000
    learning_rate: float = 0.01
    held_out: float = 0.1
    noise_share: float = 0.5

    def __post_init__(self) -> None:
        share = self.noise_share
        if not is_number(share) or not 0 < share <= 1:
            raise ValueError(f"noise_share must be in (0, 1], got {share!r}")
        if not is_number(self.held_out) or not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {self.held_out!r}")
        require_count("num_steps", self.num_steps)
        require_positive("learning_rate", self.learning_rate)

    def __call__(
        self, topology: Topology, masks: Mapping[str, Tensor], generator: Generator | None = None
    ) -> FixedValues:
        """Zeros, until `pyro_sps.fit` has found the estimate."""
        return Zero()(topology, masks, generator)


@dataclass(frozen=True)
class Point:
    """Fixed weights are parameters: point estimates, optimised with the ELBO beside the posterior of the rest.

    Their log prior density is part of the objective, so that they are maximum a posteriori estimates beside that
    posterior. They start at the network's own weights: pretrained ones, or PyTorch's initialisation. With
    `BNN(net, deterministic=...)` this makes a network that is stochastic in some layers and deterministic in others,
    such as a Bayesian last layer on features that are learned with it (Sharma et al. 2023, Do Bayesian neural networks
    need to be fully stochastic?). A sampler holds them at the values that they have. `pyro_sps.Hierarchical` does not
    scale their prior.

    Example:
        >>> import pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([8, 50, 2]), scheme=sps.Unmasked(), deterministic=["0"], values=sps.Point())
        >>> bnn.num_stochastic, bnn.num_fixed
        (102, 450)
    """

    def __call__(
        self, topology: Topology, masks: Mapping[str, Tensor], generator: Generator | None = None
    ) -> FixedValues:
        """Zeros; `pyro_sps.BNN` makes parameters of them."""
        return Zero()(topology, masks, generator)


def make_values(
    values: Values,
    topology: Topology,
    masks: Mapping[str, Tensor],
    generator: Generator | None = None,
) -> FixedValues:
    """Fixed values from a rule, a user's function or a dictionary of tensors.

    Args:
        values: What sets the constants. A function may return a `FixedValues` or a dictionary of tensors.
        topology: The network's topology.
        masks: Stochastic masks, checked.
        generator: Source of randomness, on the CPU.

    Raises:
        TypeError: If `values` is neither callable nor a mapping.
        ValueError: If the values do not fit the topology.

    Example:
        >>> import pyro_sps as sps, torch
        >>> from pyro_sps.masks.values import make_values
        >>> topology = sps.Topology.of(sps.mlp([2, 3, 2], bias=False))
        >>> fixed = make_values(sps.Constant(0.5), topology, sps.Heavy()(topology), torch.Generator().manual_seed(0))
        >>> fixed.tensors()["0.weight"].abs()
        tensor([[0.0000, 0.0000],
                [0.5000, 0.0000],
                [0.0000, 0.0000]])
    """
    if isinstance(values, type):
        raise TypeError(f"values must be an instance, got the class {values.__name__}; write {values.__name__}()")
    if isinstance(values, FixedValues):
        result = values
    elif isinstance(values, Mapping):
        return Given(values)(topology, masks)
    elif callable(values):
        result = values(topology, masks, generator)
    else:
        raise TypeError(f"values must be a rule, a function or a dict of tensors, got {type(values).__name__}")
    if isinstance(result, Mapping):
        return Given(result)(topology, masks)
    if not isinstance(result, FixedValues):
        raise TypeError(f"values must give FixedValues or a dict of tensors, got {type(result).__name__}")
    checked = Given(result.pattern)(topology, masks)
    return replace(result, pattern=checked.pattern)


def _draw(
    topology: Topology, masks: Mapping[str, Tensor], draw: Callable[[tuple[int, ...]], Tensor]
) -> dict[str, Tensor]:
    pattern = {}
    for tensor in topology.tensors:
        fixed = ~masks[tensor.name].cpu()
        value = torch.zeros(tensor.shape, dtype=torch.float32)
        value[fixed] = draw((int(fixed.sum()),))
        pattern[tensor.name] = value
    return pattern


@dataclass(frozen=True)
class Ladder:
    """Fixed weights that all differ, in magnitude too: the rungs of a normal distribution, with alternating signs.

    The n fixed weights of a tensor get (−1)^r · scale · Q((r + ½) / n), r = 0 … n − 1, in the order of their places,
    where Q is the quantile function of the absolute value of a standard normal variable: together they look like
    draws from Normal(0, scale²). Since all magnitudes of a tensor differ, a single fixed weight identifies the two
    units that it joins, and their signs relative to each other; so a few of them tell apart even units with very few
    neighbours, as in a 1-50-1 network.

    Args:
        scale: Standard deviation of the distribution.
        learn: Whether the scale is a parameter optimised with the ELBO, from this value on.
        per_layer: Whether each weight tensor learns a scale of its own.

    Raises:
        ValueError: If `scale` is not a positive finite number, `per_layer` is set without `learn`, or, on use, if a
            tensor has so many fixed weights that they do not all differ in the default dtype.

    Example:
        >>> import pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([1, 50, 1]), scheme=sps.Rigid(signs=True), values=sps.Ladder())
        >>> bnn.num_fixed, bnn.symmetry().is_rigid
        (50, True)
    """

    scale: float = 1.0
    learn: bool = False
    per_layer: bool = False

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)
        require_learned(self.learn, self.per_layer)

    def __call__(
        self, topology: Topology, masks: Mapping[str, Tensor], generator: Generator | None = None
    ) -> FixedValues:
        """The rungs; the generator is not used."""
        pattern = {}
        for tensor in topology.tensors:
            fixed = ~masks[tensor.name].cpu()
            n = int(fixed.sum())
            rank = torch.arange(n, dtype=torch.float64)
            rungs = math.sqrt(2) * torch.special.erfinv((rank + 0.5) / n) * (1 - 2 * (rank % 2))
            value = torch.zeros(tensor.shape, dtype=torch.float32)
            value[fixed] = rungs.to(value.dtype)
            if len(value[fixed].abs().unique()) < n:
                raise ValueError(f"Ladder cannot make the {n} fixed weights of {tensor.name!r} differ in {value.dtype}")
            pattern[tensor.name] = value
        return FixedValues(pattern, self.scale, self.learn, self.per_layer)
