"""Opening a file with the reader that its first bytes ask for."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .csv_files import read_csv
from .excel import read_xls, read_xlsx
from .parquet import read_parquet
from .rows import DataError, Reader


@contextlib.contextmanager
def opened(path: Path, text: bool = False, encoding: str | None = None, decimal: str = ".") -> Iterator[Reader]:
    """Open a file with the reader that its first bytes ask for; whatever goes wrong is a `DataError`.

    Args:
        path: The file.
        text: Whether text and dates are wanted too, where a reader could leave them out.
        encoding: That of a text file; default: UTF-8 or UTF-16.
        decimal: Its decimal sign.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
        with open(path, "rb") as file:
            start = file.read(8)
        reads = _reader_of(start)
        options: dict[str, Any] = {}
        if reads is read_csv:
            options = {"encoding": encoding, "decimal": decimal}
        elif encoding is not None:
            raise DataError(f"{path} is no text file: encoding ({encoding}) is of no use; leave it out")
        elif reads is read_parquet:
            options = {"text": text}
        with reads(path, **options) as reader:
            yield reader
    except (DataError, KeyboardInterrupt, TypeError):
        raise
    except UnicodeError as error:
        what = "UTF-8" if encoding is None else encoding
        raise DataError(
            f"{path} is neither text in {what} nor an Excel or Parquet file: {error}; if it is text, say in which "
            "encoding, for instance --encoding latin-1"
        ) from error
    except LookupError as error:
        raise DataError(f"{path} cannot be read: there is no encoding {encoding!r}") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _reader_of(start: bytes) -> Callable[..., AbstractContextManager[Reader]]:
    if start.startswith(b"PK"):
        return read_xlsx
    if start.startswith(b"\xd0\xcf\x11\xe0"):
        return read_xls
    if start.startswith(b"PAR1"):
        return read_parquet
    return read_csv
