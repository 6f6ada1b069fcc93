"""From what a `Recorder` found to a `Topology`: units, groups of units that are alike, and where entries belong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .codes import Codes, Ints, mix, pair
from .elements import SCALE, SIGN, Atoms
from .inputs import Inputs
from .ledger import Weight
from .mixing import mixtures_of
from .recorder import Recorder
from .structure import Places, Structure
from .topology import Topology, UnsupportedLayerError
from .units import UnitGroup, WeightTensor


def assemble(recorder: Recorder, outputs: Ints, output_size: int, inputs: Inputs) -> Topology:
    """The topology of a recorded network.

    Args:
        recorder: What was found.
        outputs: Atoms of the network's outputs, which are pinned.
        output_size: Number of the outputs of a row.
        inputs: What it was recorded with.
    """
    if not recorder.weights:
        raise UnsupportedLayerError("the network has no weights that its output depends on")
    found = _Units.of(recorder)
    groups, number, first = _groups(recorder, found, outputs)
    total = int(first[-1])
    carriers = _Carriers(recorder.atoms, found, number, total)
    tensors = []
    for name, weight in recorder.weights.items():
        tensors.append(_tensor(name, weight, recorder.atoms, number, carriers, first))
    structure = carriers.structure(found)
    activations = -(-recorder.largest // max(1, inputs[0].shape[0] if inputs and inputs[0].shape else 1))
    flags = np.zeros((2, total), dtype=bool)
    for kind in (SIGN, SCALE):
        np.logical_or.at(flags[kind], carriers.unit_of(), carriers.live(kind))
    named = tuple(
        UnitGroup(
            group.name,
            group.size,
            group.pinned,
            *(bool(flags[kind, first[i] : first[i + 1]].any()) or group.pinned for kind in (SIGN, SCALE)),
        )
        for i, group in enumerate(groups)
    )
    mixtures = mixtures_of(recorder, found.root, found.kind, found.links)
    plain = structure.is_plain(total, named, first)
    if plain:
        tensors = [_plain(tensor, first) for tensor in tensors]
    rest = (tuple(dict.fromkeys(places)) for places in (recorder.uncounted, recorder.atoms.given_up))
    return Topology(
        named, tuple(tensors), None if plain else structure, output_size, inputs, activations, mixtures, *rest
    )


@dataclass
class _Units:
    """Classes of atoms, their kinds and blocks.

    Attributes:
        root: For each atom its unit, named by its first atom.
        colour: For each atom its kind within a unit.
        kind: For each unit (by its first atom) its kind.
        links: Blocks: (child, parent, label), by first atoms.
        pinned: Which units (by first atom) have an identity.
        characters: For each atom the class of its sign, −1 if it has none, and that of its scale.
        classes: For each of these classes a code of its kind, once it is known.
    """

    root: Ints
    colour: Codes
    kind: Codes
    links: tuple[Ints, Ints, Codes]
    pinned: Any
    characters: tuple[Ints, Ints]
    classes: tuple[dict[int, int], dict[int, int]] | None = None

    @staticmethod
    def of(recorder: Recorder) -> _Units:
        atoms = recorder.atoms
        count = len(atoms.array)
        root = atoms.units.root
        pinned = atoms.pinned(np.arange(count))
        # Of a unit that is pinned each index is known, also where no mark tells it from others of its array.
        colour = np.where(pinned, mix(np.arange(count)), pair(atoms.array, atoms.mark))
        characters = []
        for kind in (SIGN, SCALE):
            classes = atoms.characters[kind].root
            lost = np.zeros(count, dtype=bool)
            lost[classes[atoms.lost[kind]]] = True
            characters.append(np.where(lost[classes], -1, classes))
        kind_of = np.zeros(count, dtype=np.uint64)
        np.add.at(kind_of, root, mix(colour))
        kind_of = np.where(pinned, pair(kind_of, np.arange(count)), kind_of)
        units = _Units(root, colour, kind_of, atoms.all_links(), pinned, (characters[0], characters[1]))
        units.refine()
        return units

    def refine(self) -> None:
        """Tell kinds of units apart by the blocks that they are in, and by signs that several share."""
        first = np.flatnonzero(self.root == np.arange(len(self.root)))
        child, parent, label = self.links
        known = 0
        while True:
            names = np.unique(self.kind[first], return_inverse=True)
            if len(names[0]) == known:
                return
            known = len(names[0])
            kind = self.kind
            seen = np.zeros(len(kind), dtype=np.uint64)
            np.add.at(seen, child, pair(label, kind[parent]))
            np.add.at(seen, parent, pair(label + np.uint64(1), kind[child]))
            for number, classes in enumerate(self.characters):
                some = np.flatnonzero(classes >= 0)
                shared = np.zeros(len(kind), dtype=np.uint64)
                np.add.at(shared, classes[some], pair(self.colour[some], kind[self.root[some]]))
                np.add.at(seen, self.root[some], pair(pair(shared[classes[some]], self.colour[some]), number))
            self.kind = np.where(seen > 0, pair(kind, seen), kind)


def _groups(recorder: Recorder, found: _Units, outputs: Ints) -> tuple[list[UnitGroup], Ints, Ints]:
    """Groups, the number of each unit (by its first atom; −1 for blocks), and each group's first unit."""
    count = len(found.root)
    axes = [
        (name, axis, atoms.ravel())
        for name, weight in recorder.weights.items()
        for axis, atoms in enumerate(weight.axes)
        if atoms is not None and not _positions(weight, axis, found)
    ]
    member = np.zeros(count, dtype=bool)
    for _, _, atoms in axes:
        member[found.root[atoms]] = True
    key: dict[Any, list[int]] = {}
    inputs = {int(unit) for atoms in recorder.inputs.values() for unit in found.root[atoms]}
    last = {int(unit) for unit in found.root[outputs[outputs >= 0]]}
    array = recorder.atoms.array
    for unit in np.flatnonzero(member & (found.root == np.arange(count))).tolist():
        if found.pinned[unit]:
            what = "output" if unit in last else "input" if unit in inputs else "pinned"
            key.setdefault((what, int(array[unit])), []).append(unit)
        else:
            key.setdefault(("", int(found.kind[unit])), []).append(unit)
    groups, number, first = [], np.full(count, -1), [0]
    names: dict[str, int] = {}
    hidden = 0
    looked_up: set[int] = set()
    for weight in recorder.weights.values():
        for axis in weight.looked_up:
            looked_up |= set(found.root[_atoms(weight, axis)].tolist())
    for (what, _), units in key.items():
        if what:
            name = "tokens" if what == "pinned" and units[0] in looked_up else what
            names[name] = names.get(name, 0) + 1
            name = name if names[name] == 1 else f"{name} {names[name]}"
        else:
            hidden += 1
            name = f"layer {hidden}"
        groups.append(UnitGroup(name, len(units), bool(what)))
        number[units] = first[-1] + np.arange(len(units))
        first.append(first[-1] + len(units))
    return groups, number[found.root], np.array(first)


