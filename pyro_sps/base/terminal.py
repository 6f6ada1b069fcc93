"""What is said to a reader while work goes on: a terminal that is gone, full or of another encoding stops nothing."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any


def emit(text: str, err: bool = False) -> None:
    """Print a line for a reader; where nobody can read it any more, drop it and all that follows.

    Args:
        text: The line.
        err: To standard error instead of standard output.

    Example:
        >>> from pyro_sps.base.terminal import emit
        >>> emit("done")
        done
    """
    name = "stderr" if err else "stdout"
    stream = getattr(sys, name)
    if stream is None:  # as under pythonw, or where a service closed it
        return
    try:
        stream.write(_writable(text + "\n", stream))
        stream.flush()
    except (OSError, ValueError):  # a closed pipe, a full disk; a closed file
        with contextlib.suppress(OSError, ValueError):
            # Python flushes it once more when it ends, which would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def note(text: str) -> None:
    """Print a line on standard error where that is a terminal, as it is for a progress bar; else nothing.

    Args:
        text: The line.

    Example:
        >>> from pyro_sps.base.terminal import note
        >>> note("this takes a while")
    """
    if sys.stderr is not None and _Careful(sys.stderr).isatty():
        emit(text, err=True)


def _writable(text: str, stream: Any) -> str:
    """Text that a stream can encode: what it has no characters for is escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


class _Careful(io.TextIOBase):
    """Standard error for progress bars: what cannot be written is dropped."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream: tqdm draws its bar of what it has."""
        return getattr(self.stream, "encoding", None) or "ascii"

    def fileno(self) -> int:
        """That of the stream, from which tqdm asks the width."""
        number: int = self.stream.fileno()
        return number

    def isatty(self) -> bool:
        """Whether a bar is shown at all."""
        try:
            return bool(self.stream.isatty())
        except (AttributeError, ValueError):
            return False

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(_writable(text, self.stream))
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.flush()


def progress_bar(total: int | None, label: str, progress: bool, **options: Any) -> Any:
    """A bar on standard error, silent where that is no terminal or `progress` is False.

    Args:
        total: Number of steps.
        label: What is before it.
        progress: Whether to show it.
        **options: More of tqdm's.

    Example:
        >>> from pyro_sps.base.terminal import progress_bar
        >>> with progress_bar(10, "fit", progress=False) as bar:
        ...     _ = bar.update(1)
    """
    from tqdm import tqdm

    hidden = None if progress and sys.stderr is not None else True
    return tqdm(total=total, desc=label, disable=hidden, file=_Careful(sys.stderr), mininterval=0.5, **options)
