"""Files that are downloaded when they are asked for, and known by their checksums."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..base.files import write_atomically
from .rows import DataError


@dataclass(frozen=True)
class Remote:
    """A file as its source distributes it.

    Attributes:
        file: Its name.
        sha256: Its checksum.
        url: Where it is downloaded, by itself or inside a zip archive.
        title: The data set and its reference.
        num_targets: How many of the last columns are targets.
        names: Names of the columns of a file without a header line, separated by white space.
    """

    file: str
    sha256: str
    url: str
    title: str
    num_targets: int = 1
    names: tuple[str, ...] = ()


def find(source: Remote) -> Path:
    """The file, verified: in the folder that `PYRO_SPS_DATA` names, in the cache, or downloaded into it.

    Raises:
        DataError: If it is found nowhere, or is not the original.
    """
    folder = os.environ.get("PYRO_SPS_DATA")
    if folder and (path := Path(folder, source.file)).is_file():
        _verify(path.read_bytes(), source, str(path))
        return path
    path = cache() / source.file
    if not path.is_file():
        return _download(source, path)
    _verify(path.read_bytes(), source, str(path))
    return path


def cache() -> Path:
    """The folder of downloads."""
    import pooch

    return Path(pooch.os_cache("pyro_sps"))


def _verify(content: bytes, source: Remote, place: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise DataError(f"{place} is not the original {source.file}: its SHA-256 is {found}, not {source.sha256}")


def _download(source: Remote, path: Path) -> Path:
    import pooch

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            # The checksum is that of the file, not of the archive around it: `_verify` looks at it.
            fetched = Path(pooch.retrieve(source.url, known_hash=None, fname="download", path=scratch))
            content = _unpack(fetched, source)
        _verify(content, source, source.url)
        write_atomically(path, content)
    except OSError as error:  # of the disk or, being its subclass, of the network
        folder = os.environ.get("PYRO_SPS_DATA")
        places = f"{folder} (PYRO_SPS_DATA)" if folder else "a folder that the environment variable PYRO_SPS_DATA names"
        raise DataError(
            f"{source.file} is neither in PYRO_SPS_DATA nor in the cache, and could not be downloaded "
            f"({type(error).__name__}: {str(error)[:200]}). Get it from {source.url} and put it into {places}, "
            f"or into {path.parent}. Its SHA-256 is {source.sha256}"
        ) from error
    return path


def _unpack(fetched: Path, source: Remote) -> bytes:
    """The file's bytes, out of a zip archive if it came in one."""
    if not source.url.endswith(".zip"):
        return fetched.read_bytes()
    try:
        with zipfile.ZipFile(fetched) as archive:
            for member in archive.infolist():
                if Path(member.filename).name == source.file and member.file_size < 1 << 26:
                    return archive.read(member)
    except zipfile.BadZipFile as error:
        raise DataError(f"{source.url} is a damaged archive: {error}") from error
    raise DataError(f"{source.url} holds no {source.file}")
