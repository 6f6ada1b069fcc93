"""Masks that leave no symmetry: the `Rigid` scheme, distinct constants for it, and fixed biases as an alternative."""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from .data import require_learned, require_positive
from .process import silenced
from .schemes import Heavy, Light, Scheme, SymmetryWarning, Unmasked, make_masks
from .symmetry import certify
from .topology import Masks, Topology, mlp
from .values import MAP, Constant, FixedValues, RandomConstant, Zero, make_values

# A place where a unit of a group can have a fixed weight: (tensor, the group's axis in it, unit on the other axis).
Place = tuple[int, int, int]


@dataclass(frozen=True)
class Ladder:
    """Fixed weights that all differ, in magnitude too: the rungs of a normal distribution, with alternating signs.

    The n fixed weights of a tensor get (−1)^r · scale · Q((r + ½) / n), r = 0 … n − 1, in the order of their places,
    where Q is the quantile function of the absolute value of a standard normal variable: together they look like
    draws from Normal(0, scale²). Since all magnitudes of a tensor differ, a single fixed weight identifies the two
    units that it joins, and their signs relative to each other; so a few of them tell apart even units with very few
    neighbours, as in a 1-50-1 network.

    Args:
        scale: Standard deviation of the distribution.
        learn: Whether the scale is a parameter optimised with the ELBO, from this value on.
        per_layer: Whether each weight tensor learns a scale of its own.

    Raises:
        ValueError: If `scale` is not a positive finite number, `per_layer` is set without `learn`, or, on use, if a
            tensor has so many fixed weights that they do not all differ in the default dtype.

    Example:
        >>> import pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([1, 50, 1]), scheme=sps.Rigid(signs=True), values=sps.Ladder())
        >>> bnn.num_fixed, bnn.symmetry().is_rigid
        (50, True)
    """

    scale: float = 1.0
    learn: bool = False
    per_layer: bool = False

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)
        require_learned(self.learn, self.per_layer)

    def __call__(
        self, topology: Topology, masks: Mapping[str, Tensor], generator: Generator | None = None
    ) -> FixedValues:
        """The rungs; the generator is not used."""
        pattern = {}
        for tensor in topology.tensors:
            fixed = ~masks[tensor.name].cpu()
            n = int(fixed.sum())
            rank = torch.arange(n, dtype=torch.float64)
            rungs = math.sqrt(2) * torch.special.erfinv((rank + 0.5) / n) * (1 - 2 * (rank % 2))
            value = torch.zeros(tensor.shape)
            value[fixed] = rungs.to(value.dtype)
            if len(value[fixed].abs().unique()) < n:
                raise ValueError(f"Ladder cannot make the {n} fixed weights of {tensor.name!r} differ in {value.dtype}")
            pattern[tensor.name] = value
        return FixedValues(pattern, self.scale, self.learn, self.per_layer)


@dataclass(frozen=True)
class InputOffsets:
    """Fix the biases of the hidden layers: input augmentation, an alternative way to tell units apart.

    A hidden unit that gets a constant offset of its own, `values=Ladder()`, cannot be exchanged with another. Nothing
    else is fixed. Where several biases are added to the same units, as in a residual network, only the first is.

    Raises:
        ValueError: On use, if a hidden layer has no bias.

    Example:
        >>> import pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([8, 50, 50, 2]), scheme=sps.InputOffsets(), values=sps.Ladder())
        >>> bnn.num_fixed, bnn.symmetry().is_rigid
        (100, True)
    """

    def __call__(self, topology: Topology, generator: Generator | None = None) -> Masks:
        """Masks of the biases; the generator is not used."""
        masks = topology.check_masks({})
        for index in topology.hidden:
            names = [t.name for t in topology.tensors if t.groups == (index,)]
            if not names:
                raise ValueError(
                    f"InputOffsets fixes biases, but {topology.groups[index].name} has none; sps.Rigid() fixes weights"
                )
            masks[names[0]] = torch.zeros_like(masks[names[0]])
        return masks


