"""The optimisation of all replicas of a fit: one step, again and again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..base.process import interrupts_deferred, warn_user
from ..base.terminal import progress_bar
from ..data.arrays import Standardizer, minibatches, noise_stream
from ..data.observed import Observed, fields_of
from ..data.trees import leaves, rebuilt, rows_of, stacked
from ..masks.values import MAP
from ..model.bnn import BNN
from ..model.density import Params
from ..model.streams import Stream
from .distributed import processes_of
from .optimizers import ADAM, Optimizer, State
from .step import Layout, Objective, Parts, Step, make_step

Callback = Callable[[int, "np.ndarray"], object]

# What compiling costs (4 to 10 s cold, 1 to 2 s from inductor's disk cache) and what it saves in a step: some time
# whatever the network, and some for each weight used, by benchmarks/step.py. The choice must not depend on how busy the
# machine is, or the same seed would give other roundings.
COMPILE_SECONDS, SAVED_A_STEP, SAVED_A_WEIGHT = 8.0, 0.9e-3, 5e-11


# Steps between two looks at the losses, by kind of device: looking waits for an accelerator. Nothing else in the loop
# does, but what is asked for: callbacks, validation, checkpoints.
LOOK_EVERY = {"cpu": 1}

# Steps between two times at which processes hear of each other whether to stop.
AGREE_EVERY = 50


@dataclass
class Replica:
    """One replica: its model, its data in the units of the network, and the names of the columns, if they have some.

    Where the data is read while it runs, `stream` has it, the same for all replicas, and `x` and `y` are an example.
    """

    bnn: BNN
    x: Tensor
    y: Tensor | Observed
    standardizer: Standardizer
    features: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    stream: Stream | None = None

    @property
    def rows(self) -> int:
        """Number of rows of the data."""
        return len(self.x) if self.stream is None else self.stream.num_rows


def data_fields(member: Replica) -> dict[str, Any]:
    """The fields of a result that say what it is of: the data, or where it is read from."""
    if member.stream is not None:
        return {"source": member.stream.source}
    return {"x": member.x, **fields_of(member.y)}


def with_params(bnn: BNN, params: Mapping[str, Tensor]) -> BNN:
    """The model with its own parameters set to unconstrained values."""
    own = {f"{name}_unconstrained": value for name, value in params.items()}
    with torch.no_grad():
        for name, parameter in bnn.named_parameters():
            if name in own:
                parameter.copy_(own[name])
            elif name in params:
                parameter.copy_(params[name])
    return bnn


def pays_to_compile(num_steps: int, network_runs: int, bnn: BNN) -> bool:
    """Whether a fit is long enough; `network_runs` is how often a step runs the network on a row."""
    saved = SAVED_A_STEP + SAVED_A_WEIGHT * network_runs * bnn.topology.num_weights
    return num_steps * saved >= COMPILE_SECONDS


# Activations of a layer, in elements, that replicas may have together. On a CPU, before they leave the cores' caches:
# beyond that they run faster one after the other (benchmarks/RESULTS.md). An accelerator is the faster the more it has
# to do at once (ten chains on 6,553 rows: 1.0 ms a step on an H200, in groups of one 3.3), until its memory is full:
# 0.3 GB a layer in float32.
ACTIVATIONS_AT_ONCE, ACTIVATIONS_ON_ACCELERATORS = 1 << 19, 1 << 26


def replicas_at_once(replicas: int, activations: int, device: torch.device | str = "cpu") -> int:
    """The largest divisor of `replicas` whose activations, so many elements a replica, stay within bounds."""
    bound = ACTIVATIONS_AT_ONCE if torch.device(device).type == "cpu" else ACTIVATIONS_ON_ACCELERATORS
    most = max(1, bound // activations)
    return max(size for size in range(1, replicas + 1) if replicas % size == 0 and size <= most)


# What is left of a learning rate at the end, where nothing else is asked for.
DECAYS = {"exponential": 0.3, "cosine": 0.01}


def decaying_rates(
    start: float, end: float | None, num_steps: int, schedule: str = "exponential", warmup_steps: int = 0
) -> Callable[[int], float]:
    """Decay from `start` to `end` over so many steps, and `end` after them; before it a rise in a straight line."""
    ratio = DECAYS[schedule] if end is None else end / start
    first, steps = warmup_steps, max(1, num_steps - 1 - warmup_steps)

    def rate(step: int) -> float:
        if step < first:
            return start * (step + 1) / (first + 1)
        done = min(1.0, (step - first) / steps)
        if schedule == "cosine":
            return start * (ratio + (1 - ratio) * (1 + math.cos(math.pi * done)) / 2)
        return start * ratio**done

    return rate


class Watcher(Protocol):
    """What looks at the state of a run now and then."""

    @property
    def every(self) -> int:
        """Steps between two looks."""

    def __call__(self, step: int, state: State) -> str:
        """Look after `step` steps; why to stop, or nothing."""


@dataclass
class Run:
    """An optimisation of all replicas; calling it runs it."""

    objective: Objective
    members: list[Replica]
    starts: list[Params]
    num_steps: int
    batch_size: int
    noise_shape: tuple[int, ...] | None
    seeds: list[int]
    rates: Callable[[int], float]
    max_grad_norm: float
    compile: bool
    progress: bool
    label: str
    group: int | None = None
    optimizer: Optimizer = ADAM
    accumulate: int = 1  # minibatches whose gradients are averaged in a step
    average_steps: int = 0  # last steps whose means are averaged
    averaged: int = 0  # of them, those that are in the average
    before: int = 0  # steps of the run that this one goes on from
    stopped: str = ""  # why it ended before its last step
    paused: str = ""  # why it ended here although there is more to do
    done: int = 0
    failed: dict[int, int] = field(default_factory=dict)  # replica -> step of its first loss that is not finite

    def __post_init__(self) -> None:
        self.layout = Layout.of(self.starts[0])
        self.processes = processes_of(self.starts[0]["loc"].device)
        self.state = self.optimizer.start(torch.stack([self.layout.pack(start) for start in self.starts]))
        self.average = torch.empty(0)
        if self.average_steps:
            self.average = torch.zeros_like(self.layout.unpack(self.state.params)["loc"])
        self.shared = all(member.x is self.members[0].x for member in self.members)
        self.stream = self.members[0].stream
        self.full = self.batch_size == self.members[0].rows and self.stream is None
        like = self.state.params
        # One number a step, all of them from the start: nothing grows while it runs.
        self.losses = like.new_zeros((self.num_steps, len(self.members)))
        # MAP values are each replica's own; all other constants are the same, and part of the program.
        weights = [member.bnn.weights for member in self.members if isinstance(member.bnn.values, MAP)]
        self.constants = [torch.stack([w.fixed for w in own]) for own in zip(*weights, strict=True)]
        if len(self.members) == 1:
            self.constants = []
        data_dim = None if self.shared and self.full else 0
        data = (self.members[0].x, self.members[0].y)
        count = len(leaves(data))

        def objective(params: Params, noise: Tensor | None, *tensors: Tensor) -> Tensor:
            return self.objective(params, noise, *rebuilt(data, tensors[:count]), *tensors[count:])

        parts = None
        if self.accumulate > 1 or self.processes.count > 1:
            parts = Parts(self.batch_size, self.accumulate, count, self.processes)
            self._check_shares()
        self.step: Step = make_step(
            objective,
            self.layout,
            (self.state, *self._example()),
            (None if self.noise_shape is None else 0, *[data_dim] * count, *(0 for _ in self.constants)),
            self.max_grad_norm,
            self.compile,
            self.group,
            self.optimizer,
            parts,
            self.label if self.progress and self.processes.first else "",
            self.num_steps,
        )
        if self.step.reason:
            warn_user(f"{self.label} runs without the fast path: {self.step.reason}", RuntimeWarning)

    def arguments(self, start: int = 0) -> Iterator[tuple[Any, ...]]:
        """Noise, the tensors of inputs and targets, and the replicas' own constants of each step from `start` on.

        Noise has shape (replicas, *noise_shape); data has a replica dimension unless all replicas see all of the same.
        """
        noise: Iterator[Tensor | None] = itertools.repeat(None)
        if self.noise_shape is not None:
            noise = noise_stream(self.seeds, self.noise_shape, self.state.params, self.before + start)
        return ((draw, *leaves(data), *self.constants) for draw, data in zip(noise, self.batches(start), strict=False))

    @property
    def _own(self) -> slice:
        """The rows of a step that this process has."""
        return slice(self.processes.rank, None, self.processes.count)

    def _check_shares(self) -> None:
        """Refuse batches of which not every process can have the same parts."""
        rows, count = self.batch_size // self.accumulate, self.processes.count
        if rows < count or (self.accumulate > 1 and rows % count):
            raise ValueError(
                f"each of {count} processes must have a row of every batch, and with accumulate as many as the others, "
                f"but a batch has {rows}: use a batch_size of a multiple of {count}"
            )

    def _example(self) -> tuple[Any, ...]:
        """The arguments of some step, of a stream without reading it."""
        if self.stream is None:
            return next(self.arguments())
        like, data = self.state.params, (self.members[0].x, self.members[0].y)
        rows = torch.arange(self.batch_size, device=like.device)[self._own].expand(len(self.members), -1) % len(data[0])
        noise = None if self.noise_shape is None else like.new_zeros((len(self.members), *self.noise_shape))
        return (noise, *leaves(rows_of(data, rows)), *self.constants)

    def batches(self, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """Inputs and targets of each step from `start` on, those of this process."""
        start += self.before
        if self.stream is not None:
            rank, count = self.processes.rank, self.processes.count
            yield from self.stream.batches(self.seeds, self.batch_size, start, rank, count)
        x, y = self.members[0].x, self.members[0].y
        if not self.shared:
            x, y = (stacked([getattr(member, name) for member in self.members]) for name in ("x", "y"))
        if self.full:
            own = self._own if self.shared else (slice(None), self._own)
            yield from itertools.repeat((x, y) if self.processes.count == 1 else (rows_of(x, own), rows_of(y, own)))
        device = self.state.params.device
        replicas = torch.arange(len(self.seeds), device=device).unsqueeze(1)
        for rows in minibatches(self.seeds, self.members[0].rows, self.batch_size, start, device):
            rows = rows[:, self._own]
            where = rows if self.shared else (replicas, rows)
            yield rows_of(x, where), rows_of(y, where)

    def __call__(
        self,
        callbacks: Sequence[Callback],
        watcher: Watcher | None,
        save: Callable[[], str] | None = None,
        save_every: int = 1,
    ) -> None:
        """Run from where it stands to the end, a stop, a pause or a failure of all replicas.

        Args:
            callbacks: Called after every step.
            watcher: Called now and then.
            save: Keeps what there is, before the first step, every `save_every` steps and at the end; returns why to
                pause, if there is a reason.
            save_every: Steps between two calls of it.
        """
        losses, rows, count = self.losses, self.members[0].rows, self.num_steps
        interval = LOOK_EVERY.get(losses.device.type, 50)
        scalars = self.optimizer.scalars([self.rates(step) for step in range(count)], self.state.params, self.before)
        arguments = self.arguments(self.done)
        bar = progress_bar(count, self.label, self.progress and self.processes.first, initial=self.done)
        self.processes.share(self.state.params, self.state.first, self.state.second)
        saved = -1

        def save_all() -> str:
            self.optimizer.settle(self.state)
            return save() if save is not None else ""

        try:
            with bar, interrupts_deferred() as interrupted:
                if save is not None and self.done == 0:
                    self.paused, saved = save_all() or self.paused, 0
                ends = bool(self.stopped or self.paused)
                while self.done < count and not ends:
                    losses[self.done] = self.step.run(self.state, scalars[self.done], *next(arguments))
                    self.done = done = self.done + 1
                    if done > count - self.average_steps:
                        self.averaged += 1
                        self.average.lerp_(self.layout.unpack(self.state.params)["loc"], 1 / self.averaged)
                    if done % interval == 0 or done == count:
                        self._look(losses[max(0, done - interval) : done], done)
                    if done % 50 == 0:
                        bar.update(done - bar.n)
                        if not bar.disable:
                            bar.set_postfix(ELBO=f"{-losses[done - 50 : done].mean().item() * rows:.1f}")
                    for callback in callbacks:
                        if callback(done - 1, losses[done - 1].cpu().double().numpy() * rows) is True:
                            self.stopped = f"a callback stopped it after step {done}"
                    looks = watcher is not None and (done % watcher.every == 0 or done == count)
                    if watcher is not None and looks:
                        self.optimizer.settle(self.state)
                        self.stopped = watcher(done, self.state) or self.stopped
                    if interrupted():
                        self.paused = f"interrupted after step {done}"
                    if save is not None and done % save_every == 0:
                        self.paused, saved = save_all() or self.paused, done
                    if self.processes.count > 1 and (callbacks or looks or done % AGREE_EVERY == 0):
                        self._agree(done)
                        ends = bool(self.stopped or self.paused)
                    # Of losses, which are sums over all processes, each knows by itself.
                    if self.processes.count == 1 or len(self.failed) == len(self.members):
                        ends = bool(self.stopped or self.paused)
                if save is not None and saved != self.done:
                    save_all()
                if interrupted() and not self.paused:  # since the last step: whoever pressed it should hear of it
                    self.paused = f"interrupted after step {self.done}"
        except KeyboardInterrupt:
            # Of a second Ctrl-C or a handler of somebody's, perhaps within a step: what it left is a result, but
            # nothing to go on from, so that the last checkpoint stays.
            self.paused = f"interrupted after step {self.done}"
        self.optimizer.settle(self.state)

    def losses_so_far(self) -> np.ndarray:
        """Losses of the steps done, shape (replicas, steps)."""
        return self.losses[: self.done].T.cpu().double().numpy()

    def _agree(self, done: int) -> None:
        """Stop or pause where another process does."""
        stopped, paused = self.processes.any([bool(self.stopped), bool(self.paused)], self.losses)
        if stopped and not self.stopped:
            self.stopped = f"another process stopped it after step {done}"
        if paused and not self.paused:
            self.paused = f"another process paused it after step {done}"

    def _look(self, recent: Tensor, done: int) -> None:
        # Cheaper than looking at each; the sum alone would cost a small network a hundredth of its step.
        if math.isfinite((recent if recent.numel() == 1 else recent.sum()).item()):
            return
        finite = recent.isfinite()
        for replica in range(recent.shape[1]):
            if replica not in self.failed and not finite[:, replica].all():
                self.failed[replica] = done - len(recent) + int((~finite[:, replica]).nonzero()[0])
        if len(self.failed) == recent.shape[1]:
            self.stopped = "the loss is not finite"
