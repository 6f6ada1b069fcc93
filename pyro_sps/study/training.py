"""Tanh networks trained side by side: MAP estimates of all splits and members in one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..base.checks import require_positive
from ..base.terminal import progress_bar
from ..data.arrays import make_generator, minibatches
from ..inference.loop import decaying_rates
from .problems import Problem


@dataclass(frozen=True)
class Training:
    """How networks are trained.

    Attributes:
        noise: Standard deviation of the Gaussian likelihood, or where it starts.
        learn_noise: Whether each network learns its own, by maximum likelihood.
        prior_scale: Standard deviation of the normal prior.
        scale_by_fan_in: Whether that of the weights is divided by √fan-in (biases keep theirs).
        num_steps: Steps of Adam.
        batch_size: Rows of a minibatch; None for all.
        learning_rate: Of the first step.
        final_learning_rate: Of the last; it decays exponentially. None for a tenth of the first.
        dropout: Probability that a hidden unit is dropped.

    Raises:
        ValueError: If one is out of range.
    """

    noise: float = 0.1
    learn_noise: bool = False
    prior_scale: float = 1.0
    scale_by_fan_in: bool = False
    num_steps: int = 5000
    batch_size: int | None = None
    learning_rate: float = 0.01
    final_learning_rate: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("noise", "prior_scale", "learning_rate"):
            require_positive(name, getattr(self, name))
        if self.final_learning_rate is not None:
            require_positive("final_learning_rate", self.final_learning_rate)
        for name in ("learn_noise", "scale_by_fan_in"):
            check_bool(name, getattr(self, name))
        check_integer("num_steps", self.num_steps, 1)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")

    def weight_scale(self, fan_in: int) -> float:
        """Prior standard deviation of the weights of a layer."""
        return self.prior_scale / math.sqrt(fan_in) if self.scale_by_fan_in else self.prior_scale


@dataclass(frozen=True, eq=False)
class Networks:
    """Tanh networks side by side.

    Attributes:
        weights: Of each layer, shape (networks, fan-in, fan-out).
        biases: Of each layer, shape (networks, 1, fan-out).
        noise: Standard deviation of their likelihood, shape (networks, 1, 1).
    """

    weights: list[Tensor] = field(repr=False)
    biases: list[Tensor] = field(repr=False)
    noise: Tensor = field(repr=False)

    def features(self, x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """What the last layer reads, shape (networks, rows, units).

        Args:
            x: Inputs, shape (networks, rows, features).
            masks: What the units of each hidden layer are multiplied by, broadcasting against (networks, rows, units).
        """
        for layer, (weight, bias) in enumerate(zip(self.weights[:-1], self.biases[:-1], strict=True)):
            x = torch.baddbmm(bias, x, weight).tanh()
            if masks is not None:
                x = x * masks[layer]
        return x

    def forward(self, x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """Outputs, shape (networks, rows, targets); arguments as in `features`."""
        return torch.baddbmm(self.biases[-1], self.features(x, masks), self.weights[-1])

    def repeated(self, times: int) -> Networks:
        """A single network side by side with itself."""
        weights, biases = ([part.expand(times, -1, -1) for part in parts] for parts in (self.weights, self.biases))
        return Networks(weights, biases, self.noise.expand(times, -1, -1))

    def state_dict(self, index: int) -> dict[str, Tensor]:
        """The weights of one network by the names that `pyro_sps.mlp` gives them."""
        state: dict[str, Tensor] = {}
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            state |= {f"{2 * layer}.weight": weight[index].T, f"{2 * layer}.bias": bias[index, 0]}
        return state

    def __getitem__(self, index: slice) -> Networks:
        return Networks([w[index] for w in self.weights], [b[index] for b in self.biases], self.noise[index])


def train_networks(
    problem: Problem, training: Training, *, members: int = 1, seed: int = 0, progress: bool = True
) -> Networks:
    """MAP estimates, those of a split next to each other.

    Args:
        problem: Splits of a data set.
        training: How.
        members: Networks of each split.
        seed: Seeds starts, orders of the rows and dropped units. Network m of split s depends on (seed, s, m) only.
        progress: Whether to show a progress bar (on a terminal).

    Raises:
        ValueError: If a batch is larger than the data.
        FloatingPointError: If training diverged.
    """
    rows, targets = problem.y.shape[1:]
    if training.batch_size is not None and training.batch_size > rows:
        raise ValueError(f"batch_size must be at most the number of training rows, {rows}, got {training.batch_size}")
    # One generator says it all of a network: SeedSequence keeps those of neighbouring seeds apart.
    seeds = [
        make_generator("cpu", seed, 8, split, member).initial_seed()
        for split in range(problem.num_splits)
        for member in range(members)
    ]
    networks = _started(problem, seeds, training.noise)
    log_noise = networks.noise.log()
    trained = [*networks.weights, *networks.biases, log_noise]
    for parameter in trained:
        parameter.requires_grad_()
    # Adam's weight decay adds to the gradient before it is rescaled: that of a normal prior, at no cost. A weight
    # behind dropout is w z / keep with z in {0, 1}, whose expected square is w² / keep (Gal and Ghahramani 2016, 3).
    keep = 1 - training.dropout
    groups: list[dict[str, Any]] = [{"params": networks.biases, "weight_decay": 1 / (training.prior_scale**2 * rows)}]
    for layer, weight in enumerate(networks.weights):
        precision = 1 / training.weight_scale(weight.shape[1]) ** 2 / (keep if layer else 1)
        groups.append({"params": [weight], "weight_decay": precision / rows})
    if training.learn_noise:
        groups.append({"params": [log_noise]})
    adam = torch.optim.Adam(groups, lr=training.learning_rate, fused=True)
    last = training.final_learning_rate or training.learning_rate / 10
    rates = decaying_rates(training.learning_rate, last, training.num_steps)
    batches = _batches(problem, seeds, training.batch_size)
    masks = _dropout_masks(problem, seeds, training)
    with progress_bar(training.num_steps, "training", progress) as bar:
        for step, (x, y), mask in zip(range(training.num_steps), batches, masks, strict=False):
            for group in adam.param_groups:
                group["lr"] = rates(step)
            adam.zero_grad()
            residuals = (y - networks.forward(x, mask)) / log_noise.exp()
            loss = residuals.square().sum() / (2 * x.shape[1]) + targets * log_noise.sum()
            loss.backward()
            adam.step()
            bar.update()
    for parameter in trained:
        parameter.requires_grad_(False)
    if not all(parameter.isfinite().all() for parameter in trained):
        raise FloatingPointError(f"training diverged; try a learning_rate below {training.learning_rate}")
    return replace(networks, noise=log_noise.exp())


def _started(problem: Problem, seeds: Sequence[int], noise: float) -> Networks:
    """Random starts: weights of variance 1 / fan-in, small biases."""
    weights: list[list[Tensor]] = []
    biases: list[list[Tensor]] = []
    pairs = list(zip(problem.widths, problem.widths[1:], strict=False))
    for seed in seeds:
        generator = make_generator("cpu", seed, 8)
        weights.append([torch.randn(pair, generator=generator) / math.sqrt(pair[0]) for pair in pairs])
        biases.append([0.1 * torch.randn(1, fan_out, generator=generator) for _, fan_out in pairs])
    return Networks(
        [torch.stack(layer).to(problem.x) for layer in zip(*weights, strict=True)],
        [torch.stack(layer).to(problem.x) for layer in zip(*biases, strict=True)],
        problem.x.new_full((len(seeds), 1, 1), noise),
    )


def _batches(problem: Problem, seeds: Sequence[int], batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless inputs and targets of a step, shapes (networks, rows, ...)."""
    members = len(seeds) // problem.num_splits
    if batch_size is None:
        x, y = problem.x.repeat_interleave(members, 0), problem.y.repeat_interleave(members, 0)
        while True:
            yield x, y
    split = torch.arange(problem.num_splits, device=problem.x.device).repeat_interleave(members).unsqueeze(1)
    for rows in minibatches(seeds, problem.x.shape[1], batch_size):
        rows = rows.to(problem.x.device)
        yield problem.x[split, rows], problem.y[split, rows]


def _dropout_masks(problem: Problem, seeds: Sequence[int], training: Training) -> Iterator[list[Tensor] | None]:
    """Endless masks of a training step, a fresh one for each row."""
    if training.dropout == 0:
        while True:
            yield None
    rows = training.batch_size or problem.x.shape[1]
    generators = [make_generator(problem.x.device, seed, 9) for seed in seeds]
    while True:
        yield dropout_masks_of(problem, generators, rows, training.dropout)


def dropout_masks_of(problem: Problem, generators: Sequence[torch.Generator], rows: int, rate: float) -> list[Tensor]:
    """For each hidden layer 0 or 1 / (1 - rate), shape (generators, rows, units)."""
    hidden = list(problem.widths[1:-1])
    uniform = problem.x.new_empty((len(generators), rows, sum(hidden)))
    for own, generator in zip(uniform, generators, strict=True):
        own.uniform_(generator=generator)
    return list(((uniform >= rate).to(uniform.dtype) / (1 - rate)).split(hidden, -1))


def check_integer(name: str, value: Any, least: int) -> None:
    """Refuse what is no integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_bool(name: str, value: Any) -> None:
    """Refuse what is no Boolean."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
