"""The header of a saved fit: what it may hold, and what it says of the network."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..base.checks import is_number
from ..base.files import (
    LoadError,
)
from ..model.likelihoods import LIKELIHOODS, Likelihood
from ..network.dropping import DROPOUT
from ..network.inputs import BOOL, FLOAT, WHOLE, Input, Inputs, are_several, dtype_of, with_names
from ..network.topology import Topology
from .save import FORMAT, MAX_FITS

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


# What the entries of a header are. Everything in it is checked, since whoever can write a file can write its checksum.
_Kinds = Mapping[str, type | tuple[type, ...]]


_KINDS: _Kinds = {
    "tensors": list,
    "dtype": str,
    "network": str,
    "likelihood": dict,
    "likelihood.name": (str, type(None)),
    "likelihood.arguments": dict,
    "prior": dict,
    "prior.own": bool,
    "prior.scale": (int, float),
    "prior.scale_by_fan_in": bool,
    "ordered_biases": bool,
    "values": str,
    "input_shape": (list, type(None)),
    "features": (list, type(None)),
    "targets": (list, type(None)),
    "replicas": (int, type(None)),
    "fits": list,
    "extra": dict,
}


OWN_KINDS: _Kinds = {
    "learned_scale": (float, list, type(None)),
    "seconds": dict,
    "settings": dict,
    "stopped": str,
    "mode": str,
    "elbo": (float, type(None)),
}


def check_header(path: Path, header: Mapping[str, Any], number: int) -> None:
    """Refuse a header that is none of a fit's, of the format of this number."""
    if type(header.get("format")) is not int or header["format"] != number:
        found = str(header.get("format"))[:80]
        raise LoadError(f"{path} has format {found}; this version of pyro_sps reads formats 2 and {FORMAT}")
    _require_kinds(path, header, _KINDS)
    count = header["replicas"]
    if len(header["fits"]) != (1 if count is None else count) or not 1 <= len(header["fits"]) <= MAX_FITS:
        raise LoadError(f"{path} is damaged: it has {len(header['fits'])} fits, not {count}")
    for own in header["fits"]:
        if not isinstance(own, dict):
            raise LoadError(f"{path} is damaged: one of its fits is {str(own)[:80]!r}")
        _require_kinds(path, own, OWN_KINDS)
        if any(isinstance(value, list | dict) for value in (*own["settings"].values(), *own["seconds"].values())):
            raise LoadError(f"{path} is damaged: settings and seconds must be plain values")
        if not all(is_number(value) and math.isfinite(value) for value in own["seconds"].values()):
            raise LoadError(f"{path} is damaged: its seconds are no numbers")
    for names in ("features", "targets"):
        if header[names] is not None and not all(isinstance(name, str) for name in header[names]):
            raise LoadError(f"{path} is damaged: its {names} are no names")
    if header["dtype"] not in DTYPES:
        raise LoadError(f"{path} is damaged: dtype must be one of {', '.join(DTYPES)}, not {header['dtype'][:80]!r}")


def _require_kinds(path: Path, header: Mapping[str, Any], kinds: _Kinds) -> None:
    for name, kind in kinds.items():
        value: Any = header
        for part in name.split("."):
            value = value.get(part, ...)  # which is of no kind
        # A Boolean is an integer to Python, but not here.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise LoadError(f"{path} is damaged: {name} is {str(value)[:80]!r}")


def example_of(header: Mapping[str, Any], net: nn.Module) -> Any:
    """Inputs of the shape that the network was fitted with; None if that is not known or not credible."""
    like = next(net.parameters(), torch.empty(0))
    inputs = _inputs_of(header)
    if are_several(inputs):
        return with_names(inputs, [torch.zeros(one.shape, dtype=dtype_of(one.kind, like)) for one in inputs])
    shape = header["input_shape"]
    if not _is_shape(shape) or not shape:
        return None
    kind = inputs[0].kind if inputs else WHOLE if header.get("whole_numbers") else FLOAT
    return torch.zeros((2, *shape), dtype=dtype_of(kind, like))


def topology_of(header: Mapping[str, Any], net: nn.Module) -> Topology:
    """The network as it was read for the fit; what the header says is checked later."""
    names, known = header.get("deterministic", []), dict(net.named_parameters())
    own = [name for name in names if isinstance(name, str) and name in known] if isinstance(names, list) else []
    return Topology.of(net, example_of(header, net), own)


def _inputs_of(header: Mapping[str, Any]) -> Inputs:
    """What the network was called with; nothing where the header does not say so credibly."""
    told = header.get("inputs", [])
    if not isinstance(told, list) or len(told) > 1000:
        return ()
    inputs = []
    for one in told:
        if not isinstance(one, list) or len(one) != 3 or not isinstance(one[0], str | None):
            return ()
        if one[1] not in (FLOAT, WHOLE, BOOL) or not _is_shape(one[2]):
            return ()
        inputs.append(Input((2, *one[2]), one[1], one[0]))
    named = {one.name is None for one in inputs}
    return tuple(inputs) if len(named) == 1 and sum(one.size for one in inputs) <= 1 << 24 else ()


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and all(type(size) is int and size > 0 for size in shape)
        and math.prod(shape) <= 1 << 24
    )


def check_network(directory: Path, header: Mapping[str, Any], topology: Topology) -> None:
    """Refuse another network, before anything of the size of one is read."""
    expected = [[tensor.name, list(tensor.shape)] for tensor in topology.tensors]
    if expected != header["tensors"]:
        found = str(header["tensors"])[:1000]
        raise LoadError(f"net is not the network of {directory}: it has {expected}, the saved fit {found}")
    shape, features = header["input_shape"], topology.groups[0].size
    if shape is not None and (
        any(type(size) is not int for size in shape) or (not topology.inputs and math.prod(shape) != features)
    ):
        raise LoadError(f"{directory} is damaged: inputs of shape {str(shape)[:80]} do not have {features} features")
    outputs = topology.num_outputs
    if header["likelihood"]["arguments"].get("per_output") not in (None, outputs):
        raise LoadError(f"{directory} is damaged: per_output of its likelihood is not {outputs}")


def likelihood_of(directory: Path, header: Mapping[str, Any], given: Likelihood | None) -> Likelihood:
    """The family by the name that was saved, or the one given for a likelihood of one's own."""
    family = LIKELIHOODS.get(header["likelihood"]["name"])
    if given is not None:
        if family is not None and type(given) is not family:
            raise LoadError(f"the fit in {directory} has the likelihood {family.__name__}, not {given!r}; leave it out")
        return given
    if family is None:
        raise LoadError(
            f"the fit in {directory} has a likelihood of your own, which cannot be saved; give it as likelihood="
        )
    return family(**header["likelihood"]["arguments"])


def dropout_of(directory: Path, header: Mapping[str, Any]) -> str:
    """What dropout does; versions before 0.2 knew nothing of it."""
    how = header.get("dropout", DROPOUT[0])
    if how not in DROPOUT:
        raise LoadError(f"{directory} is damaged: dropout is {str(how)[:80]!r}")
    return str(how)


def names_of(directory: Path, header: Mapping[str, Any], part: str, known: Collection[str]) -> list[str]:
    """Names of weight tensors; versions before 0.2 wrote none."""
    names = header.get(part, [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name in known for name in names):
        raise LoadError(f"{directory} is damaged: {part} is {str(names)[:80]!r}")
    return names
