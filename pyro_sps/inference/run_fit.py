"""A fit that has been prepared is run, and its results are collected."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F

from ..base.process import warn_user
from ..data.observed import NO_EXTRAS, Extras
from ..data.trees import leaves, rows_of
from ..model.bnn import BNN
from ..model.density import elbo_terms, pyro_session
from ..posterior.fit import Fit, Fits, NonFiniteLossError, OptimizerState
from .checkpoint import Checkpoint, environment, plain
from .distributed import own_device
from .effects import check_effects
from .job import Job, prepare_job, run_of, starts_of
from .loop import Callback, Run, data_fields, with_params
from .settings import FitSettings
from .snapshot import restore, tensors_of
from .underfit import warn_of_underfit
from .validation import Validation, example_of, guide_with
from .warm_start import check_start, continue_optimiser, with_units


def run_fit(
    bnn: BNN,
    x: Any,
    y: Any,
    validation: Any,
    callbacks: Sequence[Callback],
    asked: FitSettings,
    found: Checkpoint | None = None,
    extras: Extras = NO_EXTRAS,
) -> Any:
    """Fit from the start, or from where a checkpoint was found.

    Args:
        bnn: The model.
        x: Inputs.
        y: Targets.
        validation: As in `fit`.
        callbacks: As in `fit`.
        asked: The other options.
        found: The checkpoint; None for a new fit.
        extras: Weights and error bars of the rows.

    Returns:
        A `Fit`, or with `replicas` a `Fits`.
    """
    check_effects(bnn, validation, callbacks, asked, found is not None)
    check_start(bnn, asked)
    asked = replace(with_units(bnn, asked), device=own_device(asked.device))
    job = prepare_job(bnn, x, y, validation, asked, found, extras)
    starts, interrupted = starts_of(job, found)
    begun = time.perf_counter()
    ended = found is not None and found.ended
    run = run_of(job, starts, interrupted, ended)
    continue_optimiser(run, job.members, asked)
    watcher = None
    if job.checks:
        watcher = Validation(job.checks, job.members, run.layout, job.guide, asked.validate_every, asked.patience)
    mode = run.step.mode
    if found is not None:
        restore(found, run, watcher)
        job.seconds = {**found.seconds, "prepare": job.seconds["prepare"] + found.seconds.get("prepare", 0.0)}
        if ended:
            mode = str(found.environment.get("steps"))
        else:
            found.warn_of_environment({**environment(job.members[0].x), "steps": mode})
    before = job.seconds.get("optimise", 0.0)
    told = asked.to_dict() | ({} if found is None else {n: found.settings.get(n) for n in ("init", "start")})

    def note_time() -> None:
        job.seconds["optimise"] = before + time.perf_counter() - begun

    def save() -> str:
        """Write a checkpoint; why to stop, if it cannot be written and that was asked for."""
        note_time()
        assert job.writer is not None
        return job.writer.write(run.done, _header(job, run, told, mode), tensors_of(run, watcher))

    # A start that was interrupted is not the one to go on from.
    keeps = job.writer is not None and not interrupted and not ended
    run(callbacks, watcher, save if keeps else None, asked.checkpoint_every)
    note_time()
    return results_of(job, run, watcher, told, mode)


def _header(job: Job, run: Run, told: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """What a checkpoint says beside its numbers."""
    return {
        "settings": {name: plain(value) for name, value in told.items()},
        "marks": job.marks,
        "done": run.done,
        "stopped": run.stopped,
        "environment": {**environment(job.members[0].x), "steps": mode},
        "seconds": job.seconds,
    } | {name: value for name, value in (("decay", job.decay), ("before", run.before)) if value}


def results_of(job: Job, run: Run, watcher: Validation | None, told: Mapping[str, Any], mode: str) -> Any:
    """The fits of a run that has ended."""
    losses = run.losses_so_far()
    best = None if watcher is None else watcher.best
    final = run.layout.unpack(run.state.params if best is None else best)
    if run.averaged:
        final["loc"] = run.average
    state, steps = run.state, run.before + run.done
    fits = Fits(
        Fit(
            bnn=with_params(member.bnn, {name: value[index] for name, value in final.items()}),
            guide=guide_with(job.guide, member, final["loc"][index], final["rho"][index]),
            losses=losses[index] * job.rows,
            standardizer=member.standardizer,
            seconds=job.seconds,
            settings={**told, "seed": job.asked.seed + index, "processes": job.processes.count},
            validation=watcher.history[index] if watcher else (),
            stopped=run.stopped or run.paused,
            mode=mode,
            **data_fields(member),
            input_shape=tuple(member.x.shape[1:]),
            features=member.features,
            targets=member.targets,
            optimizer=None if best is not None else OptimizerState(steps, state.first[index], state.second[index]),
        )
        for index, member in enumerate(job.members)
    )
    many = job.asked.replicas is not None
    _report_failures(fits, job, run, many)
    if not run.paused and 0 not in run.failed:
        held_out = example_of(job.checks[0]) if job.checks and fits[0].x is not None else None
        warn_of_underfit(fits[0], held_out)
    return fits if many else fits[0]


def _report_failures(fits: Fits, job: Job, run: Run, many: bool) -> None:
    """Raise for a single fit whose loss is not finite, warn for replicas."""
    if not run.failed:
        return
    if many:
        warn_of_failures(run.failed)
        return
    step = run.failed[0]
    site = _culprit(job, run, step)
    raise NonFiniteLossError(
        f"the loss is not finite at step {step}, in the term of site {site!r}. Try a lower learning_rate (now "
        f"{run.rates(step):.3g}), standardize=True, a larger noise scale, a smaller constant c, or dtype float64. "
        "The exception's attribute `fit` holds the last finite state.",
        fits[0],
        step,
        site,
    )


def warn_of_failures(failed: Mapping[int, int]) -> None:
    """Warn of replicas whose loss stopped being finite, each at some step."""
    steps = ", ".join(f"{replica} (at step {step})" for replica, step in sorted(failed.items()))
    warn_user(f"the loss of replicas {steps} stopped being finite; they hold their last finite states", RuntimeWarning)


def _culprit(job: Job, run: Run, step: int) -> str:
    """The term that is not finite: the failing step done once more, at the state that it left unchanged."""
    noise = next(run.arguments(step))[0]
    x, y = next(run.batches(step))
    if leaves(x)[0].dim() > leaves(run.members[0].x)[0].dim():
        x, y = rows_of(x, 0), rows_of(y, 0)
    params = {name: value[0] for name, value in run.layout.unpack(run.state.params).items()}
    assert noise is not None
    with pyro_session():
        terms = elbo_terms(
            job.problem,
            params["loc"],
            F.softplus(params["rho"]),
            noise[0],
            (x, y),
            {"num_data": job.num_data},
            job.problem.constrain(params),
        )
    return next((name for name, term in terms.items() if not term.isfinite()), "the gradient")
