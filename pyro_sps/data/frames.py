"""Tables and arrays of any library as one pandas DataFrame of numbers, text and dates."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

#: What a column can hold: float64, text (object, gaps are NaN), datetime64[ns].
NUMBER, TEXT, DATE = "number", "text", "date"


def as_table(value: Any) -> pd.DataFrame | None:
    """A table of named columns (pandas, polars, pyarrow or anything that speaks Arrow) as a DataFrame; None for arrays.

    Args:
        value: What a user gave.

    Raises:
        ValueError: If two columns have one name.
    """
    if isinstance(value, pd.DataFrame):
        table = value
    elif hasattr(value, "columns") and any(hasattr(value, name) for name in ("__arrow_c_stream__", "to_arrow")):
        import pyarrow

        # polars before 1.3 has the second only.
        arrow = pyarrow.table(value) if hasattr(value, "__arrow_c_stream__") else value.to_arrow()
        table = arrow.to_pandas(date_as_object=False)
    else:
        return None
    if twice := table.columns[table.columns.duplicated()].unique().tolist():
        raise ValueError(f"X has several columns named {twice}; every column needs a name of its own")
    return table


def as_frame(array: np.ndarray) -> pd.DataFrame:
    """A two-dimensional array as a DataFrame with columns x0, x1, ...; text that is all numbers becomes numbers."""
    columns = {}
    for index in range(array.shape[1]):
        column = pd.Series(array[:, index])
        if array.dtype.kind in "US" or _is_text(column):
            read = pd.to_numeric(column, errors="coerce")
            column = read if read.notna().sum() == column.notna().sum() else column
        columns[f"x{index}"] = column
    return pd.DataFrame(columns)


def typed(table: pd.DataFrame, kinds: Mapping[str, str] | None = None) -> tuple[pd.DataFrame, dict[str, str]]:
    """The columns as numbers, text and dates.

    Booleans and durations (in seconds) count as numbers, categories and everything else that repeats as text.

    Args:
        table: The table; its names become text.
        kinds: Which column is what; None to find out.

    Returns:
        A table of the same columns, each float64, object or datetime64[ns], and their kinds.

    Raises:
        TypeError: If a column holds what is none of these, such as lists.
        ValueError: If it holds complex or infinite numbers, or values that are not of its kind.
    """
    found, columns = {}, {}
    for name, column in zip(map(str, table.columns), (table.iloc[:, i] for i in range(table.shape[1])), strict=True):
        found[name] = kinds[name] if kinds is not None else _kind(name, column)
        columns[name] = _CONVERT[found[name]](name, column.reset_index(drop=True))
    return pd.DataFrame(columns, index=range(len(table))), found


def text_of(value: Any) -> str:
    """A category as text, the same for 1 and 1.0: a column of integers becomes one of floats by a single gap."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return str(int(value)) if is_number and value == value // 1 else str(value)


def _is_text(column: pd.Series) -> bool:
    return column.dtype == object and all(isinstance(value, str) for value in column.dropna())


def _kind(name: str, column: pd.Series) -> str:
    dtype: Any = column.dtype
    if pd.api.types.is_complex_dtype(dtype):
        raise ValueError(f"Complex data not supported: column {name!r} of X holds complex numbers")
    if pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        return NUMBER
    if isinstance(dtype, pd.CategoricalDtype | pd.StringDtype):
        return TEXT
    if pd.api.types.is_numeric_dtype(dtype):
        return NUMBER
    if pd.api.types.is_datetime64_any_dtype(dtype) or isinstance(dtype, pd.PeriodDtype):
        return DATE
    return _kind_of_objects(name, column.dropna().tolist())


def _kind_of_objects(name: str, values: Iterable[Any]) -> str:
    import datetime
    import decimal

    values = list(values)
    plain = (numbers.Number, decimal.Decimal, np.generic, str, bytes, datetime.date, datetime.time)
    for value in values:
        if isinstance(value, complex | np.complexfloating):
            raise ValueError(f"Complex data not supported: column {name!r} of X holds {value!r}")
        if not isinstance(value, plain):
            raise TypeError(
                f"column {name!r} of X must hold a string or a number in each row (or dates), got {repr(value)[:80]}"
            )
    if all(isinstance(value, numbers.Real | decimal.Decimal | np.bool_) for value in values):
        return NUMBER
    if all(isinstance(value, datetime.date | np.datetime64) for value in values):
        return DATE
    return TEXT


def _numbers(name: str, column: pd.Series) -> np.ndarray:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if pd.api.types.is_timedelta64_dtype(column.dtype):
        column = column.dt.total_seconds()
    try:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        bad = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
        row, value = (bad.index[0], bad.iloc[0]) if len(bad) else (0, column.iloc[0])
        raise ValueError(f"column {name!r} of X holds numbers, but {repr(value)[:80]} in row {row}") from error
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0])
        raise ValueError(f"Input X contains infinity: column {name!r}, row {row}")
    return values


def _text(name: str, column: pd.Series) -> np.ndarray:
    objects = column.astype(object)
    gaps = objects.isna().to_numpy()
    values = np.array([text_of(value) for value in objects.where(~gaps, "")], dtype=object)
    values[gaps] = np.nan
    return values


def _dates(name: str, column: pd.Series) -> pd.Series:
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    try:
        dates = pd.to_datetime(column, utc=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} of X holds dates, but: {str(error)[:200]}") from error
    return dates.dt.tz_localize(None).astype("datetime64[ns]")


_CONVERT: dict[str, Any] = {NUMBER: _numbers, TEXT: _text, DATE: _dates}
