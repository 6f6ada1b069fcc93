"""Where the numbers of a tensor lie in memory: tensors that share it are views of each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

Ints = NDArray[np.int64]


def leaves(argument: Any) -> Iterator[Tensor]:
    """Tensors of an argument or a result."""
    yield from (leaf for leaf in tree_leaves(argument) if isinstance(leaf, Tensor))


def address_of(tensor: Tensor) -> int:
    """The memory that a tensor lies in, which its views share."""
    return tensor.untyped_storage()._cdata


def elements_of(tensor: Tensor) -> int:
    """How many numbers there are in the memory of a tensor."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def places_of(tensor: Tensor) -> Ints:
    """For each element of a tensor its place in memory."""
    index = np.array(tensor.storage_offset())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        index = index[..., None] + np.arange(size) * stride
    return index


def view_of(array: Any, tensor: Tensor) -> Any:
    """Of an array that has a number for each place in memory, those of a tensor's elements."""
    strides = [stride * array.itemsize for stride in tensor.stride()]
    start = array[tensor.storage_offset() :]
    return np.lib.stride_tricks.as_strided(start, tuple(tensor.shape), strides, writeable=False)


def shares(result: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether a tensor is a view of one of some others."""
    return any(address_of(result) == address_of(tensor) for tensor in tensors)
