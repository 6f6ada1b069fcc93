"""What belongs to the whole process: one thread at a time may change it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

_LOCK = threading.RLock()


def process_lock() -> AbstractContextManager[Any]:
    """The lock of all that changes the state of the process and puts it back.

    That is Pyro's handler stack, parameter store and validation flag, Python's warning filters, and the module calls
    that torch.fx redirects while it traces. Two threads that change and restore one of these at once can leave it
    changed for good. The lock may be taken again by the thread that holds it. A process that is forked while another
    thread holds it has a new one, and none of the handlers and filters that the other thread had set.

    Example:
        >>> from pyro_sps.base.process import process_lock
        >>> with process_lock():
        ...     pass
    """
    return _LOCK


# Warning filters outside of every `silenced`, while there is one.
_FILTERS: list[Any] = []


def _after_fork() -> None:
    """In a child of another thread's making: what that thread held or changed for a while, nobody puts back."""
    global _LOCK
    free = _LOCK.acquire(blocking=False)
    if free:
        _LOCK.release()
        return
    _LOCK = threading.RLock()
    if _FILTERS:
        warnings.filters[:] = _FILTERS[0]  # type: ignore[index]
        _FILTERS.clear()
    runtime = sys.modules.get("pyro.poutine.runtime")
    if runtime is not None:
        runtime._PYRO_STACK.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def started_together() -> bool:
    """Whether `torchrun` has started this process with others, to do one thing together.

    Example:
        >>> from pyro_sps.base.process import started_together
        >>> started_together()
        False
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is the one of those that were started together that writes and speaks; else it is alone."""
    return not started_together() or int(os.environ.get("RANK", "0")) == 0


@contextmanager
def silenced(category: type[Warning] = Warning) -> Iterator[None]:
    """Ignore warnings of a category; meanwhile those of other threads are lost.

    Args:
        category: What to ignore.

    Example:
        >>> import warnings
        >>> from pyro_sps.base.process import silenced
        >>> with silenced(UserWarning):
        ...     warnings.warn("not shown")
    """
    with process_lock(), warnings.catch_warnings():
        _FILTERS.append(list(warnings.filters))
        warnings.simplefilter("ignore", category)
        try:
            yield
        finally:
            if _FILTERS:  # a child that was forked meanwhile has forgotten them
                _FILTERS.pop()


@contextmanager
def logged_less(name: str) -> Iterator[None]:
    """Let a library's logger tell no warnings meanwhile, where nobody has asked it to tell more than these.

    Args:
        name: Of the logger, whose children are meant too.

    Example:
        >>> import logging
        >>> from pyro_sps.base.process import logged_less
        >>> with logged_less("some.library"):
        ...     logging.getLogger("some.library.part").isEnabledFor(logging.WARNING)
        False
    """
    logger = logging.getLogger(name)
    level = logger.level
    if logger.getEffectiveLevel() == logging.WARNING:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# What was warned of, and where. Python keeps such a list too, but forgets it whenever filters change, as they do in
# every fit: a warning in a loop would be shown each time.
_SHOWN: set[tuple[str, type[Warning], str, int]] = set()


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of something at the place where the user's code called the package, once a place unless filters say more.

    Args:
        message: What to say.
        category: Kind of the warning.

    Example:
        >>> import warnings
        >>> from pyro_sps.base.process import warn_user
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warn_user("look out", RuntimeWarning)
        >>> str(caught[0].message), caught[0].category
        ('look out', <class 'RuntimeWarning'>)
    """
    # Python 3.12 has skip_file_prefixes for this.
    modules = (sys.modules.get(name) for name in ("pyro_sps", "pyro", "torch"))
    inner = tuple(os.path.dirname(str(module.__file__)) + os.sep for module in modules if module is not None)
    inner += (functools.__file__, contextlib.__file__)  # of properties that are computed once, of decorators
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inner):
        frame, level = frame.f_back, level + 1
    shown = (message, category, frame.f_code.co_filename, frame.f_lineno)
    if shown in _SHOWN and _action_for(message, category, frame) == "default":
        return
    warnings.warn(message, category, stacklevel=level)
    _SHOWN.add(shown)


def _action_for(message: str, category: type[Warning], frame: FrameType) -> str:
    """What the warning filters say of a warning from a place."""
    module = frame.f_globals.get("__name__") or "<string>"
    for action, text, kind, where, line in warnings.filters:
        if (
            _matches(text, message)
            and _matches(where, module)
            and issubclass(category, kind)
            and line in (0, frame.f_lineno)
        ):
            return action
    return "default"


def _matches(filtered: Any, text: str) -> bool:
    """Whether a filter is for a text; of Python's own filters some are plain text."""
    return filtered is None or (filtered == text if isinstance(filtered, str) else bool(filtered.match(text)))


@contextmanager
def interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C wait until it is asked for, so that it cannot hit half-way through a change of state.

    A second one raises `KeyboardInterrupt` at once. In other threads than the main one, to which Python brings signals,
    and where somebody handles them otherwise, nothing is changed.

    Yields:
        Whether there was one.

    Example:
        >>> from pyro_sps.base.process import interrupts_deferred
        >>> with interrupts_deferred() as interrupted:
        ...     print(interrupted())
        False
    """
    asked = False

    def note(*_: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    main = threading.current_thread() is threading.main_thread()
    ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
