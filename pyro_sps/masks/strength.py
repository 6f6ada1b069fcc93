"""Masks that fix more than they need to be rigid, for `pyro_sps.Rigid(strength=..., entries="connection")`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..network.topology import Masks, Topology
from .search import Place, connections, fix, other_group, relations_of, too_strong


def strengthened(topology: Topology, masks: Masks, strength: int, rng: np.random.Generator) -> Masks:
    """Fix more weights until the patterns of any two units of a layer differ in `strength` places.

    A local search: the unit that is closest to the others changes where it helps most.
    """
    for index in topology.hidden:
        places = sum(
            topology.groups[other].size - 2 * (other == index) for _, _, other in relations_of(topology, index)
        )
        if strength > places and topology.groups[index].size > 1:
            raise ValueError(too_strong(topology, index, strength, places))
    patterns = _Patterns(topology, masks, strength)
    steps = 50 + 3 * strength * sum(topology.groups[index].size for index in topology.hidden)
    while (worst := patterns.worst()) is not None:
        index, unit = worst
        steps -= 1
        place = patterns.best_place(index, unit, rng) if steps > 0 else None
        if place is None:
            raise ValueError(
                f"Rigid(strength={strength}) found no mask: unit {unit} of {topology.groups[index].name} could not be "
                "made to differ enough from the others; give a smaller strength"
            )
        patterns.toggle(place, index, unit)
    result = topology.check_masks({})
    for k, fixed in patterns.fixed.items():
        for row, column in np.argwhere(fixed).tolist():
            fix(topology, result, (k, 0, column), row)
    return result


def widened(topology: Topology, masks: Masks) -> Masks:
    """Masks that fix all entries of a connection where the given ones fix some."""
    result = dict(masks)
    for joint in topology.joints:
        connected = torch.from_numpy(connections(topology, joint, masks))
        result[joint.tensor] = result[joint.tensor] & ~topology.entries_of(joint, connected)
    return result


class _Patterns:
    """Fixed places of all units and the distances between units of a layer.

    Attributes:
        fixed: For each joint (by its number) where it is fixed, shape (rows, columns).
        kept: Where it was fixed at first, which stays.
        distance: For each hidden group the number of places where two units differ, shape (units, units).
    """

    candidates = 64  # places looked at for one change

    def __init__(self, topology: Topology, masks: Masks, strength: int) -> None:
        self.topology, self.strength = topology, strength
        self.fixed = {
            k: connections(topology, joint, masks) for k, joint in enumerate(topology.joints) if not joint.partly
        }
        self.kept = {t: fixed.copy() for t, fixed in self.fixed.items()}
        self.distance = {index: self._distances(index) for index in topology.hidden}
        self.lacking = {index: self._lack(distance).sum(axis=1) for index, distance in self.distance.items()}

    def _lack(self, distance: Any) -> Any:
        return np.maximum(self.strength - distance, 0)

    def _distances(self, index: int) -> Any:
        size = self.topology.groups[index].size
        distance = np.zeros((size, size), dtype=np.int32)
        for t, axis, other in relations_of(self.topology, index):
            pattern = (self.fixed[t] if axis == 0 else self.fixed[t].T).astype(np.float32)
            number = pattern.sum(axis=1)
            distance += (number[:, None] + number[None, :] - 2 * pattern @ pattern.T).astype(np.int32)
            if other == index:  # the places of the two units themselves do not count
                distance -= (pattern + pattern.T).astype(np.int32)
        np.fill_diagonal(distance, self.strength)  # a unit need not differ from itself
        return distance

    def worst(self) -> tuple[int, int] | None:
        """The unit that most others are too close to."""
        index = max(self.lacking, key=lambda index: int(self.lacking[index].max()))
        unit = int(self.lacking[index].argmax())
        return (index, unit) if self.lacking[index][unit] > 0 else None

    def best_place(self, index: int, unit: int, rng: np.random.Generator) -> Place | None:
        """Where fixing one more weight of a unit, or freeing one that was added, helps most; else anywhere."""
        places = [
            (t, axis, j)
            for t, axis, other in relations_of(self.topology, index)
            for j in np.flatnonzero(~(self.kept[t][unit] if axis == 0 else self.kept[t][:, unit])).tolist()
            if not (other == index and j == unit)
        ]
        rng.shuffle(places)
        for some in (places[: self.candidates], places[self.candidates :]):
            gains = [self.gain(place, index, unit) for place in some]
            if gains and max(gains)[0] > 0:
                return some[gains.index(max(gains))]
        return places[0] if places else None

    def gain(self, place: Place, index: int, unit: int) -> tuple[int, int]:
        """By how much a change reduces what is lacking, and minus the number of weights fixed at the place."""
        t, axis, j = place
        fixed = self.fixed[t] if axis == 0 else self.fixed[t].T
        gain = self._gain(index, unit, fixed[:, j] == fixed[unit, j])
        other = other_group(self.topology, place)
        if other in self.distance:
            gain += self._gain(other, j, fixed[unit] == fixed[unit, j])
        return gain, -int(fixed[:, j].sum())

    def _gain(self, index: int, unit: int, same: Any) -> int:
        distance = self.distance[index][unit]
        better, worse = (distance < self.strength) & same, (distance <= self.strength) & ~same
        return int(better.sum()) - int(worse.sum())

    def toggle(self, place: Place, index: int, unit: int) -> None:
        """Fix the weight of a unit at a place, or free it."""
        t, axis, j = place
        fixed = self.fixed[t] if axis == 0 else self.fixed[t].T
        other = other_group(self.topology, place)
        if other == index:  # rare and small: residual networks
            fixed[unit, j] ^= True
            self.distance[index] = self._distances(index)
            self.lacking[index] = self._lack(self.distance[index]).sum(axis=1)
            return
        self._update(index, unit, fixed[:, j] == fixed[unit, j])
        if other in self.distance:
            self._update(other, j, fixed[unit] == fixed[unit, j])
        fixed[unit, j] ^= True

    def _update(self, index: int, unit: int, same: Any) -> None:
        old = self.distance[index][unit]
        new = old + np.where(same, 1, -1)
        new[unit] = self.strength
        change = self._lack(new) - self._lack(old)
        self.lacking[index] += change
        self.lacking[index][unit] += change.sum()
        self.distance[index][unit] = new
        self.distance[index][:, unit] = new