def _atoms(weight: Weight, axis: int) -> Ints:
    atoms = weight.axes[axis]
    assert atoms is not None
    return atoms.ravel()


def _positions(weight: Weight, axis: int, found: _Units) -> bool:
    """Whether an axis counts positions: no layer reads or makes units along it."""
    if axis in weight.roles or axis in weight.looked_up:
        return False
    if weight.shape[axis] == 1 and len(weight.shape) > 1:  # one index, of a parameter that is added or multiplies
        return True
    return bool(found.pinned[_atoms(weight, axis)].all())


class _Carriers:
    """Pairs of a unit and a sign and scale that its entries have; a unit's own number is its first carrier."""

    def __init__(self, atoms: Atoms, found: _Units, number: Ints, total: int) -> None:
        self.atoms, self.found, self.number, self.total = atoms, found, number, total
        some = np.flatnonzero(number >= 0)
        sign, scale = (classes[some] for classes in found.characters)
        rows = np.unique(np.stack([number[some], sign, scale], 1), axis=0)
        kinds = _kind_of_class(found)

        def rank(row: Any) -> tuple[int, ...]:
            # Of one unit those with a sign come first.
            unit, *own = row.tolist()
            codes = (kinds[kind].get(own[kind], 0) for kind in (SIGN, SCALE))
            return (unit, *(value < 0 for value in own), *codes, *own)

        order = sorted(range(len(rows)), key=lambda i: rank(rows[i]))
        self.of: dict[tuple[int, int, int], int] = {}
        self.rows: list[tuple[int, int, int]] = []
        more: list[tuple[int, int, int]] = []
        seen: set[int] = set()
        for i in order:
            row = (int(rows[i, 0]), int(rows[i, 1]), int(rows[i, 2]))
            (more if row[0] in seen else self.rows).append(row)
            seen.add(row[0])
        self.rows += more
        self.of = {row: i for i, row in enumerate(self.rows)}

    def index(self, unit: Ints, sign: Ints, scale: Ints) -> Ints:
        """Carriers by unit, sign and scale; those of a gate may be new."""
        flat = []
        for row in zip(unit.ravel().tolist(), sign.ravel().tolist(), scale.ravel().tolist(), strict=True):
            if row not in self.of:
                self.of[row] = len(self.rows)
                self.rows.append(row)
            flat.append(self.of[row])
        return np.array(flat, dtype=np.int64).reshape(unit.shape)

    def unit_of(self) -> Ints:
        return np.array([row[0] for row in self.rows], dtype=np.int64)

    def live(self, kind: int) -> Any:
        return np.array([row[1 + kind] >= 0 for row in self.rows], dtype=bool)

    def structure(self, found: _Units) -> Structure:
        unit = self.unit_of()
        sign = np.array([row[1] for row in self.rows], dtype=np.int64)
        scale = np.array([row[2] for row in self.rows], dtype=np.int64)
        count = len(unit)
        tails, heads, values, families = [], [], [], []

        def link(family: str, tail: Ints, head: Ints, value: float) -> None:
            tails.append(np.asarray(tail))
            heads.append(np.asarray(head))
            values.append(np.full(len(tail), value))
            families.append(family)

        # The carriers of a unit go together.
        more = np.arange(self.total, count)
        link("carrier", more, unit[more], 0.0)
        # One sign of several carriers.
        classes, times = np.unique(sign, return_counts=True)
        shared = classes[(times > 1) & (classes >= 0)]
        hub = {int(c): count + i for i, c in enumerate(shared)}
        at = [i for i in range(count) if int(sign[i]) in hub]
        link("sign", np.array(at, dtype=np.int64), np.array([hub[int(sign[i])] for i in at], dtype=np.int64), 1.0)
        flips = np.concatenate([sign >= 0, np.ones(len(shared), dtype=bool)])
        vertices = count + len(shared)
        # One scale of several carriers: they go together, too.
        scales, times = np.unique(scale, return_counts=True)
        several = scales[(times > 1) & (scales >= 0)]
        hub = {int(c): vertices + i for i, c in enumerate(several)}
        at = [i for i in range(count) if int(scale[i]) in hub]
        link("scale", np.array(at, dtype=np.int64), np.array([hub[int(scale[i])] for i in at], dtype=np.int64), 0.0)
        vertices += len(several)
        # Blocks. One that is alone of its kind says nothing.
        child, parent, label = found.links
        ends = np.unique(np.concatenate([child, parent]))
        blocks = ends[self.number[ends] < 0]
        _, of, times = np.unique(found.kind[blocks], return_inverse=True, return_counts=True)
        blocks = blocks[(times[of] > 1) & ~found.pinned[blocks]] if len(blocks) else blocks
        place = {int(b): vertices + i for i, b in enumerate(blocks)}
        vertices += len(blocks)

        def vertex(atom: int) -> int:
            return place.get(atom, int(self.number[atom]))

        rows = (
            np.unique(np.stack([child.astype(np.uint64), parent.astype(np.uint64), label]), axis=1)
            if len(child)
            else np.zeros((3, 0), dtype=np.uint64)
        )
        sorts: dict[tuple[int, int], dict[int, int]] = {}
        arcs: dict[int, list[tuple[int, int]]] = {}
        for c, p, name in zip(*rows.tolist(), strict=True):
            tail, head = vertex(c), vertex(p)
            if tail < 0 or head < 0 or tail == head:
                continue
            if found.pinned[c] and found.pinned[p]:
                continue
            known = sorts.setdefault((int(found.kind[c]), int(found.kind[p])), {})
            arcs.setdefault(known.setdefault(name, len(known)), []).append((tail, head))
        for number, pairs in sorted(arcs.items()):
            ends_of = np.array(sorted(set(pairs)), dtype=np.int64)
            link(f"block {number}", ends_of[:, 0], ends_of[:, 1], 0.0)
        flips = np.concatenate([flips, np.zeros(vertices - len(flips), dtype=bool)])
        scale = np.concatenate([scale, np.full(vertices - count, -1)])
        scale = np.where(scale >= 0, np.unique(scale, return_inverse=True)[1], -1)
        owner = np.concatenate([unit, np.full(vertices - count, -1)])
        # Colours of what is no unit: by what it is.
        colour = np.zeros(vertices, dtype=np.int64)
        kind = np.zeros(vertices, dtype=np.uint64)
        kind[: self.total] = 0
        first_atom = np.full(self.total, -1)
        atoms_of = np.flatnonzero(self.number >= 0)[::-1]
        first_atom[self.number[atoms_of]] = found.root[atoms_of]
        extra = [pair(found.kind[first_atom[unit[i]]], self._rank(i, found)) for i in range(self.total, count)]
        kind[self.total : count] = extra
        kind[count:] = 1
        for b, v in place.items():
            kind[v] = pair(found.kind[b], 7)
        kind[count : count + len(shared)] = 2
        kind[count + len(shared) : count + len(shared) + len(several)] = 3
        colour = np.unique(kind, return_inverse=True)[1]
        links = tuple(arc for arc in zip(families, tails, heads, values, strict=True) if len(arc[1]))
        return Structure(owner, flips, scale, colour[self.total :], links)

    def _rank(self, carrier: int, found: _Units) -> int:
        kinds = _kind_of_class(found)
        _, sign, scale = self.rows[carrier]
        return int(pair(kinds[SIGN].get(sign, 0), kinds[SCALE].get(scale, 0)))


