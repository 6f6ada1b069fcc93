"""Sampling: from a `BNN` and data to draws of its posterior."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.plain import plain_torch
from ..base.process import warn_user
from ..data.observed import NO_EXTRAS, Extras
from ..data.opening import data_of
from ..model.bnn import BNN
from ..posterior.fit import Fit
from ..posterior.samples import Samples
from .chain_cluster import check_spread, draw_on_cluster, nuts_on_cluster
from .chain_snapshot import header_of, restore, tensors_of
from .chains import ChainRun
from .checkpoint import Checkpoint, environment
from .langevin import equal_times
from .loop import Callback, data_fields, pays_to_compile
from .nuts import run_nuts
from .sample_job import SampleJob, prepare_sampling
from .sample_settings import SampleSettings
from .starts import starting_points
from .warmup import LONGEST_WARMUP, stands_apart


@plain_torch()
def sample(
    bnn: BNN,
    x: Any,
    y: Any = None,
    *,
    kernel: str = SampleSettings.kernel,
    chains: int = SampleSettings.chains,
    num_samples: int = SampleSettings.num_samples,
    thinning: int | None = SampleSettings.thinning,
    warmup: int | None = SampleSettings.warmup,
    starts: str | Fit | Sequence[Fit] | Samples | Mapping[str, Tensor] = SampleSettings.starts,
    map_steps: int = SampleSettings.map_steps,
    energy_error: float | None = SampleSettings.energy_error,
    target_accept: float | None = SampleSettings.target_accept,
    max_tree_depth: int | None = SampleSettings.max_tree_depth,
    batch_size: int | None = SampleSettings.batch_size,
    standardize: bool = SampleSettings.standardize,
    weights: Any = None,
    y_scale: Any = None,
    missing: str = SampleSettings.missing,
    num_data: int | None = None,
    seed: int = SampleSettings.seed,
    device: torch.device | str | None = SampleSettings.device,
    progress: bool = SampleSettings.progress,
    callbacks: Sequence[Callback] = (),
    compile: bool | None = SampleSettings.compile,
    checkpoint: str | Path | None = SampleSettings.checkpoint,
    checkpoint_every: int = SampleSettings.checkpoint_every,
    checkpoint_errors: str = SampleSettings.checkpoint_errors,
    time_limit: float | None = SampleSettings.time_limit,
    scheduler: Any = None,
) -> Samples:
    """Draw from the posterior of a network by several Markov chains, which run as one program.

    Only the stochastic weights move. A noise that the likelihood learns is sampled with them, under the prior that the
    likelihood states (`Gaussian(learn=True, prior=...)`); a learned c is held at the value that `bnn` has. `bnn` is not
    changed. In the warm-up step sizes and one scale a tensor are tuned, and then the rule of each step is fixed. With
    `"mclmc"` on all rows that rule goes on shortening steps where the posterior is too narrow for the step size that
    was settled, and draws are picked such that each stands for the same time on a chain's way: where steps are short,
    fewer of them. What was chosen is in `Samples.tuning`.

    Args:
        bnn: The model. Constants of `values=MAP()` are sought first, once for all chains.
        x: Inputs, as in `fit`. Of data that is not in memory (`fit` says what that can be), which `mclmc` samples with
            `batch_size=`, 20,000 rows drawn at random stand for all in starts and warm-up.
        y: Targets, shape (rows, targets) or (rows,).
        kernel: `"mclmc"`: microcanonical Langevin dynamics (Robnik et al. 2023), unadjusted: fast in thousands of
            dimensions, with a bias that `energy_error` bounds. `"mams"`: the same with a Metropolis test (Robnik et al.
            2025), exact in the long run, at steps several times smaller. `"nuts"`: Pyro's no-U-turn sampler, one chain
            after another, for small networks; use float64.
        chains: Number of chains.
        num_samples: Draws that are kept of each chain: 4 bytes for each of them and of all stochastic weights.
        thinning: Steps (for `mams` and `nuts` trajectories) from one draw to the next; default: 40, 4 or 1.
        warmup: Steps (trajectories) before the first draw; default: 400 or 1,000, and for `mclmc` 2,000, which become
            up to 4,000 while the energies of three chains or more surely fall.
        starts: Where chains start. `"map"`: at early-stopped MAP networks, one a chain from random weights. `"prior"`:
            at draws of the prior. Fits: chain i at a draw of fit i, in turn. Earlier samples: at their last draws.
            Or values of the sample sites by name, of shape (chains, entries).
        map_steps: Steps of Adam of each MAP network.
        energy_error: For `mclmc`: mean square of a step's energy error that is aimed at, for each direction that data
            or prior make stiff; default 0.01, at which variances of draws are some ten percent too large;
            the bias falls as its cube root.
        target_accept: Acceptance probability that the step size aims at; default 0.9 for `mams`, 0.8 for `nuts`.
        max_tree_depth: For `nuts`: trajectories have at most 2 to this power leapfrog steps; default 10.
        batch_size: For `mclmc`: rows of each gradient after the warm-up, which sees all rows; None for all rows. The
            draws then are approximate. The warm-up measures the noise of such gradients: tensors are scaled such that
            it is alike in all of them, and steps are so short that it turns velocities half as much as the refreshment
            does, much shorter for small batches (Sommer et al. 2026).
        standardize: As in `fit`.
        weights: As in `fit`.
        y_scale: As in `fit`.
        missing: As in `fit`.
        num_data: As in `fit`.
        seed: Seeds everything.
        device: Where to sample; default: where `bnn` is.
        progress: Whether to show a progress bar (on a terminal).
        callbacks: Functions of (step, energies of the chains), called after every step; one that returns True stops.
        compile: Whether to compile the step with `torch.compile`; default: for runs long enough to gain from it.
        checkpoint: Directory for checkpoints, of this run alone, from which `pyro_sps.resume` goes on; None for none.
            Each holds all draws so far and four numbers a weight and chain.
        checkpoint_every: Steps between them.
        checkpoint_errors: As in `fit`.
        time_limit: Seconds after which it stops with the draws so far, starts included. The warm-up is cut to half of
            what is left after the starts.
        scheduler: Address of a dask scheduler (`"tcp://..."`), or a client, whose workers draw after the warm-up, some
            chains each (of `nuts`, which has no common warm-up, one chain each from its start). The draws are those of
            one process but for rounding, which chains amplify. Chains whose worker is killed are drawn again; those
            that failed for good are left out, with a warning. Default: all chains here, as one program.

    Returns:
        The draws. Ctrl-C ends it after the step at work, with the draws so far; before the first one it raises.

    Raises:
        TypeError: If `bnn` is no BNN, or `starts` of no known kind.
        ValueError: If an argument is out of range or does not fit the network, before any work.
        FileExistsError: If `checkpoint` holds the checkpoint of another run, before any work.
        OSError: If `checkpoint` cannot be written, before any work.
        MemoryError: If the draws would take more memory than the machine has, before any work.

    Warns:
        RuntimeWarning: If chains are stuck, stand apart from the others, or the time limit cut the warm-up.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero(), likelihood=sps.Gaussian(0.1, learn=True))
        >>> posterior = sps.sample(bnn, x, x**2, chains=3, num_samples=5, warmup=50, map_steps=50, progress=False)
        >>> posterior.samples["4.bias"].shape, posterior.predict(x).std.shape
        (torch.Size([3, 5, 1]), torch.Size([20, 1]))
    """
    given = locals()
    asked = SampleSettings(**{name: given[name] for name in SampleSettings.names()})
    x, y, extras, batch_size = data_of(x, y, Extras(weights, y_scale), num_data, batch_size, None)
    asked = replace(asked, batch_size=batch_size)
    if scheduler is not None:
        check_spread(asked, callbacks)
    return run_sample(bnn, x, y, callbacks, asked, extras=extras, scheduler=scheduler)


def run_sample(
    bnn: BNN,
    x: Any,
    y: Any,
    callbacks: Sequence[Callback],
    asked: SampleSettings,
    found: Checkpoint | None = None,
    extras: Extras = NO_EXTRAS,
    scheduler: Any = None,
) -> Samples:
    """Sample from the start, or from where a checkpoint was found.

    Args:
        bnn: The model.
        x: Inputs.
        y: Targets.
        callbacks: As in `sample`.
        asked: The other options.
        found: The checkpoint; None for a new run.
        extras: Weights and error bars of the rows.
        scheduler: As in `sample`.
    """
    if callbacks and asked.kernel == "nuts":
        raise ValueError("callbacks is of no use with kernel='nuts'")
    job = prepare_sampling(bnn, x, y, asked, found, extras)
    begun = time.perf_counter()
    if found is None:
        points = starting_points(
            job.coordinates, asked.starts, asked.chains, asked.map_steps, asked.seed, asked.progress
        )
        if not points.isfinite().all():
            raise FloatingPointError("the starting points are not finite; standardize the data, or use starts='prior'")
    else:
        like, shape = job.target.like, (asked.chains, job.coordinates.size)
        points = found.numbers.take("starts", like.dtype, shape).to(like)
    job.note("starts", begun)
    if asked.kernel == "nuts":
        return _by_nuts(job, points, scheduler)
    warmup, thinning = asked.steps
    rows = job.target.rows
    batch = rows if asked.batch_size is None else min(asked.batch_size, rows)
    compile = asked.compile
    begun = time.perf_counter()
    if compile is None:
        compile = pays_to_compile(warmup + asked.num_samples * thinning, asked.chains * batch, job.member.bnn)
    run = ChainRun(
        coordinates=job.coordinates,
        kernel=asked.kernel,
        starts=points,
        warmup=warmup,
        num_samples=asked.num_samples,
        thinning=thinning,
        batch_size=batch,
        target=asked.aim,
        seed=asked.seed,
        compile=compile,
        progress=asked.progress,
        stream=job.member.stream,
        most_warmup=round(LONGEST_WARMUP * warmup) if asked.warmup is None and asked.kernel == "mclmc" else 0,
    )
    if found is not None:
        job.seconds = {name: job.seconds.get(name, 0.0) + spent for name, spent in found.seconds.items()}
        restore(found, run)
        found.warn_of_environment({**environment(job.target.x), "steps": run.program.mode})

    def save() -> str:
        spent = {**job.seconds, "sample": job.seconds.get("sample", 0.0) + time.perf_counter() - begun}
        assert job.writer is not None
        return job.writer.write(
            run.done, header_of(run, asked.to_dict(), job.marks, spent), tensors_of(run, job.member)
        )

    deadline = math.inf if asked.time_limit is None else job.started + asked.time_limit
    run(callbacks, None if job.writer is None else save, asked.checkpoint_every, deadline, scheduler is not None)
    kept = None
    if scheduler is not None and not run.paused:
        kept = draw_on_cluster(run, scheduler, asked.progress)
    job.note("sample", begun)
    if run.drawn == 0:
        if run.paused.startswith("interrupted"):
            raise KeyboardInterrupt
        raise RuntimeError(f"there is no draw yet: {run.stopped or run.paused}")
    return _result(job, run, kept)


def _by_nuts(job: SampleJob, points: Tensor, scheduler: Any) -> Samples:
    asked, begun = job.asked, time.perf_counter()
    warmup, thinning = asked.steps
    depth = 10 if asked.max_tree_depth is None else asked.max_tree_depth
    options = (asked.num_samples * thinning, warmup, asked.aim, depth, asked.seed)
    if scheduler is None:
        found: Any = run_nuts(job.target, points, *options, asked.progress)
    else:
        kept, found = nuts_on_cluster(job.target, points, scheduler, asked.progress, *options)
        points = points[kept]
    draws, energies, divergences, rates, sizes = found
    job.note("sample", begun)
    failures = torch.zeros_like(energies)
    for index, chain in enumerate(divergences):
        failures[index, list(chain)] = 1.0
    rows = slice(thinning - 1, None, thinning)
    return Samples(
        bnn=job.member.bnn,
        samples=job.target.sites(draws[:, rows]),
        kernel="nuts",
        energies=energies[:, rows],
        errors=energies.new_zeros((0, 0)),
        failures=failures.unflatten(1, (-1, thinning)).amax(-1),
        acceptance_rates=rates,
        tuning={"step_size": sizes},
        restarted=[],
        standardizer=job.member.standardizer,
        seconds=job.seconds,
        settings=asked.to_dict(),
        mode="recorded",
        starts=job.target.sites(points),
        **data_fields(job.member),
        input_shape=tuple(job.member.x.shape[1:]),
        features=job.member.features,
        targets=job.member.targets,
    )


def _result(job: SampleJob, run: ChainRun, chains: list[int] | None) -> Samples:
    """The draws of a run that has ended; of some of its chains, where the others are lost."""
    rows = slice(run.drawn)
    names = [site.name for site in job.target.problem.sites]
    kept, times = 1 - run.failures[:, rows].mean(1), run.times[:, rows]
    chosen = equal_times(times)
    draws = torch.take_along_dim(run.draws[:, rows], chosen[..., None], 1)
    sizes = times.mean(1) / run.thinning if run.kernel == "mclmc" else run.tuning.step.flatten()
    result = Samples(
        bnn=job.member.bnn,
        samples=job.target.sites(draws),
        kernel=run.kernel,
        energies=run.energies[:, rows].gather(1, chosen),
        errors=run.errors[:, rows],
        failures=run.failures[:, rows],
        acceptance_rates=kept.tolist(),
        tuning={
            "step_size": sizes.tolist(),
            "largest_step": run.tuning.largest.flatten().tolist(),
            "trajectory": run.length,
            "scales": dict(zip(names, run.tuning.scale[:, : len(names)].T.tolist(), strict=True)),
        },
        restarted=run.restarted,
        standardizer=job.member.standardizer,
        seconds=job.seconds,
        settings=job.asked.to_dict() | {"warmup": run.warmup},
        stopped=run.stopped or run.paused,
        mode=run.program.mode,
        starts=job.target.sites(run.starts),
        **data_fields(job.member),
        input_shape=tuple(job.member.x.shape[1:]),
        features=job.member.features,
        targets=job.member.targets,
    )
    if chains is not None and len(chains) < result.num_chains:
        result = result.chain(*chains)
    for warning in findings(result, run.stiff):
        warn_user(warning, RuntimeWarning)
    return result


def findings(samples: Samples, stiff: int) -> list[str]:
    """What is wrong with chains, in words.

    Args:
        samples: The draws.
        stiff: Number of stiff directions, of which energies of one chain scatter.
    """
    found = []
    least = 0.5 if samples.kernel == "mclmc" else 0.2
    stuck = [chain for chain, rate in enumerate(samples.acceptance_rates) if rate < least]
    if stuck:
        found.append(
            f"chains {stuck} are stuck: fewer than {least:.0%} of their steps were kept. Give a longer warmup, "
            "standardize the data, or leave them out: samples.chain(...)"
        )
    apart = stands_apart(samples.energies.double().mean(1), math.sqrt(stiff / 2)).nonzero().flatten().tolist()
    if apart:
        found.append(
            f"the energies of chains {apart} are far above those of the others: they are somewhere else. They are part "
            "of the draws; samples.chain(...) leaves them out"
        )
    return found
