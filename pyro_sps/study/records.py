"""Results of experiments as JSON lines: written as they come, so that a study that was cut off goes on."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one result to a file of JSON lines, which is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _cut_to_whole_lines(file)
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def _cut_to_whole_lines(file: BinaryIO) -> None:
    """Remove a last line that a killed process left unfinished, so that the next does not become part of it."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write results as a CSV file with a column for each key of any, numbers with six digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def read(path: Path) -> list[dict[str, Any]]:
    """All results of a file, without a last line that was cut off; none if there is no file."""

    def rows() -> Iterator[dict[str, Any]]:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                if number < len(lines) - 1:
                    raise ValueError(f"{path}, line {number + 1}, is not JSON: {line[:60]!r}") from None

    return list(rows())


def markdown(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Results as a Markdown table.

    Args:
        rows: The results.
        columns: For each column, by its heading, a format string of a row, such as `"{elbo:.1f}"`.

    Example:
        >>> from pyro_sps.study.records import markdown
        >>> print(markdown([{"name": "heavy", "elbo": -1.234}], {"scheme": "{name}", "ELBO": "{elbo:.1f}"}))
        | scheme | ELBO |
        | --- | ---: |
        | heavy | -1.2 |
    """
    lines = [list(columns), ["---" if index == 0 else "---:" for index in range(len(columns))]]
    lines += [[form.format(**row) for form in columns.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
