"""Saving and loading fits: safetensors for the numbers, JSON for the rest. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.files import (
    MAX_HEADER,
    LoadError,
    Numbers,
    canonical,
    parse_tensors,
    plain_settings,
    read_bytes,
    read_checked,
    tensor_bytes,
    write_atomically,
)
from ..data.arrays import Standardizer
from ..masks.values import MAP, FixedValues
from ..model.bnn import BNN
from ..model.density import prepare
from ..model.guides import AutoSPSNormal
from ..model.likelihoods import LIKELIHOODS, Likelihood
from ..model.priors import Prior
from ..network.topology import Topology
from ..version import __version__
from .fit import Fit

FORMAT = 2

_TENSORS, _HEADER = "fit.safetensors", "fit.json"

# Numbers: mask, constant and two guide parameters a weight; the rest (losses, validation) in what comes on top.
_BYTES_PER_WEIGHT, _BYTES_BESIDES = 64, 1 << 28

_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}

# What the entries of a header are. Everything in it is checked, since whoever can write a file can write its checksum.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "tensors": list,
    "dtype": str,
    "likelihood": dict,
    "likelihood.name": (str, type(None)),
    "likelihood.arguments": dict,
    "prior": dict,
    "prior.own": bool,
    "prior.scale": (int, float),
    "prior.scale_by_fan_in": bool,
    "ordered_biases": bool,
    "learned_scale": (float, list, type(None)),
    "input_shape": (list, type(None)),
    "seconds": dict,
    "settings": dict,
    "stopped": str,
    "mode": str,
}


def save(fit: Fit, directory: str | Path) -> None:
    """Write a fit to a directory, which is made if need be.

    Each file is written beside its place, flushed to the disk and renamed, the header last, so that there never is a
    half-written fit. Predictions after loading are equal bit for bit with the same seed. Training data is not saved.

    Args:
        fit: What `pyro_sps.fit` returned.
        directory: Where to.

    Raises:
        OSError: If the directory cannot be written; the fit in memory is as it was.
        ValueError: If the fit is larger than `load` would read: hundreds of MB of losses.

    Example:
        >>> import pathlib, tempfile, torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     fit.save(directory)  # calls sps.io.save(fit, directory)
        ...     sorted(path.name for path in pathlib.Path(directory).iterdir())
        ['fit.json', 'fit.safetensors']
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = tensor_bytes(_tensors(fit))
    header = _header(fit)
    header["sha256"] = hashlib.sha256(content).hexdigest()
    header_text = canonical({"checksum": hashlib.sha256(canonical(header).encode()).hexdigest(), "header": header})
    limits = ((content, _max_bytes(fit.bnn.topology)), (header_text, MAX_HEADER))
    for part, limit in limits:
        if len(part) > limit:
            raise ValueError(f"the fit is too large to be saved: {len(part):,} bytes, more than {limit:,}")
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

    The files are not trusted: nothing in them is executed, and what they hold is checked against `net` and against
    itself, even where the checksums are right. Memory is bounded by a few times what a fit of `net` needs.

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
        >>> fit = sps.fit(sps.BNN(net, sps.Heavy(), sps.Zero()), x, x**2, num_steps=5, progress=False)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     fit.save(directory)
        ...     again = sps.load(directory, net)
        >>> bool((fit.predict(x).mean == again.predict(x).mean).all())
        True
    """
    directory = Path(directory)
    topology = Topology.of(net)
    header = _read_header(directory / _HEADER)
    _check_network(directory, header, topology)
    tensors = _read_tensors(directory / _TENSORS, header, _max_bytes(topology))
    try:
        return _rebuild(directory, header, tensors, net, prior, likelihood, device)
    except (LoadError, MemoryError):
        raise
    except Exception as error:  # there is no end of what can be wrong with a file that somebody made up
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise LoadError(f"{directory} is damaged, or no fit of this version: {what}") from error


def checksum(directory: Path) -> str:
    """SHA-256 of a saved fit: of its header, which holds that of its numbers.

    Args:
        directory: Where the fit was saved.

    Raises:
        LoadError: If there is none.
    """
    missing = f"there is no saved fit in {directory}: {_HEADER} is missing"
    return hashlib.sha256(read_bytes(directory / _HEADER, MAX_HEADER, missing)).hexdigest()


def _header(fit: Fit) -> dict[str, Any]:
    bnn = fit.bnn
    known = (
        type(bnn.likelihood).__name__
        if LIKELIHOODS.get(type(bnn.likelihood).__name__) is type(bnn.likelihood)
        else None
    )
    scale = bnn.constant_scale()
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
        "learned_scale": None if scale is None else scale.tolist(),  # a list if there is one a layer
        "scheme": type(bnn.scheme).__name__,
        "values": type(bnn.values).__name__,
        "input_shape": None if fit.x is None else list(fit.x.shape[1:]),
        "seconds": dict(fit.seconds),
        "settings": plain_settings(fit.settings),
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
    for name in fit.validation[0] if fit.validation else ():
        numbers = [float(check[name]) for check in fit.validation]
        tensors[f"validation.{name}"] = torch.tensor(numbers, dtype=torch.float64)
    return tensors


def _max_bytes(topology: Topology) -> int:
    """Largest file of numbers of a fit of such a network."""
    return _BYTES_PER_WEIGHT * topology.num_weights + _BYTES_BESIDES


def _read_header(path: Path) -> dict[str, Any]:
    missing = f"there is no saved fit in {path.parent}: {path.name} is missing"
    header = read_checked(path, "header", "checksum", canonical, missing)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise LoadError(f"{path} has format {found!r}; this version of pyro_sps reads format {FORMAT}")
    for name, kind in _KINDS.items():
        value: Any = header
        for part in name.split("."):
            value = value.get(part, ...)  # which is of no kind
        # A Boolean is an integer to Python, but not here.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise LoadError(f"{path} is damaged: {name} is {str(value)[:80]!r}")
    if any(isinstance(value, list | dict) for value in (*header["settings"].values(), *header["seconds"].values())):
        raise LoadError(f"{path} is damaged: settings and seconds must be plain values")
    if header["dtype"] not in _DTYPES:
        raise LoadError(f"{path} is damaged: dtype must be one of {', '.join(_DTYPES)}, not {header['dtype'][:80]!r}")
    return header


def _check_network(directory: Path, header: Mapping[str, Any], topology: Topology) -> None:
    """Refuse another network, before anything of the size of one is read."""
    expected = [[tensor.name, list(tensor.shape)] for tensor in topology.tensors]
    if expected != header["tensors"]:
        found = str(header["tensors"])[:1000]
        raise LoadError(f"net is not the network of {directory}: it has {expected}, the saved fit {found}")
    shape, features = header["input_shape"], topology.groups[0].size
    if shape is not None and (any(type(size) is not int for size in shape) or math.prod(shape) != features):
        raise LoadError(f"{directory} is damaged: inputs of shape {str(shape)[:80]} do not have {features} features")
    outputs = topology.groups[topology.matrices[-1].groups[0]].size
    if header["likelihood"]["arguments"].get("per_output") not in (None, outputs):
        raise LoadError(f"{directory} is damaged: per_output of its likelihood is not {outputs}")


def _read_tensors(path: Path, header: Mapping[str, Any], limit: int) -> dict[str, Tensor]:
    content = read_bytes(path, limit, f"there is no saved fit in {path.parent}: {path.name} is missing")
    if hashlib.sha256(content).hexdigest() != header.get("sha256"):
        raise LoadError(f"{path} is damaged or belongs to another fit: its checksum does not match {_HEADER}")
    return parse_tensors(path, content)


def _rebuild(
    directory: Path,
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    net: nn.Module,
    prior: Prior | Mapping[str, Prior] | None,
    likelihood: Likelihood | None,
    device: torch.device | str | None,
) -> Fit:
    numbers = Numbers(tensors, "the saved fit")
    bnn = _model_of(directory, header, numbers, net, prior, likelihood, device)
    like = bnn.like
    shape = header["input_shape"] or [bnn.topology.groups[0].size]
    x = like.new_zeros((1, *shape))
    targets = bnn.likelihood.num_targets(bnn.num_outputs)
    labels = bnn.likelihood.event_dim == 0
    y = torch.zeros(1, dtype=torch.int64, device=like.device) if labels else like.new_zeros((1, targets))
    prototype = AutoSPSNormal(bnn)
    problem, _ = prepare(bnn, prototype, x, y)
    guide = AutoSPSNormal(bnn)
    parameters = (numbers.take(f"guide.{name}", like.dtype, (problem.size,)) for name in ("loc", "scale"))
    guide.adopt(prototype, *(value.to(like) for value in parameters))
    shapes = {"x": ((), shape), "y": ((), (targets,))}
    scaling = {
        f"{what}_{name}": numbers.take(f"standardizer.{what}_{name}", like.dtype, *shapes[what])
        for what in shapes
        for name in ("mean", "scale")
    }
    if not all((scaling[f"{what}_scale"] > 0).all() for what in shapes):
        raise LoadError(f"{directory} is damaged: a scale of its standardizer is not positive")
    losses = numbers.take("losses", torch.float64).numpy()
    checks = {name: numbers.take(f"validation.{name}", torch.float64).tolist() for name in numbers.names("validation.")}
    if numbers.left:
        raise LoadError(f"{directory} is damaged: it has the unknown tensors {str(sorted(numbers.left))[:200]}")
    rows = (dict(zip(checks, row, strict=True)) for row in zip(*checks.values(), strict=True))
    return Fit(
        bnn=bnn,
        guide=guide,
        losses=losses,
        standardizer=Standardizer(**scaling).to(like),
        seconds=header["seconds"],
        settings=header["settings"],
        validation=[{name: int(value) if name == "step" else value for name, value in row.items()} for row in rows],
        stopped=header["stopped"],
        mode=header["mode"],
    )


def _model_of(
    directory: Path,
    header: Mapping[str, Any],
    numbers: Numbers,
    net: nn.Module,
    prior: Prior | Mapping[str, Prior] | None,
    likelihood: Likelihood | None,
    device: torch.device | str | None,
) -> BNN:
    """The model, with its masks, constants and parameters."""
    import copy

    if header["prior"]["own"] and prior is None:
        raise LoadError(f"the fit in {directory} has a prior of your own, which cannot be saved; give it as prior=")
    if likelihood is None:
        family = LIKELIHOODS.get(header["likelihood"]["name"])
        if family is None:
            raise LoadError(
                f"the fit in {directory} has a likelihood of your own, which cannot be saved; give it as likelihood="
            )
        likelihood = family(**header["likelihood"]["arguments"])
    dtype, scale = _DTYPES[header["dtype"]], header["learned_scale"]
    start = scale if isinstance(scale, float) else 1.0  # the numbers of the state come after
    net = copy.deepcopy(net).to(dtype=dtype)
    if device is not None:
        net = net.to(device)
    shapes = {tensor.name: tensor.shape for tensor in Topology.of(net).tensors}
    pattern = {name: numbers.take(f"fixed.{name}", dtype, shape) for name, shape in shapes.items()}
    bnn = BNN(
        net,
        scheme={name: numbers.take(f"mask.{name}", torch.bool, shape) for name, shape in shapes.items()},
        values=FixedValues(pattern, start, scale is not None, isinstance(scale, list)),
        likelihood=likelihood,
        prior=prior,
        prior_scale=header["prior"]["scale"],
        scale_by_fan_in=header["prior"]["scale_by_fan_in"],
        ordered_biases=header["ordered_biases"],
    )
    if header.get("values") == "MAP":  # known ones, of which a later fit should know where they are from
        bnn.values = MAP()
    own = {name: value for name, value in bnn.state_dict().items() if not name.startswith("partial.")}
    state = {name: numbers.take(f"state.{name}", value.dtype, value.shape) for name, value in own.items()}
    bnn.load_state_dict(state, strict=False)
    bnn.check_scales()
    return bnn
