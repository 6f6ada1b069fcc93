"""Which symmetries of a network a set of masks and fixed values leaves: an exact certificate.

A (signed) permutation of hidden units survives if it maps every fixed weight onto a fixed weight of the same value
(times the signs of its two units); the survivors are the automorphisms of a coloured graph, of which
`pyro_sps.symmetry.automorphisms` finds the exact order and generators.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base.checks import is_number
from ..base.process import warn_user
from ..masks.schemes import SymmetryWarning
from ..masks.values import FixedValues
from ..network.run import NetworkFunction
from ..network.topology import Topology, WeightTensor
from .automorphisms import Group, automorphisms
from .entries import of_tensor
from .refinement import Entries, Floats, Graph, Ints, OutOfTimeError, connected_components, refine
from .report import Move, SymmetryClass, SymmetryReport


def certify(
    topology: Topology,
    masks: Mapping[str, Tensor],
    values: FixedValues | Mapping[str, Tensor] | None = None,
    time_limit: float | None = None,
    ordered: Sequence[str] = (),
    verify: nn.Module | NetworkFunction | None = None,
) -> SymmetryReport:
    """Count exactly which symmetries a set of masks and fixed values leaves.

    A permutation π of the hidden units within their layers, with signs s, survives if for every fixed weight
    w[i, j] the weight at (π(i), π(j)) is fixed too, at s_i s_j w[i, j]. (An independent, identical, zero-mean prior
    makes of every such map a copy of the posterior.) Only units with an odd activation have sign flips. A unit
    with a positively homogeneous activation can be rescaled by a > 0; the scales that keep all fixed weights
    form a torus, whose dimension is reported. A rescaling changes the prior density, so it is a ridge of the
    likelihood and not a copy of a mode.

    Fixed values are compared exactly, in their own precision; 0 and −0 are the same.

    **Ordered biases.** If the biases of a layer are constrained to increase, no permutation of it survives. Of the
    signed ones exactly one other than the identity maps increasing vectors to increasing vectors: all units flip
    their signs and their order is reversed, b ↦ (−b_n, …, −b_1). It survives if the fixed weights allow it, so a
    tanh layer keeps a factor of 2 under ordered biases. Of the rescalings those survive that scale the whole
    layer by one factor.

    Args:
        topology: The network's topology.
        masks: Stochastic masks by tensor name, True where a weight is stochastic; tensors without one are stochastic.
        values: The fixed values: a `FixedValues` (a learned scale counts as one unknown positive number, so that
            only the pattern is compared), a dictionary of tensors in full shapes, or None if all are zero.
            Stochastic entries are not read.
        time_limit: Seconds after which to give up on what is not determined yet; it is None in the report.
        ordered: Names of bias tensors that are constrained to be increasing.
        verify: The network, to try what is claimed on numbers, as `Topology.verify` does, with and without the masks:
            `SymmetryReport.verification`. For networks of unusual operations. Default: nothing is tried.

    Raises:
        ValueError: If the masks or values do not fit the topology, or a fixed value is not finite; if `verify` is a
            network of another topology.

    Warns:
        UserWarning: If something that is claimed is not true of the numbers of `verify`.

    Example:
        >>> import pyro_sps as sps
        >>> topology = sps.Topology.of(sps.mlp([8, 50, 50, 2]))
        >>> print(sps.certify(topology, sps.Heavy()(topology)))
        8-50-50-2 network, 1,254 of 3,102 weights fixed
        symmetries           before                   left              proved by
        permutations         50!^2 = 10^128.97        1                 refinement
        signed permutations  2^100 50!^2 = 10^159.07  2^100 = 10^30.10  refinement and decomposition
        not rigid
        signed permutations, for example: flip the sign of unit 0 of layer 1
    """
    deadline = _deadline(time_limit)
    masks = topology.check_masks(masks)
    constants = _constants(topology, masks, values)
    network = _Network.of(topology, masks, constants, _check_ordered(topology, masks, ordered))
    notes = list(network.notes())
    permutations = network.discrete(signed=False, deadline=deadline)
    signed = network.discrete(signed=True, deadline=deadline) if network.flippable.any() else None
    scalings = network.scalings() if (network.scale >= 0).any() else None
    for one in (permutations, signed):
        if one is not None and one.after is None:
            notes.append(f"{one.name} were not determined within {time_limit:g} s")
    fixed = sum(int((~mask).sum()) for mask in masks.values())
    maps = _linear_maps(topology, masks, constants)
    report = SymmetryReport(topology, fixed, permutations, signed, scalings, tuple(notes), tuple(ordered), maps)
    return report if verify is None else _verified(report, verify, masks, constants)


def _verified(report: SymmetryReport, *how: Any) -> SymmetryReport:
    from .verify import verified

    return verified(report, *how)


def _linear_maps(
    topology: Topology, masks: Mapping[str, Tensor], constants: Mapping[str, Tensor | None]
) -> SymmetryClass | None:
    """The dimension of GL(n) of each set of units that linear maps may mix, and of what is left of it."""
    if not topology.mixtures:
        return None
    before = sum(mixture.size**2 for mixture in topology.mixtures)
    left = [mixture.dimension(masks, constants) for mixture in topology.mixtures]
    exact = all(own for _, own in left)
    how = "rank of what fixed weights ask" if exact else "a lower bound, from entries that may differ from zero"
    return SymmetryClass("linear maps", before, sum(number for number, _ in left), how)


def _deadline(time_limit: float | None) -> float | None:
    if time_limit is None:
        return None
    if not is_number(time_limit) or not time_limit >= 0:
        raise ValueError(f"time_limit must be None or a number of seconds >= 0, got {time_limit!r}")
    return time.monotonic() + time_limit


def _check_ordered(topology: Topology, masks: Mapping[str, Tensor], ordered: Sequence[str]) -> tuple[WeightTensor, ...]:
    if isinstance(ordered, str):
        raise TypeError(f"ordered must be a sequence of names, got the string {ordered!r}")
    tensors = []
    for name in ordered:
        if name not in masks:
            raise ValueError(f"ordered names {name!r}, which the network does not have; it has {list(masks)}")
        tensor = topology[name]
        if tensor.is_matrix or tensor.groups[0] not in topology.hidden:
            raise ValueError(f"ordered must name biases of hidden layers, got {name!r}")
        if topology.structure is not None:
            raise ValueError(
                f"ordered names {name!r}: ordered biases are known for networks whose units have one sign each and no "
                "blocks; here sps.Rigid() or sps.InputOffsets() tells units apart"
            )
        if not masks[name].all():
            raise ValueError(f"ordered names {name!r}, of which the masks fix some entries; all must be stochastic")
        tensors.append(tensor)
    return tuple(tensors)


def _constants(
    topology: Topology, masks: Mapping[str, Tensor], values: FixedValues | Mapping[str, Tensor] | None
) -> dict[str, Tensor | None]:
    """Constants by tensor name, None for zeros."""
    if isinstance(values, FixedValues):
        values = values.pattern if values.learn else values.tensors()
    if values is None:
        return dict.fromkeys(masks)
    if not isinstance(values, Mapping):
        raise TypeError(f"values must be FixedValues, a dict of tensors or None, got {type(values).__name__}")
    if unknown := sorted(set(values) - set(masks)):
        raise ValueError(f"values name {unknown}, which the network does not have; it has {list(masks)}")
    constants: dict[str, Tensor | None] = {}
    for tensor in topology.tensors:
        value = values.get(tensor.name)
        if value is None:
            if not masks[tensor.name].all():
                raise ValueError(f"values lack {tensor.name!r}, of which the masks fix some entries")
        elif not isinstance(value, Tensor) or value.shape != tensor.shape or value.is_complex():
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"values[{tensor.name!r}] must be a real tensor of shape {tensor.shape}, got {found}")
        constants[tensor.name] = value
    return constants


@dataclass(frozen=True)
class _Network:
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

    @staticmethod
    def of(
        topology: Topology,
        masks: Mapping[str, Tensor],
        constants: Mapping[str, Tensor | None],
        ordered: tuple[WeightTensor, ...],
    ) -> _Network:
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
            for fixed, values in _slices(tensor, masks[tensor.name], constants[tensor.name]):
                if not tensor.is_matrix:
                    units.append((start[0], _values_or_nan(fixed, values), True))
                    continue
                if start[0] == start[1]:  # entries on the diagonal belong to one unit, and s_i s_i = 1
                    diagonal = None if values is None else values.diagonal()
                    units.append((start[0], _values_or_nan(fixed.diagonal(), diagonal), False))
                    fixed = fixed & ~np.eye(len(fixed), dtype=bool)
                entries.append(_entries(fixed, values, start[0], start[1]))
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
        return _Network(topology, first, tuple(units), tuple(entries), links, groups, flippable, scale)

    def notes(self) -> Iterator[str]:
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
        try:
            size, factors = self._without_masks(signed, deadline)
        except OutOfTimeError:
            return SymmetryClass(name, 1, None, "not determined in time", factors=("", ""))
        try:
            group, how = self._group(signed, deadline)
        except OutOfTimeError:
            return SymmetryClass(name, size, None, "not determined in time", factors=(_product(factors), ""))
        moves = tuple(sorted(self._moves(group), key=lambda move: (move.size, move.images[:1], move.carriers[:1])))
        return SymmetryClass(name, size, group.order, how, moves, (_product(factors), _product(group.factors)))

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
        graph, vertices = _what_is_left(cell, entries)
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


def _slices(tensor: WeightTensor, mask: Tensor, value: Tensor | None) -> Iterator[tuple[NDArrayBool, Floats | None]]:
    """Where a tensor is fixed and at what, by unit or pair of units.

    Axes that count no units (a kernel's positions) make one slice for each of their entries.
    """
    fixed = (~mask).cpu()
    axes = tensor.shape[: len(tensor.groups)]
    flat = fixed.numpy().reshape(*axes, -1)
    values = None
    if value is not None:
        exact = value.detach().cpu()[fixed].to(torch.float64)
        if not exact.isfinite().all():
            raise ValueError(f"values[{tensor.name!r}] has values that are not finite at fixed entries")
        if exact.any():
            values = np.zeros(flat.shape)
            values[flat] = exact.numpy()
    for k in range(flat.shape[-1]):
        yield flat[..., k], None if values is None else values[..., k]


NDArrayBool = np.ndarray[Any, np.dtype[np.bool_]]


def _values_or_nan(fixed: NDArrayBool, values: Floats | None) -> Floats:
    return np.where(fixed, 0.0 if values is None else values, np.nan)


def _entries(fixed: NDArrayBool, values: Floats | None, first_tail: int, first_head: int) -> Entries:
    """The fixed entries of a matrix, by row and by column."""
    tail, head = (axis.astype(np.int32) for axis in np.nonzero(fixed))
    value = np.broadcast_to(0.0, tail.shape) if values is None else values[fixed]
    tail, other = tail + first_tail, head + first_head
    if len(tail) < fixed.size // 16:
        return Entries.of(tail, other, value)
    # Columns first without sorting.
    turned = np.ascontiguousarray(fixed.T)
    head_again, tail_again = (axis.astype(np.int32) for axis in np.nonzero(turned))
    value_again = value if values is None else values.T[turned]
    return Entries(tail, other, value, (head_again + first_head, tail_again + first_tail, value_again))


def _distinguish(colours: Ints, codes: Floats) -> Ints:
    """Refine colours by codes; no vertex stays −1."""
    code = np.unique(codes, return_inverse=True)[1].reshape(codes.shape)
    refined = np.unique(colours * (code.max() + 1) + code, return_inverse=True)[1].reshape(codes.shape)
    return np.where(colours >= 0, refined, -1)


def _what_is_left(cell: Ints, entries: Sequence[Entries]) -> tuple[Graph, Ints]:
    """The graph of the vertices that refinement did not tell apart.

    Dropped are entries that constrain nothing, namely those between two units that cannot leave their place and either
    cannot flip their sign or do not need to. Non-zero entries between two units that can only flip their sign say
    that both flip or neither does; a chain says the same as many of them.

    Returns:
        The graph, and for each of its vertices the number in `cell.ravel()`.
    """
    units, signed = cell.shape[1], len(cell) == 2
    flat = cell.ravel()
    size = np.bincount(flat[flat >= 0])
    many = np.where(flat >= 0, size[flat], 0).reshape(cell.shape)
    twins = cell[0] == cell[-1] if signed else np.zeros(units, dtype=bool)  # + and − have one colour
    alone = np.where(twins, many[0] == 2, (many <= 1).all(axis=0))
    flippable = np.flatnonzero(cell[-1] >= 0)
    kind = connected_components(len(size), cell[0][flippable], cell[-1][flippable])[cell[0]]

    tails, heads, labels, families = [], [], [], [np.zeros(1, dtype=np.int64)]  # label 0: the pairs of family 0
    if signed:
        pairs = np.flatnonzero(cell[1] >= 0)
        pairs = pairs[(many[:, pairs] > 1).any(axis=0)]
        tails.append(np.concatenate([pairs, pairs + units]))
        heads.append(np.concatenate([pairs + units, pairs]))
        labels.append(np.zeros(2 * len(pairs), dtype=np.int64))
    tied: list[tuple[Ints, Ints]] = []
    for family, entry in enumerate(entries, start=1):
        both_alone = alone[entry.tail] & alone[entry.head]
        flips = twins[entry.tail] & twins[entry.head] & (entry.value != 0)
        tied.append((entry.tail[both_alone & flips], entry.head[both_alone & flips]))
        settled = both_alone & (flips | (entry.value == 0) | ~(twins[entry.tail] | twins[entry.head]))
        tail, head = entry.tail[~settled].astype(np.int64), entry.head[~settled].astype(np.int64)
        value = entry.value[~settled] + 0.0
        some = ~_uniform(kind, tail, head, value, signed)
        tail, head, value = tail[some], head[some], value[some]
        if signed:
            tail, head = np.r_[tail, tail + units, tail, tail + units], np.r_[head, head + units, head + units, head]
            value = np.r_[value, value, -value + 0.0, -value + 0.0]
            exists = (flat[tail] >= 0) & (flat[head] >= 0)
            tail, head, value = tail[exists], head[exists], value[exists]
        known, code = np.unique(value, return_inverse=True)
        labels.append(code + sum(map(len, families)))
        families.append(np.full(len(known), family))
        tails.append(tail)
        heads.append(head)
    tail, head = _chains(units, tied)
    tails += [tail, tail + units]
    heads += [head, head + units]
    labels.append(np.full(2 * len(tail), sum(map(len, families))))
    families.append(np.full(1, len(entries) + 1))

    all_tails, all_heads = np.concatenate(tails), np.concatenate(heads)
    vertices = np.unique(np.concatenate([all_tails, all_heads, np.flatnonzero(many.ravel() > 1)]))
    position = np.zeros(flat.size, dtype=np.int64)
    position[vertices] = np.arange(len(vertices))
    graph = Graph(
        flat[vertices],
        vertices % units,
        position[all_tails],
        position[all_heads],
        np.concatenate(labels),
        np.concatenate(families),
    )
    return graph, vertices


def _uniform(kind: Ints, tail: Ints, head: Ints, value: Floats, signed: bool) -> NDArrayBool:
    """Which entries have one value for all pairs of units of two kinds, so that they constrain nothing.

    The search would find the same, but only after it has written out four arcs for each entry.

    Args:
        kind: Kinds of the units; an automorphism keeps them, and units that share a colour, of any sign, are of one.
        tail: First unit of each entry.
        head: Second unit.
        value: Value.
        signed: Whether signs can flip, so that only zeros are the same for all.
    """
    number, names = np.bincount(kind), len(kind)
    blocks, block, count = np.unique(kind[tail] * names + kind[head], return_inverse=True, return_counts=True)
    first, second = blocks // names, blocks % names
    full = count == number[first] * number[second] - np.where(first == second, number[first], 0)
    if not full.any():
        return np.zeros(len(tail), dtype=bool)
    low, high = np.full(len(blocks), np.inf), np.full(len(blocks), -np.inf)
    np.minimum.at(low, block, value)
    np.maximum.at(high, block, value)
    return (full & (low == high) & ((low == 0) | (not signed)))[block]


def _chains(units: int, ties: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """Fewest ties that connect the same units."""
    none = np.zeros(0, dtype=np.int64)
    component = connected_components(units, *(np.concatenate([none, *(tie[side] for tie in ties)]) for side in (0, 1)))
    order = np.argsort(component, kind="stable")
    joined = component[order][1:] == component[order][:-1]
    return order[:-1][joined], order[1:][joined]


def _product(factors: Mapping[int, int]) -> str:
    """Factors in words: m > 0 is m!, −m is m."""
    twos = factors.get(-2, 0) + factors.get(2, 0)
    words = [("2", twos)] if twos else []
    words += [(f"{-m}", e) for m, e in sorted(factors.items(), reverse=True) if m < -2]
    words += [(f"{m}!", e) for m, e in sorted(factors.items(), reverse=True) if m > 2]
    return " ".join(f"{word}^{e}" if e > 1 else word for word, e in words)


def warn_of_symmetries(report: SymmetryReport, scheme: object) -> None:
    """Warn if a scheme that was meant to break symmetries leaves hidden units that can be relabelled.

    Args:
        report: What is left.
        scheme: The scheme that picked the masks.

    Warns:
        SymmetryWarning: If permutations are left, or if it was not determined whether any are.

    Example:
        >>> import pyro_sps as sps, warnings
        >>> from pyro_sps.symmetry.certificate import warn_of_symmetries
        >>> topology = sps.Topology.of(sps.mlp([8, 50, 50, 2]))
        >>> report = sps.certify(topology, sps.Light()(topology))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_symmetries(report, sps.Light())
        >>> print(caught[0].message)  # doctest: +ELLIPSIS
        Light leaves 10^52.78 relabellings of the hidden units: layer 1 (43 of 50 units), layer 2 (43 of 50 units)...
    """
    name = getattr(scheme, "__name__", type(scheme).__name__)
    permutations = report.permutations
    if permutations.is_rigid:
        return
    if permutations.after is None:
        warn_user(
            f"whether {name} leaves relabellings of the hidden units was not determined in time; "
            "bnn.symmetry() takes as long as it needs",
            SymmetryWarning,
        )
        return
    counts = []
    for group, orbit in report.orbits().items():
        shared = Counter(orbit)
        if moved := sum(1 for unit in orbit if shared[unit] > 1):
            counts.append(f"{group} ({moved} of {len(orbit)} units)")
    warn_user(
        f"{name} leaves 10^{permutations.log10_after:.2f} relabellings of the hidden units: {', '.join(counts)}. "
        f"They copy posterior modes. {_remedy(report.topology)}; bnn.symmetry() says what is left.",
        SymmetryWarning,
    )


def _remedy(topology: Topology) -> str:
    """Which scheme would leave no permutation."""
    narrow = [
        topology.groups[index].name
        for index in topology.hidden
        if topology.groups[index].size > 2 ** sum(group.size for group in topology.neighbours(index))
    ]
    if narrow:
        return (
            "scheme=sps.Rigid() with values=sps.Ladder() breaks them "
            f"(zeros cannot: {', '.join(narrow)} has too few neighbours)"
        )
    return "scheme=sps.Rigid() breaks them"
