"""What a topology is made of: groups of units, and the weight tensors that join them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .structure import Places


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
        groups: For each side that the tensor joins, outputs first, the index in `Topology.groups` of the units there
            (of the first of them, if there are several groups on one side).
        places: Which unit each index of an axis belongs to; nothing if the first axes count the units of the groups
            one by one. See `Topology.places`.
        inputs: Number of inputs that one output unit sums over, where it is not that of all axes but the first.

    Example:
        >>> from pyro_sps import Topology, mlp
        >>> tensor = Topology.of(mlp([8, 50, 2]))["0.weight"]
        >>> tensor.shape, tensor.groups, tensor.fan_in
        ((50, 8), (1, 0), 8)
    """

    name: str
    shape: tuple[int, ...]
    groups: tuple[int, ...]
    places: tuple[Places, ...] = ()
    inputs: int | None = None

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """True if the tensor joins two groups, False for a bias."""
        return len(self.groups) == 2

    @property
    def is_scale(self) -> bool:
        """True if the tensor multiplies units one by one, as the scale of a norm does."""
        return len(self.places) == 2 and self.places[0].axes == self.places[1].axes

    @property
    def fan_in(self) -> int:
        """Number of inputs that one output unit sums over through this tensor; 1 for a bias."""
        if self.inputs is not None:
            return self.inputs
        return math.prod(self.shape[1:]) if self.is_matrix or not self.places else 1


@dataclass(frozen=True)
class Joint:
    """Two groups that a weight tensor joins.

    Attributes:
        tensor: Its name.
        groups: The groups, outputs first.
        partly: Whether only some units are joined to each other, as in a grouped convolution.
    """

    tensor: str
    groups: tuple[int, int]
    partly: bool = False
