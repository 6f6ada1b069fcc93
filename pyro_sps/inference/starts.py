"""Where chains start: at early-stopped MAP networks, at fits, at draws of earlier chains, at draws of the prior."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.arrays import Standardizer, make_generator
from ..data.observed import Observed
from ..data.trees import rows_of
from ..model.density import Params
from ..model.target import Target
from ..posterior.fit import Fit
from ..posterior.samples import Samples
from .coordinates import Coordinates
from .loop import Replica, Run, decaying_rates, pays_to_compile, replicas_at_once
from .maximum import noise_head
from .optimizers import State
from .snapshot import SCALING

# Adam's step size at the start, and the share of it at the end; rows of a step; steps between two looks at the rows
# that are held out, and the share of rows that is. Settled in shared measurements on the UCI tables.
RATE, FINAL_RATE, ROWS, LOOK_EVERY, HELD_OUT = 0.02, 0.001, 256, 50, 0.1

# With fewer rows than this none is held out.
FEWEST_ROWS = 10


def starting_points(
    coordinates: Coordinates, starts: Any, chains: int, map_steps: int, seed: int, progress: bool
) -> Tensor:
    """A point in unconstrained space for each chain, shape (chains, n).

    Args:
        coordinates: What chains move in.
        starts: What the user asked for, as `check_starts` let it pass.
        chains: Number of chains.
        map_steps: Steps of the optimisation, for `"map"`.
        seed: Seeds them.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If given values do not fit.
        KeyboardInterrupt: If the optimisation was interrupted.
    """
    target = coordinates.target
    if isinstance(starts, str) and starts == "prior":
        drawn = [target.prior_draws(1, make_generator("cpu", seed, 6, chain))[0] for chain in range(chains)]
        return torch.stack(drawn)
    if isinstance(starts, str):
        return map_points(coordinates, chains, map_steps, seed, progress)
    if isinstance(starts, Samples):
        last = {name: value[:, -1] for name, value in starts.samples.items()}
        return target.flat(last)[torch.arange(chains) % starts.num_chains].clone()
    if isinstance(starts, Mapping):
        learned = {name: value.expand(chains, -1) for name, value in target.bnn.likelihood.starts().items()}
        every = {**learned, **starts}
        if all(len(value) == chains for value in every.values()):
            given = target.flat(every)
        if any(len(value) != chains for value in every.values()) or given.shape != (chains, coordinates.size):
            raise ValueError(
                f"starts must have a row for each of {chains} chains, got shapes "
                f"{ {name: tuple(value.shape) for name, value in starts.items()} }"
            )
        return given
    fits = starts if isinstance(starts, Sequence) else [starts]
    points = []
    for chain in range(chains):
        fit = fits[chain % len(fits)]
        drawn = fit.guide.draws(1, make_generator(fit.guide.loc.device, seed, 6, chain))
        likelihood = copy.copy(fit.bnn.likelihood)
        likelihood.sampled = target.bnn.likelihood.sampled
        learned = {name: value.unsqueeze(0) for name, value in likelihood.starts().items()}  # parameters of the fit
        points.append(target.flat({**learned, **drawn})[0])
    return torch.stack(points)


def check_units(starts: Any, units: Standardizer) -> None:
    """Raise for fits or samples whose weights belong to data that was standardised otherwise.

    Raises:
        ValueError: If there is one.
    """
    sources = [starts] if isinstance(starts, Fit | Samples) else starts
    for source in sources if isinstance(sources, Sequence) and not isinstance(sources, str) else ():
        for name in SCALING:
            own, other = getattr(units, name), getattr(source.standardizer, name).to(units.x_mean)
            if own.shape != other.shape or not torch.allclose(own, other, rtol=1e-4, atol=1e-6):
                raise ValueError(
                    f"starts were standardised otherwise: their {name} is {other.flatten()[:5].tolist()}, that of the "
                    f"data {own.flatten()[:5].tolist()}; give the same data and standardize="
                )


def check_starts(starts: Any) -> None:
    """Raise for starts of a kind that is not known, before any work.

    Raises:
        TypeError: If it is none of the kinds.
        ValueError: If it is an unknown word or an empty list.
    """
    if isinstance(starts, str):
        if starts not in ("map", "prior"):
            raise ValueError(f"starts must be 'map', 'prior', fits, samples or values by site, got {starts!r}")
        return
    if isinstance(starts, Samples | Fit | Mapping):
        return
    if not isinstance(starts, Sequence):
        raise TypeError(f"starts must be 'map', 'prior', fits, samples or values by site, got {type(starts).__name__}")
    if not starts:
        raise ValueError("starts must hold at least one fit, got none")
    for fit in starts:
        if not isinstance(fit, Fit):
            raise TypeError(f"starts must hold fits, got {type(fit).__name__}")


def map_points(coordinates: Coordinates, chains: int, steps: int, seed: int, progress: bool) -> Tensor:
    """Early-stopped MAP estimates of all that is sampled, from a random network for each chain.

    Adam climbs the density in unconstrained space; of what it passes, the state that predicts best a tenth of the
    rows held out is where a chain starts. With a noise that depends on the inputs, that is off meanwhile: a network
    would explain by noise what its means have not learned yet.

    Args:
        coordinates: What chains move in.
        chains: Number of chains.
        steps: Steps of Adam.
        seed: Seeds them.
        progress: Whether to show a progress bar.

    Returns:
        Shape (chains, n).
    """
    target = coordinates.target
    bnn, rows = target.bnn, len(target.x)
    order = torch.randperm(rows, generator=make_generator("cpu", seed, 25)).to(target.x.device)
    held = max(2, int(HELD_OUT * rows)) if rows >= FEWEST_ROWS else 0
    x, y = rows_of((target.x, target.y), order[held:])
    check = rows_of((target.x, target.y), order[:held]) if held else (x, y)
    batch = min(ROWS, len(x))
    num_data = target.num_data or (None if batch == len(x) else len(x))
    still = noise_head(bnn, target.problem)
    held_still = bool(still.any())

    def objective(params: Params, noise: None, x: Tensor, y: Tensor | Observed, *constants: Tensor) -> Tensor:
        loc = torch.where(still, params["loc"].detach(), params["loc"]) if held_still else params["loc"]
        return target.energy_on(loc, x, y, num_data) / target.rows

    begins = [_random_point(coordinates, seed, chain) for chain in range(chains)]
    width = max(group.size for group in bnn.topology.groups)
    member = Replica(bnn, x, y, Standardizer.identity(bnn.like))
    with bnn.likelihood.constant_noise():
        run = Run(
            objective=objective,
            members=[member] * chains,
            starts=[{"loc": torch.where(still, 0.0, begin)} for begin in begins],
            num_steps=steps,
            batch_size=batch,
            noise_shape=None,
            seeds=[make_generator("cpu", seed, 26, chain).initial_seed() for chain in range(chains)],
            rates=decaying_rates(RATE, FINAL_RATE, steps),
            max_grad_norm=1e3,
            compile=pays_to_compile(steps, chains * batch, bnn),
            progress=progress,
            label="MAP",
            group=replicas_at_once(chains, batch * width, x.device),
        )
        watcher = _BestHeldOut(target, check[0], check[1], run.state.params)
        run((), watcher)
    if run.paused:  # chains from half-way would not start where they should
        raise KeyboardInterrupt
    return watcher.best


class _BestHeldOut:
    """Keeps of each replica the state that predicts some rows best."""

    every = LOOK_EVERY

    def __init__(self, target: Target, x: Tensor, y: Tensor | Observed, params: Tensor) -> None:
        self.target, self.x, self.y = target, x, y
        self.best = params.clone()
        self.highest = params.new_full((len(params),), -math.inf)

    def __call__(self, step: int, state: State) -> str:
        score = self.target.log_likelihoods(state.params, self.x, self.y).mean(-1)
        better = score > self.highest  # never for NaN
        self.highest = torch.where(better, score, self.highest)
        self.best[better] = state.params[better]
        return ""


def _random_point(coordinates: Coordinates, seed: int, chain: int) -> Tensor:
    """A random network, with hyperparameters near the middle of their priors."""
    target = coordinates.target
    bnn = target.bnn
    generator = make_generator("cpu", seed, 3, chain)
    tensors = {tensor.name: tensor for tensor in bnn.topology.tensors}
    given = bnn.likelihood.starts()
    point = torch.zeros(coordinates.size)
    for index, site in enumerate(target.problem.sites):
        noise = torch.randn(site.shape, generator=generator).flatten()
        prior, centre = coordinates.spread[index].item(), coordinates.centre[index].item()
        tensor = tensors.get(site.name)
        if tensor is None:
            value = centre + 0.1 * prior * noise
        elif site.support is not None:  # ordered biases
            value = site.unconstrain(0.3 * noise.reshape(site.shape).sort(-1).values).flatten()
        elif tensor.is_matrix:
            hidden = bnn.topology.hidden
            beside = hidden and not set(tensor.groups) & set(hidden)  # a linear path
            value = min(prior, 1 / math.sqrt(tensor.fan_in)) * noise * (0.1 if beside else 1.0)
        else:
            value = min(prior, 0.3) * noise
        point[site.start : site.stop] = given[site.name].cpu().flatten() if site.name in given else value
    return point.to(target.like)
