"""Loading saved fits. Files are not trusted: nothing in them is executed, and all that they say is checked."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..base.checks import require_device
from ..base.files import (
    MAX_HEADER,
    LoadError,
    Numbers,
    canonical,
    parse_tensors,
    peek,
    read_bytes,
    read_checked,
    unseal,
)
from ..base.plain import plain_torch
from ..base.process import warn_user
from ..data.arrays import Standardizer
from ..masks.values import MAP, FixedValues, Point
from ..model.bnn import BNN
from ..model.density import Problem, prepare
from ..model.guides import AutoSPSNormal
from ..model.hierarchy import Hierarchical
from ..model.likelihoods import Likelihood
from ..model.priors import Prior
from ..network.inputs import FLOAT, are_several, dtype_of
from ..network.probe import described, probe, same
from ..network.select import replace_parameter
from ..network.topology import Topology
from .fit import Fit, Fits
from .header import (
    DTYPES,
    OWN_KINDS,
    check_header,
    check_network,
    dropout_of,
    example_of,
    likelihood_of,
    names_of,
    topology_of,
)
from .load_samples import num_values, samples_of
from .save import FILE, FORMAT, OLD_HEADER, max_bytes
from .updating import PRIORS


def load(
    directory: str | Path,
    net: nn.Module | None = None,
    *,
    prior: Prior | Hierarchical | Mapping[str, Prior] | None = None,
    likelihood: Likelihood | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """Read what `save` wrote: a fit, several fits of one model, samples, or (without `net`) an estimator for tables.

    The files are not trusted: nothing in them is executed, and what they hold is checked against `net` and against
    itself, even where the checksums are right. Memory is bounded by a few times what a fit of `net` needs.

    Args:
        directory: Where `save` of a fit, of fits or of samples wrote it.
        net: The same network; its weights are not used. What it computes is compared with what the saved one did. A
            `BNNRegressor` or `BNNClassifier` knows its network: without `net` it is read, whole.
        prior: The prior given to `BNN`, if there was one: functions cannot be saved. One that is a posterior
            (`Fit.as_prior`) is in the file.
        likelihood: The likelihood, if it was one of your own.
        device: Where to put it; default: where `net` is.

    Returns:
        The `Fit`, `Fits` or `Samples`, without training data; or the fitted estimator.

    Raises:
        ValueError: If there is no network, and an option for one; or no such device.
        LoadError: If the file is missing, damaged or of another version, or the network is another one: in names or
            shapes of its weights, or in its outputs at the same weights.

    Warns:
        UserWarning: If the file is of version 0.1, which does not say what its network computed.

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
    if net is not None:
        return read(directory, lambda _: net, prior=prior, likelihood=likelihood, device=device)[0]
    given = {"prior": prior, "likelihood": likelihood, "device": device}
    if needless := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{' and '.join(needless)} must be None without net: an estimator knows them")
    return _estimator(directory)


def _estimator(directory: str | Path) -> Any:
    """A fitted `BNNRegressor` or `BNNClassifier`."""
    from ..estimators.load import load_estimator

    return load_estimator(directory)


