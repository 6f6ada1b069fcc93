"""Finds the units of a recorded network that any invertible linear map may mix; see `mixtures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .codes import Classes, Codes, Ints, mix, pair
from .elements import LINEAR, SCALE
from .mixtures import Mixture, Part
from .recorder import Recorder


def mixtures_of(recorder: Recorder, root: Ints, kind: Codes, links: tuple[Ints, Ints, Codes]) -> tuple[Mixture, ...]:
    """The mixtures of a recorded network.

    Units can be mixed if nothing but linear maps makes and reads them, if each has a scale of its own, and if any two
    of them could change places with all else as it is. What several heads make of a value that they share is one with
    it, as are queries that share a key.

    Args:
        recorder: What was found.
        root: For each atom its unit, named by its first atom.
        kind: For each unit (by its first atom) its kind.
        links: Blocks: (child, parent, label), by first atoms.
    """
    atoms = recorder.atoms
    count = len(root)
    scale = atoms.characters[SCALE].root
    duals = {(int(scale[a]), int(scale[b])) for sides in atoms.duals for a, b in zip(*sides, strict=True)}
    whole, links = _with_children(root, scale, links, duals)
    lost = np.zeros(count, dtype=bool)
    lost[scale[atoms.lost[LINEAR] | atoms.pinned(np.arange(count))]] = True
    bad = np.zeros(count, dtype=bool)
    bad[whole[lost[scale]]] = True
    # A scale of several units is none of each.
    owner = np.full(count, -1)
    owner[scale] = whole
    shared = owner[scale] != whole
    spoiled = np.zeros(count, dtype=bool)
    spoiled[scale[shared]] = True
    bad[whole[spoiled[scale]]] = True
    child, parent, label = links
    bad[whole[parent]] = True
    place = np.zeros(count, dtype=np.uint64)
    units = np.unique(root)
    np.add.at(place, whole[units], mix(kind[units]))
    np.add.at(place, whole[child], mix(pair(pair(label, parent), kind[child])))
    sets: dict[int, list[int]] = {}
    read = np.unique(whole[_read(recorder)])
    for unit in read[~bad[read]].tolist():
        sets.setdefault(int(place[unit]), []).append(unit)
    # Classes of scales of each unit: one, or some that undo others.
    some = np.flatnonzero(~bad[whole])
    classes: dict[int, list[int]] = {}
    for unit, own in np.unique(np.stack([whole[some], scale[some]], 1), axis=0).tolist():
        classes.setdefault(unit, []).append(own)
    where = _axes(recorder, whole, scale)
    undone = (frozenset(a for a, _ in duals), frozenset(b for _, b in duals))
    found = []
    for mixed in sets.values():
        sides = [_inverse(classes[unit], duals, undone) for unit in mixed]
        if any(side is None for side in sides) or (len(mixed) == 1 and len(classes[mixed[0]]) == 1):
            continue
        parts = _parts(mixed, [side for side in sides if side is not None], where)
        if parts:
            found.append(Mixture(len(mixed), len(classes[mixed[0]]) == 1, parts))
    return tuple(found)


def _with_children(
    root: Ints, scale: Ints, links: tuple[Ints, Ints, Codes], duals: set[tuple[int, int]]
) -> tuple[Ints, tuple[Ints, Ints, Codes]]:
    """Units with those that belong to them and have their scale, or one that undoes it: one unit.

    Returns:
        For each atom its unit, and the links that are left.
    """
    child, parent, label = links
    both = duals | {(b, a) for a, b in duals}
    scales: dict[int, set[int]] = {}
    for unit, own in np.unique(np.stack([root, scale], 1), axis=0).tolist():
        scales.setdefault(unit, set()).add(own)

    def is_one(first: int, second: int) -> bool:
        return any(a == b or (a, b) in both for a in scales[first] for b in scales[second])

    inner = np.array([is_one(*ends) for ends in zip(child.tolist(), parent.tolist(), strict=True)], dtype=bool)
    together = Classes()
    together.grow(len(root))
    together.merge(child[inner], parent[inner])
    return together.root[root], (child[~inner], parent[~inner], label[~inner])


def _inverse(
    classes: list[int], duals: set[tuple[int, int]], undone: tuple[frozenset[int], frozenset[int]]
) -> frozenset[int] | None:
    """The classes of scales on which the inverse of a map acts; none where all are one. None if that is not clear.

    Args:
        classes: Those of one unit.
        duals: Pairs of classes that undo each other.
        undone: All that are first in such a pair, and all that are second.
    """
    if len(classes) == 1:
        return None if any(classes[0] in ends for ends in undone) else frozenset()
    second = undone[1].intersection(classes)
    first = set(classes) - second
    return second if first and all((a, b) in duals for a in first for b in second) else None


def _read(recorder: Recorder) -> Ints:
    """Atoms of axes that count units one by one."""
    every = [
        axis.ravel()
        for weight in recorder.weights.values()
        for axis in weight.axes
        if axis is not None and weight.grouped is None
    ]
    return np.concatenate([np.zeros(0, dtype=np.int64), *every])


def _axes(recorder: Recorder, root: Ints, scale: Ints) -> dict[int, list[tuple[str, tuple[int, ...], int, int, int]]]:
    """For each unit where it is: tensor, axes, index, class of its scale, and +1 if outputs are along the axes."""
    where: dict[int, list[tuple[str, tuple[int, ...], int, int, int]]] = {}
    for name, weight in recorder.weights.items():
        for axis, own in enumerate(weight.axes):
            if own is None:
                continue
            role = weight.roles.get(axis, 1)
            flat = own.ravel()
            rows: Any = zip(root[flat].tolist(), range(len(flat)), scale[flat].tolist(), strict=True)
            for unit, index, character in rows:
                where.setdefault(unit, []).append((name, weight.over.get(axis, (axis,)), index, character, role))
    return where


def _parts(
    units: list[int],
    sides: list[frozenset[int]],
    where: Mapping[int, list[tuple[str, tuple[int, ...], int, int, int]]],
) -> tuple[Part, ...]:
    """What a map of the units does to each axis; nothing where they do not correspond."""
    columns: list[dict[tuple[str, tuple[int, ...], bool], list[int]]] = []
    for unit, side in zip(units, sides, strict=True):
        own: dict[tuple[str, tuple[int, ...], bool], list[int]] = {}
        for name, axes, index, character, role in where[unit]:
            own.setdefault((name, axes, (role < 0) != (character in side)), []).append(index)
        columns.append(own)
    first = columns[0]
    if any(own.keys() != first.keys() for own in columns):
        return ()
    parts = []
    for key, known in first.items():
        # Several indices of a unit on one axis, in order, are several slots.
        if any(len(own[key]) != len(known) for own in columns):
            return ()
        for slot in range(len(known)):
            parts.append(Part(key[0], key[1], tuple(own[key][slot] for own in columns), key[2]))
    return tuple(parts)
