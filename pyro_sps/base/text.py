"""Text for a reader."""

from __future__ import annotations

from collections.abc import Sequence


def columns_of(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, the first one flush left.

    Args:
        rows: Cells of each row; all rows have as many.

    Example:
        >>> from pyro_sps.base.text import columns_of
        >>> print(columns_of([("name", "size"), ("heavy", "28")]))
        name   size
        heavy    28
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
