"""Codes that tell things apart, and classes of numbers: the arithmetic under `elements`, on whole arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Codes = NDArray[np.uint64]


def mix(x: Any) -> Codes:
    """Scramble 64-bit numbers, one to one (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):  # of single numbers
        x = np.asarray(x).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        scrambled: Codes = x ^ (x >> np.uint64(31))
    return scrambled


def pair(first: Any, second: Any) -> Codes:
    """A code of two codes, in this order."""
    with np.errstate(over="ignore"):
        return mix(mix(first) + np.uint64(0x632BE59BD9B4E019) * np.asarray(second).astype(np.uint64))


def alike(codes: Codes) -> Ints:
    """For each code the position of one that is equal to it, the same for all that are equal.

    A table of hashes, without the sorting of `np.unique`. Exact: codes that share a place in it are told apart.
    """
    count = len(codes)
    bits = max(8, (2 * count).bit_length())
    spot = (mix(codes) >> np.uint64(64 - bits)).astype(np.int64)
    table = np.empty(1 << bits, dtype=np.int64)
    table[spot] = np.arange(count)
    position: Ints = table[spot]
    others = np.flatnonzero(codes[position] != codes)
    if len(others):
        position[others] = others[alike(mix(codes[others]))]
    return position


def numbered(codes: Codes) -> tuple[Ints, Ints]:
    """Positions of different codes, one each, and for each code the number of its own among them."""
    position = alike(codes)
    first = np.flatnonzero(position == np.arange(len(codes)))
    number = np.empty(len(codes), dtype=np.int64)
    number[first] = np.arange(len(first))
    return first, number[position]


def first_along(array: Any, axis: int) -> Any:
    """The first of an array along an axis, which stays; without a copy."""
    return array[tuple(slice(0, 1) if i == axis else slice(None) for i in range(array.ndim))]


def names_of_sets(units: Ints) -> Codes:
    """A code of which units there are in each row, however often."""
    ordered = np.sort(units, axis=1)
    new = np.ones(ordered.shape, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return np.where(new & (ordered >= 0), mix(ordered), np.uint64(0)).sum(axis=1, dtype=np.uint64)


class Classes:
    """Classes of numbers that are merged step by step."""

    def __init__(self) -> None:
        self.root = np.zeros(0, dtype=np.int64)

    def grow(self, count: int) -> None:
        """Make room for more numbers, each in a class of its own."""
        self.root = np.concatenate([self.root, np.arange(len(self.root), count)])

    def find(self, numbers: Ints) -> Ints:
        """The class of each number; −1 stays."""
        return np.where(numbers >= 0, self.root[numbers], -1)

    def merge(self, first: Ints, second: Ints) -> None:
        """Merge the classes of numbers at the same places of two arrays."""
        while True:
            one, other = self.root[first], self.root[second]
            differ = np.flatnonzero(one != other)
            if not len(differ):
                return
            first, second = first[differ], second[differ]
            key = np.unique(np.minimum(one, other)[differ] * len(self.root) + np.maximum(one, other)[differ])
            np.minimum.at(self.root, key % len(self.root), key // len(self.root))
            while not np.array_equal(jumped := self.root[self.root], self.root):
                self.root = jumped
