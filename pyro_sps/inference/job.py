"""A fit is prepared: data, model, starts, and the optimisation, ready to run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.observed import NO_EXTRAS, Extras, Observed
from ..data.trees import rows_of
from ..masks.values import MAP, Given
from ..model.bnn import BNN
from ..model.density import Params, Problem, elbo_terms, normal_prior, prepare, pyro_session, sum_terms
from ..model.guides import AutoSPSNormal
from .checkpoint import Checkpoint, Writer, digest_of, marks_of
from .distributed import ALONE, Processes, processes_of
from .effects import NEEDS_NORMAL_PRIORS
from .loop import Replica, Run, decaying_rates, pays_to_compile, replicas_at_once
from .maximum import free_entries, initial_params, map_weights, maximise_posterior
from .members import members_of, training_tensors
from .optimizers import ADAM, Optimizer, ivon
from .settings import LEARNING_RATES, FitSettings
from .snapshot import constants_of, has_map_values
from .validation import Check, validation_data
from .validation import tensors_of as tensors_of_checks
from .warm_start import constants_of_start, fits_of, params_of_start


@dataclass
class Job:
    """A fit that has been prepared: all that comes before the first step.

    Attributes:
        asked: What was asked for.
        members: The replicas.
        checks: Validation data of each, or nothing.
        guide: A guide of the first replica's model, whose layout all share.
        problem: That layout.
        own: Unconstrained parameters of the model itself.
        estimates: MAP weights of the replicas with nothing fixed, where these are what the constants are from.
        marks: What tells model and data from others, for checkpoints.
        writer: Where checkpoints go; None for no checkpoints.
        decay: Steps over which the learning rate decays; None for all.
        seconds: Wall time of each part.
        interrupted: What interrupted the search for MAP values.
        processes: Those that run it together.
    """

    asked: FitSettings
    members: list[Replica]
    checks: list[Check]
    guide: AutoSPSNormal
    problem: Problem
    own: Params
    estimates: list[Params]
    marks: dict[str, Any]
    writer: Writer | None
    decay: int | None
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: str = ""
    processes: Processes = ALONE

    @property
    def rows(self) -> int:
        """Rows of the data."""
        return self.members[0].rows

    @property
    def batch(self) -> int:
        """Rows that the network sees at once."""
        return self.asked.rows(self.rows)

    @property
    def num_data(self) -> int | None:
        """Size of the data set, where a step sees a part of it."""
        return None if self.batch == self.rows and self.processes.count == 1 else self.rows

    @property
    def num_draws(self) -> int:
        """Numbers of a step's noise that the masks of dropout take, for each particle."""
        return self.members[0].bnn.num_dropout_draws(self.members[0].x[: self.batch])

    def objective(self, params: Params, noise: Tensor, x: Tensor, y: Tensor | Observed, *constants: Tensor) -> Tensor:
        """Negative ELBO per row of the data set, the KL divergence times its weight."""
        return sum_terms(self._terms(params, F.softplus(params["rho"]), noise, x, y, *constants)) / self.rows

    def likelihood_objective(
        self, params: Params, noise: Tensor, x: Tensor, y: Tensor | Observed, *constants: Tensor
    ) -> Tensor:
        """The same at standard deviations in place of `rho`, without the gradient of the divergence."""
        terms = self._terms(params, params["rho"], noise, x, y, *constants)
        return sum_terms({**terms, "KL": terms["KL"].detach()}) / self.rows

    def _terms(
        self, params: Params, scale: Tensor, noise: Tensor, x: Tensor, y: Tensor | Observed, *constants: Tensor
    ) -> dict[str, Tensor]:
        mixed = torch.autocast(x.device.type, torch.bfloat16, self.asked.precision is not None, cache_enabled=False)
        bnn, draws = self.members[0].bnn, None
        if noise.shape[-1] > self.problem.size:
            noise, draws = noise.split([self.problem.size, noise.shape[-1] - self.problem.size], dim=-1)
        with bnn.constants_as(constants), bnn.dropping(draws), mixed:
            terms = elbo_terms(
                self.problem,
                params["loc"],
                scale,
                noise,
                (x, y),
                {"num_data": self.num_data},
                self.problem.constrain(params),
            )
        if self.asked.kl_weight != 1:
            terms = {name: term if name == "obs" else self.asked.kl_weight * term for name, term in terms.items()}
        return terms

    def optimizer(self) -> Optimizer:
        """The optimiser that was asked for."""
        if self.asked.optimizer == "adam":
            return ADAM
        first = self.members[0]
        data = rows_of((first.x, first.y), slice(self.batch))
        prior = normal_prior(self.problem, first.bnn.like, data, {"num_data": self.num_data})
        if prior is None:
            raise ValueError(NEEDS_NORMAL_PRIORS)
        return ivon(self.rows / self.asked.kl_weight, *prior)

    def start(self, init: str | Mapping[str, Any], index: int) -> Params:
        """Where a replica starts."""
        seed = self.asked.seed + index
        return initial_params(self.members[index], self.problem, self.own, init, self.asked.init_scale, seed)


