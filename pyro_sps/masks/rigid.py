"""Masks that leave no symmetry: the `Rigid` scheme, distinct constants for it, and fixed biases as an alternative."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator

from ..base.checks import require_count, require_flag
from ..network.topology import Masks, Topology
from .chance import by_chance
from .completion import completed
from .schemes import fixed_count
from .search import (
    SEEDS,
    VARIANTS,
    ImpossibleError,
    Place,
    build,
    fix,
    joined,
    other_group,
    relations_of,
    too_strong,
)
from .strength import strengthened, widened
from .values import MAP, Constant, FixedValues, Ladder, RandomConstant, Zero, make_values


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
            names = [
                t.name
                for t in topology.tensors
                if t.groups and not t.is_matrix and not t.is_scale and index in topology.sides(t)[0]
            ]
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

    **Other signs.** Norms, weights that multiply units one by one, gates and recurrent cells have signs that the forest
    does not tie. With `signs=True`, for each flip that is left an entry more is fixed that it would change.

    **Single numbers** that multiply several units (`Topology.uncounted`) are fixed with `signs=True`.

    **Grouped convolutions** join only some units with each other. Where this construction needs those, random masks are
    tried, and connections freed again one by one as long as the certificate holds: not the fewest possible.

    **Strength.** The pattern of a unit says for each tensor and each neighbour whether the weight between them is
    fixed. With `strength=k` the patterns of any two units of a hidden layer differ in at least k places. (In a tensor
    between units of one layer, places of the two units themselves do not count. With `Ladder`, places where both
    have a fixed weight of another value count too.) Rigidity implies k = 1; a larger k moves almost equal modes apart.
    From the mask for k = 1 on, weights are added by local search, about k/4 a unit between layers of the same width.

    Args:
        signs: Whether sign flips (of odd activations) must go too; needs non-zero values.
        strength: Smallest number of places in which the patterns of two units of a layer must differ.
        entries: Of a connection of several entries, such as a kernel of a convolution, whether `"one"` is fixed, the
            first, or all of the `"connection"`.

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
    entries: str = "one"

    uses_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_flag("signs", self.signs)
        require_count("strength", self.strength)
        if self.entries not in ("one", "connection"):
            raise ValueError(f"entries must be 'one' or 'connection', got {self.entries!r}")

    def __call__(self, topology: Topology, generator: Generator | None = None, values: Any = None) -> Masks:
        """Rigid masks.

        Args:
            topology: The network's topology.
            generator: Not used, but for drawing values where equal constants cannot do it; it is left as it was.
            values: The rule that will set the fixed weights; None for any equal constants.

        Raises:
            ValueError: If there is no such mask or none was found.
        """
        if self.signs and isinstance(values, Zero) and (_has_signs(topology) or topology.uncounted):
            raise ValueError(
                "Rigid(signs=True) cannot remove sign flips with values=Zero(): zero has no sign. "
                "sps.Constant() or sps.Ladder() can"
            )
        masks = self._found(topology, generator, values)
        for name in topology.uncounted if self.signs else ():
            masks[name] = torch.zeros_like(masks[name])
        return masks

    def _found(self, topology: Topology, generator: Generator | None, values: Any) -> Masks:
        """Masks that leave nothing of what the certificate counts."""
        if isinstance(values, Ladder):
            return self._certified(topology, self._by_value(topology), values, generator)
        try:
            return self._by_place(topology, values, generator)
        except ImpossibleError as problem:
            if values is not None and not isinstance(values, Zero | Constant | MAP):
                return self._certified(topology, self._by_value(topology), values, generator)
            raise ValueError(
                f"{problem}. Distinct constants can: sps.Rigid() with values=sps.Ladder(), or fixed distinct biases, "
                "scheme=sps.InputOffsets() with values=sps.Ladder()"
            ) from None

    def _by_place(self, topology: Topology, values: Any, generator: Generator | None) -> Masks:
        """The smallest certified mask that relies on places alone."""
        problem = ImpossibleError("Rigid() found no mask of equal constants that leaves no symmetry")
        drafts = []
        for variant in VARIANTS[-2:] if self.signs else VARIANTS:
            try:
                drafts.append((variant.careful, build(topology, self.signs, variant)))
            except ImpossibleError as error:
                problem = error
        drafts.sort(key=lambda item: (item[0], fixed_count(item[1])))
        for seeds, (_, draft) in itertools.product([(0,)] if self.strength == 1 else SEEDS, drafts):
            for seed in seeds:
                masks = draft
                if self.strength > 1:
                    masks = strengthened(topology, draft, self.strength, np.random.default_rng(seed))
                if self.entries == "connection":
                    masks = widened(topology, masks)
                if self._problem(topology, masks, self._worst(topology, masks, values, generator)) is None:
                    return masks
        if self.strength == 1 and any(joint.partly for joint in topology.joints):

            def is_rigid(masks: Masks) -> bool:
                return self._problem(topology, masks, self._worst(topology, masks, values, generator)) is None

            if (found := by_chance(topology, is_rigid, self.entries == "connection")) is not None:
                return found
        if self.signs and self.strength == 1:
            for _, draft in drafts:
                found = self._completed(topology, draft, lambda own: self._worst(topology, own, values, generator))
                if found is not None:
                    return found
        if drafts and self.strength > 1:
            raise ValueError(f"Rigid(strength={self.strength}) found no mask that is certified; try another strength")
        raise problem

    def _worst(self, topology: Topology, masks: Masks, values: Any, generator: Generator | None) -> Any:
        """Values for the certificate such that what it says holds for all that the rule may draw.

        Permutations that keep some values also keep the places, so equal values are the worst case. If they leave none,
        the sign flips depend on which values are zero only, not on their signs.
        """
        if not self.signs or values is None or isinstance(values, Constant | RandomConstant | MAP):
            return {t.name: torch.full(t.shape, float(self.signs), dtype=torch.float32) for t in topology.tensors}
        pattern = _draw(values, topology, masks, generator)
        return {name: (value != 0).to(torch.float64) for name, value in pattern.tensors().items()}

    def _by_value(self, topology: Topology) -> Masks:
        """Each unit (without `signs`, but one a layer) has `strength` fixed weights of its own values."""
        masks = topology.check_masks({})
        done = {index for index, group in enumerate(topology.groups) if group.pinned}
        waiting = list(topology.hidden)
        while waiting:
            # Next to a layer that is done, so that signs are tied to the pinned units.
            index = next(
                (i for i in waiting if any(other in done for _, _, other in relations_of(topology, i, partly=True))),
                None,
            )
            if index is None:
                raise ValueError(f"{topology.groups[waiting[0]].name} is not connected to the inputs or outputs")
            group = topology.groups[index]
            relations = relations_of(topology, index, partly=True)
            relations = sorted(
                relations, key=lambda relation: (relation[2] not in done, topology.joints[relation[0]].partly)
            )
            sides = {(t, axis): _joined_to(topology, t, axis) for t, axis, other in relations if other != index}
            alike = not any(topology.joints[t].partly for t, _ in sides)  # all units have the same neighbours
            own: list[Place] = []
            for unit in range(group.size - (0 if self.signs and group.odd else 1)):
                if not (alike and own):
                    own = [
                        (t, axis, j) for (t, axis), side in sides.items() for j in np.flatnonzero(side[unit]).tolist()
                    ]
                    known = [place for place in own if other_group(topology, place) in done]
                    near = sum(not topology.joints[place[0]].partly for place in known) or len(known)
                if self.strength > len(own):
                    raise ValueError(too_strong(topology, index, self.strength, len(own)))
                # The first is among the neighbours that are done; the others follow.
                chosen = [own[unit % near]]
                for step in range(len(own)):
                    if len(chosen) == self.strength:
                        break
                    if (place := own[(unit + step) % len(own)]) not in chosen:
                        chosen.append(place)
                for place in chosen:
                    fix(topology, masks, place, unit)
            done.add(index)
            waiting.remove(index)
        return widened(topology, masks) if self.entries == "connection" else masks

    def _certified(self, topology: Topology, masks: Masks, values: Any, generator: Generator | None) -> Masks:
        """The masks, and what completes them, if nothing is left with these values."""
        problem = self._problem(topology, masks, _draw(values, topology, masks, generator))
        if problem is None:
            return masks
        if self.signs:
            found = self._completed(topology, masks, lambda own: _draw(values, topology, own, generator))
            if found is not None:
                return found
        more = "" if isinstance(values, Ladder) else ". With the distinct values of sps.Ladder() it may"
        raise ValueError(f"Rigid() found no mask for these values: {problem}{more}")

    def _completed(self, topology: Topology, masks: Masks, values_for: Callable[[Masks], Any]) -> Masks | None:
        """Masks that also fix what the symmetries that these leave would change."""

        def left(own: Masks) -> Sequence[Any]:
            return self._left(topology, own, values_for(own))[1]

        found = completed(topology, masks, left)
        return widened(topology, found) if found is not None and self.entries == "connection" else found

    def _left(self, topology: Topology, masks: Masks, values: Any) -> tuple[int, Sequence[Any]]:
        """The order of the group of what must go, and moves that generate it."""
        order, moves = _moves_left(topology, masks, values, False)
        return (order, moves) if order > 1 or not self.signs else _moves_left(topology, masks, values, True)

    def _problem(self, topology: Topology, masks: Masks, values: Any) -> str | None:
        """What the certificate has against masks; None if nothing is left."""
        order, moves = self._left(topology, masks, values)
        if order == 1:
            return None
        what = "symmetries" if self.signs else "permutations"
        return f"10^{math.log10(order):.2f} {what} would be left, such as: {moves[0]}"


def _has_signs(topology: Topology) -> bool:
    """Whether the sign of anything can flip."""
    if topology.structure is not None:
        return bool(topology.structure.flips.any())
    return any(topology.groups[index].odd for index in topology.hidden)


def _joined_to(topology: Topology, number: int, axis: int) -> Any:
    """Which units a joint joins with each unit of the group on one side of it, one a row."""
    joint = topology.joints[number]
    if joint.partly:
        both = joined(topology, joint)
        return both if axis == 0 else both.T
    return np.ones([topology.groups[joint.groups[side]].size for side in (axis, 1 - axis)], dtype=bool)


def _draw(values: Any, topology: Topology, masks: Masks, generator: Generator | None) -> FixedValues:
    if generator is not None:
        generator = generator.clone_state()
    return make_values(values, topology, masks, generator)


def _moves_left(topology: Topology, masks: Masks, values: Any, signed: bool) -> tuple[int, Sequence[Any]]:
    """What the certificate says, which lies a wing further down."""
    from ..symmetry.certificate import moves_left

    return moves_left(topology, masks, values, signed)
