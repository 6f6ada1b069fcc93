"""Exact orders and generators of the automorphism groups of coloured, labelled graphs.

Three steps, each of which only ever makes the work of the next smaller:

1. `refine`: colour refinement with hashed colours. Two units that get different colours can be told apart, so a
   discrete colouring is a proof that no symmetry is left. A hash collision can only leave colours too coarse, which
   is work for the later steps but never a wrong result.
2. Reduction of what is left (`automorphisms`): relations that are the same for all pairs of two colours are dropped,
   and the graph falls into connected components. The order is the product over the isomorphism classes of
   components of (order of one)^k k!.
3. Search: only connected components that cannot be reduced go to BLISS (T. Junttila and P. Kaski, 2007), by way of
   python-igraph.

It knows nothing of networks: see `pyro_sps.symmetry`.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]  # of integers

Floats = NDArray[np.float64]

Hashes = NDArray[np.uint64]


class OutOfTimeError(Exception):
    """The time limit was reached before the group was determined."""


def _check(deadline: float | None) -> None:
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
        _check(deadline)
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
            _check(deadline)
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


@dataclass(frozen=True)
class Group:
    """The automorphism group of a graph.

    Attributes:
        order: Its order.
        factors: The order as a product: numbers m > 0 stand for m!, numbers −m < 0 for m, with their exponents.
        swaps: Arrays of shape (k, m): k isomorphic components of m vertices in corresponding order,
            any two of which can be exchanged.
        moves: Pairs (vertices, where they go) of other generators.
        canonical: The vertices in an order that corresponds between isomorphic graphs.
        form: Equal for two graphs of one origin if and only if they are isomorphic.
        searched: Whether it took a search.
    """

    order: int
    canonical: Ints
    form: str
    factors: Counter[int] = field(default_factory=Counter)
    swaps: tuple[Ints, ...] = ()
    moves: tuple[tuple[Ints, Ints], ...] = ()
    searched: bool = False


def automorphisms(graph: Graph, deadline: float | None = None) -> Group:
    """The automorphism group of a graph: all permutations of its vertices that keep colours, labels and units.

    Args:
        graph: The graph.
        deadline: When to give up, in seconds of `time.monotonic()`.

    Raises:
        OutOfTimeError: If the deadline passes.
    """
    _check(deadline)
    reduced, uniform = _drop_uniform(graph)
    component = connected_components(len(graph.colour), reduced.tail, reduced.head)
    if not uniform and len(graph.colour) > 1 and not component.any():
        return _search(graph, deadline)
    return _combine(_kinds(reduced, component, deadline), uniform)


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


def _drop_uniform(graph: Graph) -> tuple[Graph, tuple[tuple[int, ...], ...]]:
    """Drop the commonest label, or absence, of each family between each two colours.

    It is then understood, so that a relation that all pairs of two colours have, such as one that involves a colour
    of a single vertex, constrains nothing. Where most pairs have the same label, those without any get one of their
    own.

    Returns:
        The smaller graph, and for each family and two colours where a label was dropped
        (family, colour of the tail, colour of the head, label).
    """
    names, colour = np.unique(graph.colour, return_inverse=True)
    colours, families = len(names), int(graph.family.max(initial=0)) + 1
    family = graph.family[graph.label]
    block_of = (family * colours + colour[graph.tail]) * colours + colour[graph.head]
    blocks, block = np.unique(block_of, return_inverse=True)
    if not len(blocks):
        return graph, ()
    pairs = _pair_counts(graph, colour, blocks, colours)
    # Most frequent label of each block, the smallest of several.
    labels = len(graph.family)
    keys, counts = np.unique(block * labels + graph.label, return_counts=True)
    order = np.lexsort((keys, -counts, keys // labels))
    order = order[np.r_[True, (keys[order] // labels)[1:] != (keys[order] // labels)[:-1]]]
    commonest, often = keys[order] % labels, counts[order]
    absent = pairs - np.bincount(block, minlength=len(blocks))
    dropped = often > absent
    keep = ~(dropped[block] & (commonest[block] == graph.label))
    uniform = tuple(
        (int(key // colours**2), int(names[key // colours % colours]), int(names[key % colours]), int(label))
        for key, label in zip(blocks[dropped], commonest[dropped], strict=True)
    )
    tail, head, label = graph.tail[keep], graph.head[keep], graph.label[keep]
    missing = [
        _absent_pairs(graph, colour, graph.tail[block == b], graph.head[block == b], int(blocks[b]), colours)
        for b in np.flatnonzero(dropped & (absent > 0))
    ]
    for (more_tail, more_head), b in zip(missing, np.flatnonzero(dropped & (absent > 0)), strict=True):
        tail, head = np.concatenate([tail, more_tail]), np.concatenate([head, more_head])
        label = np.concatenate([label, np.full(len(more_tail), labels + blocks[b] // colours**2)])
    all_families = np.concatenate([graph.family, np.arange(families)]) if missing else graph.family
    return replace(graph, tail=tail, head=head, label=label, family=all_families), uniform


def _pair_counts(graph: Graph, colour: Ints, blocks: Ints, colours: int) -> Ints:
    """Number of ordered pairs of vertices that could have an arc, for each block."""
    size = np.bincount(colour, minlength=colours)
    first, second = blocks // colours % colours, blocks % colours
    same_vertex = np.where(first == second, size[first], 0)
    twins = _twins(graph)
    keys, counts = np.unique(colour[twins[0]] * colours + colour[twins[1]], return_counts=True)
    twin = np.zeros(len(blocks), dtype=np.int64)
    if len(keys):
        at = np.minimum(np.searchsorted(keys, blocks % colours**2), len(keys) - 1)
        twin = np.where((keys[at] == blocks % colours**2) & (blocks >= colours**2), counts[at], 0)
    return size[first] * size[second] - same_vertex - twin


def _twins(graph: Graph) -> tuple[Ints, Ints]:
    """Pairs of different vertices of one unit, in both orders."""
    order = np.argsort(graph.unit, kind="stable")
    pair = np.flatnonzero(graph.unit[order][1:] == graph.unit[order][:-1])
    first, second = order[pair], order[pair + 1]
    return np.concatenate([first, second]), np.concatenate([second, first])


def _absent_pairs(graph: Graph, colour: Ints, tail: Ints, head: Ints, block: int, colours: int) -> tuple[Ints, Ints]:
    """Pairs of a block that have no arc; less than half of all, or the block would not be looked at."""
    first = np.flatnonzero(colour == block // colours % colours)
    second = np.flatnonzero(colour == block % colours)
    free = np.ones((len(first), len(second)), dtype=bool)
    free[np.searchsorted(first, tail), np.searchsorted(second, head)] = False
    same = np.equal if block < colours**2 else lambda a, b: graph.unit[a] == graph.unit[b]
    free &= ~same(first[:, None], second[None, :])
    rows, columns = np.nonzero(free)
    return first[rows], second[columns]


@dataclass(frozen=True)
class _Kind:
    """Isomorphic components: their vertices in corresponding order, shape (k, m), and the group of the first."""

    vertices: Ints
    group: Group


def _kinds(graph: Graph, component: Ints, deadline: float | None) -> list[_Kind]:
    """The components of a graph by isomorphism class, in an order that does not depend on the vertices' names."""
    by_component = np.lexsort((np.arange(len(component)), graph.colour, component))
    starts = np.flatnonzero(np.r_[True, np.diff(component[by_component]) != 0])
    sizes = np.diff(np.r_[starts, len(component)])
    singles = by_component[starts[sizes == 1]]
    kinds = []
    for colour in np.unique(graph.colour[singles]):
        vertices = singles[graph.colour[singles] == colour]
        kinds.append(_Kind(vertices[:, None], Group(1, np.zeros(1, dtype=np.int64), f"v{colour}")))

    # Components whose arcs agree when the vertices are numbered by (colour, name) are isomorphic; the others are
    # compared by their canonical forms.
    position = np.empty(len(component), dtype=np.int64)
    position[by_component] = np.arange(len(component)) - np.repeat(starts, sizes)
    place = np.empty(len(component), dtype=np.int64)
    place[by_component] = np.repeat(np.arange(len(starts)), sizes)
    where = place[graph.tail]
    order = np.lexsort((position[graph.head], position[graph.tail], graph.label, where))
    arcs = np.stack([graph.label, position[graph.tail], position[graph.head]], axis=1)[order]
    bounds = np.searchsorted(where[order], np.arange(len(starts) + 1))
    twin = np.full(len(component), -1)
    twins = _twins(graph)
    twin[twins[0]] = np.where(component[twins[0]] == component[twins[1]], position[twins[1]], -1)
    alike: dict[bytes, list[int]] = {}
    for c in np.flatnonzero(sizes > 1).tolist():
        vertices = by_component[starts[c] : starts[c] + sizes[c]]
        key = b"|".join(
            part.tobytes() for part in (graph.colour[vertices], twin[vertices], arcs[bounds[c] : bounds[c + 1]])
        )
        alike.setdefault(key, []).append(c)
    forms: dict[str, tuple[Group, list[Ints]]] = {}
    for components in alike.values():
        c = components[0]
        rows = np.stack([by_component[starts[i] : starts[i] + sizes[i]] for i in components])
        group = automorphisms(graph.part(rows[0], order[bounds[c] : bounds[c + 1]]), deadline)
        forms.setdefault(group.form, (group, []))[1].append(rows[:, group.canonical])
    for group, rows_of in forms.values():
        rows = np.concatenate(rows_of)
        # The group's own vertices are those of the first component, in the order before `canonical`.
        inverse = np.argsort(group.canonical)
        kinds.append(_Kind(rows, _renumber(group, inverse)))
    return sorted(kinds, key=lambda kind: kind.group.form)


