"""What users bring as data that need not fit in memory: torch's and Hugging Face's data sets, memory maps, files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from .arrays import make_generator
from .observed import NO_EXTRAS, Extras
from .row_groups import Columns, ParquetData, names_of, parquet_source
from .rows import DataError
from .sources import WINDOW_BYTES, WINDOW_ROWS, Indexed, Piece, Source, Streamed
from .trees import leaves, map_tree, num_rows

#: Rows of a batch that is read of a stream that has no batches of its own.
STREAM_ROWS = 256


def source_of(x: Any, y: Any, extras: Extras, num_data: int | None) -> Source | None:
    """What a user gave as a source; None if it is arrays.

    Args:
        x: Inputs, or a data set that has targets too.
        y: Targets; of files and tables the names of their columns; None where `x` has them.
        extras: Weights and error bars; of files and tables the names of their columns.
        num_data: Number of rows, where it cannot be told from the data.

    Raises:
        ValueError: If the number of rows is not known, or is not what `num_data` says.
        DataError: If a file or folder cannot be read.
    """
    found = _source_of(x, y, extras)
    if found is None:
        if num_data is not None:
            raise ValueError(f"num_data is for data that does not tell its size; x has {len(x)} rows")
        return None
    if found.num_rows is None:
        if num_data is None:
            raise ValueError(
                f"num_data must say how many rows {found.name} has, which does not tell its size: the likelihood of a "
                "minibatch stands for that of all rows"
            )
        if not isinstance(num_data, int) or isinstance(num_data, bool) or num_data < 1:
            raise ValueError(f"num_data must be a positive integer, got {num_data!r}")
        assert isinstance(found, Streamed)
        return Streamed(found.name, num_data, found.windows, found.features, found.targets)
    if num_data not in (None, found.num_rows):
        raise ValueError(f"num_data must be {found.num_rows}, the number of rows of {found.name}, got {num_data}")
    if found.num_rows < 1:
        raise DataError(f"{found.name} has no rows")
    return found


def _source_of(x: Any, y: Any, extras: Extras) -> Source | None:
    if isinstance(x, str | os.PathLike | ParquetData):
        given = x if isinstance(x, ParquetData) else ParquetData(Path(x), () if y is None else y, None, *extras)
        if x is given and (y is not None or any(value is not None for value in extras)):
            raise ValueError("ParquetData says itself which columns are targets, weights and error bars")
        return parquet_source(given)
    if hasattr(x, "column_names") and hasattr(x, "with_format"):
        return _hugging_face(x, y, extras)
    if isinstance(x, Dataset | DataLoader):
        if y is not None:
            raise ValueError(f"y must be left out: a {type(x).__name__} gives pairs (x, y)")
        if isinstance(x, DataLoader):
            return _loader(x, extras)
        if isinstance(x, IterableDataset):
            return _iterable(x, DataLoader(x, batch_size=STREAM_ROWS), extras)
        return _map_style(x, default_collate, extras, None)
    if isinstance(x, np.memmap):
        return _mapped(x, y, extras)
    return None


def data_set_of(x: Any, features: Sequence[str] | None) -> Source | None:
    """New rows as a source; None if they are arrays.

    Args:
        x: A data set.
        features: Names of the columns to read of files and tables that do not say it themselves; None for all.
    """
    if isinstance(x, str | os.PathLike):
        x = ParquetData(Path(x), features=features)
    if isinstance(x, ParquetData) and x.features is None and features is not None:
        x = replace(x, features=features)
    if hasattr(x, "select_columns") and features is not None:
        x = x.select_columns(list(features))
    return _source_of(x, None, NO_EXTRAS)


def pairs_of(
    x: Any, y: Any = None, features: Sequence[str] | None = None, targets: Sequence[str] | None = None
) -> Source | None:
    """Inputs and targets that a fit is checked on as a source, whose size need not be known; None if they are arrays.

    Args:
        x: As in `source_of`.
        y: Likewise.
        features: Names of the columns that the fit was made with, to read of files and tables that do not say it.
        targets: Likewise.
    """
    if isinstance(x, str | os.PathLike):
        if not Path(x).exists():  # before what is wrong with y, which may be no names for the same reason
            raise DataError(f"there is no file {x}")
        x, y = ParquetData(Path(x), names_of(y)), None
    if isinstance(x, ParquetData):
        own = x.features if x.features is not None else features
        x = replace(x, features=own, targets=names_of(x.targets) or tuple(targets or ()))
    elif hasattr(x, "select_columns"):
        y = names_of(y) or tuple(targets or ())
        x = x if features is None else x.select_columns([*features, *y])
    return _source_of(x, y, NO_EXTRAS)


def data_of(
    x: Any, y: Any, extras: Extras, num_data: int | None, batch_size: int | None, default: int | None
) -> tuple[Any, Any, Extras, int | None]:
    """What a fit is to read: sources in place of data that need not be in memory, and rows of a step.

    Args:
        x: As in `source_of`.
        y: Likewise.
        extras: Likewise.
        num_data: Likewise.
        batch_size: Rows of a step that were asked for.
        default: What that is if nothing was asked for.

    Returns:
        Arrays as they are, or a source; and rows of a step.

    Raises:
        ValueError: If there are no targets, or it is not known or not agreed how many rows a step has.
    """
    source = source_of(x, y, extras, num_data)
    if source is None:
        if y is None:
            raise ValueError("y is missing: give targets, or a data set of pairs (x, y)")
        return x, y, extras, batch_size
    if batch_size is None and isinstance(x, np.memmap):  # all rows in each step: they have to be in memory
        return x, y, extras, batch_size
    own = x.batch_size if isinstance(x, DataLoader) else None
    if own is not None:
        if batch_size not in (default, own):
            raise ValueError(f"batch_size is {batch_size}, and the DataLoader has batches of {own}: leave it out")
        batch_size = own
    if batch_size is None:
        raise ValueError(f"batch_size must be a number of rows: {source.name} is read in pieces, never as a whole")
    return source, None, NO_EXTRAS, batch_size


# --- data sets ---------------------------------------------------------------------------------------


def _mapped(x: np.ndarray, y: Any, extras: Extras) -> Indexed:
    """A memory-mapped array, of which rows are read when they are needed."""
    name = f"the memory-mapped array {getattr(x, 'filename', None) or ''}".rstrip()
    others = [value if isinstance(value, np.ndarray) or value is None else np.asarray(value) for value in (y, *extras)]
    for what, value in zip(("y", "weights", "y_scale"), others, strict=True):
        if value is not None and len(value) != len(x):
            raise ValueError(f"{what} must have as many rows as x, {len(x)}, got {len(value)}")

    def fetch(rows: np.ndarray, number: int) -> Piece:
        order = np.argsort(rows, kind="stable")  # pages of the file in their order
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return Piece(*(None if value is None else np.asarray(value[rows[order]])[back] for value in (x, *others)))

    return Indexed(name, len(x), fetch)


def _loader(loader: DataLoader[Any], extras: Extras) -> Source:
    if isinstance(loader.dataset, IterableDataset):
        return _iterable(loader.dataset, loader, extras)
    sampler = loader.sampler
    if loader.batch_size is None or not isinstance(sampler, RandomSampler | SequentialSampler):
        raise ValueError(
            "the DataLoader has a sampler of its own, with which rows would not count alike; leave it out (rows come "
            "in a random order that the seed decides) and say by weights= how often each row counts"
        )
    return _map_style(loader.dataset, loader.collate_fn, extras, loader)


def _map_style(dataset: Any, collate: Any, extras: Extras, loader: DataLoader[Any] | None) -> Indexed:
    """A data set whose items have numbers."""
    name = f"the data set {type(dataset).__name__}"
    try:
        count = len(dataset)
    except TypeError as error:
        raise ValueError(f"{name} must have a length (__len__), or be an IterableDataset: {error}") from error
    own = _own_extras(extras, count)
    tasks = _Tasks(dataset, collate, name)

    def fetch(rows: np.ndarray, number: int) -> Piece:
        before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 - what data sets draw from
        try:
            return _with_extras(tasks[(number, rows.tolist())], own, rows)
        finally:
            torch.set_rng_state(before[0])
            np.random.set_state(before[1])  # noqa: NPY002

    if loader is None or loader.num_workers == 0:
        return Indexed(name, count, fetch)

    def load(keys: Iterator[tuple[int, np.ndarray]]) -> Iterator[Piece]:
        asked: list[np.ndarray] = []

        def noted() -> Iterator[tuple[int, list[int]]]:
            for number, rows in keys:
                asked.append(rows)
                yield number, rows.tolist()

        workers: DataLoader[Any] = DataLoader(
            tasks,
            sampler=noted(),
            batch_size=None,
            num_workers=loader.num_workers,
            prefetch_factor=loader.prefetch_factor,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=make_generator("cpu", 0, 32),
        )
        for pair in _guarded(name, iter(workers)):
            yield _with_extras(pair, own, asked.pop(0))

    return Indexed(name, count, fetch, load)


class _Tasks(Dataset[Any]):
    """Batches of a data set by (number, rows): all that is random in one depends on its number alone."""

    def __init__(self, dataset: Any, collate: Any, name: str) -> None:
        self.dataset, self.collate, self.name = dataset, collate, name

    def __getitem__(self, key: tuple[int, list[int]]) -> Any:
        number, rows = key
        seed = make_generator("cpu", 33, number + 1, rows[0]).initial_seed()
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        state = random.getstate()
        random.seed(seed)
        try:
            if hasattr(self.dataset, "batch"):  # which knows whether it is one of a fit, such as `Images`
                return self.dataset.batch(rows, number)
            items = self.dataset.__getitems__(rows) if hasattr(self.dataset, "__getitems__") else None
            items = [self.dataset[row] for row in rows] if items is None else items
            try:
                return self.collate(items)
            except (RuntimeError, ValueError, TypeError) as error:
                raise DataError(f"{self.name}, rows {rows[0]}, ... cannot be put together: {error}") from error
        finally:
            random.setstate(state)


def _guarded(name: str, items: Iterator[Any]) -> Iterator[Any]:
    """What worker processes give, and what is wrong if one of them dies."""
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise RuntimeError(
                f"a worker process of {name} died or does not answer ({error}): there may be too little memory for "
                "num_workers of them, or the data set cannot be read by several processes"
            ) from error
        yield item


def _iterable(dataset: Any, loader: DataLoader[Any], extras: Extras) -> Streamed:
    """A data set that is read from its start to its end."""
    name = f"the data set {type(dataset).__name__}"
    if any(value is not None for value in extras):
        raise ValueError(f"weights and y_scale of rows cannot be told apart from {name}, whose rows have no numbers")
    count: int | None
    try:
        count = len(dataset)
    except TypeError:
        count = None

    def windows(generator: torch.Generator | None) -> Iterator[tuple[None, Callable[[], Piece]]]:
        state = torch.get_rng_state()
        iterator = iter(loader)
        torch.set_rng_state(state)
        kept: list[Piece] = []
        for item in _guarded(name, iterator):
            kept.append(_with_extras(item, Extras(), None))
            rows = sum(num_rows(piece.x) for piece in kept)
            if rows >= max(1, WINDOW_BYTES // max(1, sum(leaf[0].nbytes for leaf in leaves(kept[0].x)))):
                yield None, lambda own=tuple(kept): _joined(own)  # type: ignore[misc]
                kept = []
        if kept:
            yield None, lambda own=tuple(kept): _joined(own)  # type: ignore[misc]

    return Streamed(name, count, windows)


def _joined(pieces: Sequence[Piece]) -> Piece:
    try:
        return map_tree(lambda *parts: torch.cat([torch.as_tensor(p) for p in parts]), *pieces)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"rows that follow each other have different shapes: {error}") from error


def _hugging_face(dataset: Any, y: Any, extras: Extras) -> Source:
    """A `datasets.Dataset` of Hugging Face, whose columns have names."""
    there = list(dataset.column_names or ())
    name = f"the data set of columns {', '.join(there)}"
    columns = Columns.of(name, there, ParquetData("", names_of(y), None, *extras))
    chosen = dataset.select_columns(columns.all)
    if not hasattr(dataset, "__len__"):
        table = chosen.with_format("numpy")

        def windows(generator: torch.Generator | None) -> Iterator[tuple[None, Callable[[], Piece]]]:
            for part in table.iter(batch_size=WINDOW_ROWS):
                yield None, lambda own=part: columns.piece(own)  # type: ignore[misc]

        return Streamed(name, None, windows, columns.features, columns.targets or None)
    table = chosen.with_format("numpy", dtype=np.float64)  # which would be single precision
    return Indexed(
        name,
        len(dataset),
        lambda rows, number: columns.piece(table[rows.tolist()]),
        features=columns.features,
        targets=columns.targets or None,
    )


def _own_extras(extras: Extras, count: int) -> Extras:
    """Weights and error bars of rows that have numbers."""
    own = Extras(*(None if value is None else np.asarray(value) for value in extras))
    for what, value in own._asdict().items():
        if value is not None and (value.ndim == 0 or len(value) != count):
            raise ValueError(f"{what} must have one number for each of {count} rows, got shape {value.shape}")
    return own


def _with_extras(pair: Any, own: Extras, rows: Any) -> Piece:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        what = f"{type(pair).__name__} of {len(pair)}" if isinstance(pair, tuple | list) else type(pair).__name__
        raise DataError(f"items of a data set must be pairs (x, y), got a {what}")
    x = pair[0] if isinstance(pair[0], Tensor | np.ndarray | Mapping) else tuple(pair[0])
    return Piece(x, pair[1], *(None if value is None else value[rows] for value in own))
