"""Fits and Pyro's MCMC in the form that ArviZ works with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..base.checks import require_count
from ..base.files import plain_settings
from ..base.process import warn_user
from ..data.arrays import Standardizer
from ..model.bnn import BNN
from ..posterior.fit import Fit
from ..posterior.outputs import Member
from ..posterior.samples import Samples
from .density import Data, chain_seed, check_data, draw, training_data
from .groups import Chain, array, object_of
from .groups import weight_labels as weight_labels

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
    chains = [Chain(source.member, {"lq": source.log_guide.cpu().numpy()}) for source in sources]
    return object_of(chains, draws, wanted, layout, data, seed, attrs)


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
        Chain(
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
    return object_of(chains, draws, wanted, layout, data, seed, attrs)


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
        stats = {"energy": array(mcmc.energies)}
        if mcmc.errors.numel():
            stats["energy_error"] = array(mcmc.errors)
        if mcmc.kernel == "mams":
            return stats | {"acceptance_rate": 1 - array(mcmc.failures)}
        return stats | {"diverging": array(mcmc.failures) > 0}
    known = mcmc.diagnostics().get("divergences")
    if known is None:
        return {}
    diverging = np.zeros((num_chains, draws), dtype=bool)
    for index in range(num_chains):
        diverging[index, list(known[f"chain {index}"])] = True
    return {"diverging": diverging}
