"""Silence for what is said twice or to nobody."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def silenced(category: type[Warning] = Warning) -> Iterator[None]:
    """Ignore warnings of a category, for one thread at a time.

    Python's warning filters belong to the whole process: two threads that change and restore them at once can leave
    them changed for good. So everything in this package that silences warnings does it here. (Meanwhile warnings
    of the same category in other threads are lost.)

    Args:
        category: What to ignore.

    Example:
        >>> import warnings
        >>> from pyro_sps.quiet import silenced
        >>> with silenced(UserWarning):
        ...     warnings.warn("not shown")
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield
