"""Reading a CSV, Excel or Parquet file into checked numeric arrays.

Every reader yields rows of cells, one at a time, and one function turns them into numbers. So all formats have the
same errors, each naming the file, the columns and the first offending rows, and memory is bounded by the numbers kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .headers import check_header, choose, listed
from .opened import opened
from .rows import DataError, Reader, is_blank, number, short
from .variation import check_variation

#: Largest table that is read: 800 MB of float64. Larger data belongs into the Python interface.
MAX_CELLS = 100_000_000

#: Most empty rows in a row; a workbook can claim a cell in row 10^9.
MAX_BLANK = 1 << 21

_SHOWN = 3  # offending rows that an error shows


@dataclass(frozen=True)
class Split:
    """A data set in two parts.

    Attributes:
        x_train: Training inputs, shape (train rows, features).
        y_train: Training targets, shape (train rows, targets).
        x_test: Held-out inputs.
        y_test: Held-out targets.
        train_rows: Which rows of the data set the training part has, in ascending order.
        test_rows: Which rows the held-out part has, in ascending order.

    Example:
        >>> import numpy as np
        >>> from pyro_sps.data.tables import Dataset
        >>> data = Dataset("line", np.arange(5.0)[:, None], np.arange(5.0)[:, None], ("x",), ("y",), "here")
        >>> split = data.split(seed=0, test_fraction=0.4)
        >>> bool((data.x[split.test_rows] == split.x_test).all())
        True
    """

    x_train: np.ndarray = field(repr=False)
    y_train: np.ndarray = field(repr=False)
    x_test: np.ndarray = field(repr=False)
    y_test: np.ndarray = field(repr=False)
    train_rows: np.ndarray
    test_rows: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """Numbers with names: inputs and targets in their original units.

    Attributes:
        name: What it is called.
        x: Inputs, float64, shape (rows, features). `pyro_sps.fit` takes them as they are.
        y: Targets, float64, shape (rows, targets); no columns where there are no targets.
        feature_names: Names of the columns of `x`.
        target_names: Names of the columns of `y`.
        source: Where it comes from.

    Example:
        >>> import numpy as np
        >>> from pyro_sps.data.tables import Dataset
        >>> data = Dataset("line", np.arange(10.0)[:, None], 2 * np.arange(10.0)[:, None], ("x",), ("y",), "here")
        >>> split = data.split(seed=0)
        >>> split.x_train.shape, split.x_test.shape
        ((8, 1), (2, 1))
    """

    name: str
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.x)

    def split(self, seed: int = 0, test_fraction: float = 0.2) -> Split:
        """Divide the rows at random into a training and a held-out part.

        Args:
            seed: Decides which rows; the same seed gives the same split on every machine.
            test_fraction: Share of rows held out, rounded to whole rows, at least one.

        Raises:
            ValueError: If an argument is out of range or a part would be empty.
        """
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must be in (0, 1), got {test_fraction!r}")
        held_out = max(1, round(test_fraction * len(self)))
        if held_out >= len(self):
            raise ValueError(f"test_fraction = {test_fraction} leaves no row to train on: {self.name} has {len(self)}")
        order = np.random.default_rng(seed).permutation(len(self))
        test, train = np.sort(order[:held_out]), np.sort(order[held_out:])
        return Split(self.x[train], self.y[train], self.x[test], self.y[test], train, test)


def read_table(
    path: str | Path,
    targets: Sequence[str] = (),
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    *,
    min_rows: int = 1,
    varying: bool = False,
) -> Dataset:
    r"""Read a file of numbers with a header line.

    CSV files (UTF-8 or UTF-16) may be separated by commas, semicolons or tabs; of Excel workbooks (.xlsx, .xls) the
    first sheet is read. What a file is, its first bytes tell, not its name. Columns that are not used may hold
    anything. Empty rows at the end are left out.

    Args:
        path: The file.
        targets: Names of the target columns.
        features: Names of the feature columns; default: all others. They come back in this order.
        drop: Columns that are no features, where `features` is not given.
        min_rows: Fewest rows that are enough.
        varying: Whether to refuse columns that are constant, or whose variation single precision (in which networks
            compute) cannot resolve.

    Returns:
        The data set, named as the file.

    Raises:
        DataError: If the file cannot be read; lacks a column or has one twice; has missing values, text or infinite
            numbers in a column that is used; has too few rows; or a column does not vary though it should.

    Example:
        >>> import tempfile, pathlib
        >>> from pyro_sps.data.tables import read_table
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     file = pathlib.Path(directory, "line.csv")
        ...     _ = file.write_text("time;place;note\n0;1;start\n1;3;end\n")
        ...     data = read_table(file, targets=["place"], drop=["note"])
        >>> data.feature_names, data.y.tolist()
        (('time',), [[1.0], [3.0]])
    """
    path = Path(path)
    with opened(path) as reader:
        names = check_header(path, reader.header)
        columns = choose(path, names, targets, features, drop)
        values = _numbers(path, reader, names, columns)
    if len(values) < min_rows:
        raise DataError(f"{path} has {len(values)} rows of data, too few: at least {min_rows} are needed")
    if varying:
        check_variation(path, columns, values)
    count = len(columns) - len(targets)
    return Dataset(path.stem, values[:, :count], values[:, count:], tuple(columns[:count]), tuple(targets), str(path))


def column_names(path: str | Path) -> tuple[str, ...]:
    r"""Names of a file's columns, from its header line.

    Raises:
        DataError: If the file cannot be read or has a name twice.

    Example:
        >>> import tempfile, pathlib
        >>> from pyro_sps.data.tables import column_names
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     file = pathlib.Path(directory, "line.csv")
        ...     _ = file.write_text("time,place\n0,1\n")
        ...     column_names(file)
        ('time', 'place')
    """
    with opened(Path(path)) as reader:
        return check_header(Path(path), reader.header)


# --- numbers ---------------------------------------------------------------------------------------


@dataclass
class _Faults:
    """Cells of one kind that are no finite numbers: the first few, and how many there are in each column."""

    kind: str
    counts: dict[str, int] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)

    def add(self, place: str, column: str, cell: Any) -> None:
        self.counts[column] = self.counts.get(column, 0) + 1
        if len(self.shown) < _SHOWN:
            what = "" if self.kind == "missing values" else f" holds {short(cell)}"
            self.shown.append(f"{place}, column {short(column)}{what}")

    def __str__(self) -> str:
        columns = listed([f"{short(name)} ({count})" for name, count in self.counts.items()])
        more = ", ..." if sum(self.counts.values()) > len(self.shown) else ""
        return f"{self.kind} in column {columns}: {'; '.join(self.shown)}{more}"


def _numbers(path: Path, reader: Reader, names: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """The cells of some columns as float64, shape (rows, columns)."""
    faults = {kind: _Faults(kind) for kind in ("missing values", "cells that are not numbers", "infinite values")}
    values = array("d")
    places = {name: index for index, name in enumerate(names)}
    used = [(column, places[column]) for column in columns]
    blank: list[int] = []  # empty rows, which are missing values unless they are the file's last
    for place, cells in reader.rows:
        if is_blank(cells):
            blank.append(place)
            if len(blank) > MAX_BLANK:
                raise DataError(f"{path} has more than {MAX_BLANK:,} empty rows from {reader.unit} {blank[0]} on")
            continue
        for row in blank:
            faults["missing values"].add(f"{reader.unit} {row}", columns[0], None)
        blank.clear()
        if len(cells) > len(names) and not is_blank(cells[len(names) :]):
            raise DataError(
                f"{path}, {reader.unit} {place} has {len(cells)} cells, but the header names {len(names)} columns"
            )
        for column, index in used:
            cell = cells[index] if index < len(cells) else None
            value, fault = number(cell)
            if fault:
                faults[fault].add(f"{reader.unit} {place}", column, cell)
            values.append(value)
        if len(values) > MAX_CELLS:
            raise DataError(f"{path} has more than {MAX_CELLS:,} numbers; use the Python interface for data this large")
    if found := [str(fault) for fault in faults.values() if fault.counts]:
        raise DataError(f"{path} has " + "; and ".join(found))
    return np.array(values, dtype=np.float64).reshape(-1, len(columns))
