"""From typed columns to the numbers that a network reads, by a plan that is plain data and can be kept in JSON.

`pyro_sps.estimators.preprocessing` learns such a plan with scikit-learn's transformers; here it is only carried out,
so that a saved model depends neither on scikit-learn nor on its version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.checks import is_number
from ..base.files import LoadError
from .frames import DATE, NUMBER, TEXT

if TYPE_CHECKING:
    import pandas as pd

_DAY = 86_400.0
#: Periods in days.
WAVES = {"year": 365.2425, "week": 7.0, "day": 1.0}

# What the numbers of a block are, beside its columns: one a column (of dates: one a part), or a list a column.
_NUMBERS = {
    "numbers": ("fill", "centre", "scale"),
    "skewed": ("fill", "centre", "scale", "power", "new_centre", "new_scale"),
    "dates": ("fill", "centre", "scale"),
    "text": (),
    "missing": (),
}
_KINDS = {"numbers": NUMBER, "skewed": NUMBER, "dates": DATE, "text": TEXT, "missing": NUMBER}
_LISTS = {"dates": ("parts",), "text": ("levels", "others")}


@dataclass(frozen=True)
class Encoder:
    """What is done to the columns of a table, block by block; the numbers come out in this order.

    - `numbers`: gaps become `fill`, then (x − `centre`) / `scale`
    - `skewed`: the same, then the transformation of Yeo and Johnson (2000) with exponent `power`, and once more a shift
    - `dates`: `date_numbers` with `parts`, then as numbers
    - `text`: a column for each of `levels` (null for a gap) and one for all of `others`, if there are some
    - `missing`: 1 where there is a gap

    Attributes:
        columns: What each column of the table holds.
        blocks: By name, what is done to which columns.
        left_out: Columns that are not used.

    Example:
        >>> import pandas as pd
        >>> from pyro_sps.data.encoding import Encoder
        >>> block = {"columns": ["size"], "fill": [2.0], "centre": [1.0], "scale": [2.0]}
        >>> encoder = Encoder({"size": "number"}, {"numbers": block})
        >>> encoder.transform(pd.DataFrame({"size": [5.0, None]})).tolist()
        [[2.0], [0.5]]
    """

    columns: Mapping[str, str]
    blocks: Mapping[str, Mapping[str, Any]] = field(repr=False)
    left_out: Sequence[str] = ()

    def transform(self, frame: pd.DataFrame) -> np.ndarray:
        """The numbers of a table of typed columns, float64, shape (rows, inputs)."""
        found, start = np.zeros((len(frame), self.num_inputs)), 0
        for what, block in self.blocks.items():
            stop = start + _width(what, block)
            _TRANSFORM[what](frame, block, found[:, start:stop])
            start = stop
        return found

    @property
    def num_inputs(self) -> int:
        """How many numbers a row becomes."""
        return sum(_width(what, block) for what, block in self.blocks.items())

    def describe(self, frame: pd.DataFrame) -> list[tuple[str, str]]:
        """What is done to each column of a table, in words: (name, what)."""
        words = dict.fromkeys(self.left_out, "left out: nearly every row has a text of its own")
        for what, block in self.blocks.items():
            for index, name in enumerate(block["columns"] if what in _WORDS else ()):
                gaps = int(frame[name].isna().sum())
                marks = "" if what == "dates" else ", and a column that marks them"
                filled = f", {gaps:,} gaps: the median{marks}" if gaps and what != "text" else ""
                words[name] = _WORDS[what](block, index, frame[name]) + filled
        return [(name, words.get(name, "left out")) for name in self.columns]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "columns": [list(pair) for pair in self.columns.items()],
            "blocks": [{"what": what, **block} for what, block in self.blocks.items()],
            "left_out": list(self.left_out),
        }

    @staticmethod
    def from_json(content: Any) -> Encoder:
        """From plain data that is not trusted.

        Args:
            content: What `to_json` gave, or somebody made up.

        Raises:
            LoadError: If it is no encoder.
        """
        try:
            columns = {str(name): str(kind) for name, kind in content["columns"]}
            blocks = {str(block["what"]): dict(block) for block in content["blocks"]}
            left_out = [str(name) for name in content["left_out"]]
            for what, block in blocks.items():
                del block["what"]
                _check(what, block, columns)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__} {str(error)[:200]}"
            raise LoadError(f"the saved preprocessing is damaged: {what}") from error
        return Encoder(columns, blocks, left_out)


def date_numbers(dates: pd.Series, parts: Sequence[str]) -> np.ndarray:
    """Days since 1970, and sine and cosine of the time of year, week or day, shape (rows, 1 + 2 parts); NaN for gaps.

    Args:
        dates: A column of dates.
        parts: Which of `WAVES`.
    """
    days = days_of(dates)
    columns = [days]
    for part in parts:
        phase = 2 * np.pi * days / WAVES[part]
        columns += [np.sin(phase), np.cos(phase)]
    return np.stack(columns, axis=1)


def days_of(dates: pd.Series) -> np.ndarray:
    """Days since 1970 with fractions, NaN for gaps."""
    seconds = dates.astype("datetime64[s]").to_numpy().astype(np.float64)
    return np.where(dates.isna().to_numpy(), np.nan, seconds / _DAY)


def yeo_johnson(x: np.ndarray, power: np.ndarray) -> np.ndarray:
    """The transformation of Yeo and Johnson (2000, Biometrika 87), column by column."""
    found = np.empty_like(x)
    for column, exponent in enumerate(power):
        value = x[:, column]
        positive = value >= 0
        for sign, where, own in ((1.0, positive, exponent), (-1.0, ~positive, 2 - exponent)):
            logs = np.log1p(sign * value[where])
            found[where, column] = sign * (logs if abs(own) < 1e-12 else np.expm1(own * logs) / own)
    return found


# Each fills the columns of its block, which are zero: a large table is not held twice.


def _numbers(frame: pd.DataFrame, block: Mapping[str, Any], found: np.ndarray) -> None:
    found[:] = _scaled(frame[list(block["columns"])].to_numpy(np.float64), block)


def _skewed(frame: pd.DataFrame, block: Mapping[str, Any], found: np.ndarray) -> None:
    _numbers(frame, block, found)
    found[:] = (yeo_johnson(found, np.array(block["power"])) - np.array(block["new_centre"])) / np.array(
        block["new_scale"]
    )


def _dates(frame: pd.DataFrame, block: Mapping[str, Any], found: np.ndarray) -> None:
    pairs = zip(block["columns"], block["parts"], strict=True)
    found[:] = _scaled(np.hstack([date_numbers(frame[name], parts) for name, parts in pairs]), block)


def _text(frame: pd.DataFrame, block: Mapping[str, Any], found: np.ndarray) -> None:
    """A level that was not seen counts as one of the others, where there are some."""
    start = 0
    for name, levels, others in zip(block["columns"], block["levels"], block["others"], strict=True):
        values = frame[name].astype(object).where(frame[name].notna(), None).tolist()
        number = {level: index for index, level in enumerate(levels)}
        number.update(dict.fromkeys(others, len(levels)))
        rest = len(levels) if others else -1
        codes = np.array([number.get(value, rest) for value in values], dtype=np.int64)
        rows = np.flatnonzero(codes >= 0)
        found[rows, start + codes[rows]] = 1.0
        start += len(levels) + bool(others)


def _missing(frame: pd.DataFrame, block: Mapping[str, Any], found: np.ndarray) -> None:
    found[:] = frame[list(block["columns"])].isna().to_numpy()


_TRANSFORM: dict[str, Callable[[Any, Mapping[str, Any], np.ndarray], None]] = {
    "numbers": _numbers,
    "skewed": _skewed,
    "dates": _dates,
    "text": _text,
    "missing": _missing,
}


def _scaled(x: np.ndarray, block: Mapping[str, Any]) -> np.ndarray:
    filled = np.where(np.isnan(x), np.array(block["fill"]), x)
    return (filled - np.array(block["centre"])) / np.array(block["scale"])


def _width(what: str, block: Mapping[str, Any]) -> int:
    if what == "dates":
        return sum(1 + 2 * len(parts) for parts in block["parts"])
    if what == "text":
        return sum(len(levels) + bool(others) for levels, others in zip(block["levels"], block["others"], strict=True))
    return len(block["columns"])


def _check(what: str, block: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Raise `ValueError` unless a block is one that `transform` can carry out."""
    names, wanted = block["columns"], {"columns", *_NUMBERS[what], *_LISTS.get(what, ())}
    if set(block) != wanted:
        raise ValueError(f"{what} has {sorted(block)}, not {sorted(wanted)}")
    if any(columns[name] != _KINDS[what] for name in names) or not isinstance(names, list):
        raise ValueError(f"{what} has columns of another kind")
    for key in _LISTS.get(what, ()):
        if len(block[key]) != len(names) or not all(isinstance(own, list) for own in block[key]):
            raise ValueError(f"{key} has not one list a column")
    if what == "dates" and not all(part in WAVES for parts in block["parts"] for part in parts):
        raise ValueError("unknown parts of dates")
    if what == "text":
        for level in (level for key in ("levels", "others") for own in block[key] for level in own):
            if not isinstance(level, str | None):
                raise ValueError(f"a level is {level!r}")
    for key in _NUMBERS[what]:
        values = block[key]
        if len(values) != _width(what, block) or not all(is_number(v) and math.isfinite(v) for v in values):
            raise ValueError(f"{key} has not one finite number a column")
        if key.endswith("scale") and not all(value > 0 for value in values):
            raise ValueError(f"{key} is not positive")


def _number_words(block: Mapping[str, Any], index: int, column: pd.Series) -> str:
    low, high = column.min(), column.max()
    if column.isna().all():
        return "nothing in it"
    return "constant, says nothing" if low == high else f"number, {low:g} to {high:g}"


def _date_words(block: Mapping[str, Any], index: int, column: pd.Series) -> str:
    waves = "".join(f", time of {part}" for part in block["parts"][index])
    return f"date, {column.min():%Y-%m-%d} to {column.max():%Y-%m-%d}: days{waves}"


def _text_words(block: Mapping[str, Any], index: int, column: pd.Series) -> str:
    levels, others = len(block["levels"][index]), len(block["others"][index])
    rare = f", the rarest {others} together" if others else ""
    gaps = ", gaps one of them" if column.isna().any() else ""
    return f"text, {levels + others} levels{rare}{gaps}"


_WORDS: dict[str, Callable[..., str]] = {
    "numbers": _number_words,
    "skewed": lambda *args: _number_words(*args) + ", skewed",
    "dates": _date_words,
    "text": _text_words,
}
