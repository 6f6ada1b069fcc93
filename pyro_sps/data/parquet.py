"""Rows of cells from Parquet files."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .rows import Reader, Row, foreign, guarded


@contextlib.contextmanager
def read_parquet(path: Path, text: bool = False) -> Iterator[Reader]:
    """Open a Parquet file.

    Args:
        path: The file.
        text: Whether text and dates are wanted too, not numbers alone.
    """
    import pyarrow.parquet

    with foreign(path, "a Parquet file"):
        file = pyarrow.parquet.ParquetFile(path, memory_map=False)
        header = list(file.schema_arrow.names)
    with file:
        yield Reader(header, guarded(path, "a Parquet file", _parquet_rows(file, text)))


def _parquet_rows(file: Any, text: bool) -> Iterator[Row]:
    """Rows, of whose cells those that are not wanted are not unpacked: a list or a text can be of any size."""
    types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
    wanted = [name for name, kind in types.items() if _is_numeric(kind) or (text and _is_text(kind))]
    number = 0
    for batch in file.iter_batches(batch_size=4096, columns=wanted):
        cells = dict(zip(wanted, batch.columns, strict=True))
        columns = (
            cells[name].to_pylist() if name in cells else itertools.repeat(f"a value of type {kind}", batch.num_rows)
            for name, kind in types.items()
        )
        for row in zip(*columns, strict=True):
            number += 1
            yield number, row


def _is_numeric(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    return any(test(kind) for test in tests)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type) or _is_numeric(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_date, types.is_timestamp)
    return any(test(kind) for test in tests)
