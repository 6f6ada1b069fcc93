"""Loading saved samples: the part of `load` that fits do not have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.checks import is_integer, is_number
from ..base.files import LoadError, Numbers
from ..data.arrays import Standardizer
from ..model.bnn import BNN
from ..model.density import Problem
from ..model.guides import AutoSPSNormal
from ..network.topology import Topology
from .samples import Samples

_KINDS = {"kernel": str, "chains": int, "draws": int, "acceptance_rates": list, "tuning": dict, "restarted": list}


def num_values(path: Path, header: Mapping[str, Any], topology: Topology) -> int:
    """Largest number of values that the samples of a header can have; 0 for a fit.

    Args:
        path: The file, for errors.
        header: Its header.
        topology: Of the network.

    Raises:
        LoadError: If it is not that of samples.
    """
    if "samples" not in header:
        return 0
    told = header["samples"]
    known = isinstance(told, dict) and told.keys() == _KINDS.keys()
    if not known or not all(isinstance(told[name], kind) for name, kind in _KINDS.items()):
        raise LoadError(f"{path} is damaged: its samples are {str(told)[:200]}")
    if not is_integer(told["chains"]) or not is_integer(told["draws"]) or len(header["fits"]) != 1:
        raise LoadError(f"{path} is damaged: it has {told['chains']} chains of {told['draws']} draws")
    rates, restarted = told["acceptance_rates"], told["restarted"]
    if len(rates) != told["chains"] or not all(is_number(rate) for rate in rates):
        raise LoadError(f"{path} is damaged: its acceptance rates are {str(rates)[:80]}")
    if not all(is_integer(chain, 0) and chain < told["chains"] for chain in restarted):
        raise LoadError(f"{path} is damaged: its restarted chains are {str(restarted)[:80]}")
    values: int = told["chains"] * told["draws"] * (topology.num_weights + 1000)
    return values


def samples_of(
    directory: Path,
    header: Mapping[str, Any],
    numbers: Numbers,
    prefix: str,
    bnn: BNN,
    problem: Problem,
    prototype: AutoSPSNormal,
    standardizer: Standardizer,
) -> Samples:
    """Samples from a checked header and the tensors of its file.

    Args:
        directory: Where they were saved.
        header: The header.
        numbers: The tensors.
        prefix: Of their names.
        bnn: The model.
        problem: The layout of its sites.
        prototype: A guide with that layout.
        standardizer: The units.

    Raises:
        LoadError: If a tensor is missing or does not fit.
    """
    num_values(directory, header, bnn.topology)
    told, like = header["samples"], bnn.like
    shape = (told["chains"], told["draws"])
    values = {
        site.name: numbers.take(f"{prefix}samples.{site.name}", like.dtype, (*shape, *site.shape)).to(like)
        for site in problem.sites
    }
    more = {
        name: numbers.take(f"{prefix}{name}", like.dtype, shape, (0, 0)) for name in ("energies", "errors", "failures")
    }
    if more["energies"].shape != shape or more["failures"].shape != shape:
        raise LoadError(f"{directory} is damaged: its energies are not those of {shape[0]} chains of {shape[1]} draws")
    starts = None
    if f"{prefix}starts.{problem.sites[0].name}" in numbers.left:
        starts = {
            site.name: numbers.take(f"{prefix}starts.{site.name}", like.dtype, (shape[0], *site.shape)).to(like)
            for site in problem.sites
        }
    shape_of_inputs = header["input_shape"]
    return Samples(
        bnn=bnn,
        samples=values,
        kernel=told["kernel"],
        energies=more["energies"].to(like),
        errors=more["errors"].to(like),
        failures=more["failures"].to(like),
        acceptance_rates=told["acceptance_rates"],
        tuning=told["tuning"],
        restarted=told["restarted"],
        standardizer=standardizer,
        seconds=header["seconds"],
        settings=header["settings"],
        stopped=header["stopped"],
        mode=header["mode"],
        starts=starts,
        input_shape=None if shape_of_inputs is None else tuple(shape_of_inputs),
        features=None if header["features"] is None else tuple(header["features"]),
        targets=None if header["targets"] is None else tuple(header["targets"]),
    )
