"""Finds the units of a recorded network that any invertible linear map may mix; see `mixtures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .codes import Codes, Ints, mix, pair
from .elements import LINEAR, SCALE
from .mixtures import Mixture, Part
from .recorder import Recorder


def mixtures_of(recorder: Recorder, root: Ints, kind: Codes, links: tuple[Ints, Ints, Codes]) -> tuple[Mixture, ...]:
    """The mixtures of a recorded network.

    Units can be mixed if nothing but linear maps makes and reads them, if each has a scale of its own, and if any two
    of them could change places with all else as it is.

    Args:
        recorder: What was found.
        root: For each atom its unit, named by its first atom.
        kind: For each unit (by its first atom) its kind.
        links: Blocks: (child, parent, label), by first atoms.
    """
    atoms = recorder.atoms
    count = len(root)
    scale = atoms.characters[SCALE].root
    lost = np.zeros(count, dtype=bool)
    lost[scale[atoms.lost[LINEAR] | atoms.pinned(np.arange(count))]] = True
    bad = np.zeros(count, dtype=bool)
    bad[root[lost[scale]]] = True
    # A scale of several units is none of each.
    owner = np.full(count, -1)
    owner[scale] = root
    shared = owner[scale] != root
    spoiled = np.zeros(count, dtype=bool)
    spoiled[scale[shared]] = True
    bad[root[spoiled[scale]]] = True
    child, parent, label = links
    bad[parent] = True
    place = np.zeros(count, dtype=np.uint64)
    np.add.at(place, child, mix(pair(label, parent)))
    duals = {int(scale[a]): int(scale[b]) for left, right in atoms.duals for a, b in zip(left, right, strict=True)}
    twins = {**duals, **{b: a for a, b in duals.items()}}
    sets: dict[tuple[int, int], list[int]] = {}
    read = np.unique(root[_read(recorder)])
    for unit in read[~bad[read]].tolist():
        sets.setdefault((int(kind[unit]), int(place[unit])), []).append(unit)
    # Classes of scales of each unit: one, or two that undo each other.
    some = np.flatnonzero(~bad[root])
    classes: dict[int, list[int]] = {}
    for unit, own in np.unique(np.stack([root[some], scale[some]], 1), axis=0).tolist():
        classes.setdefault(unit, []).append(own)
    where = _axes(recorder, root, scale)
    found = []
    for units in sets.values():
        sides = [_sides(classes[unit], duals, twins) for unit in units]
        if any(side is None for side in sides) or (len(units) == 1 and len(classes[units[0]]) == 1):
            continue
        parts = _parts(units, [side for side in sides if side is not None], where)
        if parts:
            found.append(Mixture(len(units), len(classes[units[0]]) == 1, parts))
    return tuple(found)


def _sides(classes: list[int], duals: dict[int, int], twins: dict[int, int]) -> tuple[int, int] | None:
    """The class of scales on which a map acts, and that on which its inverse does (−1 if there is none)."""
    if len(classes) == 1:
        return None if classes[0] in twins else (classes[0], -1)
    if len(classes) == 2 and twins.get(classes[0]) == classes[1] and twins.get(classes[1]) == classes[0]:
        return (classes[0], classes[1]) if classes[0] in duals else (classes[1], classes[0])
    return None


def _read(recorder: Recorder) -> Ints:
    """Atoms of axes that count units one by one."""
    every = [
        axis.ravel()
        for weight in recorder.weights.values()
        for axis in weight.axes
        if axis is not None and weight.grouped is None
    ]
    return np.concatenate([np.zeros(0, dtype=np.int64), *every])


def _axes(recorder: Recorder, root: Ints, scale: Ints) -> dict[int, list[tuple[str, int, int, int, int]]]:
    """For each unit where it is: tensor, axis, index, class of its scale, and +1 if outputs are along the axis."""
    where: dict[int, list[tuple[str, int, int, int, int]]] = {}
    for name, weight in recorder.weights.items():
        for axis, own in enumerate(weight.axes):
            if own is None:
                continue
            role = weight.roles.get(axis, 1)
            flat = own.ravel()
            rows: Any = zip(root[flat].tolist(), range(len(flat)), scale[flat].tolist(), strict=True)
            for unit, index, character in rows:
                where.setdefault(unit, []).append((name, axis, index, character, role))
    return where


def _parts(
    units: list[int], sides: list[tuple[int, int]], where: Mapping[int, list[tuple[str, int, int, int, int]]]
) -> tuple[Part, ...]:
    """What a map of the units does to each axis; nothing where they do not correspond."""
    columns: list[dict[tuple[str, int, bool], list[int]]] = []
    for unit, side in zip(units, sides, strict=True):
        own: dict[tuple[str, int, bool], list[int]] = {}
        for name, axis, index, character, role in where[unit]:
            own.setdefault((name, axis, (role < 0) != (character == side[1])), []).append(index)
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