@plain_torch()
def read(
    directory: str | Path,
    network: Callable[[Mapping[str, Any]], nn.Module],
    *,
    prior: Prior | Hierarchical | Mapping[str, Prior] | None = None,
    likelihood: Likelihood | None = None,
    device: torch.device | str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """What `load` returns, for a network that the file describes; and what else `save` was given to keep.

    Args:
        directory: As in `load`.
        network: What makes the network of the `extra` that is in the file. It is asked before the checksum is verified,
            and must refuse, by a `LoadError`, what would take much memory.
        prior: As in `load`.
        likelihood: As in `load`.
        device: As in `load`.

    Raises:
        ValueError: If there is no such device.
        LoadError: As in `load`.
    """
    require_device(device)
    directory = Path(directory)
    path = directory / FILE
    header = peek(path, f"there is no saved fit in {directory}: {FILE} is missing")
    tensors: dict[str, Tensor] = {}
    if header is None:
        try:
            if not (directory / OLD_HEADER).exists():
                raise LoadError(f"{path} is damaged: it has no readable header")
            old, tensors = _read_old(directory, network)
        except LoadError:
            header = peek(path, "")
            if header is None:
                raise  # else a new fit has just taken its place
    if header is None:
        header = old
    else:
        check_header(path, header, FORMAT)
        net = network(header["extra"])
        topology = topology_of(header, net)
        check_network(directory, header, topology)
        limit = max_bytes(topology, len(header["fits"]), num_values(path, header, topology))
        header, tensors = unseal(path, limit, f"{path} is missing")
        check_header(path, header, FORMAT)
    net = network(header["extra"])
    check_network(directory, header, topology_of(header, net))
    try:
        return _rebuild(directory, header, tensors, net, prior, likelihood, device), header["extra"]
    except (LoadError, MemoryError):
        raise
    except Exception as error:  # there is no end of what can be wrong with a file that somebody made up
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise LoadError(f"{directory} is damaged, or no fit of this version: {what}") from error


def _read_old(
    directory: Path, network: Callable[[Mapping[str, Any]], nn.Module]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of what version 0.1 wrote, as this version has them."""
    path = directory / OLD_HEADER
    header = read_checked(path, "header", "checksum", canonical, f"{path} is missing")
    if not isinstance(header, dict) or header.get("format") != 2:
        found = header.get("format") if isinstance(header, dict) else None
        raise LoadError(f"{path} has format {found!r}; this version of pyro_sps reads formats 2 and {FORMAT}")
    own = {name: header.get(name) for name in OWN_KINDS}
    new: dict[str, Any] = {
        "network": "",
        "features": None,
        "targets": None,
        "replicas": None,
        "fits": [own],
        "extra": {},
    }
    header |= new
    check_header(path, header, 2)
    topology = Topology.of(network({}))
    check_network(directory, header, topology)
    content = read_bytes(directory / FILE, max_bytes(topology, 1), f"{directory / FILE} is missing")
    if hashlib.sha256(content).hexdigest() != header.get("sha256"):
        raise LoadError(f"{directory / FILE} is damaged or of another fit: its checksum does not match {OLD_HEADER}")
    tensors = parse_tensors(directory / FILE, content)
    return header, {name if name.startswith("mask.") else f"0.{name}": value for name, value in tensors.items()}


def old_checksum(directory: Path) -> str:
    """SHA-256 of the header of a fit that version 0.1 saved, which holds that of its numbers.

    Args:
        directory: Where the fit was saved.

    Raises:
        LoadError: If there is none.
    """
    missing = f"there is no saved fit of version 0.1 in {directory}: {OLD_HEADER} is missing"
    return hashlib.sha256(read_bytes(directory / OLD_HEADER, MAX_HEADER, missing)).hexdigest()


def _check_function(directory: Path, header: Mapping[str, Any], numbers: Numbers, bnn: BNN) -> None:
    """Refuse a network that has the same weights and computes something else."""
    if header["format"] == 2:
        warn_user(
            f"the fit in {directory} is of version 0.1 and does not say what its network computed: make sure that net "
            "has the same activations and connections, and save it again"
        )
        return
    outputs = probe(bnn.function, bnn.topology, bnn.like, header["input_shape"])
    found = numbers.take("network.outputs", torch.float64, outputs.shape, finite=False)
    if not same(outputs, found, bnn.like.dtype):
        raise LoadError(
            f"net is not the network of {directory}: with the same weights it has other outputs. It computes "
            f"{described(bnn.function)}; the saved network {header['network'][:4000]}"
        )


def _rebuild(
    directory: Path,
    header: Mapping[str, Any],
    tensors: dict[str, Tensor],
    net: nn.Module,
    prior: Prior | Hierarchical | Mapping[str, Prior] | None,
    likelihood: Likelihood | None,
    device: torch.device | str | None,
) -> Any:
    if header["prior"]["own"] and prior is None:
        raise LoadError(f"the fit in {directory} has a prior of your own, which cannot be saved; give it as prior=")
    held = header["prior"].get("numbers") is True
    if prior is not None and not header["prior"]["own"]:
        raise LoadError(f"the fit in {directory} has {'its own' if held else 'the default'} prior; leave prior= out")
    numbers = Numbers(tensors, f"the saved fit in {directory}")
    net = copy.deepcopy(net).to(dtype=DTYPES[header["dtype"]])
    if device is not None:
        net = net.to(device)
    topology = topology_of(header, net)
    masks = {t.name: numbers.take(f"mask.{t.name}", torch.bool, t.shape) for t in topology.tensors}
    first = None
    if held:
        prior, first = (_normals(directory, numbers, kind, topology, header["dtype"]) for kind in PRIORS)
    fits = []
    for index, own in enumerate(header["fits"]):
        likelihood_of_fit = likelihood_of(directory, header, likelihood)
        bnn = _model_of(directory, {**header, **own}, numbers, f"{index}.", masks, net, prior, likelihood_of_fit)
        if index == 0:
            _check_function(directory, header, numbers, bnn)
        build: Any = samples_of if "samples" in header else _fit_of
        parts = _scaling_of(directory, header, numbers, f"{index}.", bnn)
        if held:
            bnn.first_prior, bnn.units = first, parts[2]
        fits.append(build(directory, {**header, **own}, numbers, f"{index}.", bnn, *parts))
    if numbers.left:
        raise LoadError(f"{directory} is damaged: it has the unknown tensors {str(sorted(numbers.left))[:200]}")
    return fits[0] if header["replicas"] is None else Fits(fits)


def _normals(
    directory: Path, numbers: Numbers, kind: str, topology: Topology, dtype: str
) -> dict[str, torch.distributions.Distribution]:
    """Normal priors of all entries of the weight tensors."""
    found: dict[str, torch.distributions.Distribution] = {}
    for tensor in topology.tensors:
        loc, scale = (
            numbers.take(f"{kind}.{what}.{tensor.name}", DTYPES[dtype], tensor.shape) for what in ("loc", "scale")
        )
        if not (scale > 0).all():
            raise LoadError(f"{directory} is damaged: a scale of the prior of {tensor.name!r} is not positive")
        found[tensor.name] = dist.Normal(loc, scale)
    return found


def _scaling_of(
    directory: Path, header: Mapping[str, Any], numbers: Numbers, prefix: str, bnn: BNN
) -> tuple[Problem, AutoSPSNormal, Standardizer]:
    """The layout of the model's sites, a guide that has it, and the units."""
    like = bnn.like
    shape = header["input_shape"] or [bnn.topology.groups[0].size]
    inputs = bnn.topology.inputs
    kind = inputs[0].kind if len(inputs) == 1 and not are_several(inputs) else FLOAT
    x = like.new_zeros((1, *shape), dtype=dtype_of(kind, like))
    targets = bnn.likelihood.num_targets(bnn.num_outputs)
    labels = bnn.likelihood.event_dim == 0
    y = torch.zeros(1, dtype=torch.int64, device=like.device) if labels else like.new_zeros((1, targets))
    prototype = AutoSPSNormal(bnn)
    problem, _ = prepare(bnn, prototype, x, y)
    shapes = {"x": ((), shape), "y": ((), (targets,))}
    scaling = {
        f"{what}_{name}": numbers.take(f"{prefix}standardizer.{what}_{name}", like.dtype, *shapes[what])
        for what in shapes
        for name in ("mean", "scale")
    }
    if not all((scaling[f"{what}_scale"] > 0).all() for what in shapes):
        raise LoadError(f"{directory} is damaged: a scale of its standardizer is not positive")
    for names, length in ((header["features"], shape[-1]), (header["targets"], targets)):
        if names is not None and len(names) != length:
            raise LoadError(f"{directory} is damaged: it has {len(names)} names for {length} columns")
    return problem, prototype, Standardizer(**scaling).to(like)


def _fit_of(
    directory: Path,
    header: Mapping[str, Any],
    numbers: Numbers,
    prefix: str,
    bnn: BNN,
    problem: Problem,
    prototype: AutoSPSNormal,
    standardizer: Standardizer,
) -> Fit:
    like = bnn.like
    guide = AutoSPSNormal(bnn)
    parameters = (numbers.take(f"{prefix}guide.{name}", like.dtype, (problem.size,)) for name in ("loc", "scale"))
    guide.adopt(prototype, *(value.to(like) for value in parameters))
    losses = numbers.take(f"{prefix}losses", torch.float64).numpy()
    checks = {
        name: numbers.take(f"{prefix}validation.{name}", torch.float64).tolist()
        for name in numbers.names(f"{prefix}validation.")
    }
    rows = (dict(zip(checks, row, strict=True)) for row in zip(*checks.values(), strict=True))
    fit = Fit(
        bnn=bnn,
        guide=guide,
        losses=losses,
        standardizer=standardizer,
        seconds=header["seconds"],
        settings=header["settings"],
        validation=[{name: int(value) if name == "step" else value for name, value in row.items()} for row in rows],
        stopped=header["stopped"],
        mode=header["mode"],
        input_shape=None if header["input_shape"] is None else tuple(header["input_shape"]),
        features=None if header["features"] is None else tuple(header["features"]),
        targets=None if header["targets"] is None else tuple(header["targets"]),
    )
    if header["elbo"] is not None:
        vars(fit)["elbo"] = header["elbo"]
    return fit


def _model_of(
    directory: Path,
    header: Mapping[str, Any],
    numbers: Numbers,
    prefix: str,
    masks: Mapping[str, Tensor],
    net: nn.Module,
    prior: Prior | Hierarchical | Mapping[str, Prior] | None,
    likelihood: Likelihood,
) -> BNN:
    """The model, with its masks, constants and parameters."""
    dtype, scale = DTYPES[header["dtype"]], header["learned_scale"]
    start = scale if isinstance(scale, float) else 1.0  # the numbers of the state come after
    pattern = {name: numbers.take(f"{prefix}fixed.{name}", dtype, mask.shape) for name, mask in masks.items()}
    deterministic, points = (names_of(directory, header, part, masks) for part in ("deterministic", "points"))
    own = {*deterministic, *points}
    if own:  # which BNN takes from the network
        net = copy.deepcopy(net)
        for name in own:
            replace_parameter(net, name, pattern[name].to(dict(net.named_parameters())[name].device))
    values: Any = FixedValues(pattern, start, scale is not None, isinstance(scale, list))
    if set(points) - set(deterministic):
        values = Point()
    saved = header["prior"]
    own_scale: dict[str, Any] = {"prior_scale": saved["scale"], "scale_by_fan_in": saved["scale_by_fan_in"]}
    if prior is None and "hierarchical" in saved:
        prior, own_scale = Hierarchical(**saved["hierarchical"]), {}
    bnn = BNN(
        net,
        scheme=masks,
        values=values,
        likelihood=likelihood,
        prior=prior,
        **(own_scale if prior is None or isinstance(prior, Mapping) else {}),
        ordered_biases=header["ordered_biases"],
        dropout=dropout_of(directory, header),
        deterministic={name: Point() if name in points else None for name in deterministic},
        example=example_of(header, net),
    ).eval()
    if list(bnn.drop_rates) != header.get("drop_rates", []):
        raise LoadError(
            f"net is not the network of {directory}: it has dropout of rates {list(bnn.drop_rates)}, the saved one of "
            f"{str(header['drop_rates'])[:200]}"
        )
    if header.get("values") == "MAP":  # known ones, of which a later fit should know where they are from
        bnn.values = MAP()
    known = {name: value for name, value in bnn.state_dict().items() if not name.startswith("partial.")}
    state = {name: numbers.take(f"{prefix}state.{name}", value.dtype, value.shape) for name, value in known.items()}
    bnn.load_state_dict(state, strict=False)
    bnn.check_scales()
    return bnn