def _kind_of_class(found: _Units) -> tuple[dict[int, int], dict[int, int]]:
    """A code of what a sign (scale) is the sign (scale) of, which is the same for units that are alike."""
    if found.classes is not None:
        return found.classes
    result = []
    for classes in found.characters:
        some = np.flatnonzero(classes >= 0)
        code = np.zeros(len(classes), dtype=np.uint64)
        np.add.at(code, classes[some], pair(found.colour[some], found.kind[found.root[some]]))
        result.append({int(c): int(code[c]) for c in np.unique(classes[some])})
    found.classes = result[0], result[1]
    return found.classes


def _tensor(name: str, weight: Weight, atoms: Atoms, number: Ints, carriers: _Carriers, first: Ints) -> WeightTensor:
    found = carriers.found
    places = []
    slots = np.unique(found.colour, return_inverse=True)[1]
    axes = [axis for axis, own in enumerate(weight.axes) if own is not None and not _positions(weight, axis, found)]
    axes.sort(key=lambda axis: -weight.roles.get(axis, -1 if axis in weight.looked_up else 1))
    for axis in axes:
        own = weight.axes[axis]
        assert own is not None
        where = weight.over.get(axis, (axis,))
        if axis == weight.grouped:
            where = (0, 1)
            other, per = weight.shape[0], own.shape[1]
            group = np.arange(other) // (other // own.shape[0])
            own = own[group] if per == weight.shape[1] else own
        signs, scales = (classes[own] for classes in found.characters)
        slot = slots[own]
        unit = number[own]
        rows = np.stack([unit.ravel(), slot.ravel()])
        if len(np.unique(unit)) == np.unique(rows, axis=1).shape[1]:  # one slot a unit
            slot = np.zeros_like(slot)
        power = weight.roles.get(axis, 1)
        places.append(Places(where, unit, slot, carriers.index(unit, signs, scales), power))
        if axis in weight.gates:
            gate = [
                np.where(g >= 0, classes[g], -1)
                for g, classes in zip(weight.gates[axis], found.characters, strict=True)
            ]
            places.append(Places(where, unit, slot, carriers.index(unit, *gate), -1))
    places = [_compact(place) for place in places]
    joins = [p for p in places if p.power]
    matrix = len(axes) == 2 and not _same(places)
    groups = [int(np.searchsorted(first, int(p.unit.ravel()[0]), side="right")) - 1 for p in joins]
    kept = tuple(groups[:2]) if matrix else tuple(groups[:1])
    inputs = None
    if matrix and weight.looked_up:
        inputs = 1
    elif matrix and axes[0] != 0:
        inputs = int(np.prod(weight.shape)) // max(1, len(np.unique(places[0].unit * 1_000_003 + places[0].slot)))
    return WeightTensor(name, weight.shape, kept, tuple(places), inputs)


