"""Tables as people have them: text, gaps, dates, no header, decimal commas, rows of units.

`read_table` takes numbers alone and refuses everything else; `read_mixed` takes what there is and says what it is.
"""

from __future__ import annotations

import datetime
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .dates import date_from, date_of
from .headers import check_header, choose, listed
from .opened import opened
from .rows import MISSING, DataError, Reader, is_blank, short

if TYPE_CHECKING:
    import pandas as pd

#: Most cells that are read, eight bytes each, most of them that differ, about 150 bytes each, and their characters.
MAX_CELLS, MAX_DIFFERENT, MAX_CHARACTERS = 100_000_000, 20_000_000, 500_000_000

#: A column of more different cells than FEW, of which at most the share STRAYS are no numbers, is one of numbers.
FEW, STRAYS = 20, 0.2

_TRUTH = {"true": 1.0, "false": 0.0}
_SLASHED = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")
_COMMAS = re.compile(r"[-+]?\d+,\d+([eE][-+]?\d+)?")
_GROUPS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")


@dataclass(frozen=True, eq=False)
class Column:
    """One column: which of its different cells each row has.

    Attributes:
        name: Its name.
        cells: The different cells, as they are in the file.
        codes: Number of each row's cell, -1 for a gap.
        kind: `"number"` (with NaN for gaps), `"truth"`, `"date"` or `"text"`.
        meaning: What each cell means: a float, a datetime, or text.
    """

    name: str
    cells: Sequence[Any] = field(repr=False)
    codes: np.ndarray = field(repr=False)
    kind: str
    meaning: Sequence[Any] = field(repr=False)

    @property
    def gaps(self) -> int:
        """Number of gaps."""
        return int((self.codes < 0).sum())

    def values(self) -> Any:
        """The column as pandas has it: float64, datetime64[ns], or objects, which are text or NaN."""
        import pandas as pd

        if self.kind in ("number", "truth"):
            return np.array([*self.meaning, math.nan], dtype=np.float64)[self.codes]
        if self.kind == "date":
            dates = pd.Series([*self.meaning, None], dtype="datetime64[us]")
            return dates.to_numpy()[self.codes].astype("datetime64[ns]")
        found = np.empty(len(self.meaning) + 1, dtype=object)
        found[:-1], found[-1] = self.meaning, math.nan
        return found[self.codes]

    def labels(self) -> np.ndarray:
        """The cells as text, as they are in the file, None for gaps."""
        found = np.empty(len(self.cells) + 1, dtype=object)
        found[:-1], found[-1] = [_written(cell) for cell in self.cells], None
        return found[self.codes]


