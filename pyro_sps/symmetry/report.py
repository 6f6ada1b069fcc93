"""What a certificate of symmetries says: orders, moves in words, and a check of the moves on a network.

`pyro_sps.symmetry` makes these reports.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..network.run import NetworkFunction
from ..network.topology import Topology
from .moves import Move
from .refinement import connected_components


@dataclass(frozen=True)
class SymmetryClass:
    """Symmetries of one kind before and after masking.

    Attributes:
        name: `permutations`, `signed permutations`, `scalings` or `linear maps`.
        before: Order of the group of the network without masks; for scalings and linear maps, its dimension. None if it
            was not determined in time.
        after: Order (dimension) of what is left; None if it was not determined in time.
        how: How `after` was proved.
        generators: Moves that together generate what is left.
        factors: `before` and `after` written as products, such as `50!^2`; empty for scalings.

    Example:
        >>> import pyro_sps as sps
        >>> topology = sps.Topology.of(sps.mlp([3, 5, 5, 2]))
        >>> permutations = sps.certify(topology, sps.Light()(topology)).permutations
        >>> permutations.before, permutations.after, permutations.is_rigid
        (14400, 6, False)
    """

    name: str
    before: int | None
    after: int | None
    how: str
    generators: tuple[Move, ...] = field(default=(), repr=False)
    factors: tuple[str, str] = ("", "")

    @property
    def continuous(self) -> bool:
        """True for scalings and linear maps, whose group has a dimension instead of an order."""
        return self.name in ("scalings", "linear maps")

    @property
    def log10_before(self) -> float | None:
        """log10 of the order without masks; None for scalings and if it was not determined."""
        return None if self.continuous or self.before is None else math.log10(self.before)

    @property
    def log10_after(self) -> float | None:
        """log10 of the order of what is left; None for scalings and if it was not determined."""
        return None if self.continuous or self.after is None else math.log10(self.after)

    @property
    def is_rigid(self) -> bool | None:
        """Whether nothing is left; None if it was not determined."""
        if self.after is None:
            return None
        return self.after == (0 if self.continuous else 1)

    def to_dict(self, most: int = 20) -> dict[str, Any]:
        """Plain numbers and strings for JSON; orders are strings that `int(text, 0)` reads.

        Args:
            most: Largest number of generators that are described.
        """
        return {
            "before": None if self.before is None else _exact(self.before),
            "after": None if self.after is None else _exact(self.after),
            "log10_before": self.log10_before,
            "log10_after": self.log10_after,
            "is_rigid": self.is_rigid,
            "how": self.how,
            "num_generators": len(self.generators),
            "generators": [str(move) for move in self.generators[:most]],
        }

    def text(self, after: bool) -> str:
        """`before` or `after` for a reader, such as `43! = 10^52.78`."""
        number, product = (self.after, self.factors[1]) if after else (self.before, self.factors[0])
        if number is None:
            return "not determined"
        if self.continuous or number < 10**6:
            return f"{number:,}"
        power = f"10^{math.log10(number):.2f}"
        return f"{product} = {power}" if 0 < len(product) <= 24 else power


def _exact(number: int) -> str:
    # Python refuses to print integers of more than 4300 decimal digits by default; hexadecimal has no limit.
    return str(number) if number < 10**4000 else hex(number)


@dataclass(frozen=True)
class Verification:
    """Result of applying generators to a random draw of the weights.

    Attributes:
        checked: Number of generators applied.
        max_deviation: Largest change of an output, relative to the largest output.
        ok: Whether all outputs stayed the same to rounding and all fixed weights kept their values exactly.

    Example:
        >>> import pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([3, 5, 5, 2]), scheme=sps.Heavy(), values=sps.Zero())
        >>> bnn.symmetry().verify(bnn)
        Verification(checked=10, max_deviation=0.0, ok=True)
    """

    checked: int
    max_deviation: float
    ok: bool


class PartialNetwork(Protocol):
    """What a check needs of a network with fixed weights; a `BNN` is one."""

    topology: Topology

    @property
    def function(self) -> NetworkFunction:
        """The network as a function of its weights."""

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Stochastic masks by tensor name."""

    @property
    def fixed(self) -> Mapping[str, Tensor]:
        """Constants by tensor name."""


