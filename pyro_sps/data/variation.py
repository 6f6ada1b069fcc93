"""Whether there is something to learn from a column of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .headers import listed
from .rows import DataError, short


def check_variation(path: str | Path, columns: Sequence[str], values: np.ndarray) -> None:
    """Refuse columns that are constant, or become so (or infinite) in single precision."""
    spread = values.max(0) > values.min(0)
    if not spread.all():
        constant = [
            f"{short(name)} (always {value:g})"
            for name, value, varies in zip(columns, values[0], spread, strict=True)
            if not varies
        ]
        raise DataError(
            f"{path} has constant columns, from which nothing can be learned: {listed(constant)}; drop them"
        )
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
        error = np.abs(values - single).max(0)
        lost = ~np.isfinite(single).all(0) | ~(error <= 0.01 * values.std(0))
    if lost.any():
        ranges = [
            f"{short(name)} ({column.min():g} to {column.max():g})"
            for name, column, bad in zip(columns, values.T, lost, strict=True)
            if bad
        ]
        raise DataError(
            f"{path} has columns that single precision cannot resolve: {listed(ranges)}; subtract an offset or rescale"
        )
