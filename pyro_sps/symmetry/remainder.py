"""What is left to be searched once refinement has told apart what it can."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .refinement import Entries, Floats, Graph, Ints, connected_components


def what_is_left(cell: Ints, entries: Sequence[Entries]) -> tuple[Graph, Ints]:
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


def _uniform(kind: Ints, tail: Ints, head: Ints, value: Floats, signed: bool) -> NDArray[np.bool_]:
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