@dataclass(frozen=True)
class SymmetryReport:
    """What masks and fixed values leave of a network's symmetries; made by `pyro_sps.certify`.

    Attributes:
        topology: The network's topology.
        num_fixed: Number of fixed weights.
        permutations: Relabellings of hidden units.
        signed_permutations: Relabellings with sign flips; None unless a hidden layer has an odd activation. Layers
            without one are only relabelled.
        scalings: Rescalings of hidden units; None unless a hidden layer is positively homogeneous.
        notes: What is not counted and what was not determined, in words.
        ordered: Names of the biases that are constrained to increase.
        linear_maps: Invertible linear maps of units, such as GL(d) of queries and keys and of values and outputs inside
            a head; None if there are none. Like scalings they are ridges of the likelihood. Those of values and outputs
            have the scalings of the same units in them. Of fully connected networks a note says it.
        uncounted: Names of numbers whose sign and scale are left and not counted; see `Topology.uncounted`.
        verification: What was tried on numbers, with `certify(verify=net)`: generators of the whole network and of what
            is left, and products of them; else None.

    Example:
        >>> import pyro_sps as sps
        >>> topology = sps.Topology.of(sps.mlp([8, 50, 50, 2]))
        >>> report = sps.certify(topology, sps.Light()(topology))
        >>> report.permutations.text(after=True)
        '43! = 10^52.78'
        >>> print(report.permutations.generators[0])
        swap units 7 and 8 of layer 1 together with units 7 and 8 of layer 2
    """

    topology: Topology
    num_fixed: int
    permutations: SymmetryClass
    signed_permutations: SymmetryClass | None
    scalings: SymmetryClass | None
    notes: tuple[str, ...] = ()
    ordered: tuple[str, ...] = ()
    linear_maps: SymmetryClass | None = None
    uncounted: tuple[str, ...] = ()
    verification: Verification | None = None

    @property
    def classes(self) -> tuple[SymmetryClass, ...]:
        """The classes of symmetry that the network has."""
        every = (self.permutations, self.signed_permutations, self.scalings, self.linear_maps)
        return tuple(one for one in every if one is not None)

    @property
    def is_rigid(self) -> bool | None:
        """Whether nothing of any class is left; None if that is not determined; see `Topology.unfollowed`."""
        answers = [one.is_rigid for one in self.classes]
        if False in answers or self.uncounted:
            return False
        return None if None in answers or self.topology.unfollowed else True

    def orbits(self) -> dict[str, list[int]]:
        """Which hidden units can still take each other's place by a permutation.

        Returns:
            For each hidden group, by name, the smallest unit that each unit can be exchanged with (itself if there
            is none). If the permutations were not determined: an empty dictionary.

        Example:
            >>> import pyro_sps as sps
            >>> topology = sps.Topology.of(sps.mlp([3, 5, 5, 2]))
            >>> sps.certify(topology, sps.Light()(topology)).orbits()
            {'layer 1': [0, 1, 2, 2, 2], 'layer 2': [0, 1, 2, 2, 2]}
        """
        if self.permutations.after is None:
            return {}
        labels = {}
        for index in self.topology.hidden:
            group = self.topology.groups[index]
            moved = [
                image[1:3] for move in self.permutations.generators for image in move.images if image[0] == group.name
            ]
            ends = np.array(moved, dtype=np.int64).reshape(-1, 2)
            labels[group.name] = connected_components(group.size, ends[:, 0], ends[:, 1]).tolist()
        return labels

    def verify(self, bnn: PartialNetwork, seed: int = 0, most: int = 32) -> Verification:
        """Apply generators of what is left to a random draw of a network's stochastic weights.

        Args:
            bnn: The network that was certified.
            seed: Seeds the draw of weights and inputs.
            most: Largest number of generators of each class to apply, spread evenly over all.

        Returns:
            Whether the constants stayed in place and the function was unchanged to rounding, in float64.

        Raises:
            ValueError: If the network has another topology than the report.

        Example:
            >>> import pyro_sps as sps
            >>> bnn = sps.BNN(sps.mlp([8, 6, 6, 2]), scheme=sps.Heavy(), values=sps.Zero())
            >>> bnn.symmetry().verify(bnn).ok
            True
        """
        if bnn.topology != self.topology:
            raise ValueError(f"bnn has another topology than the report: {bnn.topology}, not {self.topology}")
        moves, generator = self.some_moves(most), torch.Generator().manual_seed(seed)
        return check_moves(self.topology, bnn.function, bnn.masks, bnn.fixed, moves, generator, self.ordered)

    def some_moves(self, most: int) -> list[Move]:
        """Generators of what is left, so many of each class at most, spread evenly over all."""
        return [
            one.generators[i]
            for one in self.classes
            for i in np.unique(np.linspace(0, len(one.generators) - 1, most).round().astype(int)).tolist()
            if one.generators
        ]

    def to_dict(self) -> dict[str, Any]:
        """The report in plain numbers and strings, for JSON."""
        return {
            "widths": [group.size for group in self.topology.groups],
            "activations": [self.topology.groups[index].activation for index in self.topology.hidden],
            "num_weights": self.topology.num_weights,
            "num_fixed": self.num_fixed,
            "is_rigid": self.is_rigid,
            "permutations": self.permutations.to_dict(),
            "signed_permutations": None if self.signed_permutations is None else self.signed_permutations.to_dict(),
            "scalings": None if self.scalings is None else self.scalings.to_dict(),
            "linear_maps": None if self.linear_maps is None else self.linear_maps.to_dict(),
            "uncounted": list(self.uncounted),
            "notes": list(self.notes),
            "verification": None if self.verification is None else vars(self.verification),
        }

    def _title(self) -> str:
        widths = "-".join(str(group.size) for group in self.topology.groups)
        return f"{widths} network, {self.num_fixed:,} of {self.topology.num_weights:,} weights fixed"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = [("symmetries", "before", "left", "proved by")]
        for one in self.classes:
            name = f"{one.name} (dimension)" if one.continuous else one.name
            rows.append((name, one.text(after=False), one.text(after=True), one.how))
        return rows

    def _remarks(self) -> list[str]:
        verdict = {True: "rigid: nothing is left", False: "not rigid", None: "not determined whether anything is left"}
        remarks = [verdict[self.is_rigid]]
        for one in self.classes:
            if one.generators:
                remarks.append(f"{one.name}, for example: {one.generators[0]}")
        if self.verification is not None:
            tried, ok = self.verification, "all true" if self.verification.ok else "not all true"
            remarks.append(
                f"tried on numbers: {tried.checked} moves, {ok} (largest change of an output {tried.max_deviation:.1g})"
            )
        return remarks + [f"note: {note}" for note in self.notes]

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self._title(), *lines, *self._remarks()])

    def _repr_html_(self) -> str:
        head, *body = [
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
            for row, tag in zip(self._rows(), ["th", *["td"] * len(self.classes)], strict=True)
        ]
        remarks = "".join(f"<div>{html.escape(remark)}</div>" for remark in self._remarks())
        title = html.escape(self._title())
        return f"<div><b>{title}</b><table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>{remarks}</div>"