def prepare_job(
    bnn: BNN,
    x: Any,
    y: Any,
    validation: Any,
    asked: FitSettings,
    found: Checkpoint | None,
    extras: Extras = NO_EXTRAS,
) -> Job:
    """Check everything, find MAP values where they are asked for, and lay out the problem."""
    started = time.perf_counter()
    keeps = asked.checkpoint is not None
    marks = marks_of(bnn) if keeps and isinstance(bnn, BNN) else {}
    if found is not None:
        found.require(marks)
    members = members_of(bnn, x, y, asked, found, extras)
    checks = validation_data(members, validation, asked.replicas is not None, asked.missing)
    processes = processes_of(members[0].x.device)
    if processes.count > 1:
        processes.require_same(_work_of(bnn, members, asked), members[0].bnn.like)
    writer = None
    if asked.checkpoint is not None:
        marks |= {"data": digest_of(training_tensors(members)), "validation": digest_of(tensors_of_checks(checks))}
        if found is not None:
            found.require(marks)
        # The result of one that has ended can be had without writing.
        if processes.first and (found is None or not found.ended):
            writer = Writer.open(asked.checkpoint, asked.checkpoint_every, asked.checkpoint_errors, found is None)
    first, seconds, estimates = members[0], {}, []
    broken: list[str] = []
    rows = first.rows
    batch = asked.rows(rows)
    if asked.accumulate * batch > rows:
        raise ValueError(
            f"accumulate={asked.accumulate} batches of {batch} rows are more than the {rows} rows of the data: use at "
            f"most {rows // batch}, or batch_size=None"
        )
    rule = first.bnn.values
    taken = constants_of_start(first.bnn, asked.start)
    if found is None and first.bnn.awaits_map and isinstance(rule, MAP) and not taken:
        begun = time.perf_counter()
        with _told_of_batches(batch, rows):
            estimates = map_weights(members, rule, batch, asked.seed, asked.progress, broken)
        seconds["map"] = time.perf_counter() - begun
    if found is not None and has_map_values(first.bnn):
        taken = [constants_of(member, found, index) for index, member in enumerate(members)]
    for member, own in zip(members, estimates or taken, strict=False):
        given = Given({tensor.name: own[tensor.name] for tensor in first.bnn.topology.tensors})
        member.bnn.hold(given(member.bnn.topology, member.bnn.masks))
    guide = AutoSPSNormal(first.bnn)
    num_data = None if batch == rows else rows
    with _told_of_batches(batch, rows):
        problem, own_params = prepare(first.bnn, guide, *rows_of((first.x, first.y), slice(batch)), num_data=num_data)
    job = Job(
        asked,
        members,
        checks,
        guide,
        problem,
        own_params,
        estimates,
        marks,
        writer,
        None if found is None else found.decay,
        seconds,
        f"{broken[0]} of the search for MAP values: its constants are not those yet" if broken else "",
        processes,
    )
    if keeps:
        noise = first.bnn.like.new_zeros((1, problem.size))
        with pyro_session(), torch.no_grad():
            marks["elbo"] = job.objective(
                job.start("random", 0), noise, *rows_of((first.x, first.y), slice(batch))
            ).item()
        if found is not None:
            found.require_elbo(marks["elbo"], torch.finfo(first.bnn.like.dtype).eps)
    seconds["prepare"] = time.perf_counter() - started - seconds.get("map", 0.0)
    return job


