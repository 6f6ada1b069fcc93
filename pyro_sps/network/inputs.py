"""Inputs of a network: of several, those of all are kept side by side in one tensor, so that a row stays one row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOAT, WHOLE, BOOL = "float", "whole", "bool"


class Input(NamedTuple):
    """One tensor that a network is called with.

    Attributes:
        shape: Its shape, rows first.
        kind: What it holds: `float`, `whole` (numbers of words and the like) or `bool` (masks).
        name: The argument's name, if the network was called with names.

    Example:
        >>> import torch
        >>> from pyro_sps.network.inputs import inputs_of
        >>> numbers, words = inputs_of((torch.zeros(2, 3), torch.zeros(2, 6, dtype=torch.int64)))
        >>> words.kind, words.size
        ('whole', 6)
    """

    shape: tuple[int, ...]
    kind: str
    name: str | None = None

    @property
    def size(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape[1:])

    @property
    def said(self) -> str:
        """What to call it in an error."""
        return f"of shape ('rows', {str(self.shape[1:])[1:-1].rstrip(',')})" if self.name is None else repr(self.name)


Inputs = tuple[Input, ...]


def inputs_of(example: Any) -> Inputs:
    """The inputs that an example has.

    Args:
        example: A tensor, a tuple or list of them (positional arguments), or a dictionary (keyword arguments).

    Raises:
        TypeError: If it holds anything but tensors.
    """
    parts = named_parts(example)
    for name, tensor in parts:
        if not isinstance(tensor, Tensor):
            where = "example" if name is None else f"example[{name!r}]"
            raise TypeError(
                f"{where} must be a tensor, got {type(tensor).__name__}: give a tensor, a tuple of tensors or a "
                "dictionary of tensors by the names of forward's arguments; leave out what has a default, and put what "
                "is no tensor into the network"
            )
    if not parts:
        raise ValueError("example is empty: give the tensors that the network is called with")
    several = isinstance(example, Mapping) or len(parts) > 1
    rows = {len(tensor) if tensor.dim() else None for _, tensor in parts}
    if several and (len(rows) > 1 or None in rows):
        raise ValueError(
            f"all tensors of example must have the same number of rows, got {[tuple(t.shape) for _, t in parts]}: what "
            "is the same for all rows belongs into the network, as a buffer"
        )
    return tuple(
        Input(tuple(tensor.shape), _kind(tensor), name if isinstance(example, Mapping) else None)
        for name, tensor in parts
    )


def named_parts(x: Any) -> list[tuple[Any, Any]]:
    """The inputs in `x` with their names or positions; of a single one, None."""
    if isinstance(x, Mapping):
        return list(x.items())
    return list(enumerate(x)) if isinstance(x, tuple | list) else [(None, x)]


def are_several(inputs: Inputs) -> bool:
    """Whether what a network is called with is more than one tensor without a name."""
    return len(inputs) > 1 or (len(inputs) == 1 and inputs[0].name is not None)


def pack(inputs: Inputs, tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Several inputs as one tensor of shape (rows, numbers in a row).

    Args:
        inputs: What they are.
        tensors: The inputs, in this order.
        like: Sets device and dtype.

    Raises:
        ValueError: If whole numbers are too large for the dtype.
    """
    columns = []
    for one, tensor in zip(inputs, tensors, strict=True):
        column = tensor.reshape(len(tensor), -1).to(like)
        if one.kind == WHOLE and not bool((column.to(torch.int64) == tensor.reshape(column.shape)).all()):
            raise ValueError(
                f"the input {one.said} has whole numbers up to {int(tensor.abs().max())}, which {like.dtype} cannot "
                "hold; use a network of dtype float64"
            )
        columns.append(column)
    return torch.cat(columns, 1)


def unpack(inputs: Inputs, x: Tensor) -> Any:
    """The opposite of `pack`: a tuple, or a dictionary if the inputs have names.

    Args:
        inputs: What they are.
        x: Shape (rows, numbers in a row).
    """
    parts: list[Tensor] = []
    for one, column in zip(inputs, x.split([one.size for one in inputs], dim=-1), strict=True):
        part = column.reshape(-1, *one.shape[1:])
        parts.append(part.to(dtype_of(one.kind, x)))
    return with_names(inputs, parts)


def with_names(inputs: Inputs, parts: Sequence[Any]) -> Any:
    """What belongs to each input, as a tuple, or as a dictionary if the inputs have names."""
    if inputs[0].name is None:
        return tuple(parts)
    return {one.name: part for one, part in zip(inputs, parts, strict=True)}


def measured(inputs: Inputs) -> Tensor | None:
    """Which numbers of a packed row are measurements, not whole numbers or masks; None if all are.

    Args:
        inputs: What they are.

    Returns:
        Boolean, shape (numbers in a row,).
    """
    if not are_several(inputs) or all(one.kind == FLOAT for one in inputs):
        return None
    return torch.cat([torch.full((one.size,), one.kind == FLOAT) for one in inputs])


def random_inputs(inputs: Inputs, generator: torch.Generator, numbers: int, rows: int | None = None) -> Any:
    """Random inputs in float64, as a network is called with them.

    Args:
        inputs: What they are.
        generator: Source of randomness, on the CPU.
        numbers: Whole numbers are below this.
        rows: How many; None for as many as in the example.
    """
    drawn = []
    for one in inputs:
        shape = one.shape if rows is None else (rows, *one.shape[1:])
        if one.kind == FLOAT:
            drawn.append(torch.randn(shape, dtype=torch.float64, generator=generator))
        else:
            whole = torch.randint(0, numbers if one.kind == WHOLE else 2, shape, generator=generator)
            drawn.append(whole if one.kind == WHOLE else whole.to(torch.bool))
    return with_names(inputs, drawn) if are_several(inputs) else drawn[0]


def arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tensor, a tuple of arguments or a dictionary of them, as positional and keyword arguments."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return tuple(x) if isinstance(x, tuple | list) else (x,), {}


def dtype_of(kind: str, like: Tensor) -> torch.dtype:
    """The dtype of an input of a kind, beside weights such as `like`."""
    return {FLOAT: like.dtype, WHOLE: torch.int64, BOOL: torch.bool}[kind]


def _kind(tensor: Tensor) -> str:
    return FLOAT if tensor.is_floating_point() else BOOL if tensor.dtype == torch.bool else WHOLE
