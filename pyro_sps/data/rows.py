"""Rows of cells from a file of any format, and what is common to their readers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What stands for a missing value, in small letters.
MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-"})

#: Most columns.
MAX_COLUMNS = 1 << 16


class DataError(ValueError):
    r"""A data file cannot be used as it is; the message names the file, the columns and the first offending rows.

    Example:
        >>> import tempfile, pathlib
        >>> from pyro_sps.data.tables import DataError, read_table
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     file = pathlib.Path(directory, "line.csv")
        ...     _ = file.write_text("x,y\n0,1\n1,\n")
        ...     try:
        ...         read_table(file, targets=["y"])
        ...     except DataError as error:
        ...         print(str(error).split("/")[-1])
        line.csv has missing values in column 'y' (1): line 3, column 'y'
    """


# Cells of a row and the number that the user sees beside it.
Row = tuple[int, Sequence[Any]]


@dataclass(frozen=True)
class Reader:
    """An open file: its header, its rows one by one, and what their numbers count."""

    header: Sequence[Any]
    rows: Iterable[Row]
    unit: str = "row"


@contextlib.contextmanager
def foreign(path: Path, what: str) -> Iterator[None]:
    """Errors of the libraries that read binary formats: on damaged files they raise nearly anything."""
    try:
        yield
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read as {what}: {type(error).__name__}: {short(str(error), 200)}") from error


def guarded(path: Path, what: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Rows, where an error of the library that reads them is a `DataError`."""
    with foreign(path, what):
        yield from rows


def short(value: Any, length: int = 40) -> str:
    """A value as it is written, cut to a length."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 4]}...'"


def is_blank(cells: Sequence[Any]) -> bool:
    """Whether a row has nothing in it."""
    return all(cell is None or (isinstance(cell, str) and not cell.strip()) for cell in cells)


def number(cell: Any) -> tuple[float, str]:
    """A cell's number, and what is wrong with it if it is not a finite one."""
    is_text = isinstance(cell, str)
    try:
        value = float(cell)
    except OverflowError:
        return math.nan, "infinite values"
    except (TypeError, ValueError):
        missing = cell is None or (is_text and cell.strip().lower() in MISSING)
        return math.nan, "missing values" if missing else "cells that are not numbers"
    if is_text and "_" in cell:  # Python would read 1_000 as a number
        return math.nan, "cells that are not numbers"
    if math.isfinite(value):
        return value, ""
    return math.nan, "missing values" if math.isnan(value) else "infinite values"