def _work_of(bnn: BNN, members: Sequence[Replica], asked: FitSettings) -> list[Any]:
    """What a fit is about, to be compared with what other processes are at."""
    settings = {name: value for name, value in asked.to_dict().items() if name not in ("progress", "device", "init")}
    data = [(tuple(x.shape), x.double().sum().item()) for x in training_tensors([*members])]
    return [settings, data, [[weight.name, weight.num_free] for weight in bnn.weights]]


@contextmanager
def _told_of_batches(batch: int, rows: int) -> Iterator[None]:
    """Say what a model that has something for each row of the data, such as a noise, cannot do."""
    try:
        yield
    except RuntimeError as error:
        if batch == rows or f"({batch})" not in str(error) or f"({rows})" not in str(error):
            raise
        raise ValueError(
            f"the model holds something for each of the {rows} rows, such as a noise, but a step sees {batch} of them, "
            f"and it does not learn which: use batch_size=None ({error})"
        ) from error


def starts_of(job: Job, found: Checkpoint | None) -> tuple[list[Params], str]:
    """Where the replicas start, and what interrupted the search for that."""
    begun, interrupted, asked = time.perf_counter(), job.interrupted, job.asked
    init = asked.init if found is None else "random"  # which a checkpoint replaces
    if init is None:
        init = "map" if has_map_values(job.members[0].bnn) else "random"
    if asked.start is not None:
        like, fits = job.members[0].bnn.like, fits_of(asked.start)
        return [params_of_start(fit, job.problem, job.own, like) for fit in fits], interrupted
    starts = [job.start(init, index) for index in range(len(job.members))]
    if init == "map":
        if job.estimates:  # whose fixed entries are the constants
            points = [free_entries(m, job.problem, own) for m, own in zip(job.members, job.estimates, strict=True)]
        else:
            points, interrupted = maximise_posterior(
                job.members,
                job.problem,
                starts,
                steps=asked.map_steps,
                rate=LEARNING_RATES["adam"] if asked.optimizer == "ivon" else asked.rate,
                batch=job.batch,
                seed=asked.seed,
                progress=asked.progress,
            )
        starts = [{**start, **point} for start, point in zip(starts, points, strict=True)]
        job.seconds["map"] = job.seconds.get("map", 0.0) + time.perf_counter() - begun
    return starts, interrupted


def run_of(job: Job, starts: list[Params], interrupted: str, ended: bool) -> Run:
    """The optimisation, ready to run."""
    asked, count, topology = job.asked, len(job.members), job.members[0].bnn.topology
    compile = asked.compile
    if compile is None:
        compile = pays_to_compile(asked.num_steps, count * asked.num_particles * job.batch, job.members[0].bnn)
    width = topology.width
    return Run(
        objective=job.objective if asked.optimizer == "adam" else job.likelihood_objective,
        members=job.members,
        starts=starts,
        num_steps=asked.num_steps,
        batch_size=asked.accumulate * job.batch,
        noise_shape=(asked.num_particles, job.problem.size + job.num_draws),
        seeds=[asked.seed + index for index in range(count)],
        rates=decaying_rates(
            asked.rate,
            asked.final_learning_rate,
            job.decay or asked.num_steps,
            asked.schedule,
            asked.warmup_steps,
        ),
        max_grad_norm=asked.max_grad_norm,
        compile=compile and not interrupted and not ended,
        progress=asked.progress,
        label="fit",
        group=replicas_at_once(count, asked.num_particles * job.batch * width, job.members[0].bnn.like.device),
        paused=interrupted,
        optimizer=job.optimizer(),
        accumulate=asked.accumulate,
        average_steps=asked.average_steps,
    )