def _renumber(group: Group, names: Ints) -> Group:
    """The same group with vertex v called names[v]."""
    return replace(
        group,
        canonical=names[group.canonical],
        swaps=tuple(names[swap] for swap in group.swaps),
        moves=tuple((names[source], names[target]) for source, target in group.moves),
    )


def _combine(kinds: list[_Kind], uniform: tuple[tuple[int, ...], ...]) -> Group:
    """The group of a graph from its components: a product of wreath products."""
    order, factors = 1, Counter[int]()
    swaps: list[Ints] = []
    moves: list[tuple[Ints, Ints]] = []
    for kind in kinds:
        copies = len(kind.vertices)
        order *= kind.group.order**copies * math.factorial(copies)
        for factor, exponent in kind.group.factors.items():
            factors[factor] += exponent * copies
        if copies > 1:
            factors[copies] += 1
            swaps.append(kind.vertices)
        inner = _renumber(kind.group, kind.vertices[0])
        swaps += inner.swaps
        moves += inner.moves
    form = repr((uniform, [(kind.group.form, len(kind.vertices)) for kind in kinds]))
    canonical = np.concatenate([kind.vertices.ravel() for kind in kinds]) if kinds else np.zeros(0, dtype=np.int64)
    searched = any(kind.group.searched for kind in kinds)
    return Group(order, canonical, form, factors, tuple(swaps), tuple(moves), searched)


