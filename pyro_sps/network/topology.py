"""Which units a network has, and which of its weight tensors join them.

A `Topology` is the narrow waist of the library: schemes, values and certificates read nothing else
of a network. Everything that knows about layer types lives in `pyro_sps.network.layers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]

SUPPORTED = (
    "nn.Linear and F.linear, elementwise activations (Tanh, ReLU, LeakyReLU, GELU, SiLU, ELU, Softplus, "
    "Sigmoid, Identity, erf, sin, ... as modules, functions or methods), sums of two layers of the same "
    "width, multiplication by a number, nn.Flatten of the input, nested nn.Sequential"
)


class UnsupportedLayerError(ValueError):
    """A network contains something that `Topology.of` cannot read.

    Example:
        >>> from torch import nn
        >>> from pyro_sps import Topology, UnsupportedLayerError
        >>> try:
        ...     Topology.of(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)))
        ... except UnsupportedLayerError as error:
        ...     print(str(error).split(". ")[0])
        layer '1' (LayerNorm) is not supported
    """


@dataclass(frozen=True)
class UnitGroup:
    """The units of one layer.

    Attributes:
        name: `"input"`, `"layer 1"`, ..., `"output"`.
        size: Number of units.
        pinned: True if each unit has an identity (inputs and outputs), False if the units are
            exchangeable.
        odd: True if everything between the group's weights on either side is odd, so that a unit's
            sign can be flipped.
        homogeneous: True if it is positively homogeneous, so that a unit can be rescaled.

    Example:
        >>> from pyro_sps import Topology, mlp
        >>> group = Topology.of(mlp([8, 50, 2], activation="relu")).groups[1]
        >>> group.size, group.pinned, group.activation
        (50, False, 'homogeneous')
    """

    name: str
    size: int
    pinned: bool
    odd: bool = True
    homogeneous: bool = True

    @property
    def activation(self) -> str:
        """Class of the activation, `linear`, `odd`, `homogeneous` or `generic`."""
        if self.odd and self.homogeneous:
            return "linear"
        return "odd" if self.odd else "homogeneous" if self.homogeneous else "generic"


@dataclass(frozen=True)
class WeightTensor:
    """One named parameter of the network.

    Attributes:
        name: Its name in `net.named_parameters()`, such as `0.weight`.
        shape: Its shape in PyTorch's layout, (out, in) for a matrix and (out,) for a bias.
        groups: For each axis, the index in `Topology.groups` of the units it counts.

    Example:
        >>> from pyro_sps import Topology, mlp
        >>> tensor = Topology.of(mlp([8, 50, 2]))["0.weight"]
        >>> tensor.shape, tensor.groups, tensor.fan_in
        ((50, 8), (1, 0), 8)
    """

    name: str
    shape: tuple[int, ...]
    groups: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """True if the tensor joins two groups, False for a bias."""
        return len(self.groups) == 2

    @property
    def fan_in(self) -> int:
        """Number of inputs that one output unit sums over through this tensor; 1 for a bias."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True)
