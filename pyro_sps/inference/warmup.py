"""What the warm-up of chains does beside steps: it tunes them, judges them, and goes on while they still fall."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..base.process import warn_user
from .coordinates import Coordinates
from .langevin import AVERAGE_FROM, LOOK_AT_GRADIENTS, RESCALE_AT, Chains, Tuning, follow_gradients, rescale

# Chains are looked at after this share of the warm-up; one that is stuck or stands apart begins again, once.
JUDGED_AT = 0.4

# A chain whose steps are taken back more often than this is stuck.
MOST_FAILURES = 0.25

# A chain whose energy is above the others' median by this many times their spread stands apart.
FAR = 10.0

# While energies fall, by more than so many standard errors between the last quarter of a warm-up whose length was left
# open and the quarter before it, the warm-up goes on for half its length, up to twice it.
FALLING, LONGER, LONGEST_WARMUP = 3.0, 0.5, 2.0

# Longest trajectory of adjusted chains, in steps.
LONGEST = 64


class Warming(Protocol):
    """What the warm-up reads and changes of a run of chains.

    Attributes:
        coordinates: The vector that chains move in.
        kernel: `mclmc` or `mams`.
        starts: Positions, shape (K, n).
        first_step: Length of the first step.
        stiff: Number of directions that data holds.
        full: Whether steps are on all rows.
        done: Steps so far.
        warmup: Steps of the warm-up.
        most_warmup: What that may grow to.
        window: Steps of a quarter of it.
        early: Failures and energy before the judgement, shape (K, 2).
        late: Energy in the last two windows, shape (K, 2).
        chains: Where they are.
        tuning: Their steps and scales.
        scale: Scales of all entries, shape (K, d).
        length: Steps of a trajectory.
        restarted: Chains that began again.
    """

    coordinates: Coordinates
    kernel: str
    starts: Tensor
    first_step: float
    stiff: int
    full: bool
    done: int
    warmup: int
    most_warmup: int
    window: int
    early: Tensor
    late: Tensor
    chains: Chains
    tuning: Tuning
    scale: Tensor
    length: int
    restarted: list[int]

    def evaluate(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients and energies of all chains."""

    def gradient_noise(self) -> Tensor:
        """What a minibatch's gradients differ by from those of all rows."""


def after_step(run: Warming, good: Tensor) -> None:
    """What is to do after a step of the warm-up.

    Args:
        run: The run.
        good: Which chains kept the step, shape (K,).
    """
    done, tuning, coordinates = run.done, run.tuning, run.coordinates
    if done % LOOK_AT_GRADIENTS == 0 or run.kernel == "mams":
        spread = coordinates.spread[coordinates.blocks]
        seen = run.chains.gradient if run.full else run.gradient_noise()
        follow_gradients(tuning, seen, coordinates.blocks, coordinates.sizes, spread)
    judged = int(JUDGED_AT * run.warmup)
    if 0.75 * judged < done <= judged:
        run.early[:, 0] += ~good
        run.early[:, 1] += run.chains.energy
    if done == judged > 0 and run.warmup >= 100:
        _judge(run, judged - int(0.75 * judged))
    if done in {int(share * run.warmup) for share in RESCALE_AT} and tuning.seen > 0:
        rescale(tuning, coordinates.sizes, coordinates.spread)
        run.scale = tuning.scale[:, coordinates.blocks]
        if run.kernel == "mams":
            reach = math.sqrt(coordinates.dimensions) / tuning.step.log().mean().exp().item()
            run.length = max(1, min(LONGEST, round(reach)))
    if done > AVERAGE_FROM * run.warmup:
        tuning.average()
    if 0 <= (left := run.warmup - done) < 2 * run.window:
        run.late[:, int(left < run.window)] += run.chains.energy
    if done == run.warmup and not _goes_on(run):
        tuning.settle()


def _goes_on(run: Warming) -> bool:
    """Make the warm-up longer if energies still fall, in the mean of chains and surely."""
    longer = min(run.most_warmup, run.warmup + round(LONGER * 4 * run.window))
    if longer <= run.warmup or len(run.late) < 3:
        return False
    fall = (run.late[:, 0] - run.late[:, 1]) / run.window
    if not fall.mean() > FALLING * fall.std() / math.sqrt(len(fall)):  # false of NaN
        return False
    run.warmup = longer
    run.late.zero_()
    run.tuning.begin_average()
    return True


def _judge(run: Warming, steps: int) -> None:
    """Let chains that are stuck or stand apart begin again, each once."""
    failures, energy = run.early[:, 0] / steps, run.early[:, 1] / steps
    wrong = ~energy.isfinite()
    if run.kernel == "mclmc":
        wrong = wrong | (failures > MOST_FAILURES)
    wrong = wrong | stands_apart(energy, math.sqrt(run.stiff / 2))
    if not wrong.any() or wrong.all():
        return
    run.restarted = wrong.nonzero().flatten().tolist()
    position = run.chains.position.clone()
    position[wrong, : run.coordinates.size] = run.starts[wrong]
    gradient, energies = run.evaluate(position)
    rows = wrong[:, None]
    run.chains = Chains(
        position,
        torch.where(rows, -run.chains.velocity, run.chains.velocity),
        torch.where(rows, gradient, run.chains.gradient),
        torch.where(wrong, energies, run.chains.energy),
    )
    run.tuning.forget(wrong, run.first_step)


def stands_apart(energy: Tensor, least: float) -> Tensor:
    """Which chains' mean energies are far above those of the others.

    Args:
        energy: Mean energy of each chain, shape (K,).
        least: What the spread counts as at least: energies of one chain scatter so much by themselves.

    Returns:
        Boolean, shape (K,); all false for fewer than three chains.
    """
    if len(energy) < 3:
        return torch.zeros_like(energy, dtype=torch.bool)
    middle = energy.median()
    spread = (energy - middle).abs().median().clamp_min(least)
    return energy - middle > FAR * spread


def cut_short(run: Warming) -> None:
    """End the warm-up here, for there is no time for all of it."""
    warn_user(
        f"the time limit leaves {run.done} of {run.warmup} steps for the warm-up; tuning may not have come to rest",
        RuntimeWarning,
    )
    run.warmup = run.done
    run.tuning.settle()
