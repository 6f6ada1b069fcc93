"""Checks of single arguments, before any work: each error names the argument, what it was and what was expected."""

from __future__ import annotations

import math
import os
from numbers import Integral
from typing import Any


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float of Python's, but no Boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_integer(value: Any, least: int = 1) -> bool:
    """Whether a value is an integer of at least `least`, Python's or NumPy's, but no Boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def require_positive(name: str, value: Any) -> None:
    """Raise `ValueError` unless an argument is a positive finite number."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")


def require_count(name: str, value: Any, least: int = 1) -> None:
    """Raise `ValueError` unless an argument is an integer of at least `least`."""
    if not is_integer(value, least):
        what = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name} must be {what}, got {value!r}")


def require_flag(name: str, value: Any) -> None:
    """Raise `ValueError` unless an argument is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def require_seed(value: Any) -> None:
    """Raise `ValueError` unless a seed is a non-negative integer."""
    if not is_integer(value, 0):
        raise ValueError(f"seed must be a non-negative integer, got {value!r}")


def require_device(device: Any) -> None:
    """Raise `ValueError` unless torch has a device here; None stands for the one where things are."""
    import torch  # not above: a command line that only checks its options starts without it

    try:
        if device is not None:
            torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, OverflowError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"device={device!r} cannot be used here: {why}") from error


def require_checkpoint(directory: Any, errors: Any) -> None:
    """Raise `ValueError` unless `checkpoint` is a path or None, and `checkpoint_errors` a known word."""
    if directory is not None and not isinstance(directory, str | os.PathLike):
        raise ValueError(f"checkpoint must be a directory, got {directory!r}")
    if errors not in ("warn", "stop"):
        raise ValueError(f"checkpoint_errors must be 'warn' or 'stop', got {errors!r}")


def require_missing(value: Any) -> None:
    """Raise `ValueError` unless `missing` is a known word."""
    if value not in ("error", "ignore"):
        raise ValueError(f"missing must be 'error' or 'ignore' (gaps in y count nothing), got {value!r}")


def require_learned(learn: bool, per_layer: bool) -> None:
    """Raise `ValueError` if scales of layers are asked for that are not learned."""
    if per_layer and not learn:
        raise ValueError("per_layer=True needs learn=True: what is given is given for all layers")
