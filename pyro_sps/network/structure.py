"""What axes and units of a network have beyond one number a unit: slots, blocks, several signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
# Arcs between vertices: a name, tails, heads and values.
Links = tuple[str, Ints, Ints, NDArray[np.float64]]


def _key(*parts: Any) -> tuple[Any, ...]:
    return tuple((part.shape, part.tobytes()) if isinstance(part, np.ndarray) else part for part in parts)


@dataclass(frozen=True, eq=False)
class Places:
    """Which unit each index of a tensor's axis belongs to.

    Units of all groups are numbered through, those of the first group first. A unit has one *carrier* for each sign (or
    scale) that it has; the first ones have the numbers of the units.

    Attributes:
        axes: The axes of the tensor that decide; more than one in a grouped convolution.
        unit: Units by index of these axes.
        slot: What tells apart the indices that belong to one unit.
        carrier: Carriers of the entries' signs and scales.
        power: +1 if the entries grow with the carrier's scale, −1 if they shrink.
    """

    axes: tuple[int, ...]
    unit: Ints
    slot: Ints
    carrier: Ints
    power: int

    def _identity(self) -> tuple[Any, ...]:
        return _key(self.axes, self.unit, self.slot, self.carrier, self.power)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def along(self, ndim: int, array: NDArray[Any]) -> NDArray[Any]:
        """An array by index of the axes, such that it broadcasts against a tensor of that many axes."""
        shape = [1] * ndim
        for axis, size in zip(self.axes, array.shape, strict=True):
            shape[axis] = size
        return array.reshape(shape)


@dataclass(frozen=True, eq=False)
class Structure:
    """Carriers of signs and scales, and blocks of units: vertices of the graph whose automorphisms are symmetries.

    The first vertices are the units; carriers of further signs, signs that several units share and blocks follow.

    Attributes:
        unit: For each vertex the unit that it is a carrier of, −1 for others.
        flips: Whether its sign can flip.
        scale: The number of its scale, −1 if it can be nothing but 1.
        colour: Kinds of the vertices after the units.
        links: Arcs that any symmetry keeps.
    """

    unit: Ints
    flips: NDArray[np.bool_]
    scale: Ints
    colour: Ints
    links: tuple[Links, ...]

    def _identity(self) -> tuple[Any, ...]:
        return _key(self.unit, self.flips, self.scale, self.colour, *(part for link in self.links for part in link))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def is_plain(self, total: int, groups: Sequence[Any], first: Ints) -> bool:
        """Whether all of this is said by the groups' flags."""
        if len(self.unit) != total or self.links:
            return False
        live = self.scale[self.scale >= 0]
        if len(np.unique(live)) != len(live):
            return False
        for group, start, stop in zip(groups, first[:-1], first[1:], strict=True):
            flags = ((group.odd, self.flips[start:stop]), (group.homogeneous, self.scale[start:stop] >= 0))
            if not group.pinned and any((own != flag).any() for flag, own in flags):
                return False
        return True
