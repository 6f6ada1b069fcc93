"""Files that are written whole or not at all, and read without trust. Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

# A header holds names, shapes and settings; a larger one is not ours, and would take memory once it is parsed.
MAX_HEADER = 4 << 20


class LoadError(ValueError):
    """A saved fit or a checkpoint is missing, damaged, or belongs to another network or other data.

    Example:
        >>> import pyro_sps as sps, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     try:
        ...         sps.load(directory, sps.mlp([1, 5, 5, 1]))
        ...     except sps.LoadError as error:
        ...         print("fit.safetensors is missing" in str(error))
        True
    """


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment its old or its new content is there, whole.

    What killed processes left of their writes to this file is cleaned up.

    Args:
        path: The file.
        content: Its new content.

    Raises:
        OSError: If it cannot be written; the old content stays and nothing is left beside it.
    """
    _clear(path)
    file, temporary = _temporary(path)
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # elsewhere open files cannot be renamed, nor deleted
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> tuple[BinaryIO, Path]:
    """A file beside a place, of this call alone and not of the process, locked for as long as it is open."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115
        if fcntl is None:
            return file, temporary
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():  # else `_clear` took it for one that was left
            return file, temporary
        file.close()


def _clear(path: Path) -> None:
    """Delete temporary files of a place whose writers have died: the living hold a lock on theirs."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if fcntl is None:
                left.unlink()
                continue
            with open(left, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


def read_checked(path: Path, content: str, checksum: str, canonical: Callable[[Any], str], missing: str) -> Any:
    """Content of a JSON file that holds it beside its checksum.

    Args:
        path: The file.
        content: Key of the content.
        checksum: Key of the SHA-256 of its canonical text.
        canonical: The text of some content that the checksum was taken of.
        missing: What to say if there is no such file.

    Raises:
        LoadError: If the file is missing, too large or damaged.
    """
    text = read_bytes(path, MAX_HEADER, missing)
    try:
        document = json.loads(text.decode(), object_pairs_hook=_once)
        value = document[content]
        intact = hashlib.sha256(canonical(value).encode()).hexdigest() == document[checksum]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LoadError(f"{path} is damaged: {type(error).__name__} {str(error)[:200]}") from error
    if not intact:
        raise LoadError(f"{path} is damaged: its checksum does not match")
    return value


def read_bytes(path: Path, limit: int, missing: str, most: int = -1) -> bytes:
    """The content of a file that is there, is a file (a pipe would be waited for) and is not too large.

    Args:
        path: The file.
        limit: Most bytes that are read.
        missing: What to say if there is no such file.
        most: Read no more than this of it.

    Raises:
        LoadError: If it is none of that, or cannot be read.
    """
    try:
        if not path.is_file():
            raise LoadError(f"{path} is not a file" if path.exists() else missing)
        if (size := path.stat().st_size) > limit:
            raise LoadError(f"{path} is too large: {size:,} bytes, more than the {limit:,} that are read")
        with open(path, "rb") as file:
            return file.read(most)
    except FileNotFoundError as error:
        raise LoadError(missing) from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key comes twice: which one counts would be a matter of the reader."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def canonical(header: Any) -> str:
    """Some content as JSON, always in the same way."""
    return json.dumps(header, indent=1, sort_keys=True)


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors as a safetensors file; see `parse_tensors`."""
    from safetensors.torch import save as serialise

    whole = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    return serialise(whole, dict(metadata) if metadata else None)


def parse_tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whose checksum was verified before: a damaged file is never looked into.

    Args:
        path: Where it is from, for errors.
        content: The file.

    Raises:
        LoadError: If it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    if int.from_bytes(content[:8], "little") > MAX_HEADER:
        raise LoadError(f"{path} is damaged: its header claims more than {MAX_HEADER:,} bytes")
    try:
        return deserialise(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:  # KeyError: an unknown dtype
        raise LoadError(f"{path} is damaged: {type(error).__name__}: {str(error)[:200]}") from error


# As it stands in the header of a safetensors file; in the JSON inside of it quotes come with a backslash.
_SEAL = re.compile(rb'(?<!\\)"sha256":"([0-9a-f]{64})"')

_UNSEALED = "0" * 64


def seal(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Tensors and a JSON header as one safetensors file with a SHA-256 of the whole (its own digits read as zeros).

    Args:
        tensors: Tensors by name.
        header: What goes into the file's metadata.

    Raises:
        ValueError: If the header is larger than `unseal` would read.
    """
    content = tensor_bytes(tensors, {"header": canonical(header), "sha256": _UNSEALED})
    if (size := int.from_bytes(content[:8], "little")) > MAX_HEADER:
        raise ValueError(f"the header is too large to be written: {size:,} bytes, more than {MAX_HEADER:,}")
    digits = _digits(content)
    assert digits is not None
    return content[: digits.start] + hashlib.sha256(content).hexdigest().encode() + content[digits.stop :]


def unseal(path: Path, limit: int, missing: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file that `seal` made.

    Args:
        path: The file.
        limit: Most bytes that are read.
        missing: What to say if there is no such file.

    Raises:
        LoadError: If the file is missing, too large or damaged.
    """
    content = read_bytes(path, limit, missing)
    digits = _digits(content)
    if digits is None:
        raise LoadError(f"{path} is damaged: it has no checksum")
    whole = hashlib.sha256(content[: digits.start])
    whole.update(_UNSEALED.encode())
    whole.update(memoryview(content)[digits.stop :])
    if whole.hexdigest().encode() != content[digits]:
        raise LoadError(f"{path} is damaged: its checksum does not match")
    tensors = parse_tensors(path, content)
    return _header_of(path, content[8 : 8 + int.from_bytes(content[:8], "little")]), tensors


def peek(path: Path, missing: str) -> dict[str, Any] | None:
    """The header of a file that `seal` made, before its checksum is verified; None if it is none.

    Args:
        path: The file.
        missing: What to say if there is no such file.

    Raises:
        LoadError: If it is missing or cannot be read.
    """
    read_bytes(path, 1 << 62, missing, most=0)
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            start += file.read(min(MAX_HEADER, int.from_bytes(start, "little")))
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error}") from error
    try:
        return _header_of(path, start[8:]) if _digits(start) is not None else None
    except LoadError:
        return None


def _header_of(path: Path, text: bytes) -> dict[str, Any]:
    try:
        metadata = json.loads(text, object_pairs_hook=_once)
        header = json.loads(metadata["__metadata__"]["header"], object_pairs_hook=_once)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LoadError(f"{path} is damaged: {type(error).__name__} {str(error)[:200]}") from error
    if not isinstance(header, dict):
        raise LoadError(f"{path} is damaged: its header is no object")
    return header


def _digits(content: bytes) -> slice | None:
    """Where the checksum of a sealed file is."""
    found = _SEAL.search(content, 8, 8 + min(MAX_HEADER, int.from_bytes(content[:8], "little")))
    return None if found is None else slice(*found.span(1))


class Numbers:
    """The tensors of a file, each of which is taken out once and checked.

    Args:
        tensors: Tensors by name.
        what: What the file is, for errors.
    """

    def __init__(self, tensors: Mapping[str, Tensor], what: str) -> None:
        self.left, self.what = dict(tensors), what

    def take(self, name: str, dtype: torch.dtype, *shapes: Sequence[int], finite: bool = True) -> Tensor:
        """A finite tensor of one of these shapes; a vector of any numbers where none is given.

        Args:
            name: Name of the tensor.
            dtype: Its dtype.
            *shapes: Shapes that it may have.
            finite: Whether all values must be finite.

        Raises:
            LoadError: If there is none.
        """
        if name not in self.left:
            raise LoadError(f"{self.what} is damaged: the tensor {name!r} is missing")
        value = self.left.pop(name)
        fits = tuple(value.shape) in {tuple(shape) for shape in shapes} if shapes else value.dim() == 1
        if value.dtype != dtype or not fits:
            raise LoadError(f"{self.what} is damaged: {name!r} has dtype {value.dtype} and shape {value.shape}")
        # Of a Boolean any byte but 0 and 1 is undefined.
        valid = value.view(torch.uint8) <= 1 if dtype == torch.bool else value.isfinite()
        if shapes and (finite or dtype == torch.bool) and not valid.all():
            raise LoadError(f"{self.what} is damaged: {name!r} holds values that are not possible")
        return value

    def names(self, prefix: str) -> Iterator[str]:
        """Names of what is left under a prefix, without it."""
        return (name.removeprefix(prefix) for name in sorted(self.left) if name.startswith(prefix))


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a fit was asked for as JSON has it: objects as the beginning of their text."""
    return {
        name: value if isinstance(value, int | float | str | bool | None) else repr(value)[:200]
        for name, value in settings.items()
    }
