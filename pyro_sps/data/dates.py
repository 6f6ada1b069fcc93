"""Dates as files write them."""

from __future__ import annotations

import datetime
import re
from typing import Any

_DATE = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})([T ].*)?|(\d{1,2})\.(\d{1,2})\.(\d{4})")


def date_of(cell: Any) -> datetime.datetime | None:
    """The date that a cell is, in UTC if it has a zone: 2024-01-31 with a time where there is one, or 31.1.2024."""
    if isinstance(cell, datetime.datetime):
        return _naive(cell)
    if isinstance(cell, datetime.date):
        return datetime.datetime(cell.year, cell.month, cell.day)
    match = _DATE.fullmatch(cell) if isinstance(cell, str) else None
    if match is None:
        return None
    year, _, month, day, time, day_first, month_second, year_last = match.groups()
    if year is None:
        return date_from(int(year_last), int(month_second), int(day_first), "")
    return date_from(int(year), int(month), int(day), time or "")


def date_from(year: int, month: int, day: int, time: str) -> datetime.datetime | None:
    """The date of these numbers, and a time as ISO 8601 writes it, if there is such a day."""
    try:
        return _naive(datetime.datetime.fromisoformat(f"{year:04}-{month:02}-{day:02}{time}"))
    except ValueError:
        return None


def _naive(date: datetime.datetime) -> datetime.datetime:
    """In UTC where it has a time zone."""
    return date if date.tzinfo is None else date.astimezone(datetime.UTC).replace(tzinfo=None)
