r"""Microcanonical Langevin dynamics, as pure functions of tensors, with what tunes them.

The state of a chain is a position q in unconstrained space and a direction u with :math:`|u| = 1`. With d dimensions,
the gradient g of the energy (minus the log density), :math:`e = -g / |g|` and :math:`\delta = \epsilon |g| / (d - 1)`,
the velocity moves by

.. math::
   u \leftarrow \frac{u + e (\sinh \delta + (e \cdot u)(\cosh \delta - 1))}{\cosh \delta + (e \cdot u) \sinh \delta}

and the position by :math:`q \leftarrow q + \epsilon u` (Robnik, De Luca, Silverstein and Seljak 2023, Microcanonical
Hamiltonian Monte Carlo, JMLR 24, equations 13 to 17). A step is half a move of u, one of q and half a move of u; what
energy it gained, :math:`\Delta`, is known. Unadjusted (`mclmc`), u is then refreshed a little and the next step
follows; :math:`E[\Delta^2]` says how large the bias is. Adjusted (`mams`; Robnik, Cohn-Gordon and Seljak 2025), u is
drawn anew before each trajectory of several steps, whose end is accepted with probability
:math:`\min(1, e^{-\Delta})`: the stationary law then is the posterior itself.

All of it works in coordinates divided by one scale a tensor, chain by chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# (positions (chains, d), *data) -> (gradients (chains, d), energies (chains,))
Gradient = Callable[..., tuple[Tensor, Tensor]]

# Fewer dimensions than this are filled up with standard normal ones that nothing depends on: microcanonical dynamics
# needs two at least, and is the smoother the more it has.
FEWEST_DIMENSIONS = 32

# A step that gains more energy than this, in units of √(stiff directions), is taken back and the velocity reversed. It
# must be loose, or it breaks the motion of chains that do nothing wrong.
WORST_ERROR = 2.0

# Of an error more than this times the wanted mean square, the rest does not count: in few dimensions a rare large one
# would rule the mean.
LARGEST_SHARE = 25.0

# Steps over which the running mean of the energy error forgets, and how fast a step size may change.
MEMORY, FASTEST_UP, FASTEST_DOWN, AFTER_FAILURE = 50, 1.05, 0.9, 0.7

# Where in the warm-up the scales of tensors are set anew, and where the average of step sizes that is kept begins.
RESCALE_AT, AVERAGE_FROM = (0.1, 0.25, 0.5, 0.75), 0.85

# Every so many steps the squares of gradients enter their running mean, which keeps this share of itself.
LOOK_AT_GRADIENTS, KEEP_OF_GRADIENTS = 5, 0.95


@dataclass
class Chains:
    """Where chains are: all of K chains' positions (K, d), velocities (K, d), gradients (K, d) and energies (K,)."""

    position: Tensor
    velocity: Tensor
    gradient: Tensor
    energy: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The four, in order."""
        return self.position, self.velocity, self.gradient, self.energy


def kick(velocity: Tensor, gradient: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Move the velocity along the force.

    Args:
        velocity: Unit vectors u, shape (K, d).
        gradient: Gradients of the energy, same shape.
        step: Time ε, shape (K, 1).

    Returns:
        The new unit vectors, and the change of kinetic energy (d - 1) log(cosh δ + e·u sinh δ), shape (K,).
    """
    dimensions = velocity.shape[-1]
    norm = gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    force = -gradient / norm
    delta = step * norm / (dimensions - 1)
    along = (velocity * force).sum(-1, keepdim=True)
    decay = torch.exp(-delta)  # of which everything is a polynomial, so that nothing overflows for large δ
    moved = force * ((1 - decay) * (1 + decay + along * (1 - decay))) + 2 * decay * velocity
    gained = (dimensions - 1) * (delta - math.log(2) + torch.log(1 + along + (1 - along) * decay * decay))
    return moved / moved.norm(dim=-1, keepdim=True), gained.squeeze(-1)


