"""The groups of an ArviZ object: draws, statistics, predictions, constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.observed import Observed, shown_of
from ..model.bnn import BNN
from ..posterior.outputs import Member
from ..posterior.predict import Prediction
from ..version import __version__
from .density import Data, chain_seed, log_joint, prior_draws
from .generations import Variable, inference_data

#: Seconds after which the certificate in the attributes gives up.
_CERTIFICATE_SECONDS = 10.0


@dataclass(frozen=True)
class Chain:
    """Posterior draws of one fit or Markov chain, and what is known of each."""

    member: Member
    stats: Mapping[str, np.ndarray] = field(default_factory=dict)


_Group = dict[str, Variable]
_Coords = dict[str, Any]


def object_of(
    chains: Sequence[Chain],
    draws: int,
    wanted: Sequence[str],
    layout: str,
    data: Data | None,
    seed: int,
    attrs: Mapping[str, Any],
) -> Any:
    """All groups that are wanted, as one object of ArviZ."""
    members = [chain.member for chain in chains]
    bnn = members[0].bnn
    groups: dict[str, _Group] = {}
    coords: _Coords = {}
    predictive_seed = chain_seed(seed, len(chains))
    if "posterior" in wanted:
        groups["posterior"] = _weights(members, layout, coords)
    if {"prior", "prior_predictive"} & set(wanted):
        prior = [
            replace(member, sites=prior_draws(member.bnn, draws, chain_seed(seed, index)))
            for index, member in enumerate(members)
        ]
    if "prior" in wanted:
        groups["prior"] = _weights(prior, layout, coords)
    if data is not None:
        x, y = data.x, data.y
        shown, bars = shown_of(y)
        obs_dims = ("row", "target")[: shown.dim()]
        if "sample_stats" in wanted:
            groups["sample_stats"] = _sample_stats(chains, draws, data)
        for group, source in (
            ("prior_predictive", prior if "prior_predictive" in wanted else []),
            ("posterior_predictive", members),
        ):
            if group in wanted:
                values = _predictive(source, x, draws, predictive_seed, bars)
                groups[group] = {"obs": (("chain", "draw", *obs_dims), values)}
        if "log_likelihood" in wanted:
            groups["log_likelihood"] = {"obs": (("chain", "draw", "row"), _log_likelihood(members, x, y, draws))}
        if "observed_data" in wanted:
            groups["observed_data"] = {"obs": (obs_dims, array(shown))}
        if "constant_data" in wanted:
            groups["constant_data"] = _constants(members, x, coords)
            if isinstance(y, Observed) and y.weights is not None:
                groups["constant_data"]["row_weights"] = (("row",), array(y.weights))
            if bars is not None:
                groups["constant_data"]["y_scale"] = (obs_dims, array(bars))
    return inference_data(
        {name: groups[name] for name in wanted}, coords, {**_attributes(bnn), "draw_seed": seed, **attrs}
    )


def array(value: Tensor) -> np.ndarray:
    """A tensor on the CPU, without its gradient."""
    return value.detach().cpu().numpy()


def _stack(members: Sequence[Member], name: str) -> np.ndarray:
    return np.stack([array(member.sites[name]) for member in members if member.sites is not None])


def _weights(members: Sequence[Member], layout: str, coords: _Coords) -> _Group:
    """Draws of all weights, and of the other latent sites."""
    bnn, sites = members[0].bnn, members[0].sites
    assert sites is not None
    free = [weight for weight in bnn.weights if weight.num_free]
    group: _Group = {}
    if layout == "flat":
        every = [member.bnn.free_weights(member.sites or {}) for member in members]
        parts = [np.stack([array(own[weight.name]).reshape(-1, weight.num_free) for own in every]) for weight in free]
        coords["weight"] = weight_labels(bnn)
        group["w"] = (("chain", "draw", "weight"), np.concatenate(parts, axis=-1))
    else:
        full = [member.bnn.assemble(member.sites or {}) for member in members]
        for tensor in bnn.topology.tensors:
            dims = _axes(bnn, tensor.name, coords)
            values = np.stack([array(weights[tensor.name]) for weights in full])
            group[tensor.name] = (("chain", "draw", *dims), values)
    for name in sorted(set(sites) - {weight.name for weight in free}):
        stacked = _stack(members, name)
        group[name] = (("chain", "draw", *(f"{name}_dim_{axis}" for axis in range(stacked.ndim - 2))), stacked)
    if hasattr(bnn.likelihood, "noise_scale") and bnn.likelihood.sampled:
        group["noise_scale"] = (("chain", "draw", "target"), np.stack([array(_noise(member)) for member in members]))
    return group


def weight_labels(bnn: BNN) -> list[str]:
    """Names of the stochastic weights in the order of the sample sites, such as `2.weight[3, 7]`.

    Example:
        >>> import pyro_sps as sps
        >>> from pyro_sps.diagnostics.groups import weight_labels
        >>> weight_labels(sps.BNN(sps.mlp([1, 2, 1]), scheme=sps.Unmasked()))[:4]
        ['0.weight[0, 0]', '0.weight[1, 0]', '0.bias[0]', '0.bias[1]']
    """
    return [
        f"{weight.name}[{', '.join(map(str, entry))}]"
        for weight in bnn.weights
        for entry in weight.mask.nonzero().tolist()
    ]


def _axes(bnn: BNN, name: str, coords: _Coords) -> tuple[str, ...]:
    """Dimensions of a weight tensor: the layers whose units its axes count one by one, else dimensions of its own."""
    topology, tensor = bnn.topology, bnn.topology[name]
    units = {place.axes[0]: place.unit for place in topology.places(tensor) if len(place.axes) == 1}
    dims: list[str] = []
    for axis, size in enumerate(tensor.shape):
        dim = f"{name}_axis_{axis}"  # positions of a kernel, gates, positions of channels one behind another
        if axis in units:
            group = int(np.searchsorted(topology.first, units[axis][0], side="right")) - 1
            if np.array_equal(units[axis], np.arange(topology.first[group], topology.first[group + 1])):
                dim = topology.groups[group].name.replace(" ", "_")
        dim = f"{dim}_from" if dim in dims else dim  # a layer that a residual connection joins with itself
        coords[dim] = np.arange(size)
        dims.append(dim)
    return tuple(dims)


def _sample_stats(chains: Sequence[Chain], draws: int, data: Data) -> _Group:
    stats = {name: np.stack([chain.stats[name] for chain in chains]) for name in chains[0].stats}
    stats["lp"] = np.stack([array(log_joint(chain.member, data, draws)) for chain in chains])
    if "lq" in stats:
        stats["elbo"] = stats["lp"] - stats["lq"]
    return {name: (("chain", "draw"), value) for name, value in stats.items()}


def _predictive(members: Sequence[Member], x: Tensor, draws: int, seed: int, y_scale: Tensor | None) -> np.ndarray:
    values = array(Prediction.of(members, x, draws * len(members), seed, y_scale).draws)
    return values.reshape(len(members), draws, *values.shape[1:])


def _log_likelihood(members: Sequence[Member], x: Tensor, y: Tensor | Observed, draws: int) -> np.ndarray:
    result = np.empty((len(members) * draws, len(x)))
    for rows, logs in Prediction.of(members, x, len(result), 0).log_likelihoods_by_rows(y):
        result[:, rows] = array(logs if logs.dim() == 2 else logs.sum(-1))
    return result.reshape(len(members), draws, len(x))


def _constants(members: Sequence[Member], x: Tensor, coords: _Coords) -> _Group:
    """Inputs, masks, and what each chain has fixed or estimated by a point."""
    bnn = members[0].bnn
    features = ("feature",) if x.dim() == 2 else tuple(f"feature_{axis}" for axis in range(x.dim() - 1))
    group: _Group = {"x": (("row", *features), array(x))}
    for weight in bnn.weights:
        if weight.num_free < weight.mask.numel():
            dims = _axes(bnn, weight.name, coords)
            fixed = np.stack([array(member.bnn.fixed[weight.name]) for member in members])
            group[f"{weight.name}.mask"] = (dims, array(weight.mask))
            group[f"{weight.name}.fixed"] = (("chain", *dims), fixed)
    scales = [member.bnn.constant_scale() for member in members]
    if all(scale is not None for scale in scales):
        learned = np.stack([array(scale) for scale in scales if scale is not None])
        group["learned_c"] = (("chain", "fixed_tensor")[: learned.ndim], learned)
        if learned.ndim == 2:
            coords["fixed_tensor"] = bnn.scaled
    if hasattr(bnn.likelihood, "noise_scale") and not bnn.likelihood.sampled:
        noise = np.stack([array(_noise(member)) for member in members])
        group["noise_scale"] = (("chain", "target"), noise)
    return group


def _noise(member: Member) -> Tensor:
    """Scale of the noise in original units, shape (targets,), or (draws, targets) where it is sampled."""
    scale: Any = member.bnn.likelihood.at(member.sites or {}).noise_scale
    scale = scale.detach() * member.standardizer.y_scale
    scale = scale.squeeze(-2) if scale.dim() > 1 else scale
    return scale.expand(*scale.shape[:-1], member.bnn.num_outputs)


def _attributes(bnn: BNN) -> dict[str, Any]:
    """How it was made, in text and numbers that netCDF can hold."""
    from datetime import UTC, datetime

    import pyro

    return {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "pyro_sps",
        "creation_library_version": __version__,
        "creation_library_language": "Python",
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "network": str(bnn.topology),
        "scheme": name_of(bnn.scheme, "given masks"),
        "values": name_of(bnn.values, "given values"),
        "likelihood": type(bnn.likelihood).__name__,
        "stochastic_weights": bnn.num_stochastic,
        "fixed_weights": bnn.num_fixed,
        "symmetry": str(bnn.symmetry(time_limit=_CERTIFICATE_SECONDS)),
    }


def name_of(rule: Any, otherwise: str) -> str:
    """A scheme or a rule for values in a few words."""
    text = repr(rule)
    # Masks and values that somebody gave, or that were loaded, are tensors: too much to be printed.
    return text if len(text) < 100 and "tensor" not in text and "0x" not in text else otherwise
