"""The search for the smallest masks that leave no symmetry, which `pyro_sps.Rigid` certifies."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..network.topology import Masks, Topology
from ..network.units import Joint

# A place where a unit of a group can have a fixed connection: (joint, the group's side of it, unit on the other side).
Place = tuple[int, int, int]


class ImpossibleError(Exception):
    """Equal constants cannot tell the units of a layer apart."""


def relations_of(topology: Topology, index: int, partly: bool = False) -> list[tuple[int, int, int]]:
    """For a group: each joint that it is on, its side there, and the group on the other side.

    Args:
        topology: The topology.
        index: The group.
        partly: Whether those count too that join only some units with each other; see `joined`.
    """
    return [
        (k, axis, joint.groups[1 - axis])
        for k, joint in enumerate(topology.joints)
        for axis in (0, 1)
        if joint.groups[axis] == index and (partly or not joint.partly)
    ]


def joined(topology: Topology, joint: Joint) -> Any:
    """Which units a tensor joins with each other, a Boolean array: units of the one group by units of the other."""
    everything = torch.zeros(topology[joint.tensor].shape, dtype=torch.bool)
    return connections(topology, joint, {joint.tensor: everything})


def connections(topology: Topology, joint: Joint, masks: Masks) -> Any:
    """Which connections of a joint have a fixed entry."""
    tensor = topology[joint.tensor]
    fixed = (~masks[tensor.name]).numpy()
    if not tensor.places:
        return fixed.reshape(*tensor.shape[:2], -1).any(axis=-1)
    to, origin = topology.places(tensor)
    result = np.zeros([topology.groups[group].size for group in joint.groups], dtype=bool)
    where = np.nonzero(fixed)
    rows, columns = (
        place.unit[tuple(where[axis] for axis in place.axes)] - topology.first[group]
        for place, group in zip((to, origin), joint.groups, strict=True)
    )
    inside = (rows >= 0) & (rows < result.shape[0]) & (columns >= 0) & (columns < result.shape[1])
    result[rows[inside], columns[inside]] = True
    return result


def other_group(topology: Topology, place: Place) -> int:
    """The group of the unit at a place."""
    return topology.joints[place[0]].groups[1 - place[1]]


def fix(topology: Topology, masks: Masks, place: Place, unit: int, whole: bool = False) -> None:
    """Fix the connection between a unit and the one at a place: its first entry, or all of it."""
    k, axis, other = place
    joint = topology.joints[k]
    tensor = topology[joint.tensor]
    row, column = (unit, other) if axis == 0 else (other, unit)
    if not tensor.places:  # a matrix, or a convolution
        masks[tensor.name].view(*tensor.shape[:2], -1)[row, column, slice(None) if whole else 0] = False
        return
    if any(len(place.axes) > 1 for place in tensor.places):
        connected = torch.zeros([topology.groups[group].size for group in joint.groups], dtype=torch.bool)
        connected[row, column] = True
        entries = topology.entries_of(joint, connected).flatten().nonzero().flatten()
        masks[tensor.name].view(-1)[entries if whole else entries[:1]] = False
        return
    masks[tensor.name][_entries(topology, joint, row, column, whole)] = False


def _entries(topology: Topology, joint: Joint, row: int, column: int, whole: bool) -> tuple[Any, ...]:
    """Index of the entries of a connection, or of its first one."""
    tensor = topology[joint.tensor]
    index: list[Any] = [np.arange(size) for size in tensor.shape]
    for place, group, unit in zip(topology.places(tensor), joint.groups, (row, column), strict=True):
        index[place.axes[0]] = np.flatnonzero(place.unit == topology.first[group] + unit)
    return np.ix_(*(index if whole else [where[:1] for where in index]))


def too_strong(topology: Topology, index: int, strength: int, places: int) -> str:
    """Why units cannot differ in so many places."""
    return (
        f"Rigid(strength={strength}): two units of {topology.groups[index].name} can differ in no more than "
        f"{places} places, the number of their neighbours; give a smaller strength"
    )


@dataclass(frozen=True)
class Variant:
    """A way to build a mask for equal constants.

    Attributes:
        paths: Whether to have paths beside the tree.
        disjoint: Whether no layer is in paths to two others; the tree may then go on from the paths.
        reserve: How many units of a layer are kept for the tree.
        careful: See `_Builder.add_extras`.
    """

    paths: bool = False
    disjoint: bool = False
    reserve: int = 0
    careful: bool = False


# Of the local search for `strength`, which starts anew with the next one where what it found is not certified: two for
# each draft, then two more.
SEEDS = tuple((first, first + 1) for first in range(0, 16, 2))

# The last one is proved on paper, the first ones are smaller and left to the certificate.
VARIANTS = (
    *(Variant(True, disjoint, reserve) for disjoint in (True, False) for reserve in (1, 0)),
    Variant(),
    Variant(careful=True),
)


def build(topology: Topology, signs: bool, variant: Variant) -> Masks:
    """A mask for equal constants, built in one way; not certified."""
    builder = _Builder(topology, signs)
    if variant.paths:
        builder.add_paths(variant.disjoint, variant.reserve)
    builder.grow(from_paths=variant.disjoint)
    builder.add_extras(variant.careful)
    return builder.masks


@dataclass
class _Builder:
    """Builds the mask of `Rigid` for equal constants; units of a group are used in order.

    Attributes:
        topology: The topology.
        signs: Whether units that can flip their sign must all be tied to a pinned unit.
        masks: The masks so far.
        used: For each group how many units are identified.
        sets: For each identified hidden unit (group, unit) the places where it has a fixed weight.
        child: The unit that a unit (group, unit) identified in (tensor, its axis).
    """

    topology: Topology
    signs: bool
    masks: Masks = field(init=False)
    used: dict[int, int] = field(init=False)
    sets: dict[tuple[int, int], list[Place]] = field(default_factory=dict)
    child: dict[tuple[int, int, int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.masks = self.topology.check_masks({})
        self.used = dict.fromkeys(self.topology.hidden, 0)

    def waiting(self, index: int) -> int:
        """How many units of a group still need a fixed weight; all but one do."""
        if index not in self.used:
            return 0
        group = self.topology.groups[index]
        return group.size - (0 if self.signs and group.odd else 1) - self.used[index]

    def new_unit(self, index: int) -> int:
        self.used[index] += 1
        self.sets[index, self.used[index] - 1] = []
        return self.used[index] - 1

    def join(self, place: Place, index: int, unit: int) -> None:
        """Fix the weight of a unit of group `index` at a place."""
        t, axis, other = place
        fix(self.topology, self.masks, place, unit)
        self.sets[index, unit].append(place)
        group = other_group(self.topology, place)
        if group in self.used:
            self.sets.setdefault((group, other), []).append((t, 1 - axis, unit))

    def add_paths(self, disjoint: bool, reserve: int) -> None:
        """Paths of 2, 4, 6, … units between two adjacent hidden layers, tied to nothing.

        Args:
            disjoint: Whether no layer is in two such pairs.
            reserve: How many units of each layer are left for the tree, to reach the layers behind.
        """
        pairs = [
            (k, *joint.groups)
            for k, joint in enumerate(self.topology.joints)
            if not joint.partly and joint.groups[0] != joint.groups[1] and all(g in self.used for g in joint.groups)
        ]
        # Several tensors between the same two layers add nothing: one path of each length is enough.
        pairs = list({pair[1:]: pair for pair in reversed(pairs)}.values())[::-1]
        if disjoint:
            every, pairs = sorted(pairs, key=lambda pair: -min(self.waiting(i) for i in pair[1:])), []
            for pair in every:
                if not any(set(pair[1:]) & set(other[1:]) for other in pairs):
                    pairs.append(pair)
        for length in itertools.count(1):
            fitting = [pair for pair in pairs if min(map(self.waiting, pair[1:])) >= length + reserve]
            if not fitting:
                return
            for t, first, second in fitting:
                if min(self.waiting(first), self.waiting(second)) >= length + reserve:
                    rows = [self.new_unit(first) for _ in range(length)]
                    columns = [self.new_unit(second) for _ in range(length)]
                    for row, column in [*zip(rows, columns, strict=True), *zip(rows[1:], columns[:-1], strict=True)]:
                        self.join((t, 0, column), first, row)

    def grow(self, from_paths: bool) -> None:
        """Let identified units identify others by one fixed weight, breadth first, then dead ends.

        Args:
            from_paths: Whether units of paths do so too, where the tree cannot.
        """
        queue = deque((i, u) for i, group in enumerate(self.topology.groups) if group.pinned for u in range(group.size))
        paths = deque(self.sets if from_paths else ())
        tree = []
        while queue or paths:
            index, unit = (queue or paths).popleft()
            tree.append((index, unit))
            for t, axis, other in relations_of(self.topology, index):
                if self.waiting(other) > 0:
                    new = self.new_unit(other)
                    self.join((t, 1 - axis, unit), other, new)
                    self.child[index, unit, t, axis] = new
                    queue.append((other, new))
        for index, unit in tree:
            for t, axis, other in relations_of(self.topology, index):
                first = self.child.get((index, unit, t, axis))
                if first is not None and self.waiting(other) > 0 and len(self.sets[other, first]) > 1:
                    self.join((t, 1 - axis, unit), other, self.new_unit(other))

    def add_extras(self, careful: bool) -> None:
        """Give the units that are left different sets of neighbours.

        Args:
            careful: Whether to use only sets with numbers of neighbours that no unit of the forest has, so that an
                automorphism must map the forest onto itself.

        Raises:
            ImpossibleError: If there are not enough sets.
        """
        for index in self.used:
            if self.waiting(index) <= 0:
                continue
            relations = relations_of(self.topology, index)
            places = [(t, axis, j) for t, axis, other in relations for j in range(self.topology.groups[other].size)]
            members = [self.sets[index, unit] for unit in range(self.used[index])]
            taken = {frozenset(places) for places in members}
            counts = {_counts(places) for places in members}
            for chosen in subsets(places):
                if self.waiting(index) <= 0:
                    break
                if frozenset(chosen) not in taken and not (careful and _counts(chosen) in counts):
                    unit = self.new_unit(index)
                    for place in chosen:
                        self.join(place, index, unit)
            if self.waiting(index) > 0:
                raise ImpossibleError(self.why(index, len(places)))

    def why(self, index: int, places: int) -> str:
        group = self.topology.groups[index]
        others = Counter(self.topology.groups[other].name for _, _, other in relations_of(self.topology, index))
        names = ", ".join(f"{other.name}: {other.size}" for other in self.topology.groups if other.name in others)
        told = f"Rigid() cannot tell the {group.size} units of {group.name} apart with equal constants"
        if self.signs and group.odd:
            told += " and remove their sign flips"
        if group.size > 2**places - (self.signs and group.odd):
            return f"{told}: they have {places} neighbours ({names}), which makes {2**places} sets of fixed weights"
        return f"{told}: its construction found too few different sets of their {places} neighbours ({names})"


def _counts(places: list[Place]) -> frozenset[tuple[tuple[int, int], int]]:
    """Number of fixed weights by tensor and axis."""
    return frozenset(Counter(place[:2] for place in places).items())


def subsets(places: list[Place]) -> Iterator[list[Place]]:
    """All non-empty subsets, small ones first, in an order that uses all places about equally often.

    Subsets are taken as rotations of a necklace of gaps, each necklace in its smallest rotation.
    """
    n = len(places)
    for size in range(1, n + 1):
        for offsets in itertools.combinations(range(1, n), size - 1):
            gaps = [b - a for a, b in itertools.pairwise((0, *offsets, n))]
            rotations = [gaps[i:] + gaps[:i] for i in range(1, size)]
            if any(rotation < gaps for rotation in rotations):
                continue
            period = rotations.index(gaps) + 1 if gaps in rotations else size
            for start in range(sum(gaps[:period])):
                yield [places[(start + offset) % n] for offset in (0, *offsets)]