@dataclass(frozen=True)
class Rigid:
    """As few fixed weights as we can find that leave no permutation of the hidden units, and, if asked, no sign flip.

    `pyro_sps.certify` proves for every mask that is returned that nothing is left. The masks do not rely on the values
    (but see below): equal constants, all zero or ±c with whatever signs, are enough.

    **Construction.** The fixed weights form a forest. From the input and output units on, which have an identity,
    each unit that is identified identifies at most one unit of each neighbouring layer, by the single fixed weight
    between them, and a second one if the first goes on and the second is a dead end. One unit a layer needs no fixed
    weight: it is the last. Beside this tree there are paths that zigzag between two adjacent hidden layers, of 2, 4,
    6, … units, each of another length and tied to nothing. In a layer too wide for this, about twice as wide as its
    neighbours together, the remaining units get different sets of two or more neighbours. Some variants are
    built, and the smallest that is certified is returned.

    **Bounds.** Let H be the number of hidden units in L layers. Where no layer is too wide, at most H − L weights are
    fixed, and one less for each path: 89 for 8-50-50-2 (heavy: 1254). Any rigid mask of equal constants fixes at
    least H − t, where t is the largest number of different trees without symmetry into which the units can be
    divided. For a single hidden layer the number is the smallest possible: 88 for 8-50-2. With `signs=True` every unit
    must be tied to a pinned unit, so H is the smallest number possible, and it is reached where no layer is too wide:
    100 for 8-50-50-2.

    **Distinct constants.** Equal constants can tell n units with m neighbours apart only if n ≤ 2^m, which those of a
    1-50-1 network are not. With `values=Ladder()` each unit of a layer but one (with `signs=True` each) has one
    fixed weight, of its own value. Other values are tried in the same way, as drawn, if equal constants cannot do it.

    **Strength.** The pattern of a unit says for each tensor and each neighbour whether the weight between them is
    fixed. With `strength=k` the patterns of any two units of a hidden layer differ in at least k places. (In a tensor
    between units of one layer, places of the two units themselves do not count. With `Ladder`, places where both
    have a fixed weight of another value count too.) Rigidity implies k = 1; a larger k moves almost equal modes apart.
    From the mask for k = 1 on, weights are added by local search, about k/4 a unit between layers of the same width.

    Args:
        signs: Whether sign flips (of odd activations) must go too; needs non-zero values.
        strength: Smallest number of places in which the patterns of two units of a layer must differ.

    Raises:
        ValueError: If an argument is not valid, or, on use, if no mask was found that is certified: the error names the
            layer, the reason and what would work.

    Example:
        >>> import pyro_sps as sps
        >>> topology = sps.Topology.of(sps.mlp([8, 50, 50, 2]))
        >>> masks = sps.Rigid()(topology)
        >>> sps.fixed_count(masks), sps.certify(topology, masks).permutations.is_rigid
        (89, True)
        >>> sps.fixed_count(sps.Rigid(signs=True)(topology))
        100
    """

    signs: bool = False
    strength: int = 1

    uses_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.signs, bool):
            raise ValueError(f"signs must be True or False, got {self.signs!r}")
        if isinstance(self.strength, bool) or not isinstance(self.strength, int) or self.strength < 1:
            raise ValueError(f"strength must be a positive integer, got {self.strength!r}")

    def __call__(self, topology: Topology, generator: Generator | None = None, values: Any = None) -> Masks:
        """Rigid masks.

        Args:
            topology: The network's topology.
            generator: Not used, but for drawing values where equal constants cannot do it; it is left as it was.
            values: The rule that will set the fixed weights; None for any equal constants.

        Raises:
            ValueError: If there is no such mask or none was found.
        """
        if self.signs and isinstance(values, Zero) and any(topology.groups[index].odd for index in topology.hidden):
            raise ValueError(
                "Rigid(signs=True) cannot remove sign flips with values=Zero(): zero has no sign. "
                "sps.Constant() or sps.Ladder() can"
            )
        if isinstance(values, Ladder):
            masks = self._by_value(topology)
            return self._certified(topology, masks, _draw(values, topology, masks, generator))
        try:
            return self._by_place(topology, values, generator)
        except _Impossible as problem:
            if values is not None and not isinstance(values, Zero | Constant | MAP):
                masks = self._by_value(topology)
                return self._certified(topology, masks, _draw(values, topology, masks, generator))
            raise ValueError(
                f"{problem}. Distinct constants can: sps.Rigid() with values=sps.Ladder(), or fixed distinct biases, "
                "scheme=sps.InputOffsets() with values=sps.Ladder()"
            ) from None

    def _by_place(self, topology: Topology, values: Any, generator: Generator | None) -> Masks:
        """The smallest certified mask that relies on places alone."""
        problem = _Impossible("Rigid() found no mask of equal constants that leaves no symmetry")
        drafts = []
        for variant in _VARIANTS[-2:] if self.signs else _VARIANTS:
            try:
                drafts.append((variant.careful, _build(topology, self.signs, variant)))
            except _Impossible as error:
                problem = error
        drafts.sort(key=lambda item: (item[0], _fixed_count(item[1])))
        for seeds, (_, draft) in itertools.product([(0,)] if self.strength == 1 else _SEEDS, drafts):
            for seed in seeds:
                masks = draft
                if self.strength > 1:
                    masks = _strengthened(topology, draft, self.strength, np.random.default_rng(seed))
                if self._problem(topology, masks, self._worst(topology, masks, values, generator)) is None:
                    return masks
        if drafts and self.strength > 1:
            raise ValueError(f"Rigid(strength={self.strength}) found no mask that is certified; try another strength")
        raise problem

    def _worst(self, topology: Topology, masks: Masks, values: Any, generator: Generator | None) -> Any:
        """Values for the certificate such that what it says holds for all that the rule may draw.

        Permutations that keep some values also keep the places, so equal values are the worst case. If they leave none,
        the sign flips depend on which values are zero only, not on their signs.
        """
        if not self.signs or values is None or isinstance(values, Constant | RandomConstant | MAP):
            return {t.name: torch.full(t.shape, float(self.signs)) for t in topology.tensors}
        pattern = _draw(values, topology, masks, generator)
        return {name: (value != 0).to(torch.float64) for name, value in pattern.tensors().items()}

    def _by_value(self, topology: Topology) -> Masks:
        """Each unit (without `signs`, but one a layer) has `strength` fixed weights of its own values."""
        masks = topology.check_masks({})
        done = {index for index, group in enumerate(topology.groups) if group.pinned}
        waiting = list(topology.hidden)
        while waiting:
            # Next to a layer that is done, so that signs are tied to the pinned units.
            index = next((i for i in waiting if any(other in done for _, _, other in _relations(topology, i))), None)
            if index is None:
                raise ValueError(f"{topology.groups[waiting[0]].name} is not connected to the inputs or outputs")
            group = topology.groups[index]
            relations = sorted(_relations(topology, index), key=lambda relation: relation[2] not in done)
            places = [(t, axis, j) for t, axis, other in relations for j in range(topology.groups[other].size)]
            own = [place for place in places if _other(topology, place) != index]
            near = sum(_other(topology, place) in done for place in own)
            if self.strength > len(own):
                raise ValueError(_too_strong(topology, index, self.strength, len(own)))
            for unit in range(group.size - (0 if self.signs and group.odd else 1)):
                # The first is among the neighbours that are done; the others follow.
                chosen = [own[unit % near]]
                for step in range(len(own)):
                    if len(chosen) == self.strength:
                        break
                    if (place := own[(unit + step) % len(own)]) not in chosen:
                        chosen.append(place)
                for place in chosen:
                    _fix(topology, masks, place, unit)
            done.add(index)
            waiting.remove(index)
        return masks

    def _certified(self, topology: Topology, masks: Masks, values: FixedValues) -> Masks:
        if problem := self._problem(topology, masks, values):
            raise ValueError(
                f"Rigid() found no mask for these values: {problem}. With the distinct values of sps.Ladder() it does"
            )
        return masks

    def _problem(self, topology: Topology, masks: Masks, values: Any) -> str | None:
        """What the certificate has against masks; None if nothing is left."""
        report = certify(topology, masks, values)
        classes = [report.permutations]
        if self.signs and report.signed_permutations is not None:
            classes.append(report.signed_permutations)
        for one in classes:
            if not one.is_rigid:
                return f"10^{one.log10_after:.2f} {one.name} would be left, such as: {one.generators[0]}"
        return None


