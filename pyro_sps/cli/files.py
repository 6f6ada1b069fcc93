"""The folder that `fit` writes and `predict` reads."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

METRICS, MODEL = "metrics.json", "model.json"
FORMAT = 2
#: Largest networks of the command line; `predict` makes what a file says, so that a file could ask for any memory.
MAX_LAYERS, MAX_WEIGHTS = 1000, 10_000_000


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


def claim_file(option: str, path: Path | None, force: bool) -> None:
    """Refuse a file for results that exists or could not be made, before any work; None stands for none."""
    if path is not None and path.exists() and not force:
        raise click.UsageError(f"{path} exists; --force overwrites it")
    if path is not None and not path.parent.is_dir():
        raise click.UsageError(f"{option} {path}: there is no folder {path.parent}")


def _canonical(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)


def write_json(path: Path, content: Mapping[str, Any], checksum: bool = True) -> None:
    """Write a JSON file, with a checksum of its content that `read_model` verifies."""
    from ..base.files import write_atomically

    text = _canonical(content)
    if checksum:
        text = _canonical({"sha256": hashlib.sha256(text.encode()).hexdigest(), "model": content})
    write_atomically(path, (text + "\n").encode())


def read_model(path: Path) -> dict[str, Any]:
    """What `fit` wrote, checked.

    Raises:
        LoadError: If it is missing, damaged, of another version or does not belong to the fit beside it.
    """
    from ..base.files import LoadError, read_checked
    from ..network.build import ACTIVATIONS
    from ..posterior.save import checksum

    missing = f"{path.parent} holds no fit of pyro-sps: there is no {path.name}"
    model = read_checked(path, "model", "sha256", _canonical, missing)
    if not isinstance(model, dict) or model.get("format") != FORMAT:
        raise LoadError(f"{path} is not of format {FORMAT}, which this version of pyro_sps reads")
    kinds = {"features": str, "targets": str, "widths": int, "target_scale": float}
    for name, kind in kinds.items():
        found = model.get(name)
        if not isinstance(found, list) or not found or any(type(one) is not kind for one in found):
            raise LoadError(f"{path} is damaged: {name} must be a list of {kind.__name__}s")
    widths, features, targets = model["widths"], model["features"], model["targets"]
    activation = model.get("activation")
    if not isinstance(activation, str) or activation not in ACTIVATIONS or too_large(widths):
        raise LoadError(f"{path} is damaged: no network has these widths and activation")
    # The network may describe a target by several outputs, but never by fewer than one.
    if widths[0] != len(features) or widths[-1] % len(targets) or len(model["target_scale"]) != len(targets):
        raise LoadError(f"{path} is damaged: its network does not have these features and targets")
    if not all(0 < scale < math.inf for scale in model["target_scale"]):
        raise LoadError(f"{path} is damaged: a scale of its targets is not a positive number")
    if model.get("fit") != checksum(path.parent):
        raise LoadError(f"{path} belongs to another fit than the one beside it; run `pyro-sps fit` again")
    return model


def too_large(widths: Sequence[int]) -> bool:
    """Whether the command line refuses networks of these widths."""
    weights = sum(width * (other + 1) for width, other in itertools.pairwise(widths))
    return min(widths) < 1 or not 2 <= len(widths) <= MAX_LAYERS or weights > MAX_WEIGHTS


def require_file(data: str) -> None:
    """Refuse DATA that is nothing we know, before anything tries to read it."""
    from ..data.datasets import UCI

    if not Path(data).exists():
        raise click.UsageError(f"DATA is neither a file nor one of the data sets {', '.join(UCI)}: {data}")
