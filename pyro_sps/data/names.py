"""Names of the columns and rows that users bring: put right where that is possible, refused where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base.process import warn_user


def column_names(value: Any) -> tuple[str, ...] | None:
    """Names of the columns of a DataFrame (pandas, polars) or table (pyarrow), if all are text and none comes twice.

    Args:
        value: What the user gave.

    Example:
        >>> import pandas as pd
        >>> from pyro_sps.data.names import column_names
        >>> column_names(pd.DataFrame({"a": [1], "b": [2]})), column_names([[1, 2]])
        (('a', 'b'), None)
    """
    found = _names(value)
    return found if found and len(set(found)) == len(found) else None


def _names(value: Any) -> tuple[str, ...]:
    names = getattr(value, "column_names", None)  # of pyarrow, whose `columns` are the data
    if names is None:
        names = getattr(value, "columns", None)
    found = () if names is None or callable(names) else tuple(names)
    return found if all(isinstance(name, str) for name in found) else ()


def in_order(name: str, value: Any, names: Sequence[str] | None) -> Any:
    """A table with its columns in the order of those that a model was fitted to.

    Args:
        name: The argument's name, for errors.
        value: What the user gave.
        names: Names of the columns that the model was fitted to; None if they had none.

    Raises:
        ValueError: If columns are missing or unknown.

    Warns:
        UserWarning: If the columns have no names although those of the model have.
    """
    if names is None:
        return value
    found = _names(value)
    if len(set(found)) < len(found):
        twice = sorted({one for one in found if found.count(one) > 1})
        raise ValueError(f"the columns {twice} of {name} come twice, so that they cannot be told apart; rename them")
    if not found:
        if isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] > 1:  # tensors never have names
            warn_user(
                f"{name} has no column names, but what the network was fitted to had: its columns must be "
                f"{', '.join(names)}, in this order"
            )
        return value
    if found == tuple(names):
        return value
    missing, unknown = [n for n in names if n not in found], [n for n in found if n not in names]
    if missing or unknown:
        raise ValueError(
            f"{name} must have the columns that the network was fitted to, {list(names)}"
            + (f"; {missing} are missing" if missing else "")
            + (f"; {unknown} are unknown, drop them" if unknown else "")
        )
    return value.select(list(names)) if hasattr(value, "select") else value[list(names)]


def row_names(value: Any) -> Any:
    """The index of a pandas object; None if there is none."""
    index = getattr(value, "index", None)
    return index if hasattr(index, "equals") else None


def require_same_rows(name: str, rows: Any, other: str, other_rows: Any) -> None:
    """Refuse tables whose rows have other names, or the same names in another order.

    Args:
        name: The name of an argument.
        rows: Its `row_names`.
        other: The name of another argument.
        other_rows: Its `row_names`.

    Raises:
        ValueError: If both have an index, and they are not equal.
    """
    if rows is None or other_rows is None or rows.equals(other_rows):
        return
    if len(rows) != len(other_rows):
        return  # which the check of the shapes says better
    same = set(rows) == set(other_rows)
    how = "the same rows in another order" if same else "other rows"
    then = f"use {other}.loc[{name}.index]" if same else "reset the index of both if the rows do belong together"
    raise ValueError(f"the index of {other} is not that of {name}: it names {how}; {then}")
