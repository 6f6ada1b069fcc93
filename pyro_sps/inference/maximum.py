"""Where fits start, and MAP estimates."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import transform_to

from ..data.arrays import make_generator
from ..data.observed import Observed
from ..data.trees import leaves, rows_of
from ..masks.values import MAP
from ..model.bnn import BNN
from ..model.density import Params, Problem, negative_log_joint, prepare
from ..model.guides import AutoSPSNormal
from ..model.likelihoods import Gaussian
from .loop import Replica, Run, decaying_rates, pays_to_compile, with_params
from .optimizers import State
from .step import Layout


def initial_params(
    member: Replica, problem: Problem, own: Params, init: str | Mapping[str, Tensor], init_scale: float, seed: int
) -> Params:
    """Unconstrained parameters of a replica at the start: the guide's and the model's own."""
    bnn = member.bnn
    generator = make_generator("cpu", seed, 3)
    # In double precision for values that are given, in single for the rest, whatever the default dtype is.
    loc = torch.zeros(problem.size, dtype=torch.float64)
    width = torch.ones(problem.size, dtype=torch.float32)
    tensors = {tensor.name: tensor for tensor in bnn.topology.tensors}
    starts = bnn.likelihood.starts()
    for site in problem.sites:
        tensor = tensors.get(site.name)  # other sites are hyperparameters
        unit = 1 / math.sqrt(tensor.fan_in) if tensor is not None and tensor.is_matrix else 1.0
        spread = unit if tensor is not None and tensor.is_matrix else 0.1
        value = spread * torch.randn(site.shape, generator=generator, dtype=torch.float32)
        if tensor is not None and tensor.is_scale:
            value = 1.0 + value
        if tensor is not None and site.support is not None:  # ordered biases
            value = site.unconstrain(value.sort(-1).values)
        loc[site.start : site.stop] = starts.get(site.name, value).flatten()
        width[site.start : site.stop] = unit
        if isinstance(init, Mapping):
            given = torch.as_tensor(init.get(site.name, torch.empty(0))).detach().cpu()
            if given.numel() != site.stop - site.start:
                raise ValueError(
                    f"init[{site.name!r}] must hold the site's {site.stop - site.start} free entries, "
                    f"got {given.numel()}"
                )
            value = given.reshape(site.shape)
            loc[site.start : site.stop] = site.unconstrain(value).flatten()
    like = bnn.like
    return {"loc": loc.to(like), "rho": _inverse_softplus(init_scale * width).to(like), **own}


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))


def _point(start: Params) -> Params:
    """What is optimised of a start: all but the scales of the guide."""
    return {name: value for name, value in start.items() if name != "rho"}


def maximise_posterior(
    members: list[Replica],
    problem: Problem,
    starts: list[Params],
    *,
    steps: int,
    rate: float,
    batch: int,
    seed: int,
    progress: bool,
    watcher: _Averaging | None = None,
    held: Collection[str] = (),
    constant_noise: bool = False,
) -> tuple[list[Params], str]:
    """MAP estimates of every replica: `loc` and the model's parameters; and what interrupted the optimisation.

    The `best` states of a watcher, if it has some, are the result. The parameters named in `held` are not optimised.
    With `constant_noise` a noise that may depend on the inputs has one scale, and the weights that would let it depend
    on them are zero (`BNN.noise_head`).
    """
    rows = members[0].rows
    plates = {"num_data": rows}

    bnn = members[0].bnn
    count = bnn.num_dropout_draws(members[0].x[:batch])
    still = noise_head(bnn, problem) if constant_noise else torch.zeros(problem.size, dtype=torch.bool)
    if held_still := bool(still.any()):
        starts = [{**start, "loc": torch.where(still, 0.0, start["loc"])} for start in starts]

    def objective(params: Params, noise: Tensor | None, x: Tensor, y: Tensor | Observed, *constants: Tensor) -> Tensor:
        params = {name: value.detach() if name in held else value for name, value in params.items()}
        loc = torch.where(still, params["loc"].detach(), params["loc"]) if held_still else params["loc"]
        with bnn.constants_as(constants), bnn.dropping(noise):
            return negative_log_joint(problem, loc, (x, y), plates, problem.constrain(params)) / rows

    with bnn.likelihood.constant_noise() if constant_noise else nullcontext():
        run = Run(
            objective=objective,
            members=members,
            starts=[_point(start) for start in starts],
            num_steps=steps,
            batch_size=batch,
            noise_shape=(1, count) if count else None,
            seeds=[seed + index for index in range(len(members))],
            rates=decaying_rates(rate, rate / 10, steps),
            max_grad_norm=1e3,
            compile=pays_to_compile(steps, len(members) * batch, members[0].bnn),
            progress=progress,
            label="MAP",
        )
        run((), watcher)
    if not np.isfinite(run.losses_so_far()[:, -1:]).all():
        raise FloatingPointError(
            "the loss of the MAP optimisation is not finite; standardize the data, or lower its learning rate: that of "
            "values=MAP(learning_rate=...), else fit's"
        )
    final = run.layout.unpack(run.state.params if watcher is None or watcher.best is None else watcher.best)
    return [{name: value[index] for name, value in final.items()} for index in range(len(members))], run.paused


def noise_head(bnn: BNN, problem: Problem) -> Tensor:
    """Which latent values do nothing but let the noise depend on the inputs, Boolean, shape (n,)."""
    still = torch.zeros(problem.size, dtype=torch.bool, device=bnn.like.device)
    head = bnn.noise_head()
    for site in problem.sites:
        if site.name in head:
            still[site.start : site.stop] = head[site.name]
    return still


def map_weights(
    members: list[Replica],
    rule: MAP,
    batch: int,
    seed: int,
    progress: bool,
    interrupted: list[str] | None = None,
    constant_noise: bool = True,
) -> list[Params]:
    """MAP estimates of the members' models without masks.

    Args:
        members: The replicas.
        rule: How they are looked for.
        batch: Rows of a step.
        seed: Seeds the starts.
        progress: Whether to show progress bars.
        interrupted: Gets what interrupted the search, whose estimates so far are returned then; None to raise.
        constant_noise: Whether noise that may depend on the inputs does not do so: a network would explain by noise
            what its means have not learned yet.

    Returns:
        For each member, by name: weight tensors, sites of hyperparameters, unconstrained parameters of the model.
    """
    free = [Replica(m.bnn.unmasked(), m.x, m.y, m.standardizer, stream=m.stream) for m in members]
    guide = AutoSPSNormal(free[0].bnn)

    def begin(data: list[Replica]) -> tuple[Problem, list[Params]]:
        first, rows = data[0], data[0].rows
        num_data = None if batch >= rows else rows
        problem, own = prepare(first.bnn, guide, *rows_of((first.x, first.y), slice(batch)), num_data=num_data)
        return problem, [initial_params(m, problem, own, "random", 1.0, seed + index) for index, m in enumerate(data)]

    def climb(
        data: list[Replica], problem: Problem, starts: list[Params], watcher: _Averaging, held: Collection[str]
    ) -> list[Params]:
        some = min(batch, data[0].rows)
        points, paused = maximise_posterior(
            data,
            problem,
            starts,
            steps=rule.num_steps,
            rate=rule.learning_rate,
            batch=some,
            seed=seed,
            progress=progress,
            watcher=watcher,
            held=held,
            constant_noise=constant_noise,
        )
        if paused and interrupted is None:  # a half-done optimisation would pass for an estimate
            raise KeyboardInterrupt
        if paused and interrupted is not None:
            interrupted.append(paused)
        return points

    count, last = int(rule.held_out * members[0].rows), rule.num_steps
    steps, noises = [last] * len(free), [Params() for _ in free]
    if count >= FEWEST_HELD_OUT and members[0].stream is None:  # of a stream no rows are fitted so often as to overfit
        kept, held_out = _apart(free, count)
        problem, starts = begin(kept)
        early = _EarlyStop(last, held_out, kept, problem, Layout.of(_point(starts[0])), rule.noise_share)
        points = climb(kept, problem, starts, early, early.held)
        steps, noises = early.steps, early.noises
    if not interrupted:
        problem, starts = begin(free)
        starts = [{**start, **noise} for start, noise in zip(starts, noises, strict=True)]
        points = climb(free, problem, starts, _StopAt(last, steps), noises[0].keys())
    estimates = []
    for point in points:
        sites = {site.name: site.constrain(site.view(point["loc"])) for site in problem.sites}
        own = {name: value for name, value in point.items() if name != "loc"}
        weights = {name: weight.clone() for name, weight in free[0].bnn.assemble(sites).items()}
        # Sites that are no weight tensors hold hyperparameters.
        estimates.append({name: value.detach() for name, value in (own | sites | weights).items()})
    return estimates


# Fewer rows than this say too little about when to stop.
FEWEST_HELD_OUT = 10


def _apart(members: list[Replica], count: int) -> tuple[list[Replica], list[tuple[Tensor, Tensor | Observed]]]:
    """The members without `count` of their rows, and these rows."""
    # The same places for all replicas, so that those that share their data go on doing so.
    order = torch.randperm(len(members[0].x), generator=make_generator("cpu", 0, 6)).to(members[0].x.device)
    of: dict[int, tuple[Any, ...]] = {}
    for m in members:
        if id(m.x) not in of:
            data = (m.x, m.y)
            of[id(m.x)] = (*rows_of(data, order[count:]), *rows_of(data, order[:count]))
    kept = [Replica(m.bnn, of[id(m.x)][0], of[id(m.x)][1], m.standardizer) for m in members]
    return kept, [(of[id(m.x)][2], of[id(m.x)][3]) for m in members]


# Steps between two looks at the rows that are held out, and between two weights that are averaged.
LOOK_EVERY, AVERAGE_EVERY = 50, 10


class _Averaging:
    """Averages the states of a run: minibatches make the weights scatter about where they are going.

    The mean is over the last sixth of the steps and at most 200 of them, with exponentially decaying weights.
    """

    every = AVERAGE_EVERY
    best: Tensor | None = None

    def __init__(self, last: int) -> None:
        self.last, self.seen, self.mean = last, 0, torch.empty(0)

    def __call__(self, step: int, state: State) -> str:
        decay = min(1 - AVERAGE_EVERY / 200, self.seen / (self.seen + 6))
        self.seen += 1
        self.mean = torch.lerp(state.params, self.mean, decay) if decay else state.params.clone()
        return self.look(step, state) if step % LOOK_EVERY == 0 or step == self.last else ""

    def look(self, step: int, state: State) -> str:
        """What to do now and then; why to stop, or nothing."""
        raise NotImplementedError


class _EarlyStop(_Averaging):
    """Notes for each replica at which step it predicts rows best that it is not fitted to.

    A Gaussian noise that is learned is learned from these rows, and held in between: learned with the weights it would
    be too small, since its rows are fitted, and a noise too small makes weights fit more of it. A network misses
    held-out rows by noise and by errors of its own: `share` says how much of the variance is noise.
    """

    def __init__(
        self,
        last: int,
        data: Sequence[tuple[Tensor, Tensor | Observed]],
        members: list[Replica],
        problem: Problem,
        layout: Layout,
        share: float,
    ) -> None:
        super().__init__(last)
        self.data, self.members, self.problem, self.layout, self.share = data, members, problem, layout, share
        self.lowest = [math.inf] * len(members)
        self.steps = [0] * len(members)
        self.noises = [Params() for _ in members]
        likelihood = members[0].bnn.likelihood
        # With error bars the errors of rows differ, so that they have no one variance to learn the noise from.
        bars = isinstance(members[0].y, Observed) and members[0].y.y_scale is not None
        learns = isinstance(likelihood, Gaussian) and likelihood.learn and not bars
        self.held = {name for name in layout.shapes if learns and name.endswith("likelihood.scale")}

    def look(self, step: int, state: State) -> str:
        """Score the mean weights and set the noise."""
        mean, now = self.layout.unpack(self.mean), self.layout.unpack(state.params)
        for index in range(len(self.members)):
            loss, noise = self._loss(index, {name: value[index] for name, value in mean.items()})
            for name, value in noise.items():
                now[name][index] = value  # a view into the state
            if loss < self.lowest[index]:
                self.lowest[index], self.steps[index], self.noises[index] = loss, step, noise
        return ""

    def _loss(self, index: int, own: Params) -> tuple[float, Params]:
        """Minus the mean log density of the held-out rows up to constants, at their own noise; what to hold that at."""
        bnn, (x, y) = self.members[index].bnn, self.data[index]
        likelihood = bnn.likelihood
        sites = {site.name: site.constrain(site.view(own["loc"])) for site in self.problem.sites}
        with torch.no_grad():
            outputs = bnn.function(bnn.assemble(sites), x)
            if self.held:
                over = None if likelihood.per_output is None else 0
                squared = _mean((outputs - leaves(y)[0]).square(), y, over)
                scale = (self.share * squared).sqrt().clamp_min(1e-6)
                noise = {
                    name: transform_to(self.problem.constraints[name]).inv(scale).to(own[name]) for name in self.held
                }
                return squared.log().mean().item(), noise
            # The model's own is what the next run starts from.
            likelihood = with_params(bnn.copy(), own).likelihood.at(sites)
            counts = y.counts if isinstance(y, Observed) else None
            log = likelihood.log_density(outputs, y)
            return -(log.mean() if counts is None else log.sum() / counts.sum()).item(), {}


def _mean(values: Tensor, y: Tensor | Observed, over: int | None) -> Tensor:
    """Mean of something of each target, over all or over rows, as often as each counts."""
    counts = y.counts if isinstance(y, Observed) else None
    return values.mean(over) if counts is None else (values * counts).sum(over) / counts.sum(over).clamp_min(1e-30)


class _StopAt(_Averaging):
    """Keeps the mean weights that each replica has at a step of its own."""

    def __init__(self, last: int, steps: Sequence[int]) -> None:
        super().__init__(last)
        self.steps = steps

    def look(self, step: int, state: State) -> str:
        """Keep the means of the replicas whose step it is."""
        self.best = self.mean.clone() if self.best is None else self.best
        for index, own in enumerate(self.steps):
            if own == step:
                self.best[index] = self.mean[index]
        return "" if step < max(self.steps) else "the last replica is at its best step"


def free_entries(member: Replica, problem: Problem, estimate: Params) -> Params:
    """Of an estimate of a network with nothing fixed, the start of one with fixed entries."""
    loc = member.bnn.like.new_zeros(problem.size)
    sites = {**estimate, **member.bnn.sites_of(estimate, estimate)}
    for site in problem.sites:
        value = sites[site.name].reshape(site.shape)
        loc[site.start : site.stop] = site.unconstrain(value).flatten()
    return {"loc": loc, **{name: estimate[name] for name in problem.constraints if name in estimate}}
