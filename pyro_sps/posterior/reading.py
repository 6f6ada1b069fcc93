"""Inputs that are read from a source while predictions are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.opening import data_set_of
from ..data.rows import DataError
from ..data.sources import Piece, Source
from ..model.bnn import BNN
from ..model.checks import check_inputs


class SourceRows:
    """Rows of inputs as slices of a tensor give them, best asked for from the first to the last.

    Args:
        source: Where they are from.
        bnn: The model that they are for.
    """

    def __init__(self, source: Source, bnn: BNN) -> None:
        self.source, self.bnn = source, bnn
        self.shape: tuple[int, ...] | None = None
        self.first, self.held = 0, bnn.like.new_empty(0)
        if source.num_rows is None:  # a stream; to predict, its size need not be known before
            self.count = sum(len(x) for x in source.in_order(self._checked))
        else:
            self.count = source.num_rows
        self.pieces: Iterator[Tensor] = iter(())
        self._begin(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.count)
        if not self.first <= start <= self.first + len(self.held):
            self._begin(start)
        while self.first + len(self.held) < stop:
            piece = next(self.pieces, None)
            if piece is None:
                end = self.first + len(self.held)
                raise DataError(f"{self.source.name} has {end:,} rows, where there were {self.count:,} before")
            kept = self.held[start - self.first :]
            self.first, self.held = start, torch.cat([kept, piece]) if len(kept) else piece
        return self.held[start - self.first : stop - self.first]

    def _begin(self, start: int) -> None:
        self.pieces = self.source.in_order(self._checked, start)
        self.first, self.held = start, self.bnn.like.new_empty(0)

    def _checked(self, piece: Piece, where: str) -> Tensor:
        try:
            found = check_inputs("x", piece.x, self.bnn, run=self.shape is None)
            if self.shape not in (None, found.shape[1:]):
                raise ValueError(f"rows have shape {tuple(found.shape[1:])}, where those before had {self.shape}")
            self.shape = tuple(found.shape[1:])
            return found
        except (ValueError, TypeError) as error:
            raise DataError(f"{where}: {error}") from error

    def column(self, what: str) -> Tensor | None:
        """What all rows have beside inputs, as the source has it.

        Args:
            what: Name of a field of `Piece`.

        Returns:
            None if they have none.
        """

        def told(piece: Piece, where: str) -> Tensor:
            if getattr(piece, what) is None:
                raise _Nothing
            return torch.as_tensor(getattr(piece, what))

        try:
            return torch.cat(list(self.source.in_order(told)))
        except _Nothing:
            return None


class _Nothing(Exception):
    """Rows do not have what was asked for."""


def inputs_of(x: Any, features: Sequence[str] | None, bnn: BNN) -> SourceRows | None:
    """What a user wants predictions for as rows of a source; None if it is arrays.

    Args:
        x: What the user gave: of files and tables, the columns that the network was fitted to are read.
        features: Names of these.
        bnn: The model.
    """
    source = data_set_of(x, features)
    return None if source is None else SourceRows(source, bnn)
