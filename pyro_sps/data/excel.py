"""Rows of cells from Excel workbooks."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..base.process import silenced
from .rows import MAX_COLUMNS, DataError, Reader, foreign, guarded, short

#: Largest unpacked size of an Excel workbook; a file of a few kilobytes can claim terabytes.
MAX_UNPACKED = 1 << 30

#: Largest unpacked size of its parts that are held in memory as a whole: all but the sheets.
MAX_PART = 1 << 27

#: Most XML elements (with attributes and, by 64 characters, text) of a part of a workbook that a parser holds at once:
#: all but the contents of rows that are done. Each takes it about 100 bytes.
MAX_ELEMENTS = 1 << 21

#: Longest XML tag, in bytes.
MAX_TAG = 1 << 20


@contextlib.contextmanager
def read_xlsx(path: Path) -> Iterator[Reader]:
    """Open the first sheet of an Excel workbook."""
    import openpyxl

    what = "an Excel workbook"
    with open(path, "rb") as file:  # openpyxl refuses paths with other endings
        with foreign(path, what):
            with zipfile.ZipFile(file) as archive:
                _check_unpacked(path, archive)
            with silenced():  # about fonts, validation and other things that are no numbers
                book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # some programs write wrong ones
            header = list(next(sheet.iter_rows(max_row=1, max_col=MAX_COLUMNS + 1, values_only=True), ()))
            while header and header[-1] is None:
                header.pop()
            # The width is given, so that a single cell far out cannot make every row that wide.
            rows = sheet.iter_rows(min_row=2, max_col=max(1, len(header)), values_only=True)
        yield Reader(header, guarded(path, what, enumerate(rows, start=2)))


def _check_unpacked(path: Path, archive: zipfile.ZipFile) -> None:
    whole = sum(member.file_size for member in archive.infolist())
    parts = sum(member.file_size for member in archive.infolist() if "worksheets/" not in member.filename)
    for size, limit in ((whole, MAX_UNPACKED), (parts, MAX_PART)):
        if size > limit:
            raise DataError(f"{path} unpacks to {size:,} bytes, more than the {limit:,} that are read")
    for member in archive.infolist():
        if member.filename.endswith((".xml", ".rels")):
            with archive.open(member) as part:
                _check_part(f"{path}, {short(member.filename)}", part)


_ROW = "http://schemas.openxmlformats.org/spreadsheetml/2006/main row"


def _check_part(part: str, stream: Any) -> None:
    """Refuse XML that a parser would take much memory for: a megabyte can unpack to billions of elements."""
    from xml.parsers import expat

    held, before_row, fed = 0, 0, 0
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True

    def hold(count: int) -> None:
        nonlocal held
        held += count
        if held > MAX_ELEMENTS:
            raise DataError(f"{part} has more than {MAX_ELEMENTS:,} elements; save the table as CSV")

    def start(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal before_row
        if tag == _ROW:
            before_row = held
        hold(1 + len(attributes))

    def end(tag: str) -> None:
        nonlocal held
        if tag == _ROW:  # of which openpyxl keeps the empty element
            held = before_row + 1

    def refuse(*_: Any) -> None:
        raise DataError(f"{part} has a document type, which no workbook has")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = lambda text: hold(len(text) // 64)
    parser.StartDoctypeDeclHandler = refuse
    while chunk := stream.read(1 << 16):
        fed += len(chunk)
        parser.Parse(chunk)
        if fed - parser.CurrentByteIndex > MAX_TAG + (1 << 16):
            raise DataError(f"{part} has a tag of more than {MAX_TAG:,} bytes")
    parser.Parse(b"", True)


@contextlib.contextmanager
def read_xls(path: Path) -> Iterator[Reader]:
    """Open the first sheet of an Excel workbook of before 2007."""
    import os

    import xlrd

    with foreign(path, "an old Excel workbook"):
        # It writes its complaints to a log file, by default standard output.
        with open(os.devnull, "w") as log:
            book = xlrd.open_workbook(path, logfile=log, on_demand=True)
        sheet = book.sheet_by_index(0)
        header = sheet.row_values(0) if sheet.nrows else []

    def cell(row: int, column: int) -> Any:
        kind = sheet.cell_type(row, column)
        value = sheet.cell_value(row, column)
        return None if kind in (0, 6) else f"error {value}" if kind == 5 else "a date" if kind == 3 else value

    width = len(header)  # what is written to the right of the table is no part of it, as in newer workbooks
    rows = ((row + 1, [cell(row, c) for c in range(min(width, sheet.row_len(row)))]) for row in range(1, sheet.nrows))
    yield Reader(header, guarded(path, "an old Excel workbook", rows))
