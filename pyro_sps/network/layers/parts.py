"""Operations that are made of others: each is written with operations that have rules, and is followed through them.

What is not here and has no rule, PyTorch may know how to take apart (`recorder`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..recorder import made_of


@made_of("_trilinear")
def trilinear(
    first: Tensor,
    second: Tensor,
    third: Tensor,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    sumdim: list[int],
    unroll_dim: int = 1,
) -> Tensor:
    """`nn.Bilinear`: a matrix for each output, and what it gives of the first input times the second."""
    if (expand1, expand2, expand3, sumdim) != ([1, 3], [0], [1, 2], [2, 3]):
        raise NotImplementedError("another product of three")
    return ((first @ second) * third).sum(-1).mT


@made_of("_cdist_forward")
def distances(x1: Tensor, x2: Tensor, p: float, compute_mode: int | None = None) -> Tensor:
    """`torch.cdist`: norms of differences between all rows of two matrices."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


@made_of("addbmm")
def sum_of_products(self: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """A sum of products of matrices, and something added to it."""
    return beta * self + alpha * (batch1 @ batch2).sum(0)


@made_of("topk")
def top(self: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """The largest or smallest numbers along an axis, in order."""
    values, indices = self.sort(dim, descending=largest)
    return values.narrow(dim, 0, k), indices.narrow(dim, 0, k)


@made_of("median")
def median(self: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """The lower one of the middle numbers, of all or along an axis."""
    if dim is None:
        return self.flatten().sort(0)[0].select(0, (self.numel() - 1) // 2)
    middle = (self.shape[dim] - 1) // 2
    values, indices = (part.select(dim, middle) for part in self.sort(dim))
    return (values.unsqueeze(dim), indices.unsqueeze(dim)) if keepdim else (values, indices)


@made_of("scatter_add")
def scatter_add(self: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Sums of what goes to the same places."""
    return self + _sent(self, dim, index, src)


@made_of("scatter")
def scatter(self: Tensor, dim: int, index: Tensor, src: Tensor | float) -> Tensor:
    """Numbers at other places; of several that go to one place PyTorch does not say which is there."""
    source = src if isinstance(src, Tensor) else torch.full(index.shape, src, dtype=self.dtype)
    taken = _sent(self, dim, index, torch.ones(source.shape, dtype=self.dtype)) > 0
    return torch.where(taken, _sent(self, dim, index, source), self)


def _sent(like: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Sums of numbers by where they go along an axis, of the shape of `like`."""
    source = src[tuple(slice(size) for size in index.shape)].movedim(dim, -1).unsqueeze(-1)
    chosen = index.movedim(dim, -1).unsqueeze(-1) == torch.arange(like.shape[dim])
    sums = (source * chosen.to(src.dtype)).sum(-2).movedim(-1, dim)
    missing = [size - own for size, own in zip(like.shape, sums.shape, strict=True)]
    return torch.nn.functional.pad(sums, [side for more in reversed(missing) for side in (0, more)])


@made_of("index_add")
def index_add(self: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """Sums of what goes to the same places along an axis."""
    shape = [-1 if axis == dim % source.dim() else 1 for axis in range(source.dim())]
    return scatter_add(self, dim, index.reshape(shape).expand(source.shape), alpha * source)
