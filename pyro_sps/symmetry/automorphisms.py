"""Exact orders and generators of the automorphism groups of coloured, labelled graphs.

Four steps, each of which only ever makes the work of the next smaller:

1. `refine`: colour refinement with hashed colours. Two units that get different colours can be told apart, so a
   discrete colouring is a proof that no symmetry is left. A hash collision can only leave colours too coarse, which
   is work for the later steps but never a wrong result.
2. Reduction of what is left (`automorphisms`): relations that are the same for all pairs of two colours are dropped,
   and the graph falls into connected components. The order is the product over the isomorphism classes of
   components of (order of one)^k k!.
3. One of a few vertices of a colour, such as a sign that all units of a norm share or a head that shares its keys with
   others, is held fast: without it a connected graph often falls into parts.
4. Search: only connected components that cannot be reduced go to BLISS (T. Junttila and P. Kaski, 2007), by way of
   python-igraph.

It knows nothing of networks: see `pyro_sps.symmetry`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from .bliss import plain_graph, run_bliss
from .refinement import Entries, Graph, Ints, check_deadline, connected_components, refine


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
    check_deadline(deadline)
    reduced, uniform = _drop_uniform(graph)
    component = _components(reduced)
    if not len(uniform) and len(graph.colour) > 1 and not component.any():
        return _by_holding(graph, deadline) or _search(graph, deadline)
    return _combine(_kinds(reduced, component, deadline), uniform)


def _drop_uniform(graph: Graph) -> tuple[Graph, Ints]:
    """Drop the commonest label, or absence, of each family between each two colours.

    It is then understood, so that a relation that all pairs of two colours have, such as one that involves a colour
    of a single vertex, constrains nothing. Where most pairs have the same label, those without any get one of their
    own.

    Returns:
        The smaller graph, and for each family and two colours where a label was dropped a row
        (family, colour of the tail, colour of the head, label).
    """
    names, colour = np.unique(graph.colour, return_inverse=True)
    colours, families = len(names), int(graph.family.max(initial=0)) + 1
    family = graph.family[graph.label]
    block_of = (family * colours + colour[graph.tail]) * colours + colour[graph.head]
    blocks, block = np.unique(block_of, return_inverse=True)
    if not len(blocks):
        return graph, np.zeros((0, 4), dtype=np.int64)
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
    keys = blocks[dropped]
    ends = names[keys // colours % colours], names[keys % colours]
    uniform = np.stack([keys // colours**2, *ends, commonest[dropped]], axis=1)
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


def _combine(kinds: list[_Kind], uniform: Ints) -> Group:
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
    form = _digest((uniform.tolist(), [(kind.group.form, len(kind.vertices)) for kind in kinds]))
    canonical = np.concatenate([kind.vertices.ravel() for kind in kinds]) if kinds else np.zeros(0, dtype=np.int64)
    searched = any(kind.group.searched for kind in kinds)
    return Group(order, canonical, form, factors, tuple(swaps), tuple(moves), searched)


def _digest(content: object) -> str:
    """A short name of what a form says; forms are within forms, and would grow with every level."""
    return hashlib.sha256(repr(content).encode()).hexdigest()


# Vertices of a connected graph from which on it is tried to hold one; BLISS needs milliseconds for fewer.
_LARGE = 100
# Vertices of a colour up to which it is tried to hold one of them.
_FEW = 32
# How many of them may be different in truth: each takes a group of its own, which BLISS needs not.
_WAYS = 3


def _by_holding(graph: Graph, deadline: float | None) -> Group | None:
    """The group of a connected graph by the stabiliser of one of a few vertices that look alike.

    The group is that of the automorphisms which leave the vertex alone, times the number of vertices that one of them
    takes it to: those with which held the graph is isomorphic to the graph with the first held.

    Returns:
        The group; None where the graph is small, no colour has a few vertices, the graph does not fall into parts, or
        vertices only look alike.
    """
    names, colour, size = np.unique(graph.colour, return_inverse=True, return_counts=True)
    few = int(size[size > 1].min(initial=_FEW + 1))
    if len(colour) < _LARGE or few > _FEW:
        return None
    degree = _degrees(graph)
    most = np.zeros(len(names), dtype=np.int64)
    np.maximum.at(most, colour, degree)
    chosen = int(np.argmax(np.where(size == few, most, -1)))
    vertices = np.flatnonzero(colour == chosen)
    held = _held(graph, vertices[:1], deadline)
    if few == 2 and not _components(_drop_uniform(held)[0]).any():
        return None
    first = automorphisms(held, deadline)
    groups, moves = [first], list(first.moves)
    orbit = _orbits(len(colour), first)
    for i in range(1, few):
        if (orbit[vertices[:i]] == orbit[vertices[i]]).any():
            continue  # what one of its orbit showed
        other = _held(graph, vertices[i : i + 1], deadline)
        image = _isomorphism(held, other, deadline)
        if image is None:
            groups.append(automorphisms(other, deadline))
            if groups[-1].form == first.form:
                image = np.empty(len(colour), dtype=np.int64)
                image[first.canonical] = groups[-1].canonical
            elif len({group.form for group in groups}) > _WAYS:
                return None
        if image is not None:
            moved = np.flatnonzero(image != np.arange(len(colour)))
            moves.append((moved, image[moved]))
            orbit = np.where(orbit == orbit[vertices[i]], orbit[vertices[0]], orbit)
    length = int((orbit[vertices] == orbit[vertices[0]]).sum())
    best = min(groups, key=lambda group: group.form)
    return Group(
        length * first.order,
        best.canonical,
        _digest((int(names[chosen]), best.form)),
        first.factors + (Counter({-length: 1}) if length > 1 else Counter()),
        first.swaps,
        tuple(moves),
        first.searched,
    )


def _orbits(count: int, group: Group) -> Ints:
    """For each vertex a number of those that a group takes it to."""
    pairs = [np.stack(move) for move in group.moves]
    pairs += [np.stack(np.broadcast_arrays(swap[:1], swap)).reshape(2, -1) for swap in group.swaps]
    tail, head = np.concatenate([np.zeros((2, 0), dtype=np.int64), *pairs], axis=1)
    return connected_components(count, tail, head)


def _isomorphism(one: Graph, other: Graph, deadline: float | None) -> Ints | None:
    """Where an isomorphism takes the vertices of one graph in another, if it is found at once.

    In both, one vertex after the other of those whose colour others have is held, whichever it is; in all parts that
    the graph falls into at once, since they do not see each other. Where all of a colour can take each
    other's place, as units that flip or swap can, both ways lead to the same graph. That saves a search in each of two
    graphs, and in two within each of those.

    Returns:
        The images, or None if there is no isomorphism or this does not show one.
    """
    ways = []
    for graph in (one, other):
        held = graph
        while len(vertices := _one_of_several(held)):
            held = _held(held, vertices, deadline)
        colour = held.colour
        order = np.argsort(colour)
        rank = np.argsort(order)
        twins = _twins(graph)
        arcs = np.stack([graph.label, rank[graph.tail], rank[graph.head]])
        pairs = np.stack([rank[twins[0]], rank[twins[1]]])
        told = (graph.colour[order], arcs[:, np.lexsort(arcs)], pairs[:, np.lexsort(pairs)])
        ways.append((order, told))
    (first, told), (second, again) = ways
    if not all(np.array_equal(a, b) for a, b in zip(told, again, strict=True)):
        return None
    image = np.empty(len(first), dtype=np.int64)
    image[first] = second
    return image


def _one_of_several(graph: Graph) -> Ints:
    """In each connected component a vertex whose colour others have: of those with most neighbours the first colour.

    A sign that all units of a norm share has many, and without it what is left falls into parts.
    """
    _, colour, size = np.unique(graph.colour, return_inverse=True, return_counts=True)
    reduced = _drop_uniform(graph)[0]
    component, degree = _components(reduced), _degrees(reduced)
    several = np.flatnonzero(size[colour] > 1)
    in_order = several[np.lexsort((colour[several], -degree[several]))]
    first = np.sort(np.unique(component[in_order], return_index=True)[1])
    return in_order[first]


def _components(graph: Graph) -> Ints:
    """The number of each vertex's connected component."""
    return connected_components(len(graph.colour), graph.tail, graph.head)


