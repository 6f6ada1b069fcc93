"""Rows of several tensors at once: a tensor, or a tuple, named tuple or dict of tensors with a row for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def map_tree(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """A function of every tensor; None stays None.

    Args:
        function: The function.
        tree: A tensor, or a tuple or dict of trees.
        *others: Further trees of the same form, whose tensors are further arguments.

    Example:
        >>> import torch
        >>> from pyro_sps.data.trees import map_tree
        >>> map_tree(len, {"image": torch.zeros(5, 2), "age": torch.zeros(5)})
        {'image': 5, 'age': 5}
    """
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {key: map_tree(function, value, *(other[key] for other in others)) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [map_tree(function, *values) for values in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return function(tree, *others)


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in order."""
    if type(tree) is tuple and all(isinstance(part, Tensor) for part in tree):  # in each step of a fit
        return list(tree)
    found: list[Tensor] = []
    map_tree(found.append, tree)
    return found


def rebuilt(tree: Any, tensors: Iterable[Tensor]) -> Any:
    """A tree of the same form with other tensors."""
    others = iter(tensors)
    return map_tree(lambda _: next(others), tree)


def rows_of(tree: Any, rows: Any) -> Any:
    """Some rows of every tensor: `tensor[rows]`."""
    return tree[rows] if isinstance(tree, Tensor) else map_tree(lambda tensor: tensor[rows], tree)


def num_rows(tree: Any) -> int:
    """Number of rows."""
    return len(leaves(tree)[0])


def joined(trees: Sequence[Any]) -> Any:
    """The rows of trees of one form, one behind another."""
    first, *others = trees
    return map_tree(lambda *tensors: torch.cat(tensors), first, *others) if others else first


def stacked(trees: Iterable[Any]) -> Any:
    """Trees of one form as one with a new first dimension."""
    first, *others = trees
    return map_tree(lambda *tensors: torch.stack(tensors), first, *others)