class Topology:
    """Unit groups and the weight tensors between them.

    Attributes:
        groups: Unit groups in order of computation; inputs first.
        tensors: Weight tensors in order of computation.

    Example:
        >>> from pyro_sps import Topology, mlp
        >>> print(Topology.of(mlp([8, 50, 2])))
        input (8, pinned) - layer 1 (50, odd) - output (2, pinned)
          0.weight  50 x 8  input -> layer 1
          0.bias    50      layer 1
          2.weight  2 x 50  layer 1 -> output
          2.bias    2       output
    """

    groups: tuple[UnitGroup, ...]
    tensors: tuple[WeightTensor, ...]

    @staticmethod
    def of(net: nn.Module) -> Topology:
        """Trace a network.

        Args:
            net: The network. It is read, not changed; its parameters may be on the meta device.

        Raises:
            UnsupportedLayerError: If the network has a layer that is not supported.

        Example:
            >>> from torch import nn
            >>> from pyro_sps import Topology
            >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
            >>> [group.size for group in Topology.of(net).groups]
            [3, 4, 1]
        """
        from .trace import trace

        return trace(net)[0]

    @property
    def matrices(self) -> tuple[WeightTensor, ...]:
        """The tensors that join two groups, in order of computation (l = 1 ... L)."""
        return tuple(tensor for tensor in self.tensors if tensor.is_matrix)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Indices of the exchangeable groups."""
        return tuple(i for i, group in enumerate(self.groups) if not group.pinned)

    @property
    def num_weights(self) -> int:
        """Number of entries of all weight tensors."""
        return sum(tensor.numel for tensor in self.tensors)

    def __getitem__(self, name: str) -> WeightTensor:
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(f"no weight tensor {name!r}; there are {[t.name for t in self.tensors]}")

    def check_masks(self, masks: Mapping[str, Tensor]) -> Masks:
        """Complete and check a set of stochastic masks.

        Args:
            masks: Boolean tensors by name of the weight tensor, True where the weight is stochastic.
                Tensors that are not named are stochastic everywhere.

        Returns:
            A mask for every weight tensor, in the order of `tensors`.

        Raises:
            ValueError: If a name, a dtype or a shape is wrong.
        """
        if not isinstance(masks, Mapping):
            raise TypeError(f"masks must map tensor names to Boolean tensors, got {type(masks).__name__}")
        names = [tensor.name for tensor in self.tensors]
        if unknown := sorted(set(masks) - set(names)):
            raise ValueError(f"masks name {unknown}, which the network does not have; it has {names}")
        checked = {}
        for tensor in self.tensors:
            mask = masks.get(tensor.name)
            if mask is None:
                mask = torch.ones(tensor.shape, dtype=torch.bool)
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != tensor.shape:
                found = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
                raise ValueError(
                    f"masks[{tensor.name!r}] must be a torch.bool tensor of shape {tensor.shape}, got {found}"
                )
            checked[tensor.name] = mask
        return checked

    def fully_connected(self, masks: Mapping[str, Tensor]) -> dict[str, int]:
        """Count the units without any fixed connection in each hidden group.

        The paper asks for at most one of them in each hidden layer (arXiv 2405.17666).
        That is necessary but not sufficient for breaking all permutations: see `pyro_sps.certify`.
        In a chain of layers with widths D the light scheme leaves max(0, D_l - m_l - m_(l+1) + 2) of them, where m_l is
        the smaller width of the tensor before the layer and m_(l+1) of that behind it, and the heavy scheme at least 1.

        Args:
            masks: Stochastic masks by tensor name. Biases are not connections and do not count.

        Returns:
            Number of fully connected units by name of the hidden group.
        """
        masks = self.check_masks(masks)
        free = {index: torch.ones(self.groups[index].size, dtype=torch.bool) for index in self.hidden}
        for tensor in self.matrices:
            mask = masks[tensor.name].cpu()
            for axis, index in enumerate(tensor.groups):
                if index in free:
                    free[index] &= mask.all(dim=1 - axis)
        return {self.groups[index].name: int(units.sum()) for index, units in free.items()}

    def neighbours(self, group: int) -> tuple[UnitGroup, ...]:
        """The groups on the other side of the tensors that join `group`, in order of computation."""
        return tuple(
            self.groups[tensor.groups[1 - axis]]
            for tensor in self.matrices
            for axis in (0, 1)
            if tensor.groups[axis] == group
        )

    def __str__(self) -> str:
        groups = " - ".join(
            f"{group.name} ({group.size}, {'pinned' if group.pinned else group.activation})" for group in self.groups
        )
        rows = [
            (
                tensor.name,
                " x ".join(map(str, tensor.shape)),
                " -> ".join(self.groups[index].name for index in reversed(tensor.groups)),
            )
            for tensor in self.tensors
        ]
        widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        lines = [f"  {name:{widths[0]}}  {shape:{widths[1]}}  {joins}" for name, shape, joins in rows]
        return "\n".join([groups, *lines])
