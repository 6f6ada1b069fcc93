"""Fixed entries of tensors whose indices have slots, signs or groups of their own, and how such tensors are moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..network.codes import mix
from ..network.structure import Places
from ..network.topology import Topology
from ..network.units import WeightTensor
from .refinement import Entries, Floats, Ints

# Entries of a tensor that are looked at as whole connections, in numbers held in memory.
_MOST = 1 << 26

Own = tuple[int, Floats, bool]


def of_tensor(
    topology: Topology, tensor: WeightTensor, mask: Tensor, value: Tensor | None
) -> tuple[list[Own], list[Entries]]:
    """What the fixed entries of a tensor say of units alone, and of pairs of units.

    Args:
        topology: The topology.
        tensor: The tensor.
        mask: Its stochastic mask.
        value: Its fixed values; None for zeros.

    Returns:
        For each kind of entry that a unit has: the first vertex, the values by vertex (NaN where there is no fixed one)
        and whether they change sign with it; and entries between vertices.
    """
    fixed = (~mask).cpu().numpy()
    if not fixed.any() or not tensor.places:
        return [], []
    exact = np.zeros(int(fixed.sum()))
    if value is not None:
        exact = value.detach().cpu().to(torch.float64).numpy()[fixed] + 0.0
        if not np.isfinite(exact).all():
            raise ValueError(f"values[{tensor.name!r}] has values that are not finite at fixed entries")
    if len(tensor.places) > 2:
        raise ValueError(f"{tensor.name!r} joins three groups of units; its entries cannot be fixed")
    carriers = [_at(place, place.carrier, fixed) for place in tensor.places]
    kind = _kinds(tensor, fixed)
    vertices = len(topology.structure.unit) if topology.structure is not None else int(topology.first[-1])
    if len(carriers) == 1:
        return _own(vertices, carriers[0], kind, exact, flips=True), []
    tail, head = carriers
    same = tail == head
    own = _own(vertices, tail[same], kind[same], exact[same], flips=False)
    return own, _between(tail[~same], head[~same], kind[~same], exact[~same])


def _at(place: Places, array: Ints, fixed: Any) -> Ints:
    """An array by index of a tensor's axes, at its fixed entries."""
    result: Ints = np.broadcast_to(place.along(fixed.ndim, array), fixed.shape)[fixed]
    return result


def _kinds(tensor: WeightTensor, fixed: Any) -> Ints:
    """For each fixed entry a number of its slots and position, 0 to their number − 1."""
    decided = {axis for place in tensor.places for axis in place.axes}
    code = np.zeros(int(fixed.sum()), dtype=np.int64)
    for axis in range(fixed.ndim):
        if axis not in decided:
            index = np.arange(fixed.shape[axis]).reshape([-1 if i == axis else 1 for i in range(fixed.ndim)])
            code = code * fixed.shape[axis] + np.broadcast_to(index, fixed.shape)[fixed]
    for place in tensor.places:
        if place.slot.any():
            code = code * (int(place.slot.max()) + 1) + _at(place, place.slot, fixed)
    return np.unique(code, return_inverse=True)[1] if code.any() else code


def _own(vertices: int, carrier: Ints, kind: Ints, value: Floats, flips: bool) -> list[Own]:
    result = []
    for one in np.unique(kind):
        values = np.full(vertices, np.nan)
        values[carrier[kind == one]] = value[kind == one]
        result.append((0, values, flips))
    return result


def _between(tail: Ints, head: Ints, kind: Ints, value: Floats) -> list[Entries]:
    """Entries between pairs of vertices; those of one pair are put together where that makes fewer."""
    if not len(tail):
        return []
    kinds = int(kind.max()) + 1
    if kinds == 1:
        return [Entries.of(tail, head, value)]
    order = np.lexsort((kind, head, tail))
    tail, head, kind, value = tail[order], head[order], kind[order], value[order]
    new = np.r_[True, (tail[1:] != tail[:-1]) | (head[1:] != head[:-1])]
    pair = np.cumsum(new) - 1
    count = int(pair[-1]) + 1
    families, values = _whole(pair, count, kind, kinds, value)
    if families is not None and values is not None and families.max() < kinds:
        first = np.flatnonzero(new)
        return [
            Entries.of(tail[first][families == f], head[first][families == f], values[families == f])
            for f in range(int(families.max()) + 1)
        ]
    return [Entries.of(tail[kind == k], head[kind == k], value[kind == k]) for k in range(kinds)]


def _whole(pair: Ints, count: int, kind: Ints, kinds: int, value: Floats) -> tuple[Ints | None, Floats | None]:
    """For each pair of vertices a family, by which of its entries are fixed, and a number, by their values.

    Values that are opposite get opposite numbers.
    """
    if not value.any():
        pattern = np.zeros(count, dtype=np.uint64)
        np.add.at(pattern, pair, mix(kind))
        return np.unique(pattern, return_inverse=True)[1], np.zeros(count)
    if count * kinds > _MOST:
        return None, None
    table = np.full((count, kinds), np.nan)
    table[pair, kind] = value
    families = np.unique(np.isnan(table), axis=0, return_inverse=True)[1].ravel()
    leading = np.nan_to_num(table)
    sign = np.sign(np.take_along_axis(leading, (leading != 0).argmax(axis=1)[:, None], 1))[:, 0]
    canonical = np.where(np.isnan(table), 0.0, leading * np.where(sign == 0, 1.0, sign)[:, None]) + 0.0
    names = np.unique(canonical, axis=0, return_inverse=True)[1].ravel()
    return families, sign * (1.0 + names)