def largest_change(moved: Tensor, expected: Tensor) -> float:
    """Largest difference; what is not finite, such as a mean over positions that are all masked, must be so in both."""
    same = (moved == expected) | (moved.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, (moved - expected).abs())
    return float(torch.where(difference.isfinite(), difference, math.inf).max())


def check_moves(
    topology: Topology,
    function: NetworkFunction,
    masks: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    moves: Sequence[Move],
    generator: torch.Generator,
    ordered: Sequence[str] = (),
    x: Any = None,
) -> Verification:
    """Check on one random draw of the stochastic weights that moves are symmetries of the masked network.

    Args:
        topology: The network's topology.
        function: The network as a function (weights, x) -> outputs.
        masks: Stochastic masks by tensor name.
        fixed: Constants by tensor name, in full shapes.
        moves: What to check.
        generator: Source of randomness, on the CPU.
        ordered: Names of biases that increase.
        x: Inputs; None to draw some.

    Returns:
        Whether for each move the fixed weights kept their values exactly, ordered biases their order, and the outputs
        changed by no more than rounding in float64.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.symmetry.report import Move, check_moves
        >>> from pyro_sps.network.trace import trace
        >>> topology, function = trace(sps.mlp([1, 2, 1]))
        >>> swap = Move((("layer 1", 0, 1, 1.0), ("layer 1", 1, 0, 1.0)))
        >>> check_moves(topology, function, topology.check_masks({}), {}, [swap], torch.Generator().manual_seed(0)).ok
        True
    """
    weights = {}
    for tensor in topology.tensors:
        draw = torch.randn(tensor.shape, dtype=torch.float64, generator=generator) / math.sqrt(tensor.fan_in)
        if tensor.name in ordered:
            draw = draw.sort().values
        mask = masks[tensor.name].cpu()
        weights[tensor.name] = draw if mask.all() else torch.where(mask, draw, fixed[tensor.name].cpu().double())
    x = topology.random_inputs(generator) if x is None else x
    expected = function(weights, x)
    largest = float(torch.where(expected.isfinite(), expected, 0.0).abs().max())
    deviation, ok = 0.0, True
    for move in moves:
        moved = move.apply(topology, weights)
        kept = all(torch.equal(moved[name][~mask.cpu()], weights[name][~mask.cpu()]) for name, mask in masks.items())
        increasing = all(bool((moved[name].diff() >= 0).all()) for name in ordered)
        change = largest_change(function(moved, x), expected) / max(largest, 1e-300)
        deviation = max(deviation, change)
        ok = ok and kept and increasing and change < 1e-9
    return Verification(len(moves), deviation, ok)