def _degrees(graph: Graph) -> Ints:
    """How many arcs each vertex has."""
    return np.bincount(np.concatenate([graph.tail, graph.head]), minlength=len(graph.colour))


def _held(graph: Graph, vertices: Ints, deadline: float | None) -> Graph:
    """The graph in which some vertices have colours of their own, and what can be told apart by them too."""
    family = graph.family[graph.label]
    entries = [
        Entries.of(graph.tail[family == f], graph.head[family == f], graph.label[family == f].astype(np.float64))
        for f in np.unique(family)
    ]
    colour = np.unique(graph.colour, return_inverse=True)[1]
    colour[vertices] = len(colour) + np.arange(len(vertices))
    return replace(graph, colour=refine(colour[None, :], entries, deadline)[0])


def _search(graph: Graph, deadline: float | None) -> Group:
    """The group of a connected graph by BLISS."""
    vertices = len(graph.colour)
    generators, labelling, count = run_bliss(*plain_graph(graph), deadline)
    canonical = np.argsort(labelling[:vertices], kind="stable")
    rank = np.argsort(canonical)
    arcs = sorted(zip(graph.label.tolist(), rank[graph.tail].tolist(), rank[graph.head].tolist(), strict=True))
    form = _digest((graph.colour[canonical].tolist(), arcs))
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
    size = np.bincount(orbit, minlength=len(orbit))[orbit]
    degree = _degrees(graph)
    # One with many neighbours, such as a sign that all units of a norm share: without it the graph falls into parts.
    vertex = int(np.lexsort((size, np.where(size > 1, degree, -1)))[-1])
    length = int(size[vertex])
    return length * automorphisms(_held(graph, np.array([vertex]), deadline), deadline).order
