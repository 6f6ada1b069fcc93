"""Coloured, labelled graphs, and colour refinement: which of their vertices can be told apart."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]  # of integers


Floats = NDArray[np.float64]


Hashes = NDArray[np.uint64]


class OutOfTimeError(Exception):
    """The time limit was reached before the group was determined."""


def check_deadline(deadline: float | None) -> None:
    """Raise if the time is up."""
    if deadline is not None and time.monotonic() > deadline:
        raise OutOfTimeError


@dataclass(frozen=True)
class Entries:
    """Arcs with values; between an ordered pair of units there is at most one.

    Attributes:
        tail: Unit at the start of each arc, in increasing order.
        head: Unit at its end.
        value: Its value.
        by_head: The same arcs (head, tail, value) in increasing order of the head.
    """

    tail: Ints
    head: Ints
    value: Floats
    by_head: tuple[Ints, Ints, Floats]

    @staticmethod
    def of(tail: Ints, head: Ints, value: Floats) -> Entries:
        """Sort arcs that come in any order."""
        order, other = np.argsort(tail, kind="stable"), np.argsort(head, kind="stable")
        by_head = (head[other], tail[other], value[other])
        return Entries(tail[order], head[order], value[order], by_head)


def refine(colour: Ints, entries: Sequence[Entries], deadline: float | None = None) -> Ints:
    """The coarsest stable colouring that refines a given one, up to hash collisions.

    Units of the same colour have, in the result, the same number of arcs of each value to and from each colour.
    With two rows of colours every unit is a pair of vertices, + and −: an arc of value v joins ++ and −− with
    value v, and +− and −+ with value −v. Only vertices whose colour changes are looked at again, and
    of a colour that splits the largest part keeps its name, as in Hopcroft's algorithm: of n arcs, at most
    n log n are visited.

    Args:
        colour: Colours of the vertices, shape (1, units) or (2, units), integers; −1 for a vertex that does not exist.
        entries: Arcs between units, one element a tensor.
        deadline: When to give up, in seconds of `time.monotonic()`.

    Returns:
        Colours of the same shape, 0 to their number − 1; −1 where there is no vertex.

    Raises:
        OutOfTimeError: If the deadline passes.
    """
    units = colour.shape[1]
    arcs = [arc for family, entry in enumerate(entries) for arc in _both_directions(units, family, entry)]
    if sum(len(arc.target) for arc in arcs) < _CHUNK // 16:
        arcs = _merged(units, arcs)
    vertices = np.flatnonzero(colour.ravel() >= 0)
    cell = np.zeros(colour.size, dtype=np.int64)  # cell 0: the vertices that do not exist
    cell[vertices] = 1 + np.unique(colour.ravel()[vertices], return_inverse=True)[1]
    size = np.zeros(len(vertices) + 2, dtype=np.int64)
    count = int(cell.max(initial=0)) + 1
    size[:count] = np.bincount(cell, minlength=count)
    size[0] = 0
    seen = np.zeros(colour.size, dtype=np.uint64)  # for each vertex the hashed multiset of its arcs
    changed, delta = vertices, _mix(cell[vertices].astype(np.uint64))
    while len(changed) and count <= len(vertices):
        check_deadline(deadline)
        touched = _propagate(seen, arcs, units, changed, delta, deadline)
        changed, old = _split(cell, size, seen, touched, count)
        count += len(np.unique(cell[changed]))
        delta = _mix(cell[changed].astype(np.uint64)) - _mix(old.astype(np.uint64))
    return np.where(colour >= 0, cell.reshape(colour.shape) - 1, -1)


@dataclass(frozen=True)
class _Arcs:
    """Arcs by source (compressed rows): those of unit u are at start[u] : start[u + 1]."""

    start: Ints
    target: Ints
    value: Floats
    salt: Hashes  # which tensor an arc belongs to, and which end of it


_PAIR = np.uint64(0x9D8F3C56E1B7A24B)  # multiplies the colour of a vertex's twin of the other sign


_CHUNK = 1 << 21  # arcs looked at together, which bounds the working memory


def _both_directions(units: int, family: int, entry: Entries) -> list[_Arcs]:
    directions = ((entry.tail, entry.head, entry.value), entry.by_head)
    salts = _mix(np.arange(2 * family, 2 * family + 2, dtype=np.uint64) + np.uint64(1 << 40))
    return [
        _Arcs(np.searchsorted(source, np.arange(units + 1)), target, value, np.broadcast_to(salt, target.shape))
        for (source, target, value), salt in zip(directions, salts, strict=True)
    ]


def _merged(units: int, arcs: list[_Arcs]) -> list[_Arcs]:
    """One list of arcs instead of several, which saves time where arrays are small."""
    if not arcs:
        return []
    source = np.concatenate([np.repeat(np.arange(units), np.diff(arc.start)) for arc in arcs])
    order = np.argsort(source, kind="stable")
    target, value, salt = (
        np.concatenate([getattr(arc, name) for arc in arcs])[order] for name in ("target", "value", "salt")
    )
    return [_Arcs(np.searchsorted(source[order], np.arange(units + 1)), target, value, salt)]


def _mix(x: Hashes) -> Hashes:
    """Scramble 64-bit numbers, one to one (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash_value(value: Floats, salt: Hashes) -> Hashes:
    return _mix((value + 0.0).view(np.uint64) ^ salt)  # + 0.0 makes a positive zero of a negative one


def _propagate(
    seen: Hashes, arcs: list[_Arcs], units: int, changed: Ints, delta: Hashes, deadline: float | None
) -> Ints:
    """Tell the neighbours of changed vertices; returns the vertices that were told.

    A vertex sees the sum, modulo 2^64, of hash(value) × hash(colour) over its arcs.
    """
    signed = len(seen) > units
    change = np.zeros(len(seen), dtype=np.uint64)
    change[changed] = delta
    told = np.zeros(units, dtype=bool)
    sources = np.unique(changed % units) if signed else changed
    if signed:
        twin = (changed + units) % (2 * units)
        seen[twin] += _PAIR * delta
        told[sources] = True
    for arc in arcs:
        counts = arc.start[sources + 1] - arc.start[sources]
        busy = counts > 0
        for where, source in _chunks(arc.start, sources[busy], counts[busy]):
            check_deadline(deadline)
            target, value, salt = arc.target[where], arc.value[where], arc.salt[where]
            same = _hash_value(value, salt)
            if signed:
                opposite = _hash_value(-value, salt)
                plus, minus = change[source], change[units + source]
                np.add.at(seen, target, same * plus + opposite * minus)
                np.add.at(seen, units + target, same * minus + opposite * plus)
            else:
                np.add.at(seen, target, same * change[source])
            told[target] = True
    told = np.flatnonzero(told)
    return np.concatenate([told, told + units]) if signed else told


def _chunks(start: Ints, sources: Ints, counts: Ints) -> list[tuple[Ints, Ints]] | map:
    """Positions of the arcs of some units, and the unit of each, in pieces of about `_CHUNK` arcs."""

    def piece(bounds: tuple[int, int]) -> tuple[Ints, Ints]:
        units, number = sources[slice(*bounds)], counts[slice(*bounds)]
        first = start[units] - (np.cumsum(number) - number)
        return np.repeat(first, number) + np.arange(number.sum()), np.repeat(units, number)

    if not len(sources):
        return []
    cumulative = np.cumsum(counts)
    cuts = np.searchsorted(cumulative, np.arange(_CHUNK, cumulative[-1], _CHUNK), side="left") + 1
    edges = np.unique(np.concatenate([[0], cuts, [len(sources)]])).tolist()
    return map(piece, itertools.pairwise(edges))


def _split(cell: Ints, size: Ints, seen: Hashes, touched: Ints, count: int) -> tuple[Ints, Ints]:
    """Split the cells of touched vertices by what they see, in place.

    Returns:
        The vertices that moved to a new cell, and the cells where they were.
    """
    hit = np.zeros(count, dtype=bool)
    hit[cell[touched]] = True
    hit &= size[:count] > 1
    members = np.flatnonzero(hit[cell])
    members = members[np.lexsort((seen[members], cell[members]))]
    if not len(members):
        return members, members
    here, sight = cell[members], seen[members]
    first = np.flatnonzero(np.r_[True, (here[1:] != here[:-1]) | (sight[1:] != sight[:-1])])
    sizes, cells = np.diff(np.r_[first, len(members)]), here[first]
    by_size = np.lexsort((-sizes, cells))
    largest = np.r_[True, cells[by_size][1:] != cells[by_size][:-1]]
    name = cells.copy()
    leaving = by_size[~largest]
    name[leaving] = count + np.arange(len(leaving))
    np.subtract.at(size, cells[leaving], sizes[leaving])
    size[name[leaving]] = sizes[leaving]
    new = np.repeat(name, sizes)
    moved = new != here
    cell[members] = new
    return members[moved], here[moved]


@dataclass(frozen=True)
class Graph:
    """A coloured graph with labelled arcs; labels come in families.

    Attributes:
        colour: Colours of the vertices.
        unit: For each vertex the unit that it belongs to; a unit has one vertex, or a + and a −.
        tail: Start of each arc.
        head: End of each arc.
        label: Label of each arc. Between two vertices there is at most one arc of each family, and none
            (but those of family 0) within a unit.
        family: For each label its family; family 0 pairs the two vertices of a unit.
    """

    colour: Ints
    unit: Ints
    tail: Ints
    head: Ints
    label: Ints
    family: Ints

    def part(self, vertices: Ints, arcs: Ints) -> Graph:
        """The subgraph of some vertices, with their arcs given."""
        position = np.zeros(len(self.colour), dtype=np.int64)
        position[vertices] = np.arange(len(vertices))
        return replace(
            self,
            colour=self.colour[vertices],
            unit=self.unit[vertices],
            tail=position[self.tail[arcs]],
            head=position[self.head[arcs]],
            label=self.label[arcs],
        )


def connected_components(vertices: int, first: Ints, second: Ints) -> Ints:
    """Component of each vertex, named by its smallest vertex."""
    label = np.arange(vertices)
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    while len(first):
        low, high = np.minimum(label[first], label[second]), np.maximum(label[first], label[second])
        np.minimum.at(label, high, low)
        while True:
            jumped = label[label]
            if np.array_equal(jumped, label):
                break
            label = jumped
        open_arcs = label[first] != label[second]
        first, second = first[open_arcs], second[open_arcs]
    return label
