"""Rows of cells from CSV files."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .rows import DataError, Reader

#: Longest line of a CSV file, in characters; also bounds what a file without line ends can take.
MAX_LINE = 1 << 21

_DELIMITERS = ",;\t|"

# Cells between white space; quotes keep it in a cell.
_WORDS = re.compile(r'"([^"]*)"|(\S+)')


@contextlib.contextmanager
def read_csv(path: Path, encoding: str | None = None, decimal: str = ".") -> Iterator[Reader]:
    """Open a file of text whose cells are separated by commas, semicolons, tabs, `|` or white space.

    Args:
        path: The file.
        encoding: Its encoding; default: UTF-8, or UTF-16 where it says so.
        decimal: The decimal sign; a comma is no separator then.
    """
    if encoding is None:
        with open(path, "rb") as raw:
            encoding = "utf-16" if raw.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with open(path, encoding=encoding, newline="") as file:
        sample: list[str] = []
        while len(sample) < 20 and sum(map(len, sample)) < MAX_LINE and (line := file.readline(MAX_LINE)):
            sample.append(line)
        file.seek(0)
        lines = _lines(path, file)
        delimiter = _delimiter(sample, _DELIMITERS.replace(decimal, ""))
        if delimiter is None:
            cells_of = ([quoted or word for quoted, word in _WORDS.findall(line)] for line in lines)
            yield Reader(next(cells_of, []), enumerate(cells_of, start=2), "line")
            return
        rows = csv.reader(lines, delimiter=delimiter)
        header = next(rows, [])
        yield Reader(header, ((rows.line_num, cells) for cells in rows), "line")


def _lines(path: Path, file: Any) -> Iterator[str]:
    """Lines of a text file, none of them longer than memory allows."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise DataError(f"{path} has a line of more than {MAX_LINE:,} characters")
        yield line


def _delimiter(sample: list[str], delimiters: str) -> str | None:
    """The delimiter that cuts the first lines alike, into the most cells; None if that is white space."""

    def score(delimiter: str) -> tuple[float, int]:
        try:
            widths = [len(cells) for cells in csv.reader(sample, delimiter=delimiter) if cells]
        except csv.Error:
            return (0.0, 0)
        if not widths or widths[0] == 1:
            return (0.0, 0)
        return (widths.count(widths[0]) / len(widths), widths[0])

    best = max(delimiters, key=score)
    if score(best) == (0.0, 0):
        words = {len(_WORDS.findall(line)) for line in sample if line.strip()}
        if len(words) == 1 and words != {1}:
            return None
    return best
