r"""The evidence of a small network, and weighted-out draws of its posterior, by sequential Monte Carlo.

Particles start as draws of the prior and follow the tempered posteriors $p(w)\,p(y \mid w)^\beta$, β from 0 to 1
(Neal 2001, Annealed importance sampling; with resampling: Del Moral, Doucet and Jasra 2006, Sequential Monte Carlo
samplers). The product of the mean incremental weights estimates the evidence. Since all particles come from the prior,
symmetric copies of a mode get the same share of them, which no single chain could reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.arrays import make_generator
from ..inference.program import make_program
from ..model.target import Target


@dataclass(frozen=True)
class Evidence:
    """An estimate of the log evidence.

    Attributes:
        log_z: Natural logarithm of the mean of the runs' evidences.
        standard_error: Its standard error, from the scatter of the runs.
        runs: Log evidence of each run.
        particles: Posterior draws in unconstrained space from all runs, equally weighted, shape (draws, n).
    """

    log_z: float
    standard_error: float
    runs: tuple[float, ...]
    particles: Tensor = field(repr=False)


def log_evidence(
    target: Target, *, num_particles: int = 1000, num_runs: int = 4, num_moves: int = 5, seed: int = 0
) -> Evidence:
    """Estimate the log evidence of a network by independent runs of tempered sequential Monte Carlo.

    The next β is where the effective sample size of the new weights is half the number of particles. After each
    resampling come `num_moves` moves of Hamiltonian Monte Carlo, of 10 leapfrog steps each, whose step size follows
    their acceptance rate and whose mass is that of the particles' spread.

    Args:
        target: The posterior.
        num_particles: Particles of each run.
        num_runs: Number of independent runs, at least 2.
        num_moves: Moves at each temperature.
        seed: Seeds all of it.

    Raises:
        ValueError: If a number is too small.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.model.target import Target
        >>> from pyro_sps.study.evidence import log_evidence
        >>> bnn = sps.BNN(torch.nn.Linear(1, 1), scheme=sps.Unmasked(), likelihood=sps.Gaussian(1.0))
        >>> target = Target.of(bnn, torch.ones(3, 1), torch.zeros(3, 1))
        >>> log_evidence(target, num_particles=50, num_runs=2).particles.shape
        torch.Size([100, 2])
    """
    if num_particles < 10 or num_runs < 2 or num_moves < 1:
        raise ValueError(
            f"at least 10 particles, 2 runs and 1 move are needed, got {num_particles}, {num_runs} and {num_moves}"
        )
    start = target.prior_draws(num_particles, make_generator(target.x.device, seed, 8))
    one = start.new_ones(())

    def tempered(flat: Tensor, beta: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        likelihood = target.log_likelihood(flat)
        energy = target.energy(flat) + (1 - beta) * likelihood
        return energy.sum(), (energy, likelihood)

    program = make_program(torch.func.grad(tempered, has_aux=True), (start, one), compile=False).run
    runs, particles = [], []
    with torch.no_grad():
        for run in range(num_runs):
            generator = make_generator(target.x.device, seed, 9, run)
            log_z, flat = _temper(target, program, num_particles, num_moves, generator)
            runs.append(log_z)
            particles.append(flat)
    estimates = torch.tensor(runs, dtype=torch.float64)
    log_z = float(estimates.logsumexp(0)) - math.log(num_runs)
    ratios = (estimates - log_z).exp()
    return Evidence(log_z, float(ratios.std() / math.sqrt(num_runs)), tuple(runs), torch.cat(particles))


def _temper(
    target: Target, program: Callable[..., Any], num_particles: int, num_moves: int, generator: torch.Generator
) -> tuple[float, Tensor]:
    """One run: its log evidence and final particles."""
    flat = target.prior_draws(num_particles, generator)
    like: dict[str, Any] = {"dtype": flat.dtype, "device": flat.device, "generator": generator}
    beta, log_z, step = 0.0, 0.0, 0.3
    likelihood = target.log_likelihood(flat).double()
    while beta < 1.0:
        increase = _increase(likelihood, 1.0 - beta)
        weights = increase * likelihood
        log_z += float(weights.logsumexp(0)) - math.log(num_particles)
        beta = min(1.0, beta + increase)
        flat = flat[_systematic(weights, torch.rand((), **like))]
        # A little of the prior's unit spread, where resampling left hardly any.
        spread = flat.std(0).clamp(min=1e-3)
        for _ in range(num_moves):
            flat, likelihood, rate = _move(program, flat, flat.new_tensor(beta), spread, step, like)
            step = min(1.5, step * math.exp(rate - 0.8))
    return log_z, flat


def _increase(likelihood: Tensor, most: float) -> float:
    """By how much β grows so that the effective sample size of the weights is half the number of particles."""

    def share(increase: float) -> float:
        weights = (increase * likelihood).softmax(0)
        return 1 / (float(weights.square().sum()) * len(likelihood))

    if share(most) >= 0.5:
        return most
    low, high = 0.0, most
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= 0.5 else (low, middle)
    return high


def _systematic(log_weights: Tensor, offset: Tensor) -> Tensor:
    """Indices of resampled particles, each taken about as often as its weight says."""
    count = len(log_weights)
    ends = log_weights.softmax(0).cumsum(0)
    points = (torch.arange(count, device=ends.device) + offset.double()) / count
    return torch.searchsorted(ends, points).clamp(max=count - 1)


def _move(
    program: Callable[..., Any], flat: Tensor, beta: Tensor, spread: Tensor, step: float, like: dict[str, Any]
) -> tuple[Tensor, Tensor, float]:
    """Hamiltonian Monte Carlo for all particles at once: new places, log likelihoods, acceptance rate."""
    momentum = torch.randn(flat.shape, **like)
    # Step sizes differ, so that no particle comes back to where it was.
    size = step * (0.5 + torch.rand((len(flat), 1), **like)) * spread
    gradient, (energy, likelihood) = program(flat, beta)
    before = energy + 0.5 * momentum.square().sum(-1)
    place = flat
    for index in range(10):
        momentum = momentum - (0.5 if index == 0 else 1.0) * size * gradient
        place = place + size * momentum
        gradient, (new_energy, new_likelihood) = program(place, beta)
    momentum = momentum - 0.5 * size * gradient
    change = (before - new_energy - 0.5 * momentum.square().sum(-1)).nan_to_num(nan=-math.inf)
    accepted = torch.rand(len(flat), **like).log() < change
    flat = torch.where(accepted.unsqueeze(-1), place, flat)
    likelihood = torch.where(accepted, new_likelihood, likelihood).double()
    return flat, likelihood, float(accepted.double().mean())
