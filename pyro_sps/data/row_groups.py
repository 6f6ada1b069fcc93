"""Columns of numbers in Parquet files, read by row groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .rows import DataError
from .sources import WINDOW_BYTES, Piece, Streamed


@dataclass(frozen=True)
class ParquetData:
    """Columns of numbers in a Parquet file, or in all Parquet files of a folder, as data for `fit` and `predict`.

    Row groups are read when they are needed: shuffled, some of them mixed with each other, those of the next rows while
    the ones before are at work. A folder is read in the order of its files' names.

    Args:
        path: The file or folder.
        targets: Names of the target columns; none for new rows without.
        features: Names of the feature columns, in this order; default: all others.
        weights: Name of the column that says how often each row counts; None for once.
        y_scale: Name of the column of the targets' error bars, or of several, one a target; None for none.

    Example:
        >>> import numpy as np, pathlib, pyarrow, pyarrow.parquet, tempfile, pyro_sps as sps
        >>> x = np.linspace(-1, 1, 40)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = pathlib.Path(directory, "line.parquet")
        ...     pyarrow.parquet.write_table(pyarrow.table({"x": x, "y": x**2}), path, row_group_size=10)
        ...     bnn = sps.BNN(sps.mlp([1, 5, 1]), sps.Unmasked(), sps.Zero())
        ...     fit = sps.fit(bnn, sps.ParquetData(path, targets=["y"]), num_steps=5, batch_size=8, progress=False)
        ...     fit.predict(path, num_samples=10).mean.shape
        torch.Size([40, 1])
    """

    path: str | Path
    targets: Sequence[str] = ()
    features: Sequence[str] | None = None
    weights: str | None = None
    y_scale: str | Sequence[str] | None = None


@dataclass(frozen=True)
class Columns:
    """Which columns are what."""

    features: tuple[str, ...]
    targets: tuple[str, ...]
    weights: tuple[str, ...] = ()
    y_scale: tuple[str, ...] = ()

    @staticmethod
    def of(name: str, there: Sequence[str], data: ParquetData) -> Columns:
        """The columns of what was asked for.

        Raises:
            DataError: If one is not there.
        """
        targets, weights, bars = (names_of(one) for one in (data.targets, data.weights, data.y_scale))
        beside = {*targets, *weights, *bars}
        features = tuple(n for n in there if n not in beside) if data.features is None else names_of(data.features)
        if missing := [one for one in (*features, *targets, *weights, *bars) if one not in there]:
            raise DataError(f"{name} has no column {', '.join(map(repr, missing))}; it has {', '.join(there)}")
        if both := beside & set(features):
            raise DataError(f"{name}: {', '.join(sorted(both))} cannot be a feature and something else too")
        if not features:
            raise DataError(f"{name} has no feature columns beside {', '.join(sorted(beside))}")
        return Columns(features, targets, weights, bars)

    @property
    def all(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys((*self.features, *self.targets, *self.weights, *self.y_scale)))

    def piece(self, columns: Mapping[str, Any]) -> Piece:
        """Rows of columns."""
        parts = [_stack([columns[name] for name in own]) for own in (self.features, self.targets, self.y_scale)]
        weights = columns[self.weights[0]] if self.weights else None
        return Piece(parts[0], parts[1], weights, parts[2])


def names_of(value: Any) -> tuple[str, ...]:
    """One name, several or none, as a tuple.

    Raises:
        ValueError: If it is anything but names.
    """
    found = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(name, str) for name in found):
        raise ValueError(f"columns of files and tables are told by their names, got {str(value)[:80]}")
    return found


def _stack(columns: Sequence[Any]) -> Any:
    """Columns side by side; one alone that has arrays in its rows is those."""
    if not columns:
        return None
    if len(columns) == 1 and np.ndim(columns[0]) > 1:
        return columns[0]
    kinds = {column.dtype for column in columns}
    dtype = kinds.pop() if len(kinds) == 1 else np.result_type(*kinds, *(column.dtype for column in columns))
    return np.stack([np.asarray(column, dtype=dtype) for column in columns], axis=1)


def parquet_source(data: ParquetData) -> Streamed:
    """Row groups of the files, in windows of neighbours in a random order."""
    import pyarrow.parquet

    path = Path(data.path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} has no Parquet files: their names end in .parquet")
    if not files[0].exists():
        raise DataError(f"there is no file {files[0]}")
    groups: list[tuple[Path, int, int]] = []
    names: list[str] | None = None
    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file) as opened:
                found, metadata = list(opened.schema_arrow.names), opened.metadata
                groups += [(file, i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file} cannot be read as a Parquet file: {error}") from error
        if names is not None and set(found) != set(names):
            raise DataError(f"{file} has the columns {found}, but {files[0]} has {names}")
        names = found
    columns = Columns.of(str(path), names or [], data)
    wanted = max(1, WINDOW_BYTES // (4 * len(columns.all)))

    def windows(generator: torch.Generator | None) -> Iterator[tuple[int, Callable[[], Piece]]]:
        count = len(groups)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        window: list[tuple[Path, int, int]] = []
        for position, index in enumerate(order.tolist()):
            window.append(groups[index])
            rows = sum(size for *_, size in window)
            if rows and (rows >= wanted or position == count - 1):
                yield rows, lambda own=tuple(window): _read_groups(own, columns)  # type: ignore[misc]
                window = []

    rows = sum(size for *_, size in groups)
    return Streamed(str(path), rows, windows, columns.features, columns.targets or None)


def _read_groups(groups: Sequence[tuple[Path, int, int]], columns: Columns) -> Piece:
    """Row groups of numbers."""
    import pyarrow
    import pyarrow.parquet

    parts: list[dict[str, np.ndarray]] = []
    for file, index, _ in groups:
        try:
            with pyarrow.parquet.ParquetFile(file) as opened:
                table = opened.read_row_group(index, columns=columns.all, use_threads=False)
            parts.append({name: _numbers(table[name]) for name in columns.all})
        except FileNotFoundError as error:
            raise DataError(f"there is no file {file} any more") from error
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file}, row group {index} cannot be read: {error}") from error
    if len(parts) == 1:
        return columns.piece(parts[0])
    return columns.piece({name: np.concatenate([part[name] for part in parts]) for name in columns.all})


def _numbers(column: Any) -> np.ndarray:
    array: np.ndarray = column.to_numpy()
    if array.dtype.kind not in "fiub":
        raise ValueError(f"a column holds {column.type}, not numbers")
    return array