def leapfrog(
    gradient_of: Gradient,
    position: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    energy: Tensor,
    step: Tensor,
    scale: Tensor,
    *data: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step of all chains.

    Args:
        gradient_of: What gives gradients and energies.
        position: Shape (K, d).
        velocity: Shape (K, d).
        gradient: At the position, shape (K, d).
        energy: At the position, shape (K,).
        step: Step sizes, shape (K, 1).
        scale: What coordinates are divided by, shape (K, d).
        *data: What `gradient_of` takes beside positions.

    Returns:
        The new position, velocity, gradient and energy, and the energy error Δ, shape (K,).
    """
    velocity, first = kick(velocity, gradient * scale, step / 2)
    position = position + step * velocity * scale
    gradient, after = gradient_of(position, *data)
    velocity, second = kick(velocity, gradient * scale, step / 2)
    return position, velocity, gradient, after, after - energy + first + second


def unadjusted(gradient_of: Gradient, limit: float, length: float) -> Callable[..., tuple[Tensor, ...]]:
    """The step of `mclmc`: a leapfrog step, the guard, and a partial refreshment of the velocity.

    Args:
        gradient_of: What gives gradients and energies.
        limit: Largest energy error of a step that is not taken back.
        length: Distance L after which a velocity is forgotten.

    Returns:
        `(position, velocity, gradient, energy, step, scale, noise, *data)` -> the first four after the step, the
        energy error, and whether the step was kept.
    """

    def advance(
        position: Tensor,
        velocity: Tensor,
        gradient: Tensor,
        energy: Tensor,
        step: Tensor,
        scale: Tensor,
        noise: Tensor,
        *data: Tensor,
    ) -> tuple[Tensor, ...]:
        before = (position, -velocity, gradient, energy)
        *after, error = leapfrog(gradient_of, position, velocity, gradient, energy, step, scale, *data)
        good = (error.abs() < limit) & after[2].sum(-1).isfinite()  # of NaN the comparison is false
        kept = [
            torch.where(good if new.dim() == 1 else good[:, None], new, old)
            for new, old in zip(after, before, strict=True)
        ]
        spread = (torch.expm1(2 * step / length) / velocity.shape[-1]).sqrt()
        turned = kept[1] + spread * noise
        kept[1] = turned / turned.norm(dim=-1, keepdim=True)
        return (*kept, error, good)

    return advance


@dataclass
class Tuning:
    """Step sizes and scales of K chains, and the running means that they are found from.

    Attributes:
        step: Step size of each chain, shape (K, 1).
        scale: Scale of each block of coordinates (a tensor), shape (K, blocks).
        error: Running mean of Δ² / (stiff directions · ε⁶), shape (K, 1).
        weight: What of a mean it is, shape (K, 1).
        squares: Running mean of squared gradients in scaled coordinates of the prior, by block, shape (K, blocks).
        seen: What of a mean that is, shape ().
        log_step: Sum of log step sizes of which the average will be kept, shape (K, 1).
        count: How many they are, shape ().
        largest: Step size that is not exceeded, shape (K, 1): any number in the warm-up.
    """

    step: Tensor
    scale: Tensor
    error: Tensor
    weight: Tensor
    squares: Tensor
    seen: Tensor
    log_step: Tensor
    count: Tensor
    largest: Tensor

    @staticmethod
    def start(scale: Tensor, step: float) -> Tuning:
        """Before the first step.

        Args:
            scale: Scales of the blocks, shape (K, blocks).
            step: Step size.
        """
        column = scale.new_zeros((len(scale), 1))
        return Tuning(
            step=column + step,
            scale=scale.clone(),
            error=column.clone(),
            weight=column.clone(),
            squares=torch.zeros_like(scale),
            seen=scale.new_zeros(()),
            log_step=column.clone(),
            count=scale.new_zeros(()),
            largest=column + torch.finfo(scale.dtype).max,
        )

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def settled(self) -> bool:
        """Whether the warm-up is over."""
        return bool((self.largest < torch.finfo(self.largest.dtype).max).all())

    def average(self) -> None:
        """One more step size of those whose average is kept."""
        self.log_step += self.step.log()
        self.count += 1

    def begin_average(self) -> None:
        """Forget the step sizes of which the average would have been kept."""
        self.log_step.zero_()
        self.count.zero_()

    def settle(self) -> None:
        """Set the step size to the average of those that it had, which from here on is the largest."""
        if self.count > 0:
            self.step = (self.log_step / self.count).exp()
        self.largest = self.step.clone()

    def forget(self, chains: Tensor, step: float) -> None:
        """Begin again for some chains.

        Args:
            chains: Which, Boolean, shape (K,).
            step: Their step size.
        """
        for name in ("error", "weight"):
            getattr(self, name)[chains] = 0.0
        self.step[chains] = step


def follow_error(tuning: Tuning, error: Tensor, good: Tensor, stiff: int, target: float) -> None:
    """Choose step sizes such that E[Δ²] is `target` times the number of stiff directions.

    Δ² grows as ε⁶, so that a running mean of Δ²/ε⁶ says which ε has the right one (as in blackjax and in Sommer et
    al. 2025). The number of stiff directions is at most that of the observations, however many weights there are:
    divided by the dimension, the error would hide behind directions in which nothing happens.

    It goes on after the warm-up, with the step size that was settled as the largest: posteriors of networks have
    necks, as where noise or the scale of a tensor is small, in which that step is too long and a chain would stick.
    The rule does not change any more, and steps of several sizes are one integrator of the same continuous dynamics,
    of which averages are over *time*, not over steps: `equal_times`.

    Args:
        tuning: What to change.
        error: Energy errors of a step, shape (K,).
        good: Whether it was kept, shape (K,).
        stiff: Number of stiff directions.
        target: Where the mean square per direction should be.
    """
    kept, step = good.unsqueeze(1), tuning.step
    share = torch.where(kept, error.unsqueeze(1).square() / stiff, WORST_ERROR**2).clamp(max=LARGEST_SHARE * target)
    decay = 1 - 1 / MEMORY
    sixth = step**6
    tuning.error = decay * tuning.error + (share + 1e-12) / sixth
    tuning.weight = decay * tuning.weight + 1
    wanted = (tuning.error / (tuning.weight * target)).clamp_min(1e-30) ** (-1 / 6)
    bounded = torch.minimum(torch.maximum(wanted, step * FASTEST_DOWN), step * FASTEST_UP).minimum(tuning.largest)
    tuning.step = torch.where(kept, bounded, step * AFTER_FAILURE)
    # After a failure the average before it, which was too hopeful, is forgotten.
    tuning.error = torch.where(kept, tuning.error, target / tuning.step**6 * tuning.weight)


def equal_times(times: Tensor) -> Tensor:
    """Which of the draws of a chain to take so that each stands for as much time as any other.

    A draw at the end of a stretch of time stands for it. At equally spaced times the draw is that of the stretch
    there (systematic resampling): all draws, each once, if stretches are equally long.

    Args:
        times: Time from one draw to the next, shape (K, draws).

    Returns:
        Indices of draws, in order, same shape.
    """
    count = times.shape[1]
    passed = times.double().cumsum(1)
    places = (torch.arange(count, device=times.device, dtype=passed.dtype) + 0.5) / count
    return torch.searchsorted(passed, passed[:, -1:] * places).clamp(max=count - 1)


def follow_acceptance(tuning: Tuning, accepted: Tensor, target: float, trajectory: int) -> None:
    """Move log step sizes towards a share of accepted trajectories (Robbins and Monro 1951).

    Args:
        tuning: What to change.
        accepted: Probabilities of acceptance, shape (K,).
        target: Where their mean should be.
        trajectory: Number of the trajectory.
    """
    gain = 0.5 if trajectory < 30 else 0.1
    tuning.step = tuning.step * (gain * (accepted.unsqueeze(1) - target)).exp()


def follow_gradients(tuning: Tuning, gradient: Tensor, blocks: Tensor, sizes: Tensor, prior: Tensor) -> None:
    """Take squared gradients into their running mean, block by block.

    Args:
        tuning: What to change.
        gradient: Shape (K, d).
        blocks: Block of each coordinate, shape (d,).
        sizes: Coordinates of each block, shape (blocks,).
        prior: Scale of each coordinate under the prior, shape (d,).
    """
    squares = torch.zeros_like(tuning.squares).index_add_(1, blocks, (gradient * prior).square()) / sizes
    tuning.squares.lerp_(squares, 1 - KEEP_OF_GRADIENTS)
    tuning.seen = 1 - KEEP_OF_GRADIENTS * (1 - tuning.seen)


def noise_of(tuning: Tuning, sizes: Tensor, prior: Tensor) -> float:
    """Standard deviation of what `follow_gradients` was given, in scaled coordinates: of the noise of gradients.

    Args:
        tuning: What was seen.
        sizes: Coordinates of each block, shape (blocks,).
        prior: Scale of each block under the prior, shape (blocks,).
    """
    squares = (tuning.squares / tuning.seen.clamp_min(1e-6)).median(0).values
    scaled = squares * (tuning.scale[0] / prior).square()
    return math.sqrt((scaled * sizes).sum().item() / sizes.sum().item())


def longest_step(noise: float, dimensions: int, length: float) -> float:
    """The step at which noise of gradients turns velocities half as much as the refreshment does.

    A step ε adds noise of variance (ε σ / (d - 1))² to each coordinate of a velocity, and the refreshment 2 ε / (L d).
    Noise that is alike in all directions does no harm, and the rest of it the less, the smaller its part in what
    turns velocities (Sommer et al. 2026, Can microcanonical Langevin dynamics leverage mini-batch gradient noise?).
    It takes no refreshment's place: noises of batches that share no rows cancel over a pass through the data.

    Args:
        noise: σ, in scaled coordinates.
        dimensions: d.
        length: Distance L after which a velocity is forgotten.
    """
    return math.inf if noise == 0 else (dimensions - 1) ** 2 / (length * dimensions * noise**2)


def rescale(tuning: Tuning, sizes: Tensor, prior: Tensor) -> None:
    """Set the scales of tensors from the squares of their gradients.

    In a posterior, the mean square of the gradient is the mean curvature of the energy. With minibatches the squares
    are those of the noise of gradients, which the scales make alike in all tensors. Chains share the median of
    theirs: one that is still far away has gradients that say nothing of where it goes. The mean of 1/scale² over
    coordinates is that of the prior, so that a velocity that is forgotten over √d in these units goes far in the stiff
    ones. The steps shrink where the scales have grown.

    Args:
        tuning: What to change.
        sizes: Coordinates of each block, shape (blocks,).
        prior: Scale of each block under the prior, shape (blocks,).
    """
    squares = (tuning.squares / tuning.seen).median(0, keepdim=True).values
    scale = (squares + 1).rsqrt()
    scale = (scale * (scale**-2 * (sizes / sizes.sum())).sum(1, keepdim=True).sqrt()).expand_as(tuning.scale)
    share = sizes / sizes.sum()
    before = ((tuning.scale / prior).square() * share).sum(1, keepdim=True)
    after = (scale.square() * share).sum(1, keepdim=True)
    tuning.step = tuning.step * (before / after).sqrt().clamp(max=1.0)
    tuning.scale = scale * prior
    tuning.error.zero_()
    tuning.weight.zero_()
