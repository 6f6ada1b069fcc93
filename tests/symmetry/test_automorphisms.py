"""Orders, generators and canonical forms of graphs' automorphism groups: closed forms, brute force, relabellings."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_sps.symmetry.automorphisms import automorphisms
from pyro_sps.symmetry.refinement import Graph


def graph(colour, tail, head, label=None):
    """A graph in which each vertex is a unit of its own; labels are of one family."""
    label = np.ones(len(tail), dtype=np.int64) if label is None else np.asarray(label)
    family = np.r_[0, np.ones(int(label.max(initial=1)), dtype=np.int64)]
    ends = (np.asarray(end, dtype=np.int64) for end in (tail, head))
    return Graph(np.asarray(colour, dtype=np.int64), np.arange(len(colour)), *ends, label, family)


def renamed(one, rng):
    """The same graph with its vertices in another order."""
    to = rng.permutation(len(one.colour))
    colour = np.empty_like(one.colour)
    colour[to] = one.colour
    return replace(one, colour=colour, tail=to[one.tail], head=to[one.head])


def copies(one, count, rng):
    """A graph next to renamed ones of itself."""
    parts, size = [one, *(renamed(one, rng) for _ in range(count - 1))], len(one.colour)
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("colour", "label")}
    ends = {
        name: np.concatenate([getattr(part, name) + size * i for i, part in enumerate(parts)])
        for name in ("tail", "head")
    }
    return replace(one, unit=np.arange(count * size), **joined, **ends)


def is_automorphism(one, to):
    arcs = set(zip(one.tail.tolist(), one.head.tolist(), one.label.tolist(), strict=True))
    moved = set(zip(to[one.tail].tolist(), to[one.head].tolist(), one.label.tolist(), strict=True))
    return arcs == moved and (one.colour[to] == one.colour).all()


def random_graph(rng, vertices):
    """Few colours and labels, and degrees that are much alike, so that symmetries are left and searches needed."""
    to = rng.permutation(vertices)
    tail = [np.arange(vertices), to] if rng.random() < 0.5 else [to]
    head = [np.roll(np.arange(vertices), -1), np.roll(to, -int(rng.integers(1, 3)))][-len(tail) :]
    tail, head = np.concatenate(tail), np.concatenate(head)
    arcs = np.unique(np.stack([tail, head])[:, tail != head], axis=1)
    colour = rng.integers(2, size=vertices) if rng.random() < 0.5 else np.zeros(vertices, dtype=np.int64)
    return graph(colour, *arcs, rng.integers(1, 3, size=arcs.shape[1]) if rng.random() < 0.3 else None)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_orders_are_those_of_all_permutations(seed):
    one = random_graph(np.random.default_rng(seed), 6)
    found = automorphisms(one)
    assert found.order == sum(is_automorphism(one, np.array(to)) for to in itertools.permutations(range(6)))
    for source, target in found.moves:
        to = np.arange(6)
        to[source] = target
        assert is_automorphism(one, to)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from([6, 9, 14]))
def test_a_graph_and_the_same_by_other_names_have_one_form(seed, vertices):
    rng = np.random.default_rng(seed)
    one = random_graph(rng, vertices)
    assert automorphisms(one).form == automorphisms(renamed(one, rng)).form


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(2, 3))
def test_copies_can_take_each_others_place(seed, count):
    """Their group is a wreath product, which has to be seen whatever the vertices are called."""
    rng = np.random.default_rng(seed)
    one = random_graph(rng, 9)
    one = replace(one, tail=np.r_[one.tail, np.arange(8)], head=np.r_[one.head, np.arange(1, 9)])
    one = replace(
        one, label=np.r_[one.label, np.full(8, 3)], family=np.array([0, 1, 1, 2])
    )  # a path, so it is connected
    both = copies(one, count, rng)
    assert automorphisms(both).order == automorphisms(one).order ** count * math.factorial(count)


def grid(rows, columns, same=False):
    """Rows and columns, and a cell for each pair: as heads, what they share, and the outputs of both."""
    row, column = (part.ravel() for part in np.indices((rows, columns)))
    cells = rows + columns + np.arange(rows * columns)
    colour = np.r_[np.zeros(rows), np.zeros(columns) if same else np.ones(columns), np.full(len(cells), 2)]
    return graph(colour, np.r_[cells, cells], np.r_[row, rows + column])


@pytest.mark.parametrize("large", [2, 10**9])
@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (3, 4), (4, 4), (3, 7)])
def test_grids(rows, columns, large, monkeypatch):
    """One vertex after the other is held, or BLISS searches: rows and columns each in any order."""
    monkeypatch.setattr("pyro_sps.symmetry.automorphisms._LARGE", large)
    rng = np.random.default_rng(rows)
    expected = math.factorial(rows) * math.factorial(columns)
    one = renamed(grid(rows, columns), rng)
    found = automorphisms(one)
    assert found.order == expected
    for source, target in found.moves:
        to = np.arange(len(one.colour))
        to[source] = target
        assert is_automorphism(one, to)
    assert automorphisms(copies(one, 3, rng)).order == expected**3 * 6
    # And where a row can become a column.
    both = expected * 2 if rows == columns else expected
    assert automorphisms(renamed(grid(rows, columns, same=True), rng)).order == both


def test_large_grids_need_no_search():
    found = automorphisms(grid(4, 64))
    assert (found.order, found.searched) == (math.factorial(4) * math.factorial(64), False)