def _search(graph: Graph, deadline: float | None) -> Group:
    """The group of a connected graph by BLISS."""
    vertices = len(graph.colour)
    generators, labelling, count = _bliss(*_plain(graph), deadline)
    canonical = np.argsort(labelling[:vertices], kind="stable")
    rank = np.argsort(canonical)
    arcs = sorted(zip(graph.label.tolist(), rank[graph.tail].tolist(), rank[graph.head].tolist(), strict=True))
    form = repr((graph.colour[canonical].tolist(), arcs))
    moves = []
    for generator in generators:
        image = generator[:vertices]
        moved = np.flatnonzero(image != np.arange(vertices))
        moves.append((moved, image[moved]))
    # The count may have passed through a float.
    order = count if count < 2**53 else _order_by_stabilisers(graph, moves, deadline)
    factors = Counter({-order: 1}) if order > 1 else Counter[int]()
    return Group(order, canonical, form, factors, (), tuple(moves), searched=True)


def _order_by_stabilisers(graph: Graph, moves: list[tuple[Ints, Ints]], deadline: float | None) -> int:
    """Exact order: the length of one vertex's orbit times the order of the group that leaves the vertex alone."""
    ends = [np.concatenate([move[side] for move in moves]) for side in (0, 1)]
    orbit = connected_components(len(graph.colour), *ends)
    vertex = int(np.bincount(orbit).argmax())
    length = int((orbit == vertex).sum())
    family = graph.family[graph.label]
    entries = [
        Entries.of(graph.tail[family == f], graph.head[family == f], graph.label[family == f].astype(np.float64))
        for f in np.unique(family)
    ]
    colour = np.unique(graph.colour, return_inverse=True)[1]
    colour[vertex] = len(colour)
    stabiliser = replace(graph, colour=refine(colour[None, :], entries, deadline)[0])
    return length * automorphisms(stabiliser, deadline).order