def apply_to_places(
    topology: Topology, weights: Mapping[str, Tensor], goes: Ints, factors: Floats
) -> dict[str, Tensor]:
    """Move the weights of a network.

    Args:
        topology: The network's topology.
        weights: All weight tensors by name, in full shapes.
        goes: For each unit where it goes.
        factors: For each carrier its factor.
    """
    moved = {}
    for tensor in topology.tensors:
        weight = weights[tensor.name]
        places = topology.places(tensor)
        for place in places:
            factor = factors[place.carrier] ** place.power
            if (factor != 1).any():
                weight = weight * torch.from_numpy(place.along(weight.dim(), factor)).to(weight)
        index = _index(tensor.shape, places, goes)
        if index is not None:
            target = torch.empty_like(weight)
            target[tuple(torch.from_numpy(i).to(weight.device) for i in index)] = weight
            weight = target
        moved[tensor.name] = weight
    return moved


_APART = "a relabelling takes units apart that can only move together"


def _index(shape: tuple[int, ...], places: tuple[Places, ...], goes: Ints) -> list[Ints] | None:
    """For each axis where its indices go, in a form that broadcasts to the shape; None if nothing moves."""
    index = [
        np.arange(size).reshape([-1 if i == axis else 1 for i in range(len(shape))]) for axis, size in enumerate(shape)
    ]
    still, found = True, set[int]()
    for place in sorted(places, key=lambda place: len(place.axes)):
        if np.array_equal(goes[place.unit], place.unit) and (len(place.axes) == 1 or still):
            if len(place.axes) == 1:
                found.add(place.axes[0])
            continue
        still = False
        slots = int(place.slot.max()) + 1
        own, wanted = place.unit * slots + place.slot, goes[place.unit] * slots + place.slot
        if len(np.unique(own)) == own.size:
            where = np.unravel_index(_found(own.ravel(), wanted.ravel()), own.shape)
            for axis, there in zip(place.axes, where, strict=True):
                new = place.along(len(shape), there.reshape(own.shape))
                if axis in found and (index[axis] != new).any():
                    raise ValueError(_APART)
                index[axis] = new
            found.update(place.axes)
            continue
        axis = place.axes[-1]
        # The units along one axis depend on the index of the other: look for them where that has gone.
        rows = index[place.axes[0]].ravel()
        new = np.empty_like(own)
        for row, to in enumerate(rows.tolist()):
            new[row] = _found(own[to], wanted[row])
        index[axis] = place.along(len(shape), new)
    return None if still else index


def _found(own: Ints, wanted: Ints) -> Ints:
    """Where in one array the numbers of another are."""
    order = np.argsort(own)
    place = np.searchsorted(own[order], wanted)
    if (place == len(own)).any() or (own[order][place] != wanted).any():
        raise ValueError(_APART)
    return order[place]


def slices(
    tensor: WeightTensor, mask: Tensor, value: Tensor | None
) -> Iterator[tuple[NDArray[np.bool_], Floats | None]]:
    """Where a tensor is fixed and at what, by unit or pair of units.

    Axes that count no units (a kernel's positions) make one slice for each of their entries.
    """
    fixed = (~mask).cpu()
    axes = tensor.shape[: len(tensor.groups)]
    flat = fixed.numpy().reshape(*axes, -1)
    values = None
    if value is not None:
        exact = value.detach().cpu()[fixed].to(torch.float64)
        if not exact.isfinite().all():
            raise ValueError(f"values[{tensor.name!r}] has values that are not finite at fixed entries")
        if exact.any():
            values = np.zeros(flat.shape)
            values[flat] = exact.numpy()
    for k in range(flat.shape[-1]):
        yield flat[..., k], None if values is None else values[..., k]


def values_or_nan(fixed: NDArray[np.bool_], values: Floats | None) -> Floats:
    """Fixed values of units, NaN where they are free."""
    return np.where(fixed, 0.0 if values is None else values, np.nan)


def entries_of(fixed: NDArray[np.bool_], values: Floats | None, first_tail: int, first_head: int) -> Entries:
    """The fixed entries of a matrix, by row and by column."""
    tail, head = (axis.astype(np.int32) for axis in np.nonzero(fixed))
    value = np.broadcast_to(0.0, tail.shape) if values is None else values[fixed]
    tail, other = tail + first_tail, head + first_head
    if len(tail) < fixed.size // 16:
        return Entries.of(tail, other, value)
    # Columns first without sorting.
    turned = np.ascontiguousarray(fixed.T)
    head_again, tail_again = (axis.astype(np.int32) for axis in np.nonzero(turned))
    value_again = value if values is None else values.T[turned]
    return Entries(tail, other, value, (head_again + first_head, tail_again + first_tail, value_again))
