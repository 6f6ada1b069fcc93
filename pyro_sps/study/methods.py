"""What a run of a study does: fit a problem's splits by some method and predict the held-out rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arrays import make_generator
from ..inference.variational import fit
from ..masks.rigid import InputOffsets, Rigid
from ..masks.schemes import Heavy, Light, Random, Scheme, SymmetryWarning, Unmasked
from ..masks.values import MAP, Constant, Ladder, RandomConstant, Values, Zero
from ..model.bnn import BNN
from ..model.likelihoods import Gaussian
from ..network.build import mlp
from ..network.topology import Topology
from ..posterior.fit import Fit
from . import baselines
from .lowrank import LowRank, low_rank
from .problems import Problem
from .scores import Mixture, score

#: Steps, particles and rows a step of fits for which a table says nothing else.
BUDGET = {"num_steps": 10_000, "num_particles": 4, "batch_size": 128}

#: Draws of each estimate of a final ELBO.
ELBO_DRAWS = 64


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method found for one split.

    Attributes:
        mixture: Its prediction of the held-out rows.
        facts: Numbers besides the scores, such as the ELBO.
    """

    mixture: Mixture = field(repr=False)
    facts: Mapping[str, float]


class Residual(nn.Module):
    """A tanh network whose hidden layers after the first are added to the one before: h + tanh(W h + b).

    Args:
        widths: As for `pyro_sps.mlp`; all hidden layers must have the same width.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the last layer."""
        first, *middle, last = self.layers
        hidden = torch.tanh(first(x))
        for layer in middle:
            hidden = hidden + torch.tanh(layer(hidden))
        out: Tensor = last(hidden)
        return out


