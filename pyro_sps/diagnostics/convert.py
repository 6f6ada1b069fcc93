"""Fits and Pyro's MCMC in the form that ArviZ works with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..base.checks import require_count
from ..base.files import plain_settings
from ..base.process import warn_user
from ..data.arrays import Standardizer
from ..data.observed import Observed, shown_of
from ..model.bnn import BNN
from ..posterior.fit import Fit
from ..posterior.outputs import Member
from ..posterior.predict import Prediction
from ..posterior.samples import Samples
from ..version import __version__
from .density import Data, chain_seed, check_data, draw, log_joint, prior_draws, training_data
from .generations import Variable, inference_data

if TYPE_CHECKING:
    from pyro.infer import MCMC

GROUPS = (
    "posterior",
    "sample_stats",
    "prior",
    "prior_predictive",
    "posterior_predictive",
    "log_likelihood",
    "observed_data",
    "constant_data",
)
LAYOUTS = ("flat", "tensors")

#: Seconds after which the certificate in the attributes gives up.
_CERTIFICATE_SECONDS = 10.0


def to_arviz(
    fits: Fit | Sequence[Fit],
    draws: int = 1000,
    *,
    groups: Sequence[str] | None = None,
    layout: str = "flat",
    x: Any = None,
    y: Any = None,
    seed: int = 0,
) -> Any:
    """Fits as ArviZ's `InferenceData` (ArviZ 0.2x) or `DataTree` (ArviZ 1.x); every fit is a chain.

    Draw d of every group belongs to the same weights. Everything about data is in original units, also where the fit
    was standardised: `log_likelihood` and `lp` have the Jacobian of the scaling in them. A row of the data is one
    observation: its log likelihood is that of all its targets, times its weight (`row_weights`) where rows have
    weights; targets that were not measured are NaN and have none. With C chains, S draws, N rows, T targets and n
    stochastic weights, the groups take up, with 4 bytes a number for networks of single precision:

    - `posterior`, `prior`: `w` (C, S, n), 4·C·S·n bytes; with `layout="tensors"` fixed weights too; latent sites
      that are no weight tensors (hyperparameters) are variables of their own, and `noise_scale` (C, S, T) is what a
      sampled scale of the noise is in original units;
    - `posterior_predictive`, `prior_predictive`: `obs` (C, S, N, T), 4·C·S·N·T bytes;
    - `log_likelihood`: `obs` (C, S, N) in double precision, 8·C·S·N bytes;
    - `sample_stats`: `lp` log joint density, `lq` log density of the guide, `elbo` = lp - lq, whose mean over draws is
      the ELBO (in original units; `Fit.elbo` is in those of the network), each (C, S);
    - `observed_data`: `obs`; `constant_data`: inputs `x`, masks (`0.weight.mask`), and what each chain has fixed
      (`0.weight.fixed`, zero at stochastic entries) or estimated by a point: `learned_c` (C,), or one a weight tensor,
      and where there is one `noise_scale`.

    `groups=("posterior", "sample_stats", "log_likelihood")` is enough for `az.summary` and `az.loo`. Attributes say
    how it was made: versions, seeds, scheme, values, settings and the symmetry certificate.

    Args:
        fits: A fit, or several: replicas, or fits made one by one of networks with the same masks.
        draws: Posterior draws of each fit S.
        groups: Which groups to make; default: all, see `GROUPS`.
        layout: `"flat"`: the stochastic weights alone, as one variable `w` with a coordinate `weight` of labels such
            as `2.weight[3, 7]`. `"tensors"`: each weight tensor in its full shape, with a dimension for the units
            of each layer, in which fixed weights are constants (of which R-hat is NaN, or infinite where
            chains differ in them).
        x: The training inputs in original units, for fits that do not hold them (those loaded from a file). Fits on
            data that is read in pieces read it once more where it has at most 20,000 rows; of larger data give some
            rows, of which `lp` and `elbo` then are too.
        y: The training targets, likewise; nothing where `x` is a data set that has them.
        seed: Seeds the draws.

    Returns:
        An `arviz.InferenceData` or an `xarray.DataTree`.

    Raises:
        ValueError: If an argument is out of range, the fits have different networks, masks or data, or data is needed
            and there is none.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fits = sps.fit(bnn, x, x**2, num_steps=20, progress=False, replicas=2)
        >>> data = sps.to_arviz(fits, draws=50)
        >>> data.posterior["w"].dims, data.posterior["weight"].values[-1].item()
        (('chain', 'draw', 'weight'), '4.bias[0]')
        >>> data.log_likelihood["obs"].shape
        (2, 50, 20)
    """
    every = check_fits(fits)
    wanted = _check(draws, groups, layout)
    attrs = {
        "inference_library": "pyro_sps",
        "method": "mean-field variational inference (a chain is a fit, its draws are independent)",
        "fit_seeds": [int(fit.settings["seed"]) for fit in every],
        "settings": json.dumps([plain_settings(fit.settings) for fit in every]),
        "steps": [len(fit.losses) for fit in every],
        "stopped": json.dumps([fit.stopped for fit in every]),
        "sampling_time": float(sum(every[0].seconds.values())),
    }
    data = _data_for(wanted, every, x, y)
    sources = [draw(fit, draws, chain_seed(seed, index)) for index, fit in enumerate(every)]
    chains = [_Chain(source.member, {"lq": source.log_guide.cpu().numpy()}) for source in sources]
    return _convert(chains, draws, wanted, layout, data, seed, attrs)


def from_mcmc(
    mcmc: MCMC | Samples,
    bnn: BNN,
    x: Any,
    y: Any,
    *,
    groups: Sequence[str] | None = None,
    layout: str = "flat",
    standardizer: Standardizer | None = None,
    seed: int = 0,
) -> Any:
    """A finished run of Pyro's MCMC on a `BNN` as ArviZ's `InferenceData` or `DataTree`.

    The groups are those of `to_arviz`, with all of MCMC's draws and chains. `sample_stats` has `lp`, and `diverging`
    where the kernel knows it.

    Args:
        mcmc: After `mcmc.run(x, y)`, or what `sample` returned (whose standardizer is the default).
        bnn: The model that was run.
        x: Its inputs.
        y: Its targets.
        groups: Which groups to make; default: all.
        layout: As in `to_arviz`.
        standardizer: If the model was run on `standardizer.inputs(x)` and `standardizer.targets(y)`: what scaled
            them. `x` and `y` then are in original units, and so is all that comes out.
        seed: Seeds the prior and predictive draws.

    Returns:
        An `arviz.InferenceData` or an `xarray.DataTree`.

    Raises:
        ValueError: If the samples are not those of this network, or an argument is out of range.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro.infer import MCMC, NUTS
        >>> x = torch.linspace(-1, 1, 10).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 2, 1]), scheme=sps.Unmasked())
        >>> mcmc = MCMC(NUTS(bnn, max_tree_depth=2), num_samples=5, warmup_steps=2, disable_progbar=True)
        >>> mcmc.run(x, x**2)
        >>> sps.from_mcmc(mcmc, bnn, x, x**2).posterior["w"].shape
        (1, 5, 7)
    """
    if not isinstance(bnn, BNN):
        raise TypeError(f"bnn must be a pyro_sps.BNN, got {type(bnn).__name__}")
    data = _in_memory(check_data(bnn, x, y))
    return _from_mcmc(mcmc, bnn, data, _check(1, groups, layout), layout, standardizer, seed)


def _from_mcmc(
    mcmc: MCMC | Samples,
    bnn: BNN,
    data: Data | None,
    wanted: tuple[str, ...],
    layout: str,
    standardizer: Standardizer | None,
    seed: int,
) -> Any:
    samples = {name: value.detach() for name, value in mcmc.get_samples(group_by_chain=True).items()}
    for weight in bnn.weights:
        found = samples[weight.name].shape[2:] if weight.name in samples else None
        if weight.num_free and (found is None or found.numel() != weight.num_free):
            raise ValueError(
                f"mcmc must have samples of bnn's site {weight.name!r} with {weight.num_free} entries, got "
                f"{'none' if found is None else tuple(found)}"
            )
    num_chains, draws = next(iter(samples.values())).shape[:2]
    if isinstance(mcmc, Samples):
        standardizer = mcmc.standardizer if standardizer is None else standardizer
        method, tuning_steps = mcmc.kernel.upper(), mcmc.settings["warmup"]
    else:
        standardizer = Standardizer.identity(bnn.like) if standardizer is None else standardizer
        method, tuning_steps = type(mcmc.kernel).__name__, mcmc.warmup_steps
    stats = _statistics(mcmc, num_chains, draws)
    chains = [
        _Chain(
            Member(bnn, None, standardizer, {name: value[index] for name, value in samples.items()}),
            {name: value[index] for name, value in stats.items()},
        )
        for index in range(num_chains)
    ]
    library = "pyro_sps" if isinstance(mcmc, Samples) else "pyro"
    attrs = {"inference_library": library, "method": method, "tuning_steps": int(tuning_steps)}
    if isinstance(mcmc, Samples):
        attrs |= {"settings": json.dumps(plain_settings(mcmc.settings)), "stopped": mcmc.stopped}
        attrs |= {"sampling_time": float(sum(mcmc.seconds.values()))}
    return _convert(chains, draws, wanted, layout, data, seed, attrs)


def samples_to_arviz(
    samples: Samples,
    *,
    groups: Sequence[str] | None = None,
    layout: str = "flat",
    x: Any = None,
    y: Any = None,
    seed: int = 0,
) -> Any:
    """Draws of Markov chains as ArviZ's `InferenceData` or `DataTree`, with the groups of `to_arviz`.

    Args:
        samples: What `pyro_sps.sample` returned.
        groups: Which groups to make; default: all.
        layout: As in `to_arviz`.
        x: The training inputs in original units, for samples that were loaded from a file.
        y: The training targets, likewise.
        seed: Seeds the prior and predictive draws.

    Raises:
        ValueError: If an argument is out of range, or data is needed and there is none.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> posterior = sps.sample(bnn, x, x**2, chains=2, num_samples=5, warmup=50, map_steps=50, progress=False)
        >>> posterior.to_arviz().posterior["w"].dims
        ('chain', 'draw', 'weight')
    """
    wanted = _check(1, groups, layout)
    return _from_mcmc(samples, samples.bnn, _data_for(wanted, [samples], x, y), wanted, layout, None, seed)


def check_fits(fits: Any) -> list[Fit]:
    """One or several fits as a list of fits that have the same stochastic weights.

    Raises:
        TypeError: If something is no fit.
        ValueError: If there is none, or networks or masks differ.
    """
    every = [fits] if isinstance(fits, Fit) else list(fits)
    if not every:
        raise ValueError("fits must hold at least one fit, got none")
    for fit in every:
        if not isinstance(fit, Fit):
            raise TypeError(f"fits must be pyro_sps.Fit objects, got {type(fit).__name__}")
    first = every[0].bnn
    for index, fit in enumerate(every[1:], start=1):
        if fit.bnn.topology != first.topology:
            raise ValueError(f"fit {index} has another network than fit 0: {fit.bnn.topology}")
        for name, mask in fit.bnn.masks.items():
            if not torch.equal(mask, first.masks[name]):
                raise ValueError(
                    f"fit {index} has another mask of {name!r} than fit 0: chains must have the same stochastic "
                    "weights. Convert them one by one and use az.compare"
                )
    return every


# --- arguments -------------------------------------------------------------------------------------


def _check(draws: Any, groups: Sequence[str] | None, layout: str) -> tuple[str, ...]:
    require_count("draws", draws)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    wanted = GROUPS if groups is None else (groups,) if isinstance(groups, str) else tuple(groups)
    if unknown := [group for group in wanted if group not in GROUPS]:
        raise ValueError(f"groups must be among {', '.join(GROUPS)}, got {unknown}")
    if layout != LAYOUTS[0] and not {"posterior", "prior"} & set(wanted):
        warn_user("layout has no effect: it is for the groups posterior and prior")
    return tuple(group for group in GROUPS if group in wanted)


def _data_for(wanted: Sequence[str], fits: Sequence[Fit | Samples], x: Any, y: Any) -> Data | None:
    """The training data if some group needs it."""
    if set(wanted) - {"posterior", "prior"}:
        return _in_memory(training_data(fits, x, y))
    if x is not None or y is not None:
        warn_user(f"x and y have no effect: the groups {' and '.join(wanted)} need no data")
    return None


def _in_memory(data: Data) -> Data:
    """Refuse data of which not all rows can be looked at together.

    Raises:
        ValueError: If there are too many.
    """
    if data.whole is not None:
        raise ValueError(
            f"{data.whole.source.name} has {data.num_rows:,} rows, and most groups hold something of every row and "
            f"draw: give some rows as x and y, of which lp and elbo then are too, or groups=('posterior', 'prior'), "
            f"which need none. Up to {len(data.x):,} rows are read by themselves"
        )
    return data


def _statistics(mcmc: MCMC | Samples, num_chains: int, draws: int) -> dict[str, np.ndarray]:
    """What is known of each draw, shape (chains, draws): whether its trajectory diverged, and of our chains more."""
    if isinstance(mcmc, Samples):
        stats = {"energy": _array(mcmc.energies)}
        if mcmc.errors.numel():
            stats["energy_error"] = _array(mcmc.errors)
        if mcmc.kernel == "mams":
            return stats | {"acceptance_rate": 1 - _array(mcmc.failures)}
        return stats | {"diverging": _array(mcmc.failures) > 0}
    known = mcmc.diagnostics().get("divergences")
    if known is None:
        return {}
    diverging = np.zeros((num_chains, draws), dtype=bool)
    for index in range(num_chains):
        diverging[index, list(known[f"chain {index}"])] = True
    return {"diverging": diverging}


# --- groups ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chain:
    """Posterior draws of one fit or Markov chain, and what is known of each."""

    member: Member
    stats: Mapping[str, np.ndarray] = field(default_factory=dict)


_Group = dict[str, Variable]
_Coords = dict[str, Any]


def _convert(
    chains: Sequence[_Chain],
    draws: int,
    wanted: Sequence[str],
    layout: str,
    data: Data | None,
    seed: int,
    attrs: Mapping[str, Any],
) -> Any:
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
            groups["observed_data"] = {"obs": (obs_dims, _array(shown))}
        if "constant_data" in wanted:
            groups["constant_data"] = _constants(members, x, coords)
            if isinstance(y, Observed) and y.weights is not None:
                groups["constant_data"]["row_weights"] = (("row",), _array(y.weights))
            if bars is not None:
                groups["constant_data"]["y_scale"] = (obs_dims, _array(bars))
    return inference_data(
        {name: groups[name] for name in wanted}, coords, {**_attributes(bnn), "draw_seed": seed, **attrs}
    )


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _stack(members: Sequence[Member], name: str) -> np.ndarray:
    return np.stack([_array(member.sites[name]) for member in members if member.sites is not None])


def _weights(members: Sequence[Member], layout: str, coords: _Coords) -> _Group:
    """Draws of all weights, and of the other latent sites."""
    bnn, sites = members[0].bnn, members[0].sites
    assert sites is not None
    free = [weight for weight in bnn.weights if weight.num_free]
    group: _Group = {}
    if layout == "flat":
        every = [member.bnn.free_weights(member.sites or {}) for member in members]
        parts = [np.stack([_array(own[weight.name]).reshape(-1, weight.num_free) for own in every]) for weight in free]
        coords["weight"] = weight_labels(bnn)
        group["w"] = (("chain", "draw", "weight"), np.concatenate(parts, axis=-1))
    else:
        full = [member.bnn.assemble(member.sites or {}) for member in members]
        for tensor in bnn.topology.tensors:
            dims = _axes(bnn, tensor.name, coords)
            values = np.stack([_array(weights[tensor.name]) for weights in full])
            group[tensor.name] = (("chain", "draw", *dims), values)
    for name in sorted(set(sites) - {weight.name for weight in free}):
        stacked = _stack(members, name)
        group[name] = (("chain", "draw", *(f"{name}_dim_{axis}" for axis in range(stacked.ndim - 2))), stacked)
    if hasattr(bnn.likelihood, "noise_scale") and bnn.likelihood.sampled:
        group["noise_scale"] = (("chain", "draw", "target"), np.stack([_array(_noise(member)) for member in members]))
    return group


def weight_labels(bnn: BNN) -> list[str]:
    """Names of the stochastic weights in the order of the sample sites, such as `2.weight[3, 7]`.

    Example:
        >>> import pyro_sps as sps
        >>> from pyro_sps.diagnostics.convert import weight_labels
        >>> weight_labels(sps.BNN(sps.mlp([1, 2, 1]), scheme=sps.Unmasked()))[:4]
        ['0.weight[0, 0]', '0.weight[1, 0]', '0.bias[0]', '0.bias[1]']
    """
    return [
        f"{weight.name}[{', '.join(map(str, entry))}]"
        for weight in bnn.weights
        for entry in weight.mask.nonzero().tolist()
    ]


def _axes(bnn: BNN, name: str, coords: _Coords) -> tuple[str, ...]:
    """Dimensions of a weight tensor: the layers whose units its axes count."""
    dims: list[str] = []
    for group in (bnn.topology.groups[index] for index in bnn.topology[name].groups):
        dim = group.name.replace(" ", "_")
        dim = f"{dim}_from" if dim in dims else dim  # a layer that a residual connection joins with itself
        coords[dim] = np.arange(group.size)
        dims.append(dim)
    return tuple(dims)


def _sample_stats(chains: Sequence[_Chain], draws: int, data: Data) -> _Group:
    stats = {name: np.stack([chain.stats[name] for chain in chains]) for name in chains[0].stats}
    stats["lp"] = np.stack([_array(log_joint(chain.member, data, draws)) for chain in chains])
    if "lq" in stats:
        stats["elbo"] = stats["lp"] - stats["lq"]
    return {name: (("chain", "draw"), value) for name, value in stats.items()}


def _predictive(members: Sequence[Member], x: Tensor, draws: int, seed: int, y_scale: Tensor | None) -> np.ndarray:
    values = _array(Prediction.of(members, x, draws * len(members), seed, y_scale).draws)
    return values.reshape(len(members), draws, *values.shape[1:])


def _log_likelihood(members: Sequence[Member], x: Tensor, y: Tensor | Observed, draws: int) -> np.ndarray:
    result = np.empty((len(members) * draws, len(x)))
    for rows, logs in Prediction.of(members, x, len(result), 0).log_likelihoods_by_rows(y):
        result[:, rows] = _array(logs if logs.dim() == 2 else logs.sum(-1))
    return result.reshape(len(members), draws, len(x))


def _constants(members: Sequence[Member], x: Tensor, coords: _Coords) -> _Group:
    """Inputs, masks, and what each chain has fixed or estimated by a point."""
    bnn = members[0].bnn
    features = ("feature",) if x.dim() == 2 else tuple(f"feature_{axis}" for axis in range(x.dim() - 1))
    group: _Group = {"x": (("row", *features), _array(x))}
    for weight in bnn.weights:
        if weight.num_free < weight.mask.numel():
            dims = _axes(bnn, weight.name, coords)
            fixed = np.stack([_array(member.bnn.fixed[weight.name]) for member in members])
            group[f"{weight.name}.mask"] = (dims, _array(weight.mask))
            group[f"{weight.name}.fixed"] = (("chain", *dims), fixed)
    scales = [member.bnn.constant_scale() for member in members]
    if all(scale is not None for scale in scales):
        learned = np.stack([_array(scale) for scale in scales if scale is not None])
        group["learned_c"] = (("chain", "fixed_tensor")[: learned.ndim], learned)
        if learned.ndim == 2:
            coords["fixed_tensor"] = bnn.scaled
    if hasattr(bnn.likelihood, "noise_scale") and not bnn.likelihood.sampled:
        noise = np.stack([_array(_noise(member)) for member in members])
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
