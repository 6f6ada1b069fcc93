"""All chains of a sampler as one batched program, from their starts to their last draws."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.process import interrupts_deferred, warn_user
from ..base.terminal import progress_bar
from ..data.arrays import make_generator, minibatches, noise_stream
from ..data.trees import leaves, rebuilt, rows_of
from ..model.density import pyro_session
from ..model.streams import Stream
from .coordinates import Coordinates
from .langevin import (
    LOOK_AT_GRADIENTS,
    WORST_ERROR,
    Chains,
    Tuning,
    follow_acceptance,
    follow_error,
    leapfrog,
    longest_step,
    noise_of,
    unadjusted,
)
from .loop import Callback, replicas_at_once
from .program import Program, make_program
from .warmup import after_step, cut_short

# What a run keeps of each draw, by name of the attribute.
KEPT = ("draws", "energies", "errors", "failures", "times")


@dataclass
class ChainRun:
    """A run of all chains; calling it runs it.

    A step is one of `mclmc`, or one trajectory of `mams`. A chain's noise depends on its own seed alone; the scales of
    tensors, and the length of trajectories, are common to all chains.

    Attributes:
        coordinates: The vector that chains move in.
        kernel: `mclmc` or `mams`.
        starts: Positions, shape (K, n).
        warmup: Steps before the first draw, in which it is tuned.
        most_warmup: What that may grow to while energies fall; not at all if it is no more.
        num_samples: Draws of each chain.
        thinning: Steps from one draw to the next.
        batch_size: Rows of a step's gradient after the warm-up.
        target: Of the tuning: mean square energy error per stiff direction, or share of accepted trajectories.
        seed: Seeds all chains: chain c has the seeds of (seed, c).
        compile: Whether to compile the step.
        progress: Whether to show a bar.
        stream: Where minibatches come from, if the target has some rows only; None for the target's rows.
        numbers: Of the chains, if they are some of those of a run, whose warm-up is over; None for all.
    """

    coordinates: Coordinates
    kernel: str
    starts: Tensor
    warmup: int
    num_samples: int
    thinning: int
    batch_size: int
    target: float
    seed: int
    compile: bool
    progress: bool
    stream: Stream | None = None
    most_warmup: int = 0
    numbers: Sequence[int] | None = None
    done: int = 0
    drawn: int = 0
    length: int = 1
    stopped: str = ""
    paused: str = ""
    restarted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        coordinates, target = self.coordinates, self.coordinates.target
        like, rows = self.starts, target.rows
        count, dimensions = len(self.starts), coordinates.dimensions
        numbers = range(count) if self.numbers is None else self.numbers
        self.seeds = [make_generator("cpu", self.seed, 21, chain).initial_seed() for chain in numbers]
        outputs = target.bnn.likelihood.num_targets(target.bnn.num_outputs)
        if target.bnn.likelihood.event_dim == 0:
            outputs = target.bnn.num_outputs
        self.stiff = min(dimensions, rows * outputs)
        self.full = self.batch_size >= rows and self.stream is None
        padding = noise_block(self.seeds, (dimensions - coordinates.size,), like, 22)
        position = torch.cat([self.starts, padding], 1)
        self.first_step = 0.002 * math.sqrt(dimensions)
        self.tuning = Tuning.start(coordinates.spread.expand(count, -1), self.first_step)
        width = max(group.size for group in target.bnn.topology.groups)
        self.group = replicas_at_once(count, min(self.batch_size, rows) * width, like.device)
        self.draws = like.new_zeros((count, self.num_samples, coordinates.size))
        self.energies = like.new_zeros((count, self.num_samples))
        self.errors = torch.zeros_like(self.energies)  # mean of what it says since the draw before
        self.failures = torch.zeros_like(self.energies)
        self.times = torch.zeros_like(self.energies)  # since the draw before
        self.recent = torch.zeros((3, count), dtype=like.dtype, device=like.device)
        self.early = like.new_zeros((count, 2))  # failures and energy, for the judgement in the warm-up
        self.late = like.new_zeros((count, 2))  # energy in the last two windows of the warm-up
        self.window = max(1, self.warmup // 4)
        gradient, energy = self.evaluate(position)
        self.chains = Chains(position, self._velocities(), gradient, energy)
        self.noise = self._noise(0)
        self.program = self._make(full=True)
        if self.program.reason:
            warn_user(f"sampling runs without the fast path: {self.program.reason}", RuntimeWarning)

    # --- programs ---------------------------------------------------------------------------------

    def evaluate(self, position: Tensor, batch: tuple[Any, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Gradients and energies of all chains, once; on a minibatch where one is given."""
        target = self.coordinates.target
        function = self.coordinates.gradient(target.num_data if batch is None else target.rows)
        x, y = (target.x, target.y) if batch is None else batch
        with pyro_session():
            parts = [function(part, x, y) for part in position.split(self.group)]
        gradients, energies = zip(*parts, strict=True)
        return torch.cat(gradients).detach(), torch.cat(energies).detach()

    def _make(self, full: bool) -> Program:
        """The step on all rows, or on minibatches."""
        target = self.coordinates.target
        gradient = self.coordinates.gradient(target.num_data if full else target.rows)
        if self.kernel == "mclmc":
            limit = WORST_ERROR * math.sqrt(self.stiff)
            length = math.sqrt(self.coordinates.dimensions)
            step = unadjusted(gradient, limit, length) if full else unadjusted(gradient, math.inf, length)
        else:

            def step(*args: Any) -> tuple[Tensor, ...]:
                return leapfrog(gradient, *args)

        data = (target.x, target.y)
        count = len(leaves(data))

        def on_tensors(*args: Tensor) -> tuple[Tensor, ...]:
            return step(*args[:-count], *rebuilt(data, args[-count:]))

        some = data if full else rows_of(data, slice(self.batch_size))
        example = [*(tensor[: self.group] for tensor in self._state()), *leaves(some)]
        program = make_program(on_tensors, tuple(example), self.compile, self.kernel if self.progress else "")
        group = self.group

        def run(*args: Any) -> tuple[Tensor, ...]:
            state, data = args[:-2], leaves(args[-2:])
            if len(state[0]) == group:
                result: tuple[Tensor, ...] = program.run(*state, *data)
                return result
            parts = [program.run(*part, *data) for part in zip(*(one.split(group) for one in state), strict=True)]
            return tuple(torch.cat(one) for one in zip(*parts, strict=True))

        return Program(run, program.mode, program.reason)

    def _state(self) -> list[Tensor]:
        """Arguments of a step before the data."""
        scale = self.tuning.scale[:, self.coordinates.blocks]
        state = [*self.chains.tensors(), self.tuning.step, scale]
        if self.kernel == "mclmc":
            state.append(next(self._noise(0)))
        return state

    # --- randomness -------------------------------------------------------------------------------

    def _noise(self, start: int) -> Iterator[Tensor]:
        """Standard normals of each step from `start` on: (K, d), for `mams` (K, d + 1) with one for the test."""
        return noise_stream(self.seeds, (self.coordinates.dimensions + (self.kernel == "mams"),), self.starts, start)

    def _velocities(self) -> Tensor:
        velocity = noise_block(self.seeds, (self.coordinates.dimensions,), self.starts, 23)
        return velocity / velocity.norm(dim=1, keepdim=True)

    def _batches(self, start: int) -> Iterator[tuple[Any, Any]]:
        """Rows of each step after the warm-up, the same for all chains."""
        if self.stream is not None:
            yield from (rows_of(data, 0) for data in self.stream.batches([self.seed], self.batch_size, start))
        x, y = self.coordinates.target.x, self.coordinates.target.y
        if self.full:
            yield from itertools.repeat((x, y))
        for rows in minibatches([self.seed], len(x), self.batch_size, start, x.device):
            yield rows_of((x, y), rows[0])

    def gradient_noise(self) -> Tensor:
        """What a minibatch's gradients differ by from those of all rows, where the chains are; shape (K, d)."""
        gradient, _ = self.evaluate(self.chains.position, next(self.looks))
        return gradient - self.chains.gradient

    # --- one step ---------------------------------------------------------------------------------

    def _langevin(self, data: tuple[Any, Any], warm: bool) -> tuple[Tensor, Tensor]:
        """A step of unadjusted chains: energy errors and which steps were kept."""
        tuning = self.tuning
        *state, error, good = self.program.run(*self.chains.tensors(), tuning.step, self.scale, next(self.noise), *data)
        self.chains = Chains(*state)
        if not warm:
            self.recent[2] += tuning.step.squeeze(1)
        if warm or self.full:  # of minibatches the error is noise
            follow_error(tuning, error, good, self.stiff, self.target)
        return error, good

    def _trajectory(self, data: tuple[Any, Any], warm: bool) -> tuple[Tensor, Tensor]:
        """A trajectory of adjusted chains: energy errors and which were accepted."""
        before, drawn = self.chains, next(self.noise)
        velocity, uniform = drawn[:, :-1], torch.special.ndtr(drawn[:, -1])
        state = (before.position, velocity / velocity.norm(dim=1, keepdim=True), before.gradient, before.energy)
        total = torch.zeros_like(before.energy)
        # Of a length of its own each time, or a trajectory could come back to where it began again and again.
        jitter = np.random.default_rng([self.seed, 24, self.done]).random()
        for _ in range(max(1, round(self.length * (0.5 + jitter)))):
            *state, error = self.program.run(*state, self.tuning.step, self.scale, *data)
            total = total + error
        total = torch.where(total.isfinite() & state[2].sum(-1).isfinite(), total, math.inf)
        probability = torch.exp(-total).clamp(max=1.0)
        accepted = uniform < probability
        kept = (
            torch.where(accepted if new.dim() == 1 else accepted[:, None], new, old)
            for new, old in zip(state, before.tensors(), strict=True)
        )
        self.chains = Chains(*kept)
        if not warm:
            self.recent[2] += 1.0
        else:
            follow_acceptance(self.tuning, probability, self.target, self.done)
        return total, accepted

    # --- the run ----------------------------------------------------------------------------------

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return self.warmup + self.num_samples * self.thinning

    def __call__(
        self,
        callbacks: Sequence[Callback] = (),
        save: Callable[[], str] | None = None,
        save_every: int = 1,
        deadline: float = math.inf,
        only_warmup: bool = False,
    ) -> None:
        """Run from where it stands to the end, a stop or a pause.

        Args:
            callbacks: Called after every step with its number and the energies of the chains.
            save: Keeps what there is, before the first step, every `save_every` steps and at the end; returns why to
                pause, if there is a reason.
            save_every: Steps between two calls of it.
            deadline: When to stop, by `time.monotonic`.
            only_warmup: Whether to stop at the end of the warm-up.
        """
        self.noise = self._noise(self.done)
        self.scale = self.tuning.scale[:, self.coordinates.blocks]
        bar = progress_bar(self.num_steps, self.kernel, self.progress, initial=self.done)
        saved = -1
        advance = self._langevin if self.kernel == "mclmc" else self._trajectory
        everything = self.coordinates.target.x, self.coordinates.target.y
        batches = self._batches(max(0, self.done - self.warmup))
        self.looks = self._batches(self.done // LOOK_AT_GRADIENTS)
        if self.done > self.warmup:
            self._leave_warmup()
        begun, budget = time.monotonic(), deadline - time.monotonic()
        try:
            with bar, torch.no_grad(), interrupts_deferred() as interrupted:
                if save is not None and self.done == 0:
                    self.paused, saved = save() or self.paused, 0
                while not (self.stopped or self.paused) and self.done < (
                    self.warmup if only_warmup else self.num_steps
                ):
                    warm = self.done < self.warmup
                    if self.done == self.warmup:
                        self._leave_warmup()
                    error, good = advance(everything if warm else next(batches), warm)
                    self.done += 1
                    if warm:
                        after_step(self, good)
                    else:
                        self._note(error, good)
                    if self.done % 50 == 0:
                        bar.total = self.num_steps
                        bar.update(self.done - bar.n)
                        if not bar.disable:
                            bar.set_postfix(energy=f"{self.chains.energy.mean().item():.1f}")
                    for callback in callbacks:
                        if callback(self.done - 1, self.chains.energy.cpu().double().numpy()) is True:
                            self.stopped = f"a callback stopped it after step {self.done}"
                    now = time.monotonic()
                    if warm and now - begun > budget / 2 and self.done < self.warmup:
                        cut_short(self)
                    if now > deadline and self.drawn:
                        self.stopped = f"the time limit was reached after step {self.done}"
                    if interrupted():
                        self.paused = f"interrupted after step {self.done}"
                    if save is not None and self.done % save_every == 0:
                        self.paused, saved = save() or self.paused, self.done
                if save is not None and saved != self.done:
                    save()
                if interrupted() and not self.paused:
                    self.paused = f"interrupted after step {self.done}"
        except KeyboardInterrupt:
            self.paused = f"interrupted after step {self.done}"

    def _leave_warmup(self) -> None:
        """From now on steps grow no more; minibatches have a program of their own."""
        if not self.tuning.settled:  # there was no warm-up
            self.tuning.settle()
        if self.full:
            return
        self.program = self._make(full=False)
        if self.numbers is None:  # some chains of a run come with the steps that were settled for all
            coordinates, dimensions = self.coordinates, self.coordinates.dimensions
            noise = noise_of(self.tuning, coordinates.sizes, coordinates.spread)
            self.tuning.step = self.tuning.step.clamp(max=longest_step(noise, dimensions, math.sqrt(dimensions)))

    def _note(self, error: Tensor, good: Tensor) -> None:
        """Keep what a step after the warm-up says, and each `thinning`-th position."""
        since = (self.done - self.warmup - 1) % self.thinning + 1
        capped = error.square().clamp(max=WORST_ERROR**2 * self.stiff) / self.stiff
        self.recent[0] += torch.where(capped.isfinite(), capped, WORST_ERROR**2)
        self.recent[1] += ~good
        if since == self.thinning:
            self.draws[:, self.drawn] = self.chains.position[:, : self.coordinates.size]
            padding = self.chains.position[:, self.coordinates.size :]
            self.energies[:, self.drawn] = self.chains.energy - padding.square().sum(1) / 2
            self.errors[:, self.drawn], self.failures[:, self.drawn] = self.recent[:2] / self.thinning
            self.times[:, self.drawn] = self.recent[2]
            self.recent.zero_()
            self.drawn += 1


def noise_block(seeds: Sequence[int], shape: tuple[int, ...], like: Tensor, stream: int) -> Tensor:
    """One standard normal draw of a stream of its own for each chain, shape (K, *shape)."""
    return torch.stack(
        [
            torch.randn(
                shape, generator=make_generator(like.device, seed, stream), dtype=like.dtype, device=like.device
            )
            for seed in seeds
        ]
    )
