"""Saving fits and samples: one safetensors file with a JSON header, which one rename replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.files import plain_settings, seal, write_atomically
from ..base.plain import plain_torch
from ..model.bnn import BNN
from ..model.hierarchy import Hierarchical
from ..model.likelihoods import LIKELIHOODS
from ..network.inputs import WHOLE
from ..network.probe import described, probe
from ..network.topology import Topology
from ..version import __version__
from .fit import Fit, Fits
from .samples import Samples
from .updating import numbers_of

FORMAT = 3

FILE = "fit.safetensors"

# What version 0.1 wrote beside the numbers.
OLD_HEADER = "fit.json"

# Numbers: mask, constant, two guide parameters and at most four of a prior a weight; the rest (losses, validation) in
# what comes on top.
_BYTES_PER_WEIGHT, _BYTES_BESIDES = 64, 1 << 28

# Most fits in a file.
MAX_FITS = 10_000


@plain_torch()
def save(fit: Fit | Fits | Samples, directory: str | Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write a fit, several fits of one model, or samples, to a directory, which is made if need be.

    All of it is one file, which is written beside its place, flushed to the disk and renamed: at every moment the
    directory holds the fit that was there before or the new one. Predictions after loading are equal bit for bit with
    the same seed. Training data is not saved.

    Args:
        fit: What `pyro_sps.fit` or `pyro_sps.sample` returned.
        directory: Where to.
        extra: What else to keep in the header, in JSON; `pyro_sps.posterior.load.read` returns it.

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
        ['fit.safetensors']
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    fits: Sequence[Fit | Samples] = fit if isinstance(fit, Fits) else (fit,)
    content = seal(_tensors(fits), _header(fits, len(fits) if isinstance(fit, Fits) else None, extra or {}))
    values = fit.num_chains * fit.num_samples * fit.bnn.num_stochastic if isinstance(fit, Samples) else 0
    if len(content) > (limit := max_bytes(fits[0].bnn.topology, len(fits), values)):
        raise ValueError(f"the fit is too large to be saved: {len(content):,} bytes, more than {limit:,}")
    write_atomically(directory / FILE, content)
    (directory / OLD_HEADER).unlink(missing_ok=True)  # of a fit that this one replaces


def max_bytes(topology: Topology, count: int, values: int = 0) -> int:
    """Largest file of so many fits of such a network, or of samples with so many values."""
    return count * _BYTES_PER_WEIGHT * topology.num_weights + _BYTES_BESIDES + 16 * values


def _header(fits: Sequence[Fit | Samples], replicas: int | None, extra: Mapping[str, Any]) -> dict[str, Any]:
    bnn = fits[0].bnn
    known = LIKELIHOODS.get(type(bnn.likelihood).__name__) is type(bnn.likelihood)
    return {
        "format": FORMAT,
        "pyro_sps": __version__,
        "torch": torch.__version__,
        "tensors": [[tensor.name, list(tensor.shape)] for tensor in bnn.topology.tensors],
        "topology": str(bnn.topology),
        "network": described(bnn.function),
        "dtype": str(bnn.like.dtype).removeprefix("torch."),
        "likelihood": {
            "name": type(bnn.likelihood).__name__ if known else None,
            "arguments": bnn.likelihood.config() if known else {},
        },
        "prior": _prior_header(bnn),
        "ordered_biases": bnn.ordered_biases,
        "dropout": bnn.dropout,
        "drop_rates": list(bnn.drop_rates),
        "deterministic": list(bnn.deterministic),
        "points": list(bnn.points),
        "scheme": type(bnn.scheme).__name__,
        "values": type(bnn.values).__name__,
        "input_shape": None if fits[0].input_shape is None else list(fits[0].input_shape),
        "whole_numbers": [one.kind for one in bnn.topology.inputs] == [WHOLE],
        "inputs": [[one.name, one.kind, list(one.shape[1:])] for one in bnn.topology.inputs],
        "features": None if fits[0].features is None else list(fits[0].features),
        "targets": None if fits[0].targets is None else list(fits[0].targets),
        "replicas": replicas,
        "fits": [_own_header(fit) for fit in fits],
        "extra": dict(extra),
    } | (_samples_header(fits[0]) if isinstance(fits[0], Samples) else {})


def _samples_header(samples: Samples) -> dict[str, Any]:
    """What only samples have."""
    told = {
        "kernel": samples.kernel,
        "chains": samples.num_chains,
        "draws": samples.num_samples,
        "acceptance_rates": list(samples.acceptance_rates),
        "tuning": dict(samples.tuning),
        "restarted": list(samples.restarted),
    }
    return {"samples": told}


def _own_header(fit: Fit | Samples) -> dict[str, Any]:
    scale = fit.bnn.constant_scale()
    return {
        "learned_scale": None if scale is None else scale.tolist(),  # a list if there is one a layer
        "seconds": dict(fit.seconds),
        "settings": plain_settings(fit.settings),
        "stopped": fit.stopped,
        "mode": fit.mode,
        # Only if it was asked for before: saving must neither wait for it nor fail with it.
        "elbo": vars(fit).get("elbo"),
    }


def _prior_header(bnn: BNN) -> dict[str, Any]:
    if isinstance(bnn.prior, Hierarchical):
        return {"own": False, "scale": 1.0, "scale_by_fan_in": True, "hierarchical": bnn.prior.config()}
    told = {"own": bnn.prior is not None, "scale": bnn.prior_scale, "scale_by_fan_in": bnn.scale_by_fan_in}
    return told if numbers_of(bnn) is None else {**told, "own": False, "numbers": True}


def _tensors(fits: Sequence[Fit | Samples]) -> dict[str, Tensor]:
    bnn = fits[0].bnn
    tensors = {f"mask.{weight.name}": weight.mask for weight in bnn.weights}
    tensors |= numbers_of(bnn) or {}
    tensors["network.outputs"] = probe(bnn.function, bnn.topology, bnn.like, fits[0].input_shape)
    for index, fit in enumerate(fits):
        tensors |= {f"{index}.{name}": value for name, value in _own_tensors(fit).items()}
    return tensors


def _own_tensors(fit: Fit | Samples) -> dict[str, Tensor]:
    bnn = fit.bnn
    if isinstance(fit, Samples):
        tensors = {f"samples.{name}": value for name, value in fit.samples.items()}
        tensors |= {name: getattr(fit, name) for name in ("energies", "errors", "failures")}
        tensors |= {f"starts.{name}": value for name, value in (fit.starts or {}).items()}
    else:
        tensors = {
            "guide.loc": fit.guide.loc,
            "guide.scale": fit.guide.scale_unconstrained,
            "losses": torch.from_numpy(fit.losses),
        }
    for weight in bnn.weights:
        tensors[f"fixed.{weight.name}"] = weight.fixed
    for name, value in bnn.state_dict().items():
        if not name.startswith("partial."):
            tensors[f"state.{name}"] = value
    for name in fit.standardizer.__dataclass_fields__:
        tensors[f"standardizer.{name}"] = getattr(fit.standardizer, name)
    validation = () if isinstance(fit, Samples) else fit.validation
    for name in validation[0] if validation else ():
        numbers = [float(check[name]) for check in validation]
        tensors[f"validation.{name}"] = torch.tensor(numbers, dtype=torch.float64)
    return tensors
