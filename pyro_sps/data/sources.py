"""Data that need not fit in memory: rows that are read by their numbers, and files and streams that are read in pieces.

A source gives rows as they are; what makes them tensors of a network is given to it as `convert`. The order in which
they come is a function of seed and step alone: a run can go on at any step, and processes can share a batch.

`Indexed` and `Streamed` have the same methods. `in_order(convert, start)` gives all rows from `start` on, once, in
pieces. `rows(numbers, convert)` gives the rows of these numbers together; where rows have no numbers, that takes one
pass. `batches(seed, batch_size, convert, start, rank, world)` gives endless minibatches from the one numbered `start`
on; every epoch has an order of its own, of which the incomplete last batch is left out; of each batch a process gets
the rows `rank`, `rank + world`, ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .arrays import make_generator, minibatches
from .rows import DataError
from .trees import joined, leaves, map_tree, num_rows, rows_of

#: Bytes of the rows that are shuffled together, of a file or a stream.
WINDOW_BYTES = 1 << 25

#: Rows of a window where it is not known how large a row is.
WINDOW_ROWS = 1 << 14

#: Rows that are read at once where all are read in order.
PASS_ROWS = 1 << 10


class Piece(NamedTuple):
    """Some rows as a source gives them.

    Attributes:
        x: Inputs: a tensor or array, or a tuple or dict of them.
        y: Targets; None if there are none.
        weights: How often each counts; None for once.
        y_scale: Error bars; None for none.
    """

    x: Any
    y: Any = None
    weights: Any = None
    y_scale: Any = None


#: Makes tensors of a piece; it is also told what to call the piece in errors.
Convert = Callable[[Piece, str], Any]


# --- rows by their numbers -------------------------------------------------------------------------


@dataclass(frozen=True)
class Indexed:
    """Rows that can be had by their numbers, in the order that arrays in memory have.

    Attributes:
        name: What to call it in errors.
        num_rows: Number of rows.
        fetch: Rows by their numbers, and by the number of the batch (-1 where all rows are read in order), on which
            augmentations may depend.
        load: How they are fetched ahead; None for when they are needed.
    """

    name: str
    num_rows: int
    fetch: Callable[[np.ndarray, int], Piece]
    load: Callable[[Iterator[tuple[int, np.ndarray]]], Iterator[Piece]] | None = None
    features: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None

    def in_order(self, convert: Convert, start: int = 0) -> Iterator[Any]:
        """See the top of this file."""
        starts = range(start, self.num_rows, PASS_ROWS)
        keys = ((-1, np.arange(first, min(first + PASS_ROWS, self.num_rows))) for first in starts)
        for first, piece in zip(starts, self._pieces(keys), strict=True):
            yield convert(piece, f"{self.name}, rows from {first} on")

    def batches(
        self, seed: int, batch_size: int, convert: Convert, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Any]:
        """See the top of this file."""
        orders = minibatches([seed], self.num_rows, batch_size, start)
        keys = ((start + number, rows[0, rank::world].numpy()) for number, rows in enumerate(orders))
        for number, piece in enumerate(self._pieces(keys), start=start):
            yield convert(piece, f"{self.name}, batch {number}")

    def rows(self, numbers: Tensor, convert: Convert) -> Any:
        """See the top of this file."""
        keys = ((-1, part.numpy()) for part in numbers.split(PASS_ROWS))
        return joined([convert(piece, f"{self.name}, some rows") for piece in self._pieces(keys)])

    def _pieces(self, keys: Iterator[tuple[int, np.ndarray]]) -> Iterator[Piece]:
        if self.load is not None:
            return self.load(keys)
        return (self.fetch(rows, number) for number, rows in keys)


# --- pieces one after another ----------------------------------------------------------------------


@dataclass(frozen=True)
class Streamed:
    """Rows that come in pieces. They are shuffled window by window.

    Attributes:
        name: What to call it in errors.
        num_rows: Number of rows; None if it is not known.
        windows: Of the epoch whose generator is given (None for the order of the data): for each window its number of
            rows, None where that is not known before it is read, and what reads it. A window in which nothing is left
            is empty.
    """

    name: str
    num_rows: int | None
    windows: Callable[[torch.Generator | None], Iterator[tuple[int | None, Callable[[], Piece]]]]
    features: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None

    def in_order(self, convert: Convert, start: int = 0) -> Iterator[Any]:
        """See the top of this file."""
        return _ahead(self._all(convert, start))

    def rows(self, numbers: Tensor, convert: Convert) -> Any:
        """See the top of this file."""
        ordered, order = numbers.sort()
        found, first, last = [], 0, int(ordered[-1])
        for data in self.in_order(convert):
            count = num_rows(data)
            own = ordered[(ordered >= first) & (ordered < first + count)] - first
            first += count
            if len(own):
                found.append(rows_of(data, own.to(leaves(data)[0].device)))
            if first > last:
                break
        if first <= last:
            raise DataError(f"{self.name} has {first:,} rows, where there were {last + 1:,} before")
        every = joined(found)
        return rows_of(every, order.argsort().to(leaves(every)[0].device))

    def _all(self, convert: Convert, start: int) -> Iterator[Any]:
        left = start
        for number, (size, read) in enumerate(self.windows(None)):
            if size is not None and size <= left:
                left -= size
                continue
            data = convert(read(), f"{self.name}, piece {number}")
            count = num_rows(data)
            if left < count:
                yield rows_of(data, slice(left, None)) if left else data
            left = max(0, left - count)

    def batches(
        self, seed: int, batch_size: int, convert: Convert, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Any]:
        """See the top of this file."""
        assert self.num_rows is not None
        in_epoch = self.num_rows // batch_size
        epoch, skip = divmod(start, in_epoch)

        def windows(epoch: int, left: int) -> Iterator[tuple[int, Any]]:
            while True:
                yield from ((epoch, data) for data in self._shuffled(seed, epoch, convert, left))
                epoch, left = epoch + 1, 0

        rest, current, done, seen = None, epoch, skip, skip * batch_size
        for number, data in _ahead(windows(epoch, skip * batch_size)):
            if number != current:
                self._require(seen, ended=True)
                rest, current, done, seen = None, number, 0, 0
            seen += num_rows(data)
            self._require(seen, ended=False)
            if rest is not None:
                data = map_tree(lambda one, other: torch.cat([one, other]), rest, data)
            count = min(num_rows(data) // batch_size, in_epoch - done)
            for first in range(0, count * batch_size, batch_size):
                yield rows_of(data, slice(first + rank, first + batch_size, world))
            rest, done = rows_of(data, slice(count * batch_size, None)), done + count
            rest = rest if num_rows(rest) else None

    def _require(self, seen: int, ended: bool) -> None:
        """Refuse data that has another size than it should have.

        Raises:
            DataError: If it has.
        """
        assert self.num_rows is not None
        if seen > self.num_rows or (ended and seen < self.num_rows):
            how = "more than" if seen > self.num_rows else "only"
            raise DataError(
                f"{self.name} has {how} {min(seen, self.num_rows):,} rows, where {self.num_rows:,} were told"
            )

    def _shuffled(self, seed: int, epoch: int, convert: Convert, left: int) -> Iterator[Any]:
        """Windows of one epoch, but for the first `left` rows, each in an order of its own."""
        for number, (size, read) in enumerate(self.windows(make_generator("cpu", seed, 30, epoch))):
            if size is not None and size <= left:
                left -= size
                continue
            data = convert(read(), f"{self.name}, epoch {epoch}, piece {number}")
            count = num_rows(data)
            order = torch.randperm(count, generator=make_generator("cpu", seed, 31, epoch, number))[left:]
            left = max(0, left - count)
            if len(order):
                yield rows_of(data, order.to(leaves(data)[0].device))


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same, each of them made while the one before is at work."""
    thread = ThreadPoolExecutor(1, "pyro_sps reads ahead")
    try:
        future = thread.submit(next, items, None)
        while (item := future.result()) is not None:
            future = thread.submit(next, items, None)
            yield item
    finally:  # without waiting, since the thread itself may be what clears this away
        thread.shutdown(wait=False, cancel_futures=True)


Source = Indexed | Streamed