def _plain(graph: Graph) -> tuple[int, list[tuple[int, int]], list[int]]:
    """An unlabelled digraph with the same automorphisms: each arc goes through a vertex coloured by its label."""
    vertices, arcs = len(graph.colour), len(graph.label)
    middle = vertices + np.arange(arcs)
    edges = np.concatenate([np.stack([graph.tail, middle], 1), np.stack([middle, graph.head], 1)])
    colour = np.unique(graph.colour, return_inverse=True)[1]
    labels = np.unique(graph.label, return_inverse=True)[1] + colour.max() + 1
    return vertices + arcs, list(map(tuple, edges.tolist())), np.concatenate([colour, labels]).tolist()


_SMALL = 200  # vertices; BLISS needs milliseconds for so few

_BLISS = """
import json, sys
from pyro_sps.symmetry.automorphisms import _bliss_here
vertices, edges, colours = json.load(sys.stdin)
json.dump(_bliss_here(vertices, [tuple(edge) for edge in edges], colours), sys.stdout)
"""

_Answer = tuple[list[list[int]], list[int], int]


def _bliss(
    vertices: int, edges: list[tuple[int, int]], colours: list[int], deadline: float | None
) -> tuple[list[Ints], Ints, int]:
    """Generators, canonical labelling and number of automorphisms of a vertex-coloured digraph."""
    call: Callable[..., _Answer] = _bliss_here
    if deadline is not None and vertices > _SMALL:
        # BLISS cannot be interrupted and may take for ever: a process of its own can be ended.
        def call(*graph: object) -> _Answer:
            try:
                done = subprocess.run(
                    [sys.executable, "-c", _BLISS],
                    input=json.dumps(graph),
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=max(deadline - time.monotonic(), 0.0),
                )
            except subprocess.TimeoutExpired as error:
                raise OutOfTimeError from error
            return json.loads(done.stdout)

    generators, labelling, count = call(vertices, edges, colours)
    return [np.array(generator) for generator in generators], np.array(labelling), count


def _bliss_here(vertices: int, edges: list[tuple[int, int]], colours: list[int]) -> _Answer:
    import igraph

    graph = igraph.Graph(n=vertices, edges=edges, directed=True)
    count = int(graph.count_automorphisms(color=colours))
    return graph.automorphism_group(color=colours), graph.canonical_permutation(color=colours), count
