"""Units that any invertible linear map may mix: the dimensions inside an attention head, linear layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """What a linear map does to one axis of a weight tensor, or to several that together say which unit it is.

    Attributes:
        tensor: Its name.
        axes: The axes, mostly one.
        index: The indices that are mixed, in the order of the units; of several axes of those taken as one.
        dual: Whether the inverse of the transposed map acts: where the units are read, or on keys if it acts on
            queries.

    Example:
        >>> import torch, pyro_sps as sps
        >>> net = torch.nn.Sequential(torch.nn.Conv1d(3, 2, 1), torch.nn.Conv1d(2, 4, 1), torch.nn.Tanh())
        >>> (mixture,) = sps.Topology.of(net, torch.zeros(2, 3, 5)).mixtures
        >>> [(part.tensor, part.axes, part.dual) for part in mixture.parts]
        [('0.weight', (0,), False), ('0.bias', (0,), False), ('1.weight', (1,), True)]
    """

    tensor: str
    axes: tuple[int, ...]
    index: tuple[int, ...]
    dual: bool


@dataclass(frozen=True)
class Mixture:
    """A set of units such that every invertible linear map of them is a symmetry of the network's function.

    Attributes:
        size: Number of units n; the maps are GL(n), of dimension n².
        scaled: Whether rescalings of single units are counted among the scalings too.
        parts: What a map does to the weights.

    Example:
        >>> import torch, pyro_sps as sps
        >>> net = sps.networks.vit_tiny(classes=10, size=32, patch=8, width=24, depth=2)
        >>> topology = sps.Topology.of(net, torch.zeros(2, 3, 32, 32))
        >>> {mixture.size for mixture in topology.mixtures}, len(topology.mixtures)  # two for each head
        ({8}, 12)
    """

    size: int
    scaled: bool
    parts: tuple[Part, ...]

    def apply(self, weights: Mapping[str, Tensor], matrix: Tensor) -> dict[str, Tensor]:
        """The weights after a linear map of the units.

        Args:
            weights: All weight tensors by name.
            matrix: The map, shape (size, size).
        """
        moved = dict(weights)
        inverse = torch.linalg.inv(matrix).mT
        for part in self.parts:
            first = tuple(range(len(part.axes)))
            ordered = moved[part.tensor].movedim(part.axes, first)
            weight = ordered.flatten(0, first[-1])
            index = torch.tensor(part.index, device=weight.device)
            own = (inverse if part.dual else matrix).to(weight)
            mixed = torch.tensordot(own, weight[index], dims=1)
            moved[part.tensor] = weight.index_copy(0, index, mixed).reshape(ordered.shape).movedim(first, part.axes)
        return moved

    def dimension(self, masks: Mapping[str, Tensor], values: Mapping[str, Tensor | None]) -> tuple[int, bool]:
        """Dimension of the ridge that fixed weights leave: of maps near the identity that keep them as they are.

        An entry of a tensor that is fixed says of a map 1 + D that Σ_s D[r, s] W[s, j] = 0, at random weights W with
        the fixed values in them (of D's transpose where the inverse acts). Where two maps act on one tensor, from both
        sides, they could compensate for each other, which is not counted.

        Args:
            masks: Stochastic masks by name.
            values: Fixed values by name; None for zeros.

        Returns:
            The dimension and True if it is exact. Of large systems a lower bound is given, the number of entries of a
            map that may be other than zero whatever the free weights are.
        """
        rows: list[list[Tensor]] = [[] for _ in range(self.size)]
        columns: list[list[Tensor]] = [[] for _ in range(self.size)]
        allowed = torch.ones(self.size, self.size, dtype=torch.bool)
        generator = torch.Generator().manual_seed(0)
        for part in self.parts:
            fixed = _along((~masks[part.tensor]).cpu(), part, self.size)
            if not fixed.any():
                continue
            weight = torch.randn(fixed.shape, dtype=torch.float64, generator=generator)
            value = values.get(part.tensor)
            own = torch.zeros_like(weight) if value is None else _along(value.detach().cpu().double(), part, self.size)
            blocked = fixed.double() @ (~fixed | (own != 0)).double().T > 0
            allowed &= ~(blocked.T if part.dual else blocked)
            weight = torch.where(fixed, own, weight)
            for r in fixed.any(1).nonzero().flatten().tolist():
                (columns if part.dual else rows)[r].append(weight[:, fixed[r]].T)
        left = _solutions(rows, columns, generator)
        return (int(allowed.sum()), False) if left is None else (left, True)


# Unknowns of the largest system of which the rank is computed.
_MOST = 600


def _solutions(rows: list[list[Tensor]], columns: list[list[Tensor]], generator: torch.Generator) -> int | None:
    """Dimension of the matrices of which each row and each column solve some equations; None if that takes long."""
    size = len(rows)
    # What the equations of one kind leave of each row (column); those of the other then are one system of that.
    ways = []
    for first, second in ((rows, columns), (columns, rows)):
        spaces = [_null_space(torch.cat(own)) if own else torch.eye(size, dtype=torch.float64) for own in first]
        ways.append((sum(space.shape[1] for space in spaces), spaces, second))
    count, free, others = min(ways, key=lambda way: way[0])
    number = sum(len(equations) for own in others for equations in own)
    if not number or not count:
        return count
    if min(count, number) > _MOST:
        return None
    owner = torch.repeat_interleave(torch.arange(size), torch.tensor([own.shape[1] for own in free]))
    bases = torch.cat(free, 1)  # shape (size, count)
    systems = (torch.cat(own)[:, owner] * bases[r] for r, own in enumerate(others) if own)
    if number <= count:
        return count - _rank(torch.cat(list(systems)))
    sketch = torch.zeros(count + 8, count, dtype=torch.float64)
    for equations in systems:
        sketch += torch.randn(count + 8, len(equations), dtype=torch.float64, generator=generator) @ equations
    return count - _rank(sketch)


def _along(value: Tensor, part: Part, size: int) -> Tensor:
    first = tuple(range(len(part.axes)))
    return value.movedim(part.axes, first).flatten(0, first[-1])[list(part.index)].reshape(size, -1)


def _rank(matrix: Tensor) -> int:
    return _count(torch.linalg.svdvals(matrix), matrix)


def _count(singular: Tensor, matrix: Tensor) -> int:
    """Singular values that are no rounding errors; numbers of about 1 went into them, even where all of it cancels."""
    return int((singular > 1e-9 * max(float(singular.max()), math.sqrt(len(matrix)))).sum())


def _null_space(equations: Tensor) -> Tensor:
    """An orthonormal basis of what solves equations, in columns."""
    if len(equations) > equations.shape[1]:
        equations = torch.linalg.qr(equations).R
    _, singular, right = torch.linalg.svd(equations, full_matrices=True)
    return right[_count(singular, equations) :].T
