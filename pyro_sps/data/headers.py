"""Which columns of a file are used, by the names in its first row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .rows import MAX_COLUMNS, DataError, number, short


def check_header(path: Path, header: Sequence[Any]) -> tuple[str, ...]:
    """Names of the columns, from the cells of the first row.

    Raises:
        DataError: If there are none, too many, or two that are equal.
    """
    if len(header) > MAX_COLUMNS:
        raise DataError(f"{path} has more than {MAX_COLUMNS:,} columns")
    names = ["" if name is None else str(name).strip() for name in header]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"{path} has no column names: its first line is empty")
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise DataError(f"{path} has several columns named {quote(twice)}; every column needs a name of its own")
    return tuple(names)


def choose(
    path: Path, names: Sequence[str], targets: Sequence[str], features: Sequence[str] | None, drop: Sequence[str]
) -> list[str]:
    """Names of the columns that are used, features first."""
    known = frozenset(names)
    for what, asked in (("targets", targets), ("features", features or ()), ("drop", drop)):
        if isinstance(asked, str):
            raise TypeError(f"{what} must be a list of column names, got the string {asked!r}")
        if twice := [name for name, count in Counter(asked).items() if count > 1]:
            raise DataError(f"{what} name {quote(twice)} twice")
        if unknown := [name for name in asked if not name or name not in known]:
            hint = " (is the first line a header?)" if all(not number(name)[1] for name in names) else ""
            raise DataError(f"{path} has no column {quote(unknown)}; it has {quote(names)}{hint}")
    if both := [name for name in features or () if name in targets]:
        raise DataError(f"{quote(both)} cannot be both a feature and a target")
    if features is None:
        # pandas writes an unnamed index to Parquet files under such names; it is no feature.
        used = {*targets, *drop}
        features = [name for name in names if name not in used and not name.startswith("__index_level_")]
        if not all(features):
            unnamed = [index + 1 for index, name in enumerate(names) if not name]
            raise DataError(f"{path} has no name for column {listed(unnamed)}; name it, or list the features to use")
    elif drop:
        raise DataError("give either the features or the columns to drop, not both")
    if not features:
        raise DataError(f"{path} has no feature columns: it has {quote(names)}, and the targets are {quote(targets)}")
    return [*features, *targets]


def quote(names: Sequence[str]) -> str:
    """Names in quotes, cut to a length."""
    return listed([short(name, 80) for name in names])


def listed(items: Sequence[object], most: int = 20) -> str:
    """Items in a row, those beyond `most` as a number."""
    shown = ", ".join(map(str, items[:most]))
    return shown + (f", ... ({len(items)} in all)" if len(items) > most else "")