class _Impossible(Exception):
    """Equal constants cannot tell the units of a layer apart."""


def _draw(values: Any, topology: Topology, masks: Masks, generator: Generator | None) -> FixedValues:
    if generator is not None:
        generator = generator.clone_state()
    return make_values(values, topology, masks, generator)


def _relations(topology: Topology, index: int) -> list[tuple[int, int, int]]:
    """For a group: each matrix that it is on, its axis there, and the group on the other axis."""
    return [
        (t, axis, tensor.groups[1 - axis])
        for t, tensor in enumerate(topology.tensors)
        if tensor.is_matrix
        for axis in (0, 1)
        if tensor.groups[axis] == index
    ]


def _other(topology: Topology, place: Place) -> int:
    return topology.tensors[place[0]].groups[1 - place[1]]


def _fix(topology: Topology, masks: Masks, place: Place, unit: int) -> None:
    t, axis, other = place
    tensor = topology.tensors[t]
    row, column = (unit, other) if axis == 0 else (other, unit)
    masks[tensor.name].view(*tensor.shape[:2], -1)[row, column, 0] = False


def _fixed_count(masks: Masks) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def _too_strong(topology: Topology, index: int, strength: int, places: int) -> str:
    return (
        f"Rigid(strength={strength}): two units of {topology.groups[index].name} can differ in no more than "
        f"{places} places, the number of their neighbours; give a smaller strength"
    )


