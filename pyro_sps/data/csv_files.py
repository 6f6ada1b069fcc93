"""Rows of cells from CSV files."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .rows import DataError, Reader

#: Longest line of a CSV file, in characters; also bounds what a file without line ends can take.
MAX_LINE = 1 << 21

_DELIMITERS = ",;\t"


@contextlib.contextmanager
def read_csv(path: Path) -> Iterator[Reader]:
    """Open a CSV file."""
    with open(path, "rb") as raw:
        encoding = "utf-16" if raw.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with open(path, encoding=encoding, newline="") as file:
        sample: list[str] = []
        while len(sample) < 20 and sum(map(len, sample)) < MAX_LINE and (line := file.readline(MAX_LINE)):
            sample.append(line)
        file.seek(0)
        rows = csv.reader(_lines(path, file), delimiter=_delimiter(sample))
        header = next(rows, [])
        yield Reader(header, ((rows.line_num, cells) for cells in rows), "line")


def _lines(path: Path, file: Any) -> Iterator[str]:
    """Lines of a text file, none of them longer than memory allows."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise DataError(f"{path} has a line of more than {MAX_LINE:,} characters")
        yield line


def _delimiter(sample: list[str]) -> str:
    """The delimiter that cuts the first lines alike, into the most cells."""

    def score(delimiter: str) -> tuple[float, int]:
        try:
            widths = [len(cells) for cells in csv.reader(sample, delimiter=delimiter) if cells]
        except csv.Error:
            return (0.0, 0)
        if not widths or widths[0] == 1:
            return (0.0, 0)
        return (widths.count(widths[0]) / len(widths), widths[0])

    return max(_DELIMITERS, key=score)
