"""Which (signed) permutations and rescalings keep the fixed entries of a network: groups, generators, moves."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ..network.topology import Topology
from ..network.units import WeightTensor
from .automorphisms import Group, automorphisms
from .entries import entries_of, of_tensor, slices, values_or_nan
from .refinement import Entries, Floats, Ints, OutOfTimeError, connected_components, refine
from .remainder import what_is_left
from .report import Move, SymmetryClass


@dataclass(frozen=True)
class FixedEntries:
    """Fixed entries in the form that refinement and search need; units of all groups are numbered through.

    Attributes:
        topology: The topology.
        first: Number of each group's first unit, and at the end the number of units.
        units: For each bias-like tensor the fixed values of its units (free: NaN), with the number of the first
            unit and whether the value changes sign with the unit.
        entries: Fixed entries between two units.
        links: Arcs that hold whatever is fixed.
        ordered: Groups whose biases increase.
        flippable: For each vertex whether its sign can be flipped. Vertices are the units and what follows them in
            `Topology.structure`.
        scale: For each vertex the number of its scale, −1 if it can be nothing but 1.
    """

    topology: Topology
    first: Ints
    units: tuple[tuple[int, Floats, bool], ...]
    entries: tuple[Entries, ...]
    links: tuple[Entries, ...]
    ordered: tuple[int, ...]
    flippable: Ints
    scale: Ints

    def notes(self) -> Iterator[str]:
        """What is not counted, and why."""
        hidden = [self.topology.groups[index] for index in self.topology.hidden]
        linear = [group.name for group in hidden if group.odd and group.homogeneous]
        if linear and self.topology.structure is None:
            yield (
                f"{', '.join(linear)}: without an activation, any invertible linear map of the units is a symmetry; "
                "only permutations, sign flips and rescalings are counted"
            )
        non_zero = any(np.any(entry.value) for entry in self.entries) or any(
            np.any(np.nan_to_num(value)) for _, value, _ in self.units
        )
        if non_zero and (self.scale >= 0).any():
            yield "permutations that need a rescaling as well are not counted; they change the prior density"

    # discrete symmetries

    def discrete(self, signed: bool, deadline: float | None) -> SymmetryClass:
        """The group of (signed) permutations."""
        name = "signed permutations" if signed else "permutations"
        size: int | None = None
        factors: Mapping[int, int] = {}
        fixes = bool(self.units or self.entries or self.ordered)
        try:
            if fixes or self.topology.structure is None:
                size, factors = self._without_masks(signed, deadline)
            group, how, moves = self.left(signed, deadline)
        except OutOfTimeError:
            return SymmetryClass(name, size, None, "not determined in time", factors=(_product(factors), ""))
        if size is None:
            size, factors = group.order, group.factors
        return SymmetryClass(name, size, group.order, how, moves, (_product(factors), _product(group.factors)))

    def left(self, signed: bool, deadline: float | None = None) -> tuple[Group, str, tuple[Move, ...]]:
        """The group of what is left, how it was proved, and moves that generate it, small ones first."""
        group, how = self._group(signed, deadline)
        moves = sorted(self._moves(group), key=lambda move: (move.size, move.images[:1], move.carriers[:1]))
        return group, how, tuple(moves)

    def _without_masks(self, signed: bool, deadline: float | None) -> tuple[int, Mapping[int, int]]:
        """Order of the group where nothing is fixed, and its factors."""
        if self.topology.structure is not None:
            free, _ = replace(self, units=(), entries=(), ordered=())._group(signed, deadline)
            return free.order, free.factors
        before = Counter(self.topology.groups[index].size for index in self.topology.hidden)
        before[-2] = int(self.flippable.sum()) if signed else 0
        return math.prod(math.factorial(m) ** e if m > 0 else (-m) ** e for m, e in before.items()), before

    def _group(self, signed: bool, deadline: float | None) -> tuple[Group, str]:
        entries = self.entries + self.links + (self._order_ties() if signed else ())
        cell = refine(self._colours(signed), entries, deadline)
        if cell.max(initial=-1) + 1 == (cell >= 0).sum():
            return Group(1, np.zeros(0, dtype=np.int64), ""), "refinement"
        graph, vertices = what_is_left(cell, entries)
        group = automorphisms(graph, deadline)
        how = "refinement and search" if group.searched else "refinement and decomposition"
        names = Group(
            group.order,
            vertices,
            "",
            group.factors,
            tuple(vertices[swap] for swap in group.swaps),
            tuple((vertices[source], vertices[target]) for source, target in group.moves),
        )
        return names, how

    def _colours(self, signed: bool) -> Ints:
        """Colours of the vertices by layer, identity and fixed biases, shape (1 or 2, vertices)."""
        colour = np.arange(len(self.flippable))
        if self.topology.structure is not None:
            colour[self.first[-1] :] = self.first[-1] + self.topology.structure.colour
        for index in self.topology.hidden:
            colour[self.first[index] : self.first[index + 1]] = self.first[index]
        colours = np.stack([colour, np.where(self.flippable, colour, -1)]) if signed else colour[None, :]
        for start, value, flips in self.units:
            codes = np.full(colours.shape, np.nan)
            codes[0, start : start + len(value)] = value + 0.0
            codes[1:, start : start + len(value)] = (-value if flips else value) + 0.0
            colours = _distinguish(colours, codes)
        for index in self.ordered:
            rank = np.arange(self.topology.groups[index].size, dtype=np.float64)
            codes = np.full(colours.shape, np.nan)
            codes[0, self.first[index] : self.first[index + 1]] = rank
            codes[1:, self.first[index] : self.first[index + 1]] = rank[::-1]
            colours = _distinguish(colours, codes)
        return colours

    def _order_ties(self) -> tuple[Entries, ...]:
        """Within an ordered layer all units flip together: ties between neighbours, like non-zero constants."""
        ties = []
        for index in self.ordered:
            unit = np.arange(self.first[index], self.first[index + 1] - 1)
            tail, head = np.concatenate([unit, unit + 1]), np.concatenate([unit + 1, unit])
            ties.append(Entries.of(tail, head, np.ones(len(tail))))
        return tuple(ties)

    def _moves(self, group: Group) -> Iterator[Move]:
        total = len(self.flippable)
        for swap in group.swaps:
            for one, other in itertools.pairwise(swap):
                yield self._move(np.concatenate([one, other]), np.concatenate([other, one]), total)
        for source, target in group.moves:
            yield self._move(source, target, total)

    def _move(self, source: Ints, target: Ints, total: int) -> Move:
        plus = np.flatnonzero(source < total)  # the vertex − of a unit follows its +
        order = plus[np.argsort(source[plus])]
        source, target = source[order], target[order]
        return self._named(source, target % total, np.where(target < total, 1.0, -1.0))

    def _named(self, source: Ints, target: Ints, factor: Floats) -> Move:
        units = source < self.first[-1]
        group = np.searchsorted(self.first, source[units], side="right") - 1
        start = self.first[group]
        columns = (group, source[units] - start, target[units] - start, factor[units])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        images = tuple((self.topology.groups[g].name, i, j, f) for g, i, j, f in rows)
        structure = self.topology.structure
        if structure is None:
            return Move(images)
        more = np.flatnonzero(~units)
        more = more[structure.unit[source[more]] >= 0]
        others = (source[more], target[more], factor[more])
        return Move(images, tuple(zip(*(column.tolist() for column in others), strict=True)))

    # continuous symmetries

    def scalings(self) -> SymmetryClass:
        """The torus of rescalings: a dimension for each set of units tied to each other and to nothing else."""
        # What is scaled: a number for each scale, and at the end one for all that cannot be.
        anchor = int(self.scale.max(initial=-1)) + 1
        scale = np.where(self.scale >= 0, self.scale, anchor)
        ties: list[tuple[Ints, Ints]] = [
            (scale[self.first[index] : self.first[index + 1] - 1], scale[self.first[index] + 1 : self.first[index + 1]])
            for index in self.ordered
        ]
        for entry in self.entries:
            if not np.any(entry.value):
                continue
            tied = entry.value != 0
            ties.append((scale[entry.tail[tied]], scale[entry.head[tied]]))
        for start, value, flips in self.units:
            if flips:  # the diagonal is left as it is by any scale
                bound = scale[start : start + len(value)][np.nan_to_num(value) != 0]
                ties.append((bound, np.full(len(bound), anchor)))
        ends = [np.concatenate([np.zeros(0, dtype=np.int64), *(tie[side] for tie in ties)]) for side in (0, 1)]
        component = connected_components(anchor + 1, *ends)
        free = np.flatnonzero((self.scale >= 0) & (component[scale] != component[anchor]))
        free = free[np.argsort(component[scale[free]], kind="stable")]
        cuts = np.flatnonzero(np.diff(component[scale[free]])) + 1
        parts = np.split(free, cuts) if len(free) else []
        moves = tuple(self._named(part, part, np.full(len(part), 2.0)) for part in parts)
        before = len(np.unique(self.scale[self.scale >= 0]))
        return SymmetryClass("scalings", before, len(parts), "connected components", moves)


def fixed_entries(
    topology: Topology,
    masks: Mapping[str, Tensor],
    constants: Mapping[str, Tensor | None],
    ordered: tuple[WeightTensor, ...],
) -> FixedEntries:
    """Read masks and values.

    Args:
        topology: The topology.
        masks: Boolean masks by tensor name.
        constants: Values of fixed entries by tensor name, None for zeros.
        ordered: Biases that increase from unit to unit.

    Raises:
        ValueError: If a fixed value is not finite.
    """
    first = topology.first
    units: list[tuple[int, Floats, bool]] = []
    entries = []
    for tensor in topology.tensors:
        if not tensor.groups:  # numbers that belong to no unit
            continue
        if tensor.places:
            own, between = of_tensor(topology, tensor, masks[tensor.name], constants[tensor.name])
            units += own
            entries += between
            continue
        start = [int(first[group]) for group in tensor.groups]
        for fixed, values in slices(tensor, masks[tensor.name], constants[tensor.name]):
            if not tensor.is_matrix:
                units.append((start[0], values_or_nan(fixed, values), True))
                continue
            if start[0] == start[1]:  # entries on the diagonal belong to one unit, and s_i s_i = 1
                diagonal = None if values is None else values.diagonal()
                units.append((start[0], values_or_nan(fixed.diagonal(), diagonal), False))
                fixed = fixed & ~np.eye(len(fixed), dtype=bool)
            entries.append(entries_of(fixed, values, start[0], start[1]))
    structure = topology.structure
    if structure is not None:
        flippable, scale = structure.flips, structure.scale
        links = tuple(Entries.of(tail, head, value) for _, tail, head, value in structure.links)
    else:
        sizes, links = [group.size for group in topology.groups], ()
        flippable, scalable = (
            np.repeat([flag(group) and not group.pinned for group in topology.groups], sizes)
            for flag in (lambda group: group.odd, lambda group: group.homogeneous)
        )
        scale = np.where(scalable, np.arange(first[-1]), -1)
    groups = tuple(sorted({tensor.groups[0] for tensor in ordered}))
    return FixedEntries(topology, first, tuple(units), tuple(entries), links, groups, flippable, scale)


def _distinguish(colours: Ints, codes: Floats) -> Ints:
    """Refine colours by codes; no vertex stays −1."""
    code = np.unique(codes, return_inverse=True)[1].reshape(codes.shape)
    refined = np.unique(colours * (code.max() + 1) + code, return_inverse=True)[1].reshape(codes.shape)
    return np.where(colours >= 0, refined, -1)


def _product(factors: Mapping[int, int]) -> str:
    """Factors in words: m > 0 is m!, −m is m."""
    twos = factors.get(-2, 0) + factors.get(2, 0)
    words = [("2", twos)] if twos else []
    words += [(f"{-m}", e) for m, e in sorted(factors.items(), reverse=True) if m < -2]
    words += [(f"{m}!", e) for m, e in sorted(factors.items(), reverse=True) if m > 2]
    return " ".join(f"{word}^{e}" if e > 1 else word for word, e in words)
