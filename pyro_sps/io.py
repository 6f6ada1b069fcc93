"""Saving and loading fits: safetensors for the numbers, JSON for the rest. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .data import Standardizer
from .elbo import prepare
from .guides import AutoSPSNormal
from .infer import Fit
from .likelihoods import LIKELIHOODS, Likelihood
from .nn import BNN, Prior
from .values import FixedValues
from .version import __version__

FORMAT = 1
_TENSORS, _HEADER = "fit.safetensors", "fit.json"
# A header holds names, shapes and settings; a larger one is not ours.
_MAX_HEADER = 16 << 20


class LoadError(ValueError):
    """A saved fit is missing, damaged, or belongs to another network."""


def save(fit: Fit, directory: str | Path) -> None:
    """Write a fit to a directory, which is made if need be.

    Each file is written beside its place, flushed to the disk and renamed, the header last, so that there never is a
    half-written fit. Predictions after loading are equal bit for bit with the same seed. Training data is not saved.

    Args:
        fit: What `pyro_sps.fit` returned.
        directory: Where to.

    Raises:
        OSError: If the directory cannot be written; the fit in memory is as it was.
    """
    from safetensors.torch import save as serialise

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = serialise(
        {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in _tensors(fit).items()
        }
    )
    header = _header(fit)
    header["sha256"] = hashlib.sha256(content).hexdigest()
    header_text = _canonical({"checksum": hashlib.sha256(_canonical(header).encode()).hexdigest(), "header": header})
    write_atomically(directory / _TENSORS, content)
    write_atomically(directory / _HEADER, header_text.encode())


def load(
    directory: str | Path,
    net: nn.Module,
    *,
    prior: Prior | Mapping[str, Prior] | None = None,
    likelihood: Likelihood | None = None,
    device: torch.device | str | None = None,
) -> Fit:
    """Read a saved fit.

    Args:
        directory: Where `Fit.save` wrote it.
        net: A network of the same architecture; its weights are not used.
        prior: The prior given to `BNN`, if there was one: functions cannot be saved.
        likelihood: The likelihood, if it was one of your own.
        device: Where to put it; default: where `net` is.

    Returns:
        The fit, without its training data.

    Raises:
        LoadError: If a file is missing, damaged or of another version, or the network is another one.

    Example:
        >>> import tempfile, torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> net = sps.mlp([1, 5, 5, 1])
        >>> fit = sps.fit(sps.BNN(net), x, x**2, num_steps=5, progress=False)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     fit.save(directory)
        ...     again = sps.load(directory, net)
        >>> bool((fit.predict(x).mean == again.predict(x).mean).all())
        True
    """
    directory = Path(directory)
    header = _read_header(directory / _HEADER)
    tensors = _read_tensors(directory / _TENSORS, header["sha256"])
    try:
        return _rebuild(directory, header, tensors, net, prior, likelihood, device)
    except (KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{directory} is not a fit of this version: {type(error).__name__} {error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment its old or its new content is there, whole.

    Args:
        path: The file.
        content: Its new content.

    Raises:
        OSError: If it cannot be written; the old content stays and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _header(fit: Fit) -> dict[str, Any]:
    bnn = fit.bnn
    known = (
        type(bnn.likelihood).__name__
        if LIKELIHOODS.get(type(bnn.likelihood).__name__) is type(bnn.likelihood)
        else None
    )
    scale = bnn.constant_scale()
    settings = {
        k: v if isinstance(v, int | float | str | bool | None) else repr(v)[:200] for k, v in fit.settings.items()
    }
    return {
        "format": FORMAT,
        "pyro_sps": __version__,
        "torch": torch.__version__,
        "tensors": [[tensor.name, list(tensor.shape)] for tensor in bnn.topology.tensors],
        "topology": str(bnn.topology),
        "dtype": str(bnn.like.dtype).removeprefix("torch."),
        "likelihood": {"name": known, "arguments": bnn.likelihood.config() if known else {}},
        "prior": {"own": bnn.prior is not None, "scale": bnn.prior_scale, "scale_by_fan_in": bnn.scale_by_fan_in},
        "ordered_biases": bnn.ordered_biases,
        "learned_scale": None if scale is None else scale.item(),
        "scheme": type(bnn.scheme).__name__,
        "values": type(bnn.values).__name__,
        "input_shape": None if fit.x is None else list(fit.x.shape[1:]),
        "seconds": dict(fit.seconds),
        "settings": settings,
        "validation": [dict(check) for check in fit.validation],
        "stopped": fit.stopped,
        "mode": fit.mode,
        # Only if it was asked for before: saving must neither wait for it nor fail with it.
        "elbo": vars(fit).get("elbo"),
    }


def _tensors(fit: Fit) -> dict[str, Tensor]:
    bnn = fit.bnn
    tensors = {
        "guide.loc": fit.guide.loc,
        "guide.scale": fit.guide.scale_unconstrained,
        "losses": torch.from_numpy(fit.losses),
    }
    for weight in bnn.weights:
        tensors[f"mask.{weight.name}"] = weight.mask
        tensors[f"fixed.{weight.name}"] = weight.fixed
    for name, value in bnn.state_dict().items():
        if not name.startswith("partial."):
            tensors[f"state.{name}"] = value
    for name in fit.standardizer.__dataclass_fields__:
        tensors[f"standardizer.{name}"] = getattr(fit.standardizer, name)
    return tensors


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
    try:
        if path.stat().st_size > _MAX_HEADER:
            raise LoadError(f"{path} is too large: {path.stat().st_size} bytes")
        document = json.loads(path.read_text(encoding="utf-8"))
        value = document[content]
        intact = hashlib.sha256(canonical(value).encode()).hexdigest() == document[checksum]
    except FileNotFoundError as error:
        raise LoadError(missing) from error
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(f"{path} is damaged: {type(error).__name__} {str(error)[:200]}") from error
    if not intact:
        raise LoadError(f"{path} is damaged: its checksum does not match")
    return value


def _canonical(header: Any) -> str:
    return json.dumps(header, indent=1, sort_keys=True)


def _read_header(path: Path) -> dict[str, Any]:
    missing = f"there is no saved fit in {path.parent}: {path.name} is missing"
    header = read_checked(path, "header", "checksum", _canonical, missing)
    if header.get("format") != FORMAT:
        raise LoadError(f"{path} has format {header.get('format')!r}; this version of pyro_sps reads format {FORMAT}")
    return header


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise LoadError(f"there is no saved fit in {path.parent}: {path.name} is missing") from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error}") from error
    # Checked before anything is parsed: a damaged or foreign file is never looked into.
    if hashlib.sha256(content).hexdigest() != sha256:
        raise LoadError(f"{path} is damaged or belongs to another fit: its checksum does not match {_HEADER}")
    try:
        return deserialise(content)
    except SafetensorError as error:
        raise LoadError(f"{path} is damaged: {error}") from error


def _rebuild(
    directory: Path,
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    net: nn.Module,
    prior: Prior | Mapping[str, Prior] | None,
    likelihood: Likelihood | None,
    device: torch.device | str | None,
) -> Fit:
    import copy
    import warnings

    from .topology import Topology

    expected = [[tensor.name, list(tensor.shape)] for tensor in Topology.of(net).tensors]
    if expected != header["tensors"]:
        raise LoadError(f"net is not the network of {directory}: it has {expected}, the saved fit {header['tensors']}")
    if header["prior"]["own"] and prior is None:
        raise LoadError(f"the fit in {directory} has a prior of your own, which cannot be saved; give it as prior=")
    if likelihood is None:
        if header["likelihood"]["name"] not in LIKELIHOODS:
            raise LoadError(
                f"the fit in {directory} has a likelihood of your own, which cannot be saved; give it as likelihood="
            )
        likelihood = LIKELIHOODS[header["likelihood"]["name"]](**header["likelihood"]["arguments"])
    scale = header["learned_scale"]
    names = [tensor.name for tensor in Topology.of(net).tensors]
    dtype = getattr(torch, header["dtype"])
    net = copy.deepcopy(net).to(dtype=dtype)
    if device is not None:
        net = net.to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the masks leave was said when the fit was made
        bnn = BNN(
            net,
            scheme={name: tensors[f"mask.{name}"] for name in names},
            values=FixedValues({name: tensors[f"fixed.{name}"] for name in names}, scale or 1.0, scale is not None),
            likelihood=likelihood,
            prior=prior,
            prior_scale=header["prior"]["scale"],
            scale_by_fan_in=header["prior"]["scale_by_fan_in"],
            ordered_biases=header["ordered_biases"],
        )
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    bnn.load_state_dict(state, strict=False)
    like = bnn.like
    prototype = AutoSPSNormal(bnn)
    x = like.new_zeros((1, *(header["input_shape"] or [bnn.topology.groups[0].size])))
    targets = bnn.likelihood.num_targets(bnn.num_outputs)
    y = (
        like.new_zeros((1, targets))
        if bnn.likelihood.event_dim
        else torch.zeros(1, dtype=torch.int64, device=like.device)
    )
    prepare(bnn, prototype, x, y)
    guide = AutoSPSNormal(bnn)
    guide.adopt(prototype, tensors["guide.loc"].to(like), tensors["guide.scale"].to(like))
    return Fit(
        bnn=bnn,
        guide=guide,
        losses=tensors["losses"].numpy(),
        standardizer=Standardizer(**{n: tensors[f"standardizer.{n}"] for n in Standardizer.__dataclass_fields__}).to(
            like
        ),
        seconds=header["seconds"],
        settings=header["settings"],
        validation=header["validation"],
        stopped=header["stopped"],
        mode=header["mode"],
    )
