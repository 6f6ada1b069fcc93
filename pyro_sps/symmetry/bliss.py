"""The automorphisms of a connected graph by BLISS (T. Junttila and P. Kaski, 2007), by way of python-igraph."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from .refinement import Graph, Ints, OutOfTimeError


def plain_graph(graph: Graph) -> tuple[int, list[tuple[int, int]], list[int]]:
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
from pyro_sps.symmetry.bliss import _bliss_here
vertices, edges, colours = json.load(sys.stdin)
json.dump(_bliss_here(vertices, [tuple(edge) for edge in edges], colours), sys.stdout)
"""


_Answer = tuple[list[list[int]], list[int], int]


def run_bliss(
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
    labelling = graph.canonical_permutation(color=colours)
    # Up to version 0.11 igraph gives the new number of each vertex, from 1.0 on the vertex of each new number.
    if igraph.Graph(3).canonical_permutation(color=[1, 2, 0]) != [1, 2, 0]:
        labelling = np.argsort(labelling).tolist()
    return graph.automorphism_group(color=colours), labelling, count
