"""Symmetries of small networks by trying all of them: what certificates are compared with."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np


@lru_cache
def elements(size: int, moves: bool, flips: bool) -> tuple[np.ndarray, np.ndarray]:
    """All permutations and signs of a layer, each of shape (elements, size)."""
    orders = list(itertools.permutations(range(size))) if moves else [tuple(range(size))]
    signs = list(itertools.product([1.0, -1.0], repeat=size)) if flips else [(1.0,) * size]
    pairs = list(itertools.product(orders, signs))
    return np.array([order for order, _ in pairs]), np.array([sign for _, sign in pairs])


def agreeing(fixed: np.ndarray, value: np.ndarray, rows: tuple, columns: tuple) -> np.ndarray:
    """Which pairs of elements map a matrix of fixed entries onto itself, shape (rows, columns).

    fixed[p(i), q(j)] == fixed[i, j] and value[p(i), q(j)] == s_i t_j value[i, j] for all i, j, written with everything
    of the rows on the left and of the columns on the right.
    """
    (p, s), (q, t) = rows, columns
    value = np.where(fixed, value, 0.0)
    inverse = np.argsort(q, axis=1)
    left = np.concatenate([fixed[p], s[:, :, None] * value[p]], axis=2).reshape(len(p), -1)
    signed = np.take_along_axis(np.broadcast_to(t[:, None, :] * value, (len(q), *value.shape)), inverse[:, None, :], 2)
    right = np.concatenate([fixed[:, inverse].swapaxes(0, 1), signed], axis=2).reshape(len(q), -1)
    _, names = np.unique(np.concatenate([left, right]) + 0.0, axis=0, return_inverse=True)
    names = names.ravel()
    return names[: len(p), None] == names[None, len(p) :]


def brute_force(topology, masks, values, signed, ordered=()) -> int:
    """Number of (signed) permutations that survive, by enumeration."""
    groups = [
        elements(group.size, not group.pinned, signed and group.odd and not group.pinned) for group in topology.groups
    ]
    allowed = [np.ones(len(order), dtype=bool) for order, _ in groups]
    between: dict[tuple[int, int], np.ndarray] = {}
    for tensor in topology.tensors:
        fixed = (~masks[tensor.name]).numpy().reshape(*tensor.shape[: len(tensor.groups)], -1)
        value = values[tensor.name].double().numpy().reshape(fixed.shape)
        for k in range(fixed.shape[-1]):
            f, v = fixed[..., k], value[..., k]
            if not tensor.is_matrix:
                column = elements(1, False, False)
                allowed[tensor.groups[0]] &= agreeing(f[:, None], v[:, None], groups[tensor.groups[0]], column)[:, 0]
                continue
            a, b = tensor.groups
            agree = agreeing(f, v, groups[a], groups[b])
            if a == b:
                allowed[a] &= agree.diagonal()
            else:
                key, agree = ((a, b), agree) if a < b else ((b, a), agree.T)
                between[key] = between.get(key, True) & agree
    for name in ordered:
        (a,) = topology[name].groups
        draws = np.sort(np.random.default_rng(0).normal(size=(40, topology.groups[a].size)), axis=1)
        order, sign = groups[a]
        moved = np.empty((len(order), *draws.shape))
        np.put_along_axis(moved, np.broadcast_to(order[:, None, :], moved.shape), sign[:, None, :] * draws, axis=2)
        allowed[a] &= (np.diff(moved, axis=2) >= 0).all(axis=(1, 2))
    # Count the combinations of all layers' elements in which everything agrees.
    letters = "abcdefgh"
    script = [letters[i] for i in range(len(allowed))] + [letters[a] + letters[b] for a, b in between]
    operands = [flags.astype(np.int64) for flags in [*allowed, *between.values()]]
    return int(np.einsum(",".join(script) + "->", *operands, optimize="greedy"))


def brute_force_scalings(topology, masks, values, ordered=()) -> int:
    """Dimension of the scales that keep all fixed weights: log a_i − log a_j = 0 and log a_i = 0 are linear."""
    first = np.cumsum([0] + [group.size for group in topology.groups])
    scalable = np.repeat(
        [group.homogeneous and not group.pinned for group in topology.groups], [g.size for g in topology.groups]
    )
    unit = np.eye(first[-1])
    equations = [unit[i] for i in range(first[-1]) if not scalable[i]]
    for tensor in topology.tensors:
        for index in itertools.product(*map(range, tensor.shape)):
            if not masks[tensor.name][index] and values[tensor.name][index] != 0:
                signs = [1, -1][: len(tensor.groups)]
                equations.append(sum(s * unit[first[g] + i] for s, g, i in zip(signs, tensor.groups, index)))  # noqa: B905
    for name in ordered:
        (g,) = topology[name].groups
        equations += [unit[first[g] + i] - unit[first[g]] for i in range(topology.groups[g].size)]
    return int(first[-1] - np.linalg.matrix_rank(np.array(equations)))