@dataclass(frozen=True)
class Wedge:
    """Fix a given share of every weight matrix, in the structure of the heavy scheme.

    Places are ordered by how far the one unit's rank, as a share of its layer, lies below the other's, counted from
    opposite ends on a layer's two sides as in `Heavy` (DESIGN 2.1). So a small share is a corner, half of all places
    the triangle, more leave a corner free.

    Args:
        fraction: Share of the entries of each weight matrix.
    """

    fraction: float

    def __call__(self, topology: Topology, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The masks; the generator is not used."""
        masks = topology.check_masks({})
        for position, tensor in enumerate(topology.matrices):
            rows, columns = ((torch.arange(size) + 0.5) / size for size in tensor.shape)
            ahead = rows.unsqueeze(1) - columns
            if position % 2:
                ahead = ahead.flip(0, 1)
            order = ahead.flatten().argsort(descending=True, stable=True)
            mask = torch.ones(tensor.numel, dtype=torch.bool)
            mask[order[: round(self.fraction * tensor.numel)]] = False
            masks[tensor.name] = mask.reshape(tensor.shape)
        return masks


def make_scheme(name: str, **options: Any) -> Scheme:
    """A scheme from its name in a table: `none`, `light`, `heavy`, `rigid`, `random`, `wedge`, `offsets`.

    Args:
        name: Of the scheme.
        **options: Of the scheme: `signs` and `strength`, `like` (a name) or `fraction`, `fraction`.

    Raises:
        ValueError: If the name is not known.
    """
    if name == "random":
        like = options.get("like")
        return Random(like=options["fraction"] if like is None else make_scheme(like))
    schemes: dict[str, Callable[..., Scheme]] = {
        "none": Unmasked,
        "light": Light,
        "heavy": Heavy,
        "rigid": Rigid,
        "wedge": Wedge,
        "offsets": InputOffsets,
    }
    if name not in schemes:
        raise ValueError(f"scheme must be one of {[*schemes, 'random']}, got {name!r}")
    return schemes[name](**options)


def make_values(name: str, scale: float = 1.0, learn: bool = False, **options: Any) -> Values:
    """Fixed values from their name in a table: `zero`, `constant`, `normal`, `ladder` or `map`.

    Raises:
        ValueError: If the name is not known.
    """
    if name == "zero":
        return Zero()
    if name == "map":
        return MAP(**options)
    rules: dict[str, Callable[..., Values]] = {"constant": Constant, "normal": RandomConstant, "ladder": Ladder}
    if name not in rules:
        raise ValueError(f"values must be one of {['zero', 'map', *rules]}, got {name!r}")
    return rules[name](scale, learn=learn, **options)


def partial_network(
    problem: Problem,
    *,
    seed: int = 0,
    progress: bool = True,
    scheme: str = "none",
    scheme_options: Mapping[str, Any] | None = None,
    values: str = "zero",
    value_options: Mapping[str, Any] | None = None,
    noise: float = 0.1,
    learn_noise: bool = False,
    prior_scale: float = 1.0,
    scale_by_fan_in: bool = False,
    ordered_biases: bool = False,
    residual: bool = False,
    members: int = 1,
    draws: int = 200,
    rank: int | None = None,
    **settings: Any,
) -> list[Outcome]:
    """Mean-field inference of a partially stochastic network by `pyro_sps.fit`: all splits as replicas of one program.

    With `rank`, a low-rank normal guide of Pyro's takes the place of the mean-field one.

    Args:
        problem: The data.
        seed: Seeds masks, signs, starts, noise and the order of the data.
        progress: Whether to show a progress bar.
        scheme: As in `make_scheme`.
        scheme_options: Likewise.
        values: As in `make_values`.
        value_options: Likewise.
        noise: Standard deviation of the noise, or where it starts.
        learn_noise: Whether it is learned with the ELBO.
        prior_scale: As in `BNN`.
        scale_by_fan_in: As in `BNN`.
        ordered_biases: As in `BNN`.
        residual: Whether the network is a `Residual` one.
        members: Number of independent fits a split whose posteriors are mixed. With more than one, the mean scores of
            single fits are facts.
        draws: Posterior draws of the prediction of a split.
        rank: Of Pyro's `AutoLowRankMultivariateNormal`, fitted by Pyro's `SVI` one split after the other, from where
            `pyro_sps.fit` would start.
        **settings: Of `pyro_sps.fit`, in place of `BUDGET`.
    """
    net = Residual(problem.widths) if residual else mlp(problem.widths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)  # that some leave symmetries is what is studied
        bnn = BNN(
            net,
            scheme=make_scheme(scheme, **(scheme_options or {})),
            values=make_values(values, **(value_options or {})),
            likelihood=Gaussian(noise, learn=learn_noise),
            prior_scale=prior_scale,
            scale_by_fan_in=scale_by_fan_in,
            ordered_biases=ordered_biases,
            seed=seed,
        )
    x, y = (part.repeat(members, 1, 1) for part in (problem.x, problem.y))
    budget = {**BUDGET, **settings}
    fits: Sequence[Fit | LowRank]
    if rank is None:
        fits = fit(bnn, x, y, replicas=len(x), seed=seed * 1000, progress=progress, **{"standardize": False, **budget})
    else:
        fits = low_rank(bnn, x, y, rank, seed=seed * 1000, progress=progress, **budget)
    left = fits[0].bnn.symmetry(time_limit=5.0)  # not that of `bnn`, which knows no MAP values yet
    counts: dict[str, float] = {"fixed": bnn.num_fixed}
    for name, report in (("permutations", left.permutations), ("symmetries", left.signed_permutations)):
        if report is not None and report.log10_after is not None:
            counts[f"log10_{name}"] = report.log10_after
    outcomes = []
    for split in range(problem.num_splits):
        own = fits[split :: problem.num_splits]
        parts = [_predict(one, problem.x_test[split], max(1, draws // members), seed, i) for i, one in enumerate(own)]
        mixture = Mixture(torch.cat([p.means for p in parts]), torch.cat([p.scales for p in parts]))
        facts = {**counts, "elbo": sum(one.elbo_draws(ELBO_DRAWS).mean().item() for one in own) / members}
        facts["noise"] = sum(_number(one.bnn.likelihood.noise_scale) for one in own) / members
        if members > 1:
            y_test = problem.y_test[split]
            alone = [score(part.first(len(y_test)), y_test) for part in parts]
            facts |= {f"single_{name}": sum(one[name] for one in alone) / members for name in ("rmse", "lpp")}
        scales = [scale.detach() for one in own if (scale := one.bnn.constant_scale()) is not None]
        if scales:
            mean = torch.stack(scales).mean(0)
            facts |= {"c": mean.item()} if mean.dim() == 0 else {f"c {i}": c for i, c in enumerate(mean.tolist(), 1)}
        outcomes.append(Outcome(mixture, facts))
    return outcomes


def _number(value: Any) -> float:
    return float(value.detach().mean())


def _predict(one: Fit | LowRank, x: Tensor, draws: int, seed: int, index: int) -> Mixture:
    """The network's outputs and the noise under draws of a fit."""
    bnn = one.bnn
    weights = bnn.assemble(one.guide.draws(draws, make_generator(x.device, seed, 5, index)))
    with torch.no_grad():
        # A few hundred rows at a time, since each row has an activation a unit and draw.
        means = torch.cat([bnn.function(weights, rows) for rows in x.split(512)], dim=1)
        noise = bnn.likelihood.noise_scale.to(means).reshape(1, 1, -1).expand(draws, 1, means.shape[-1])
    return Mixture(means, noise)


def _plain(method: Callable[..., list[Mixture]]) -> Callable[..., list[Outcome]]:
    def run(problem: Problem, **options: Any) -> list[Outcome]:
        return [Outcome(mixture, {}) for mixture in method(problem, **options)]

    return run


#: Methods by their names in tables.
METHODS: dict[str, Callable[..., list[Outcome]]] = {
    "partial": partial_network,
    "map": _plain(baselines.map_network),
    "ensemble": _plain(baselines.deep_ensemble),
    "dropout": _plain(baselines.mc_dropout),
    "laplace": _plain(baselines.last_layer_laplace),
    "nuts": _plain(baselines.nuts),
}