@dataclass(frozen=True)
class _Variant:
    """A way to build a mask for equal constants.

    Attributes:
        paths: Whether to have paths beside the tree.
        disjoint: Whether no layer is in paths to two others; the tree may then go on from the paths.
        reserve: How many units of a layer are kept for the tree.
        careful: See `_Builder.add_extras`.
    """

    paths: bool = False
    disjoint: bool = False
    reserve: int = 0
    careful: bool = False


# Of the local search for `strength`, which starts anew with the next one where what it found is not certified: two for
# each draft, then two more.
_SEEDS = tuple((first, first + 1) for first in range(0, 16, 2))

# The last one is proved on paper, the first ones are smaller and left to the certificate.
_VARIANTS = (
    *(_Variant(True, disjoint, reserve) for disjoint in (True, False) for reserve in (1, 0)),
    _Variant(),
    _Variant(careful=True),
)


def _build(topology: Topology, signs: bool, variant: _Variant) -> Masks:
    builder = _Builder(topology, signs)
    if variant.paths:
        builder.add_paths(variant.disjoint, variant.reserve)
    builder.grow(from_paths=variant.disjoint)
    builder.add_extras(variant.careful)
    return builder.masks


@dataclass
class _Builder:
    """Builds the mask of `Rigid` for equal constants; units of a group are used in order.

    Attributes:
        topology: The topology.
        signs: Whether units that can flip their sign must all be tied to a pinned unit.
        masks: The masks so far.
        used: For each group how many units are identified.
        sets: For each identified hidden unit (group, unit) the places where it has a fixed weight.
        child: The unit that a unit (group, unit) identified in (tensor, its axis).
    """

    topology: Topology
    signs: bool
    masks: Masks = field(init=False)
    used: dict[int, int] = field(init=False)
    sets: dict[tuple[int, int], list[Place]] = field(default_factory=dict)
    child: dict[tuple[int, int, int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.masks = self.topology.check_masks({})
        self.used = dict.fromkeys(self.topology.hidden, 0)

    def waiting(self, index: int) -> int:
        """How many units of a group still need a fixed weight; all but one do."""
        if index not in self.used:
            return 0
        group = self.topology.groups[index]
        return group.size - (0 if self.signs and group.odd else 1) - self.used[index]

    def new_unit(self, index: int) -> int:
        self.used[index] += 1
        self.sets[index, self.used[index] - 1] = []
        return self.used[index] - 1

    def join(self, place: Place, index: int, unit: int) -> None:
        """Fix the weight of a unit of group `index` at a place."""
        t, axis, other = place
        _fix(self.topology, self.masks, place, unit)
        self.sets[index, unit].append(place)
        group = _other(self.topology, place)
        if group in self.used:
            self.sets.setdefault((group, other), []).append((t, 1 - axis, unit))

    def add_paths(self, disjoint: bool, reserve: int) -> None:
        """Paths of 2, 4, 6, … units between two adjacent hidden layers, tied to nothing.

        Args:
            disjoint: Whether no layer is in two such pairs.
            reserve: How many units of each layer are left for the tree, to reach the layers behind.
        """
        pairs = [
            (t, *tensor.groups)
            for t, tensor in enumerate(self.topology.tensors)
            if tensor.is_matrix and tensor.groups[0] != tensor.groups[1] and all(g in self.used for g in tensor.groups)
        ]
        # Several tensors between the same two layers add nothing: one path of each length is enough.
        pairs = list({pair[1:]: pair for pair in reversed(pairs)}.values())[::-1]
        if disjoint:
            every, pairs = sorted(pairs, key=lambda pair: -min(self.waiting(i) for i in pair[1:])), []
            for pair in every:
                if not any(set(pair[1:]) & set(other[1:]) for other in pairs):
                    pairs.append(pair)
        for length in itertools.count(1):
            fitting = [pair for pair in pairs if min(map(self.waiting, pair[1:])) >= length + reserve]
            if not fitting:
                return
            for t, first, second in fitting:
                if min(self.waiting(first), self.waiting(second)) >= length + reserve:
                    rows = [self.new_unit(first) for _ in range(length)]
                    columns = [self.new_unit(second) for _ in range(length)]
                    for row, column in [*zip(rows, columns, strict=True), *zip(rows[1:], columns[:-1], strict=True)]:
                        self.join((t, 0, column), first, row)

    def grow(self, from_paths: bool) -> None:
        """Let identified units identify others by one fixed weight, breadth first, then dead ends.

        Args:
            from_paths: Whether units of paths do so too, where the tree cannot.
        """
        queue = deque((i, u) for i, group in enumerate(self.topology.groups) if group.pinned for u in range(group.size))
        paths = deque(self.sets if from_paths else ())
        tree = []
        while queue or paths:
            index, unit = (queue or paths).popleft()
            tree.append((index, unit))
            for t, axis, other in _relations(self.topology, index):
                if self.waiting(other) > 0:
                    new = self.new_unit(other)
                    self.join((t, 1 - axis, unit), other, new)
                    self.child[index, unit, t, axis] = new
                    queue.append((other, new))
        for index, unit in tree:
            for t, axis, other in _relations(self.topology, index):
                first = self.child.get((index, unit, t, axis))
                if first is not None and self.waiting(other) > 0 and len(self.sets[other, first]) > 1:
                    self.join((t, 1 - axis, unit), other, self.new_unit(other))

    def add_extras(self, careful: bool) -> None:
        """Give the units that are left different sets of neighbours.

        Args:
            careful: Whether to use only sets with numbers of neighbours that no unit of the forest has, so that an
                automorphism must map the forest onto itself.

        Raises:
            _Impossible: If there are not enough sets.
        """
        for index in self.used:
            if self.waiting(index) <= 0:
                continue
            relations = _relations(self.topology, index)
            places = [(t, axis, j) for t, axis, other in relations for j in range(self.topology.groups[other].size)]
            members = [self.sets[index, unit] for unit in range(self.used[index])]
            taken = {frozenset(places) for places in members}
            counts = {_counts(places) for places in members}
            for chosen in _subsets(places):
                if self.waiting(index) <= 0:
                    break
                if frozenset(chosen) not in taken and not (careful and _counts(chosen) in counts):
                    unit = self.new_unit(index)
                    for place in chosen:
                        self.join(place, index, unit)
            if self.waiting(index) > 0:
                raise _Impossible(self.why(index, len(places)))

    def why(self, index: int, places: int) -> str:
        group = self.topology.groups[index]
        others = Counter(self.topology.groups[other].name for _, _, other in _relations(self.topology, index))
        names = ", ".join(f"{other.name}: {other.size}" for other in self.topology.groups if other.name in others)
        told = f"Rigid() cannot tell the {group.size} units of {group.name} apart with equal constants"
        if self.signs and group.odd:
            told += " and remove their sign flips"
        if group.size > 2**places - (self.signs and group.odd):
            return f"{told}: they have {places} neighbours ({names}), which makes {2**places} sets of fixed weights"
        return f"{told}: its construction found too few different sets of their {places} neighbours ({names})"


def _counts(places: list[Place]) -> frozenset[tuple[tuple[int, int], int]]:
    """Number of fixed weights by tensor and axis."""
    return frozenset(Counter(place[:2] for place in places).items())


def _subsets(places: list[Place]) -> Iterator[list[Place]]:
    """All non-empty subsets, small ones first, in an order that uses all places about equally often.

    Subsets are taken as rotations of a necklace of gaps, each necklace in its smallest rotation.
    """
    n = len(places)
    for size in range(1, n + 1):
        for offsets in itertools.combinations(range(1, n), size - 1):
            gaps = [b - a for a, b in itertools.pairwise((0, *offsets, n))]
            rotations = [gaps[i:] + gaps[:i] for i in range(1, size)]
            if any(rotation < gaps for rotation in rotations):
                continue
            period = rotations.index(gaps) + 1 if gaps in rotations else size
            for start in range(sum(gaps[:period])):
                yield [places[(start + offset) % n] for offset in (0, *offsets)]


# --- strength ---------------------------------------------------------------------------------------


def _strengthened(topology: Topology, masks: Masks, strength: int, rng: np.random.Generator) -> Masks:
    """Fix more weights until the patterns of any two units of a layer differ in `strength` places.

    A local search: the unit that is closest to the others changes where it helps most.
    """
    for index in topology.hidden:
        places = sum(topology.groups[other].size - 2 * (other == index) for _, _, other in _relations(topology, index))
        if strength > places and topology.groups[index].size > 1:
            raise ValueError(_too_strong(topology, index, strength, places))
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
    for t, fixed in patterns.fixed.items():
        tensor = topology.tensors[t]
        result[tensor.name].view(*tensor.shape[:2], -1)[..., 0] = torch.from_numpy(~fixed)
    return result


class _Patterns:
    """Fixed places of all units and the distances between units of a layer.

    Attributes:
        fixed: For each matrix (by index of the tensor) where it is fixed, shape (rows, columns).
        kept: Where it was fixed at first, which stays.
        distance: For each hidden group the number of places where two units differ, shape (units, units).
    """

    candidates = 64  # places looked at for one change

    def __init__(self, topology: Topology, masks: Masks, strength: int) -> None:
        self.topology, self.strength = topology, strength
        self.fixed = {
            t: ~masks[tensor.name].view(*tensor.shape[:2], -1)[..., 0].numpy()
            for t, tensor in enumerate(topology.tensors)
            if tensor.is_matrix
        }
        self.kept = {t: fixed.copy() for t, fixed in self.fixed.items()}
        self.distance = {index: self._distances(index) for index in topology.hidden}
        self.lacking = {index: self._lack(distance).sum(axis=1) for index, distance in self.distance.items()}

    def _lack(self, distance: Any) -> Any:
        return np.maximum(self.strength - distance, 0)

    def _distances(self, index: int) -> Any:
        size = self.topology.groups[index].size
        distance = np.zeros((size, size), dtype=np.int32)
        for t, axis, other in _relations(self.topology, index):
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
            for t, axis, other in _relations(self.topology, index)
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
        other = _other(self.topology, place)
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
        other = _other(self.topology, place)
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


# --- what each scheme leaves ------------------------------------------------------------------------


def scheme_table(
    widths_list: Sequence[Sequence[int]],
    schemes: Mapping[str, Scheme] | None = None,
    activation: str = "tanh",
    seed: int = 0,
) -> str:
    """What each scheme leaves of the symmetries of fully connected networks, as a Markdown table.

    Args:
        widths_list: Widths of the networks' layers, inputs first.
        schemes: Schemes by the name they have in the table; default: none, light, heavy, rigid and rigid with signs.
        activation: Their activation; see `pyro_sps.mlp`. Columns for sign flips are there if it is odd.
        seed: Seeds the signs of the constants and random schemes.

    Returns:
        One row for each network and scheme. Orders with constants ±c are for one draw of the signs.

    Example:
        >>> import pyro_sps as sps
        >>> print(sps.rigid.scheme_table([[8, 50, 50, 2]], {"heavy": sps.Heavy(), "rigid": sps.Rigid()}, "relu"))
        | widths | scheme | fixed weights | permutations left |
        | --- | --- | ---: | --- |
        | 8-50-50-2 | heavy | 1,254 | 1 |
        | 8-50-50-2 | rigid | 89 | 1 |
    """
    if schemes is None:
        schemes = {
            "none": Unmasked(),
            "light": Light(),
            "heavy": Heavy(),
            "rigid": Rigid(),
            "rigid, signs": Rigid(signs=True),
        }
    rows: list[list[str]] = []
    odd = False
    for widths in widths_list:
        topology = Topology.of(mlp(tuple(widths), activation, device="meta"))
        odd = any(topology.groups[index].odd for index in topology.hidden)
        for name, scheme in schemes.items():
            generator = torch.Generator().manual_seed(seed)
            try:
                with silenced(SymmetryWarning):
                    masks = make_masks(scheme, topology, Constant(), generator)
            except ValueError:  # equal constants cannot do it
                rows.append(["-".join(map(str, widths)), name, "impossible", *[""] * (3 if odd else 1)])
                continue
            zero = certify(topology, masks)
            row = ["-".join(map(str, widths)), name, f"{zero.num_fixed:,}", zero.permutations.text(after=True)]
            if zero.signed_permutations is not None:
                constant = certify(topology, masks, Constant()(topology, masks, generator)).signed_permutations
                row.append(zero.signed_permutations.text(after=True))
                row.append("" if constant is None or not zero.num_fixed else constant.text(after=True))
            rows.append(row)
    head = ["widths", "scheme", "fixed weights", "permutations left"]
    head += ["with sign flips, zero", "with sign flips, ±c"] if odd else []
    lines = [head, ["---", "---", "---:", *["---"] * (len(head) - 3)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
