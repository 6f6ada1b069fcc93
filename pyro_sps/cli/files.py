"""The folder that `fit` writes and `predict` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

METRICS, MODEL = "metrics.json", "model.json"
FORMAT = 1
_MAX_WIDTH = 1 << 24


def claim(out: Path, force: bool) -> None:
    """Make the folder for results, before any work; refuse one that has something in it."""
    if out.exists() and not out.is_dir():
        raise click.UsageError(f"--out {out} is a file")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not force:
        raise click.UsageError(f"--out {out} is not empty; --force overwrites what is there")
    probe = out / ".write-test"  # a folder that cannot be written must not be noticed after an hour of work
    probe.touch()
    probe.unlink()


def _canonical(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)


def write_json(path: Path, content: Mapping[str, Any], checksum: bool = True) -> None:
    """Write a JSON file, with a checksum of its content that `read_model` verifies."""
    from ..io import write_atomically

    text = _canonical(content)
    if checksum:
        text = _canonical({"sha256": hashlib.sha256(text.encode()).hexdigest(), "model": content})
    write_atomically(path, (text + "\n").encode())


def read_model(path: Path) -> dict[str, Any]:
    """What `fit` wrote, checked.

    Raises:
        LoadError: If it is missing, damaged or of another version.
    """
    from ..io import LoadError, read_checked

    missing = f"{path.parent} holds no fit of pyro-sps: there is no {path.name}"
    model = read_checked(path, "model", "sha256", _canonical, missing)
    if not isinstance(model, dict) or model.get("format") != FORMAT:
        raise LoadError(f"{path} is not of format {FORMAT}, which this version of pyro_sps reads")
    kinds = {"features": str, "targets": str, "widths": int, "target_scale": float}
    for name, kind in kinds.items():
        found = model.get(name)
        if not isinstance(found, list) or not found or any(type(one) is not kind for one in found):
            raise LoadError(f"{path} is damaged: {name} must be a list of {kind.__name__}s")
    if not isinstance(model.get("activation"), str) or not all(0 < width <= _MAX_WIDTH for width in model["widths"]):
        raise LoadError(f"{path} is damaged: no network has these widths and activation")
    return model


def require_file(data: str) -> None:
    """Refuse DATA that is nothing we know, before anything tries to read it."""
    from ..datasets import UCI

    if not Path(data).exists():
        raise click.UsageError(f"DATA is neither a file nor one of the data sets {', '.join(UCI)}: {data}")