@dataclass(frozen=True, eq=False)
class MixedTable:
    r"""A table whose columns hold numbers, text or dates, with gaps.

    Attributes:
        name: What it is called.
        columns: Its columns by name.
        lines: Number of each row in the file.
        unit: What these numbers count: lines or rows.
        notes: What was done to read it, for a reader.

    Example:
        >>> import tempfile, pathlib
        >>> from pyro_sps.data.mixed import read_mixed
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     file = pathlib.Path(directory, "cars.csv")
        ...     _ = file.write_text("make|price|sold\naudi|13495|2024-01-31\nbmw|?|2024-02-01\n")
        ...     table = read_mixed(file)
        >>> {name: column.kind for name, column in table.columns.items()}, len(table)
        ({'make': 'text', 'price': 'number', 'sold': 'date'}, 2)
        >>> table.frame()["price"].tolist()
        [13495.0, nan]
    """

    name: str
    columns: dict[str, Column] = field(repr=False)
    lines: np.ndarray = field(repr=False)
    unit: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def frame(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """Columns as a DataFrame.

        Args:
            names: Which ones; default: all.
        """
        import pandas as pd

        wanted = self.columns if names is None else names
        return pd.DataFrame({name: self.columns[name].values() for name in wanted}, index=range(len(self)))


def read_mixed(
    path: str | Path,
    targets: Sequence[str] = (),
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    *,
    header: bool = True,
    decimal: str = ".",
    thousands: str | None = None,
    encoding: str | None = None,
    missing: Sequence[str] = (),
) -> MixedTable:
    r"""Read a file of numbers, text and dates.

    CSV files may be separated by commas, semicolons, tabs, `|` or white space; of Excel workbooks the first sheet is
    read. What a column holds, its cells tell: numbers, True and False, dates (such as 2024-01-31, with a time if there
    is one, or 31.1.2024), else text. A first row of units, in columns that are numbers below it, is left out.

    Args:
        path: The file.
        targets: Names of the target columns.
        features: Names of the feature columns; default: all others.
        drop: Columns that are no features, where `features` is not given.
        header: Whether the first row has the names; else they are x1, x2, ...
        decimal: The decimal sign, `"."` or `","`.
        thousands: What separates groups of three digits; None for nothing.
        encoding: Encoding of a text file; default: UTF-8, or UTF-16 where it says so.
        missing: What stands for a gap, beside nothing, `?`, `-`, `NA`, `N/A`, `NaN`, `null` and `None`.

    Returns:
        The columns, features first.

    Raises:
        DataError: If the file cannot be read, lacks a column or has one twice, has rows that are longer than the
            first, infinite numbers, numbers that need another `decimal` or `thousands`, or dates that could mean two
            days.
        ValueError: If `decimal` or `thousands` are no such signs.

    Example:
        >>> import tempfile, pathlib
        >>> from pyro_sps.data.mixed import read_mixed
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     file = pathlib.Path(directory, "plants.txt")
        ...     _ = file.write_text("5,1 setosa\n4,9 virginica\n")
        ...     table = read_mixed(file, targets=["x2"], header=False, decimal=",")
        >>> table.frame().to_numpy().tolist()
        [[5.1, 'setosa'], [4.9, 'virginica']]
    """
    path = Path(path)
    if decimal not in (".", ","):
        raise ValueError(f"decimal must be '.' or ',', got {decimal!r}")
    if thousands is not None and (len(thousands) != 1 or thousands == decimal or thousands.isalnum()):
        raise ValueError(f"thousands must be one sign that is not the decimal sign, got {thousands!r}")
    gaps = MISSING | {text.strip().lower() for text in missing}
    with opened(path, text=True, encoding=encoding, decimal=decimal) as reader:
        if header:
            names = check_header(path, reader.header)
        else:
            names = tuple(f"x{index + 1}" for index in range(len(reader.header)))
        chosen = choose(path, names, targets, features, drop) if targets or features or drop else list(names)
        store = _Store(path, reader.unit, gaps)
        store.fill(_numbered(reader, header), names, chosen)
    reading = _Reading(path, reader.unit, decimal, thousands)
    lines, notes = np.array(store.lines), []
    if units := _units(store, reading):
        for codes in store.codes:
            del codes[0]
        lines = lines[1:]
        notes.append(f"{reader.unit} {store.lines[0]} has units and was left out: {listed(units)}")
    columns = {
        name: reading.column(name, list(cells), np.array(codes, dtype=np.int64), lines)
        for name, cells, codes in zip(chosen, store.cells, store.codes, strict=True)
    }
    return MixedTable(path.stem, columns, lines, reader.unit, tuple(notes))


def _numbered(reader: Reader, header: bool) -> Iterator[tuple[int, Sequence[Any]]]:
    if not header:
        yield 1, reader.header
    yield from reader.rows


@dataclass
class _Store:
    """Cells while they are read: each different one once, so that memory grows with what there is to know."""

    path: Path
    unit: str
    gaps: frozenset[str]
    cells: list[dict[Any, int]] = field(default_factory=list)
    codes: list[array[int]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def fill(self, rows: Iterable[tuple[int, Sequence[Any]]], names: Sequence[str], chosen: Sequence[str]) -> None:
        """Read all rows; empty ones are left out."""
        self.cells, self.codes = [{} for _ in chosen], [array("q") for _ in chosen]
        places = [names.index(name) for name in chosen]
        characters = different = 0
        for line, cells in rows:
            if is_blank(cells):
                continue
            if len(cells) > len(names) and not is_blank(cells[len(names) :]):
                raise DataError(
                    f"{self.path}, {self.unit} {line} has {len(cells)} cells, but the first names {len(names)} columns"
                )
            self.lines.append(line)
            for known, codes, place in zip(self.cells, self.codes, places, strict=True):
                cell = cells[place] if place < len(cells) else None
                if isinstance(cell, str):
                    cell = cell.strip()
                code = known.get(_key(cell))
                if code is None:
                    if self._is_gap(cell):
                        code = -1
                    else:
                        code = known.setdefault(_key(cell), len(known))
                        characters += len(cell) if isinstance(cell, str) else 8
                        different += 1
                codes.append(code)
            if len(self.lines) * len(chosen) > MAX_CELLS or different > MAX_DIFFERENT or characters > MAX_CHARACTERS:
                raise DataError(
                    f"{self.path} has more than {MAX_CELLS:,} cells, {MAX_DIFFERENT:,} that differ or "
                    f"{MAX_CHARACTERS:,} characters in them; use the Python interface for data this large"
                )

    def _is_gap(self, cell: Any) -> bool:
        if isinstance(cell, str):
            return cell.lower() in self.gaps
        return cell is None or (isinstance(cell, float) and math.isnan(cell))


class _Reading:
    """What cells of one file mean."""

    def __init__(self, path: Path, unit: str, decimal: str, thousands: str | None) -> None:
        self.path, self.unit, self.decimal, self.thousands = path, unit, decimal, thousands
        sign = re.escape(thousands or "")
        self._groups = re.compile(rf"[-+]?\d{{1,3}}({sign}\d{{3}})+({re.escape(decimal)}\d*)?")

    def number(self, cell: Any) -> float | None:
        """The number that a cell is, if it is one."""
        if isinstance(cell, bool | datetime.date | datetime.time):
            return None
        if isinstance(cell, str):
            if "_" in cell:
                return None
            if self.thousands and self.thousands in cell:
                if not self._groups.fullmatch(cell):
                    return None
                cell = cell.replace(self.thousands, "")
            if self.decimal == ",":
                if "." in cell:
                    return None  # a decimal comma and a point: what this is, the file must say by `thousands`
                cell = cell.replace(",", ".")
        try:
            return float(cell)
        except (TypeError, ValueError, OverflowError):
            return None

    def column(self, name: str, keys: list[Any], codes: np.ndarray, lines: np.ndarray) -> Column:
        """A column of these cells."""
        cells = [_cell(key) for key in keys]
        used = np.unique(codes[codes >= 0])
        present = [cells[code] for code in used]

        def made(kind: str, meaning: dict[int, Any], filler: Any) -> Column:
            return Column(name, cells, codes, kind, [meaning.get(code, filler) for code in range(len(cells))])

        numbers = [self.number(cell) for cell in present]
        if all(value is not None for value in numbers):
            self._refuse_infinite(name, present, numbers, used, codes, lines)
            return made("number", dict(zip(used.tolist(), numbers, strict=True)), math.nan)
        truth = [_TRUTH.get(str(cell).lower()) for cell in present]
        if all(value is not None for value in truth):
            return made("truth", dict(zip(used.tolist(), truth, strict=True)), math.nan)
        dates = [date_of(cell) for cell in present]
        if all(date is not None for date in dates):
            return made("date", dict(zip(used.tolist(), dates, strict=True)), None)
        if dated := self._slashed(name, present):
            return made("date", dict(zip(used.tolist(), dated, strict=True)), None)
        self._hint(name, present, numbers)
        self._refuse_strays(name, present, numbers, used, codes, lines)
        return made("text", {code: _written(cells[code]) for code in used.tolist()}, "")

    def _refuse_infinite(
        self, name: str, present: Sequence[Any], numbers: Sequence[Any], used: np.ndarray, codes: np.ndarray, lines: Any
    ) -> None:
        for cell, value, code in zip(present, numbers, used, strict=True):
            if math.isinf(value):
                line = lines[int(np.flatnonzero(codes == code)[0])]
                raise DataError(f"{self.path} has infinite values: {self.unit} {line}, column {name!r} holds {cell!r}")

    def _refuse_strays(
        self, name: str, present: Sequence[Any], numbers: Sequence[Any], used: np.ndarray, codes: np.ndarray, lines: Any
    ) -> None:
        """Refuse a column of numbers with a few texts among them: as text it would have thousands of levels."""
        strays = [index for index, value in enumerate(numbers) if value is None]
        if len(present) <= FEW or len(strays) > STRAYS * len(present):
            return
        rows = np.flatnonzero(np.isin(codes, used[strays]))
        texts = dict(zip(used.tolist(), present, strict=True))
        shown = [f"{self.unit} {lines[row]} {short(_written(texts[codes[row]]))}" for row in rows[:3]]
        more = ", ..." if len(rows) > 3 else ""
        example = short(_written(present[strays[0]]))
        raise DataError(
            f"{self.path}, column {name!r} holds numbers, but in {len(rows):,} cells: {', '.join(shown)}{more}; "
            f"--missing {example} makes a gap of it, --drop {name} leaves the column out"
        )

    def _slashed(self, name: str, present: Sequence[Any]) -> list[datetime.datetime]:
        """Dates such as 31/1/2024, if one of them tells whether days or months come first."""
        parts = [_SLASHED.fullmatch(cell) if isinstance(cell, str) else None for cell in present]
        if not present or not all(parts):
            return []
        triples = [tuple(int(number) for number in match.groups()) for match in parts if match]
        first, second = (max(triple[place] for triple in triples) for place in (0, 1))
        if first <= 12 and second <= 12:
            raise DataError(
                f"{self.path}, column {name!r} holds dates such as {present[0]!r}, of which nothing says whether the "
                f"day or the month comes first: write them as 2024-01-31, or --drop {name}"
            )
        day, month = (0, 1) if first > 12 else (1, 0)
        dates = [date_from(triple[2], triple[month], triple[day], "") for triple in triples]
        return [date for date in dates if date] if all(dates) else []

    def _hint(self, name: str, present: Sequence[Any], numbers: Sequence[Any]) -> None:
        """Refuse a column that would be numbers with other signs: as text it would say nothing."""
        others = [cell for cell, value in zip(present, numbers, strict=True) if value is None]
        for pattern, option, taken in ((_GROUPS, "--thousands ,", self.thousands), (_COMMAS, "--decimal ,", None)):
            if not taken and self.decimal == "." and all(isinstance(c, str) and pattern.fullmatch(c) for c in others):
                raise DataError(
                    f"{self.path}, column {name!r} holds numbers with commas, such as {others[0]!r}: say what they "
                    f"mean by {option}"
                )


def _units(store: _Store, reading: _Reading) -> list[str]:
    """The cells of a first row of units: text, in columns that are numbers below it."""
    if len(store.lines) < 3:
        return []
    found = []
    for cells, codes in zip(store.cells, store.codes, strict=True):
        keys = list(cells)
        first = codes[0]
        if first < 0:
            continue
        if reading.number(_cell(keys[first])) is not None or isinstance(_cell(keys[first]), bool | datetime.date):
            return []
        below = [reading.number(_cell(key)) for code, key in enumerate(keys) if code != first]
        if below and all(value is not None for value in below) and codes.count(first) == 1:
            found.append(str(_cell(keys[first])))
    return found


def _key(cell: Any) -> Any:
    """What tells cells apart: True is not 1, and what cannot be told apart is its text."""
    if isinstance(cell, bool):
        return ("truth", cell)
    try:
        hash(cell)
    except TypeError:
        return short(cell)
    return cell


def _cell(key: Any) -> Any:
    return key[1] if isinstance(key, tuple) else key


def _written(cell: Any) -> str:
    """A cell as text; whole numbers without a point, since Excel has no integers."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)