def _compact(place: Places) -> Places:
    slot = np.unique(place.slot, return_inverse=True)[1]
    return Places(place.axes, place.unit, slot.reshape(place.slot.shape), place.carrier, place.power)


def _same(places: list[Places]) -> bool:
    """Whether each entry joins a unit with itself alone, as in a depthwise convolution."""
    if len(places) < 2 or places[0].axes == places[1].axes:
        return True
    if all(len(place.axes) == 1 for place in places[:2]):
        return False
    ndim = 1 + max(axis for place in places for axis in place.axes)
    first, second = (place.along(ndim, place.unit) for place in places[:2])
    return bool((first == second).all())


def _plain(tensor: WeightTensor, first: Ints) -> WeightTensor:
    """A tensor without its places, where its axes count the units of its groups in order."""
    if len(tensor.places) != len(tensor.groups) or (len(tensor.groups) == 2 and tensor.inputs is not None):
        return tensor
    for axis, (place, group) in enumerate(zip(tensor.places, tensor.groups, strict=True)):
        units = np.arange(first[group], first[group + 1])
        if (
            place.axes != (axis,)
            or place.slot.any()
            or not np.array_equal(place.unit, units)
            or not np.array_equal(place.carrier, units)
            or place.power != (-1 if axis else 1)
        ):
            return tensor
    return WeightTensor(tensor.name, tensor.shape, tensor.groups)
