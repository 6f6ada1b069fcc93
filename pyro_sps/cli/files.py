"""The folder that `fit` writes and `predict` reads."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np

    from ..posterior.fit import Fit, Fits

#: `OLD_MODEL` is of version 0.1; now what it held is in the file of the fit, so that one rename replaces both.
METRICS, OLD_MODEL = "metrics.json", "model.json"
FORMAT = 2
#: What the options are of how a file was read.
READING = {"header": bool, "decimal": str, "thousands": str, "encoding": str, "missing": list}
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file for a reader."""
    from ..base.files import write_atomically

    write_atomically(path, (_canonical(content) + "\n").encode(errors="backslashreplace"))


def _canonical(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)


def load_fit(directory: Path) -> tuple[dict[str, Any], Fit | Fits]:
    """What `pyro-sps fit` wrote: what it said of the network, and the fit.

    Raises:
        LoadError: If there is none, or it is damaged or of another version.
    """
    from ..base.files import LoadError
    from ..posterior.load import read
    from ..posterior.save import FILE, OLD_HEADER

    model: dict[str, Any] = {}

    def network(extra: Mapping[str, Any]) -> Any:
        nonlocal model
        if extra == {} and (directory / OLD_HEADER).exists():  # of version 0.1
            model = _read_old_model(directory)
        else:
            model = dict(extra)
            _check_model(directory / FILE, model)
        return network_of(model)

    result, _ = read(directory, network)
    first = result[0] if isinstance(result, tuple) else result
    if (model.get("classes") is None) != (first.bnn.likelihood.event_dim == 1):
        raise LoadError(f"{directory / FILE} is damaged: its likelihood does not fit its classes")
    return model, result


def network_of(model: Mapping[str, Any]) -> Any:
    """The network that a fit says it is of; its weights take no memory."""
    import pyro_sps as sps

    return sps.mlp(list(model["widths"]), model["activation"], device="meta", skip=model.get("skip") is True)


def _read_old_model(directory: Path) -> dict[str, Any]:
    """What version 0.1 wrote beside a fit, checked to belong to it."""
    from ..base.files import LoadError, read_checked
    from ..posterior.load import old_checksum

    path = directory / OLD_MODEL
    missing = f"{directory} holds no fit of pyro-sps: there is no {OLD_MODEL}"
    model = read_checked(path, "model", "sha256", _canonical, missing)
    _check_model(path, model)
    if model.get("fit") != old_checksum(directory):
        raise LoadError(f"{path} belongs to another fit than the one beside it; run `pyro-sps fit` again")
    found: dict[str, Any] = model
    return found


def _check_model(path: Path, model: Any) -> None:
    """Refuse what does not describe a network, or one that would take much memory."""
    from ..base.files import LoadError
    from ..network.build import ACTIVATIONS

    if model == {}:
        raise LoadError(f"{path} holds a fit that pyro-sps fit did not write: load it in Python, by pyro_sps.load")
    if not isinstance(model, Mapping) or model.get("format") != FORMAT:
        raise LoadError(f"{path} is not of format {FORMAT}, which this version of pyro_sps reads")
    kinds = {"features": str, "targets": str, "widths": int, "target_scale": float}
    for name, kind in kinds.items():
        found = model.get(name)
        if not isinstance(found, list) or not found or any(type(one) is not kind for one in found):
            raise LoadError(f"{path} is damaged: {name} must be a list of {kind.__name__}s")
    widths, targets = model["widths"], model["targets"]
    activation = model.get("activation")
    if not isinstance(activation, str) or activation not in ACTIVATIONS or too_large(widths):
        raise LoadError(f"{path} is damaged: no network has these widths and activation")
    classes = model.get("classes")
    if classes is not None and (
        not isinstance(classes, list)
        or not all(isinstance(label, str) for label in classes)
        or len(set(classes)) != len(classes)
        or len(classes) < 2
        or [len(targets), widths[-1]] != [1, len(classes)]
    ):
        raise LoadError(f"{path} is damaged: its network does not have these classes")
    # The network may describe a target by several outputs, but never by fewer than one.
    inputs = _inputs_of(path, model)
    if widths[0] != inputs or widths[-1] % len(targets) or len(model["target_scale"]) != len(targets):
        raise LoadError(f"{path} is damaged: its network does not have these features and targets")
    if not all(0 < scale < math.inf for scale in model["target_scale"]):
        raise LoadError(f"{path} is damaged: a scale of its targets is not a positive number")
    if not isinstance(model.get("options", {}), Mapping):
        raise LoadError(f"{path} is damaged: its options are no object")


def _inputs_of(path: Path, model: Mapping[str, Any]) -> int:
    """How many inputs a network has for the columns that it reads."""
    from ..base.checks import is_number
    from ..base.files import LoadError
    from ..data.encoding import Encoder

    features, fill, reading = model["features"], model.get("fill") or [], model.get("reading", {})
    if not isinstance(fill, list) or len(fill) not in (0, len(features)) or not all(map(is_number, fill)):
        raise LoadError(f"{path} is damaged: fill must be a number a column")
    if not isinstance(reading, Mapping) or not set(reading) <= set(READING):
        raise LoadError(f"{path} is damaged: it was not read with the options {str(reading)[:80]}")
    if any(type(value) is not READING[name] for name, value in reading.items()):
        raise LoadError(f"{path} is damaged: it was not read with the options {str(reading)[:80]}")
    if any(not isinstance(text, str) for text in reading.get("missing", [])):
        raise LoadError(f"{path} is damaged: what stands for a gap must be text")
    if model.get("encoder") is None:
        return len(features)
    encoder = Encoder.from_json(model["encoder"])
    if list(encoder.columns) != features:
        raise LoadError(f"{path} is damaged: its preprocessing is of other columns")
    return encoder.num_inputs


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays, by which data is known again."""
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(f"{array.dtype} {array.shape}".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()


def too_large(widths: Sequence[int]) -> bool:
    """Whether the command line refuses networks of these widths."""
    weights = sum(width * (other + 1) for width, other in itertools.pairwise(widths))
    return min(widths) < 1 or not 2 <= len(widths) <= MAX_LAYERS or weights > MAX_WEIGHTS


def require_file(data: str) -> None:
    """Refuse DATA that is nothing we know, before anything tries to read it."""
    from ..data.datasets import UCI

    if not Path(data).exists():
        raise click.UsageError(f"DATA is neither a file nor one of the data sets {', '.join(UCI)}: {data}")
