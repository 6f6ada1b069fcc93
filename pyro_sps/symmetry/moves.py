"""Symmetries one by one: what a move does to units and weights, and how it is said in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..network.topology import Topology
from .entries import apply_to_places


@dataclass(frozen=True)
class Move:
    """A symmetry: hidden units that change places, and by what their activations are multiplied.

    Attributes:
        images: For each unit that moves or has a factor: name of its group, its index, the index where it goes, and
            the factor: 1, −1 for a sign flip, or any positive number, given as 2, for a rescaling.
        carriers: Where units have several signs or scales: of all but the first, the number of the vertex in
            `Topology.structure`, that where it goes, and the factor.

    Example:
        >>> from pyro_sps.symmetry.report import Move
        >>> print(Move((("layer 1", 7, 8, 1.0), ("layer 1", 8, 7, 1.0))))
        swap units 7 and 8 of layer 1
    """

    images: tuple[tuple[str, int, int, float], ...]
    carriers: tuple[tuple[int, int, float], ...] = ()

    @property
    def size(self) -> int:
        """How much it moves."""
        return len(self.images) + len(self.carriers)

    def vertices(self, topology: Topology) -> list[int]:
        """The units that it moves or multiplies, those of all groups numbered through, and carriers.

        Args:
            topology: The network's topology.
        """
        first = _first_units(topology)
        return [first[name] + index for name, index, *_ in self.images] + [index for index, *_ in self.carriers]

    def apply(self, topology: Topology, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move the weights of a network.

        Args:
            topology: The network's topology.
            weights: All weight tensors by name, in full shapes.

        Returns:
            New tensors, with which the network computes the same function.

        Example:
            >>> import torch, pyro_sps as sps
            >>> from pyro_sps.symmetry.report import Move
            >>> weights = {"0.weight": torch.tensor([[1.0], [2.0]]), "2.weight": torch.tensor([[3.0, 4.0]])}
            >>> topology = sps.Topology.of(sps.mlp([1, 2, 1], bias=False))
            >>> Move((("layer 1", 0, 1, -1.0), ("layer 1", 1, 0, 1.0))).apply(topology, weights)
            {'0.weight': tensor([[ 2.],
                    [-1.]]), '2.weight': tensor([[ 4., -3.]])}
        """
        if any(tensor.places for tensor in topology.tensors):
            return apply_to_places(topology, weights, *self._maps(topology))
        moved = {}
        for tensor in topology.tensors:
            weight = weights[tensor.name]
            for axis, group in enumerate(tensor.groups):
                here = [image for image in self.images if image[0] == topology.groups[group].name]
                if not here:
                    continue
                _, source, target, factor = zip(*here, strict=True)
                scale = torch.tensor(factor, dtype=weight.dtype, device=weight.device)
                scale = scale if axis == 0 else 1 / scale
                shape = [-1 if i == axis else 1 for i in range(weight.dim())]
                rows = weight.index_select(axis, torch.tensor(source, device=weight.device)) * scale.reshape(shape)
                weight = weight.index_copy(axis, torch.tensor(target, device=weight.device), rows)
            moved[tensor.name] = weight
        return moved

    def _maps(self, topology: Topology) -> tuple[Any, Any]:
        """For each unit where it goes, and for each carrier its factor."""
        first = _first_units(topology)
        goes = np.arange(topology.first[-1])
        factors = np.ones(len(goes) if topology.structure is None else len(topology.structure.unit))
        for name, source, target, factor in self.images:
            goes[first[name] + source] = first[name] + target
            factors[first[name] + source] = factor
        for source, _, factor in self.carriers:
            factors[source] = factor
        return goes, factors

    def __str__(self) -> str:
        by_group: dict[str, list[tuple[int, int, float]]] = {}
        for name, source, target, factor in self.images:
            by_group.setdefault(name, []).append((source, target, factor))
        parts, last = [], ""
        if not self.images:
            verb = "flip" if any(factor < 0 for *_, factor in self.carriers) else "rescale"
            return f"{verb} what {len(self.carriers)} inner weight{'s' if len(self.carriers) > 1 else ''} of units see"
        for name, images in by_group.items():
            for verb, what in _describe_images(images):
                parts.append(f"{what} of {name}" if verb == last else f"{verb} {what} of {name}")
                last = verb
        return " together with ".join(parts)


def _first_units(topology: Topology) -> dict[str, int]:
    """The number of each group's first unit, by its name."""
    return dict(zip((group.name for group in topology.groups), topology.first.tolist(), strict=False))


def _describe_images(images: list[tuple[int, int, float]]) -> list[tuple[str, str]]:
    """What happens to the units of one group, in words: verbs and their objects."""
    target = {source: image for source, image, _ in images}
    factor = {source: value for source, _, value in images}
    swaps: list[list[int]] = []
    cycles: list[list[int]] = []
    seen: set[int] = set()
    for source in target:
        if source in seen or target[source] == source:
            continue
        cycle = [source]
        while target[cycle[-1]] != source:
            cycle.append(target[cycle[-1]])
        seen.update(cycle)
        (swaps if len(cycle) == 2 else cycles).append(cycle)
    words = []
    if swaps:
        words.append(("swap", "units " + _listed([f"{a} and {b}" for a, b in swaps])))
    words += [("cycle", f"units {' -> '.join(map(str, [*_shortened(cycle), cycle[0]]))}") for cycle in cycles[:3]]
    if len(cycles) > 3:
        words.append(("cycle", f"units in {len(cycles) - 3} more cycles"))
    if flipped := [source for source in target if factor[source] < 0]:
        words.append(("flip", f"the sign{'s' if len(flipped) > 1 else ''} of {_units(flipped)}"))
    if scaled := [source for source in target if factor[source] > 0 and factor[source] != 1]:
        words.append(("rescale", _units(scaled)))
    return words


def _units(units: Sequence[int]) -> str:
    return f"unit{'s' if len(units) > 1 else ''} {_listed(list(map(str, units)))}"


def _listed(words: list[str], most: int = 6) -> str:
    more = f", and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _shortened(cycle: list[int]) -> list[int | str]:
    return [*cycle[:4], f"({len(cycle) - 5} more)", cycle[-1]] if len(cycle) > 6 else list(cycle)
