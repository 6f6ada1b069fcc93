"""Parameters of several axes, of which two say together which unit it is: heads, networks side by side, layers.

The axes of a parameter that nothing has read are taken to count units each for itself. Where what it meets has a unit
for each pair of indices, so has the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..codes import Ints, first_along
from ..elements import Value
from ..recorder import Recorder


def for_product(recorder: Recorder, left: Value, right: Value) -> Value:
    """A parameter that is multiplied with numbers of the network, as matrices that do not share what they need not.

    Args:
        recorder: What is known.
        left: The numbers, shape (b, l, i).
        right: The parameter, or a view of it, shape (b, i, o).

    Returns:
        The same view, with the units that it has.
    """
    name = right.weight
    if name is None or name not in recorder.fresh:
        return right
    sides: tuple[list[int], list[int], list[int]] = ([], [], [])
    shared = True
    for token in right.tokens:
        axis = recorder.axis_of(name, int(token.flat[0]))
        varies = _varying(token)
        if len(varies) > 1 or axis in recorder.weights[name].over:
            return right
        if not varies and recorder.weights[name].shape[axis] > 1:  # one matrix of several
            if len(right.tokens) < 3:
                return right
            varies, shared = [0], False
        if varies:
            sides[varies[0]].append(axis)
    batch, inside, outside = (tuple(sorted(side)) for side in sides)
    shared &= all(_is_same(array) for array in (left.place, *left.tokens))
    if batch and not shared:
        inside, outside = (tuple(sorted(batch + side)) for side in (inside, outside))
        if inside == outside:
            return right
        return recorder.put_together(name, [inside, outside], batch)(right)
    outside = tuple(sorted(batch + outside))
    several = [side for side in (inside, outside) if len(side) > 1]
    return recorder.put_together(name, several)(right) if several else right


def for_pair(recorder: Recorder, own: Value, other: Value) -> Value:
    """A parameter whose numbers lie beside units that several of its axes are of.

    Args:
        recorder: What is known.
        own: What may be a parameter.
        other: What is beside it, of the same shape.
    """
    if own.weight is None or own.weight not in recorder.fresh:
        return own
    weight = recorder.weights[own.weight]
    along = {recorder.axis_of(own.weight, int(token.flat[0])): set(_varying(token)) for token in own.tokens}
    for token in other.tokens:
        varies = set(_varying(token))
        met = [axis for axis, own_varies in along.items() if own_varies & varies]
        # Of one row of several each is something of its own.
        met += [axis for axis, own_varies in along.items() if not own_varies and weight.shape[axis] > 1 and met]
        if len(met) > 1 and not weight.over:
            return recorder.put_together(own.weight, [tuple(sorted(met))])(own)
    return own


def doubt_rows(recorder: Recorder, tokens: Sequence[Ints]) -> None:
    """Note that units of each row of a parameter are taken to be those of all.

    Args:
        recorder: What is known, and where it is noted.
        tokens: Of numbers that are told by row. Where none but parameters of several axes made a unit, it may be of one
            row alone.
    """
    if not tokens:
        return
    atoms = recorder.atoms
    of = {
        int(atoms.array[axis.flat[0]]): name
        for name, weight in recorder.weights.items()
        if -1 not in weight.roles.values() and sum(size > 1 for size in weight.shape) > 1
        for axis in weight.axes
        if axis is not None and axis.size and not weight.over
    }
    names = set()
    for token in tokens:
        arrays = np.unique(atoms.array[np.isin(atoms.units.root, atoms.units.find(token[token >= 0]))]).tolist()
        if arrays and all(array in of for array in arrays):
            names |= {of[array] for array in arrays}
    if names:
        atoms.doubt()
        recorder.apart_by_axis |= names


def _varying(token: Any) -> list[int]:
    """Axes along which an array is not the same."""
    return [axis for axis in range(token.ndim) if not (token == first_along(token, axis)).all()]


def _is_same(array: Any) -> bool:
    """Whether an array is the same for all of its first axis."""
    return bool((array == array[:1]).all())
