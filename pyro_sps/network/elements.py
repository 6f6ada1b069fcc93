"""Which number of a tensor belongs to which unit: the bookkeeping under the rules of `layers`.

Every tensor that a network computes is described number by number. An *atom* is an index of an axis of a weight tensor
(one output of a layer, say) or a block of such; a symmetry permutes atoms. An element of a tensor is
described by the atoms that it belongs to (its *tokens*, none for a pinned number) and by a code of everything else that
tells it apart (its *place*: row, position, slot). Elements with the same tokens and the same place hold the same
number. So a symmetry acts on a tensor by its action on tokens, whatever was reshaped, cut or put together, and a rule
has only to say which atoms can no longer move apart. What no rule can follow is pinned, which is always sound.

Signs and scales are noted in the same way: an element has at most one sign and one scale, named by the atom whose sign
it was first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes import Classes, Codes, Ints, alike, first_along, mix, names_of_sets, numbered, pair

SIGN, SCALE = 0, 1
LINEAR = 2  # whether units may be mixed by linear maps; a kind of what is lost, without classes


@dataclass(frozen=True)
class Value:
    """What is known of each element of a tensor.

    Attributes:
        tokens: Arrays of the tensor's shape: the atoms that an element belongs to; −1 for none.
        place: Codes of the tensor's shape.
        characters: Its sign and its scale: the atom whose sign (scale) an element has; −1 for none.
        weight: Name of the parameter if this is a view of one.
    """

    tokens: tuple[Ints, ...]
    place: Codes
    characters: tuple[Ints, Ints]
    weight: str | None = None

    @staticmethod
    def pinned(place: Codes) -> Value:
        """A tensor of numbers without units."""
        none = np.full(place.shape, -1)
        return Value((), place, (none, none))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.place.shape

    def map(self, function: Any) -> Value:
        """The same function of every array, one that only moves elements."""
        return Value(
            tuple(function(token) for token in self.tokens),
            function(self.place),
            (function(self.characters[0]), function(self.characters[1])),
            self.weight,
        )

    def without(self, kind: int) -> Value:
        """The value without its signs or its scales."""
        none = np.full(self.shape, -1)
        return replace(self, characters=(none, self.characters[1]) if kind == SIGN else (self.characters[0], none))


@dataclass
class Link:
    """Atoms that belong to blocks: a symmetry takes them along, and what is in a block stays together.

    Attributes:
        child: Atoms.
        parent: The block of each.
        label: A code of how it belongs to it.
        marks: Marks of children and parents when they were linked; what they have got since then tells slots apart.
    """

    child: Ints
    parent: Ints
    label: Codes
    marks: tuple[Codes, Codes]


@dataclass
class Atoms:
    """All atoms, and what is known of how they can move.

    Attributes:
        units: Classes of atoms that move together: indices of one unit.
        characters: Classes of signs, and of scales, that are equal.
        array: For each atom the array that it was made in; at first, atoms of one array are alike.
        mark: A code of all that has been found to tell atoms of an array apart.
        is_pinned: Whether an atom has an identity.
        lost: For signs and scales, whether nothing but 1 is possible; and whether units cannot be mixed.
        links: Blocks.
        duals: Pairs of atoms whose scales undo each other: queries and keys.
        events: How many things have happened that need a number of their own.
        sums: Blocks, or what belongs to them, of which a number is known to be a sum of numbers of units that nothing
            else holds together: added up, they would be one sum.
        given_up: Where in the network not all symmetries may be counted.
        at: Says where in the network it is.
    """

    units: Classes = field(default_factory=Classes)
    characters: tuple[Classes, Classes] = field(default_factory=lambda: (Classes(), Classes()))
    array: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    mark: Codes = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    is_pinned: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    lost: list[NDArray[np.bool_]] = field(default_factory=lambda: [np.zeros(0, dtype=bool) for _ in range(3)])
    links: list[Link] = field(default_factory=list)
    duals: list[tuple[Ints, Ints]] = field(default_factory=list)
    events: int = 0
    sums: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    given_up: list[str] = field(default_factory=list)
    at: Callable[[], str] = str

    def new(self, count: int, signed: bool = True) -> Ints:
        """An array of atoms that are alike; without signs and scales of their own if they are blocks."""
        start = len(self.array)
        number = int(self.array.max(initial=-1)) + 1
        self.array = np.concatenate([self.array, np.full(count, number)])
        self.mark = np.concatenate([self.mark, np.zeros(count, dtype=np.uint64)])
        self.is_pinned = np.concatenate([self.is_pinned, np.zeros(count, dtype=bool)])
        self.lost = [np.concatenate([lost, np.zeros(count, dtype=bool)]) for lost in self.lost]
        for classes in (self.units, *self.characters):
            classes.grow(start + count)
        for lost in self.lost:
            lost[start:] = not signed
        return np.arange(start, start + count)

    def link(self, child: Ints, parent: Ints, label: Codes) -> None:
        """Note that atoms belong to blocks."""
        self.links.append(Link(child, parent, label, (self.mark[child], self.mark[parent])))

    def all_links(self) -> tuple[Ints, Ints, Codes]:
        """Units of all that is linked, and labels that say which slots of them where units were merged later."""
        ends: list[Ints] = []
        label = np.concatenate([np.zeros(0, dtype=np.uint64), *(link.label for link in self.links)])
        for side in (0, 1):
            own = [(link.child, link.parent)[side] for link in self.links]
            atoms = np.concatenate([np.zeros(0, dtype=np.int64), *own])
            then = np.concatenate([np.zeros(0, dtype=np.uint64), *(link.marks[side] for link in self.links)])
            label = pair(label, np.where(self.pinned(atoms), atoms.astype(np.uint64), self.mark[atoms] - then))
            ends.append(self.units.root[atoms])
        return ends[0], ends[1], label

    def are_loose(self, tokens: Sequence[Ints]) -> bool:
        """Whether there are units among tokens that belong to no block."""
        held = np.zeros(len(self.array), dtype=bool)
        for link in self.links:
            held[self.units.root[link.child]] = True
        return any(not held[self.units.root[token[token >= 0]]].all() for token in tokens)

    def note_sums(self, tokens: Sequence[Ints]) -> None:
        """Note that numbers are sums, and tokens the blocks that each of them is the sum of."""
        self.sums = np.unique(np.concatenate([self.sums, *(token[token >= 0].ravel() for token in tokens)]))

    def forget_sums(self, tokens: Sequence[Ints]) -> None:
        """Note that numbers are no sums any more."""
        if len(self.sums):
            for token in tokens:
                self.sums = self.sums[~np.isin(self.units.find(self.sums), self.units.find(token))]

    def event(self) -> np.uint64:
        """A number of its own for one thing that happens."""
        self.events += 1
        return np.uint64(self.events << 8)

    def pin(self, atoms: Ints) -> None:
        """Give atoms an identity."""
        self.is_pinned[atoms[atoms >= 0]] = True

    def give_up(self, atoms: Ints) -> None:
        """Pin atoms for want of a rule that says how they hang together: not all their symmetries may be counted."""
        if not self.pinned(atoms[atoms >= 0]).all():
            self.doubt()
        self.pin(atoms)

    def doubt(self) -> None:
        """Note that not all symmetries of what is here may be counted."""
        self.given_up.append(self.at())

    def pinned(self, atoms: Ints) -> NDArray[np.bool_]:
        """Which atoms have an identity, in that their unit has."""
        known = np.zeros(len(self.array), dtype=bool)
        known[self.units.root[self.is_pinned]] = True
        return np.where(atoms >= 0, known[self.units.root[atoms]], False)

    def distinguish(self, atoms: Ints, codes: Codes) -> None:
        """Note what tells atoms apart, and with each all atoms of its unit."""
        more = np.zeros(len(self.array), dtype=np.uint64)
        root = self.units.root[atoms]
        index = numbered(pair(root, codes))[0]
        np.add.at(more, root[index], mix(codes[index]))
        self.mark += more[self.units.root]

    # signs and scales

    def lose(self, kind: int, atoms: Ints) -> None:
        """Signs (scales) that can be nothing but 1; who has no scale cannot be mixed either."""
        self.lost[kind][atoms[atoms >= 0]] = True
        if kind == SCALE:
            self.lose(LINEAR, atoms)

    def undo(self, first: Ints, second: Ints) -> None:
        """Numbers at the same places of two arrays are multiplied and summed over: one undoes the other."""
        both = ((first >= 0) & (second >= 0)).all()
        for atoms in (first, second):
            self.lost[SCALE][atoms[atoms >= 0]] = True
            if not both:
                self.lose(LINEAR, atoms)
        if both:
            self.duals.append((first.ravel(), second.ravel()))

    def equate(self, kind: int, first: Ints, second: Ints) -> None:
        """Signs (scales) that must be equal; where there is one on one side alone, it must be 1."""
        both = (first >= 0) & (second >= 0)
        self.characters[kind].merge(first[both], second[both])
        self.lose(kind, np.where(both, -1, np.maximum(first, second)))

    def equate_along(self, kind: int, atoms: Ints, axis: int) -> Ints:
        """Signs (scales) that must be equal along an axis, and what they are."""
        first = first_along(atoms, axis)
        self.equate(kind, np.broadcast_to(first, atoms.shape).ravel(), atoms.ravel())
        return first.squeeze(axis)

    # units

    def with_slots(self, token: Ints, place: Codes) -> Codes:
        """Places that tell apart numbers of one unit that were made at different atoms of it."""
        some = token >= 0
        atoms = self._among(token[some])
        if len(self._among(self.units.root[atoms])) == len(atoms):
            return place
        return np.where(some, pair(place, self._slot(token)), place)

    def in_step(self, tokens: Sequence[Ints], others: Sequence[Ints]) -> list[Ints | None]:
        """Tokens in the order of those of other numbers, which are to lie beside them.

        Args:
            tokens: Tokens of some numbers.
            others: Tokens of the others, of any shape.

        Returns:
            The tokens: each where the others have atoms of the same array, if they do; None where there is none.
        """
        if max(len(tokens), len(others)) < 2:
            return list(tokens)
        arrays = [self._array_of(token) for token in others]
        found: list[Ints | None] = [None] * max(len(tokens), len(others))
        rest = []
        for token in tokens:
            same = [i for i, own in enumerate(arrays) if own == self._array_of(token) and found[i] is None]
            if same:
                found[same[0]] = token
            else:
                rest.append(token)
        for token in rest:
            found[next(i for i, own in enumerate(found) if own is None)] = token
        return found

    def _array_of(self, token: Ints) -> int:
        """The array that the unit of the first of some atoms was made in."""
        first = token.flat[int((token >= 0).argmax())]
        return int(self.array[self.units.root[first]])

    def _among(self, atoms: Ints) -> Ints:
        """Different ones of some atoms, in order."""
        there = np.zeros(len(self.array), dtype=bool)
        there[atoms] = True
        return np.flatnonzero(there)

    def _slot(self, token: Ints) -> Codes:
        """What tells atoms of one unit apart."""
        return np.where(self.pinned(token), mix(token), pair(self.array[token], self.mark[token]))

    def _pin_twins(self, units: Ints) -> None:
        """Pin units with atoms that look alike: these could take each other's place in ways that are not followed."""
        within = np.zeros(len(self.array), dtype=bool)
        within[units] = True
        atoms = np.flatnonzero(within[self.units.root])
        key = pair(self.units.root[atoms], pair(self.array[atoms], self.mark[atoms]))
        _, of, times = np.unique(key, return_inverse=True, return_counts=True)
        self.give_up(atoms[times[of.ravel()] > 1])

    def relate(self, first: Ints, second: Ints, place: Codes) -> str:
        """Atoms that numbers at the same places belong to, and so can no longer move apart.

        Args:
            first: Atoms, flat.
            second: Atoms, as many.
            place: Codes of what else tells the numbers apart.

        Returns:
            `equal` if each determines the other, `first` or `second` if only that one determines the other, `free` if
            they do not depend on each other, or on nothing but the block that both belong to, or are pinned, and
            `pinned` if all were pinned: they do in another way.
        """
        event = self.event()
        a, b = self.units.root[first], self.units.root[second]
        if np.array_equal(a, b):
            return "equal"
        place = self.with_slots(second, self.with_slots(first, place))
        key = a * (len(self.array) + 1) + b
        index, inverse = numbered(key.astype(np.uint64))
        pairs = key[index]
        label = np.zeros(len(pairs), dtype=np.uint64)
        np.add.at(label, inverse, mix(place))
        left, right = a[index], b[index]
        count_a, count_b = len(self._among(left)), len(self._among(right))
        if len(pairs) == max(count_a, count_b):
            fine, coarse = (left, right) if count_a >= count_b else (right, left)
            slots = np.unique(np.stack([coarse.astype(np.uint64), label]), axis=1).shape[1] == len(pairs)
            if slots:  # with its slot, the coarse one determines the fine one: one unit
                for side, atoms in enumerate((first, second)):
                    self.distinguish(atoms, pair(label[inverse], event + np.uint64(side)))
                self.units.merge(left, right)
                self._pin_twins(self.units.root[left])
                return "equal"
            self.link(fine, coarse, pair(label, event))
            return "first" if count_a >= count_b else "second"
        labels = len(np.unique(label))
        if labels == 1 and self._share_blocks(left, right, event):
            return "free"
        if len(pairs) == count_a * count_b:
            for side, (atoms, units, count) in enumerate(((first, left, count_a), (second, right, count_b))):
                if np.unique(np.stack([units.astype(np.uint64), label]), axis=1).shape[1] == count:
                    # All occur with all, at places that say something of this side alone.
                    if labels == count:
                        self.pin(atoms)
                    else:
                        self.distinguish(atoms, pair(label[inverse], event + np.uint64(side)))
                    return "free"
        told = [self._told(atoms, place) for atoms in (first, second)]
        for atoms, known in zip((first, second), told, strict=True):
            if known:
                self.pin(atoms)
            elif not any(told):
                self.give_up(atoms)
        return "free" if any(told) else "pinned"

    def _share_blocks(self, left: Ints, right: Ints, event: np.uint64) -> bool:
        """Whether all units of a block occur with each other, and with none of another block: notes the blocks.

        Of heads that share keys and values, as in grouped-query attention, each meets all units of its group.

        Args:
            left: Units, one for each pair that occurs.
            right: Those that they occur with.
            event: Tells the links.
        """
        least = np.full(len(self.array), len(self.array))
        np.minimum.at(least, left, right)
        block = np.full(len(self.array), -1)
        block[right] = least[left]
        if (block[right] != least[left]).any():
            return False
        of, pairs = np.unique(least[left], return_counts=True)
        sides = [self._among(side) for side in (left, right)]
        owners = [least[sides[0]], block[sides[1]]]
        if (pairs != np.prod([[np.count_nonzero(own == one) for one in of] for own in owners], axis=0)).any():
            return False
        if len(of) > 1:
            made = self.new(len(of), signed=False)
            for side, (units, own) in enumerate(zip(sides, owners, strict=True)):
                label = np.full(len(units), event + np.uint64(side))
                self.link(units, made[np.searchsorted(of, own)], label)
        return True

    def _told(self, atoms: Ints, place: Codes) -> bool:
        """Whether the places tell which atom it is."""
        root = self.units.root[atoms]
        for some in (slice(0, 1 << 11), slice(None)):  # a few are mostly enough to see that they do not
            if (root[some][alike(place[some])] != root[some]).any():
                return False
        return True

    def blocks(self, tokens: Ints, place: Codes) -> Ints | None:
        """What a function of a set of numbers, in whatever order, belongs to: the set as a whole.

        Args:
            tokens: Atoms of the numbers of each set, shape (sets, numbers); −1 for none.
            place: Their codes.

        Returns:
            A block for each set, or None if there is one for all of them.
        """
        root, place = self.units.find(tokens), self.with_slots(tokens, place)
        sets, of = np.unique(names_of_sets(root), return_inverse=True)
        of = of.ravel()
        some = root >= 0
        rows = np.broadcast_to(np.arange(len(root))[:, None], root.shape)
        # Codes of the places of an atom in one set, and in all sets of the same atoms.
        key, inverse = np.unique(rows[some] * (len(self.array) + 1) + root[some], return_inverse=True)
        inside = np.zeros(len(key), dtype=np.uint64)
        np.add.at(inside, inverse.ravel(), mix(place[some]))
        row, atom = key // (len(self.array) + 1), key % (len(self.array) + 1)
        members, inverse = np.unique(of[row] * (len(self.array) + 1) + atom, return_inverse=True)
        label = np.zeros(len(members), dtype=np.uint64)
        np.add.at(label, inverse.ravel(), mix(inside))
        child, which = members % (len(self.array) + 1), members // (len(self.array) + 1)
        made = self.new(len(sets), signed=False)
        self.link(child, made[which], pair(label, self.event()))
        return None if len(sets) == 1 else made[of]

    def of_sets(self, inside: Sequence[Ints], outside: Sequence[Ints], place: Codes) -> Codes:
        """Places of numbers that also say in which set each of them is.

        A relabelling leaves each set as it is, or takes it to one with the same places of other units. Two sets of the
        same units with the same places, which may go together in another way, are two numbers.

        Args:
            inside: Atoms of the numbers of each set, shape (sets, numbers).
            outside: Atoms that are the same for all of a set, shape (sets, ...).
            place: Codes of the numbers.
        """
        code = mix(place).sum(axis=1, dtype=np.uint64)
        units = [names_of_sets(self.units.find(token)) for token in inside]
        rest = [mix(token.reshape(len(place), -1)).sum(axis=1, dtype=np.uint64) for token in outside]
        names = np.stack([code, *units, *rest])
        _, of, times = np.unique(names, axis=1, return_inverse=True, return_counts=True)
        order = np.argsort(of.ravel(), kind="stable")
        rank = np.empty(len(code), dtype=np.int64)
        rank[order] = np.arange(len(code)) - np.repeat(np.cumsum(times) - times, times)
        if rank.any():
            code = pair(code, rank)
        return pair(place, code[:, None])

    def combine(self, first: Sequence[Ints], second: Sequence[Ints], place: Codes) -> tuple[tuple[Ints, ...], Codes]:
        """Tokens and places of numbers that are computed from two tensors, element by element.

        Args:
            first: Tokens of the one.
            second: Tokens of the other, of the same shape.
            place: Codes of the elements, from the places in both.
        """
        result = list(first)
        for token in second:
            kept, determined = [], False
            for other in result:  # with all of them, even after one has determined it: the others must agree
                both = (token >= 0) & (other >= 0)
                how = self.relate(other[both], token[both], place[both]) if both.any() else "first"
                if how not in ("free", "pinned"):  # which slot it was of the unit that is no longer named
                    place = self.with_slots(other if how == "second" else token, place)
                if how in ("equal", "second"):
                    token = np.where(other >= 0, other, token) if how == "equal" else np.where(token >= 0, token, other)
                    continue
                if how == "first":
                    other, determined = np.where(other >= 0, other, token), True
                kept.append(other)
            result = kept if determined else [*kept, token]
        return self.settle(result, place)

    def settle(self, tokens: Sequence[Ints], place: Codes) -> tuple[tuple[Ints, ...], Codes]:
        """Pin the atoms that the place tells, and turn pinned tokens into places."""
        kept = []
        for token in tokens:
            some = token >= 0
            atoms = self.units.root[token[some]]
            if len(atoms) and atoms.min() < atoms.max() and self._told(token[some], place[some]):
                self.pin(token[some])
            pinned = self.pinned(token)
            if pinned.any():
                place = np.where(pinned, pair(place, token + 1), place)
                token = np.where(pinned, -1, token)
            if (token >= 0).any():
                kept.append(token)
        return tuple(kept), place
