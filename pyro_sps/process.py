"""What belongs to the whole process: one thread at a time may change it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

_LOCK = threading.RLock()


def process_lock() -> AbstractContextManager[Any]:
    """The lock of all that changes the state of the process and puts it back.

    That is Pyro's handler stack, parameter store and validation flag, Python's warning filters, and the module calls
    that torch.fx redirects while it traces. Two threads that change and restore one of these at once can leave it
    changed for good. The lock may be taken again by the thread that holds it.

    Example:
        >>> from pyro_sps.process import process_lock
        >>> with process_lock():
        ...     pass
    """
    return _LOCK


@contextmanager
def silenced(category: type[Warning] = Warning) -> Iterator[None]:
    """Ignore warnings of a category; meanwhile those of other threads are lost.

    Args:
        category: What to ignore.

    Example:
        >>> import warnings
        >>> from pyro_sps.process import silenced
        >>> with silenced(UserWarning):
        ...     warnings.warn("not shown")
    """
    with process_lock(), warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield
