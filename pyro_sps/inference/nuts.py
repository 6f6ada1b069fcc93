"""The posterior of small networks by the no-U-turn sampler, to judge approximations by.

Pyro's NUTS samples it, but not from the Pyro model: that would run all of Pyro's handlers at every leapfrog step. The
joint density is written as a function of one flat vector of unconstrained weights, and its energy and gradient are
recorded once as tensor operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from ..base.process import warn_user
from ..base.terminal import progress_bar
from ..data.arrays import make_generator
from ..model.density import pyro_session
from ..model.target import Target
from .program import make_program

# More weights than this take NUTS very long.
MANY_WEIGHTS = 2000


class _Energy(torch.autograd.Function):
    """An energy whose gradient is known with it."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, gradient_and_energy: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        gradient, energy = gradient_and_energy(flat.detach())
        ctx.save_for_backward(gradient)
        return energy

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        return ctx.saved_tensors[0] * outputs[0], None


def run_nuts(
    target: Target,
    points: Tensor,
    num_samples: int,
    warmup: int,
    target_accept: float,
    max_tree_depth: int,
    seed: int,
    progress: bool,
    first: int = 0,
) -> tuple[Tensor, Tensor, list[tuple[int, ...]], list[float], list[float]]:
    """Draw from a posterior with Pyro's NUTS, in several chains one after another.

    Chain c does not depend on the number of chains.

    Args:
        target: The posterior.
        points: Where chains start, shape (chains, n).
        num_samples: Draws of each chain after the warm-up, at least 4: Pyro's diagnostics need them.
        warmup: Draws before, in which step size and (diagonal) mass matrix adapt.
        target_accept: Acceptance probability that the step size aims at.
        max_tree_depth: Trajectories have at most 2 to this power leapfrog steps.
        seed: Seeds the chains.
        progress: Whether to show a progress bar (on a terminal).
        first: Number of the first of these chains, if they are some of several.

    Returns:
        Draws in unconstrained space (chains, draws, n), their energies (chains, draws), and for each chain the draws
        whose trajectory diverged, the share of accepted draws and the step size.

    Warns:
        RuntimeWarning: If the network has very many stochastic weights.
    """
    if target.problem.size > MANY_WEIGHTS:
        warn_user(
            f"NUTS on {target.problem.size:,} stochastic weights takes very long and will hardly mix", RuntimeWarning
        )
    gradient_and_energy = make_program(torch.func.grad_and_value(target.energy), (points[0],), compile=False).run

    def potential(params: dict[str, Tensor]) -> Any:
        return _Energy.apply(params["weights"], gradient_and_energy)

    chains, divergences, rates, sizes = [], [], [], []
    with progress_bar(len(points) * (warmup + num_samples), "NUTS", progress) as bar:
        for index, point in enumerate(points, start=first):
            kernel = pyro.infer.NUTS(
                potential_fn=potential, target_accept_prob=target_accept, max_tree_depth=max_tree_depth
            )
            mcmc = pyro.infer.MCMC(
                kernel,
                num_samples,
                warmup,
                {"weights": point},
                hook_fn=lambda *_: bar.update(),
                disable_progbar=True,
            )
            # Pyro draws from the global generator, through its handlers, which are the whole process's.
            with pyro_session(), torch.random.fork_rng([point.device] if point.is_cuda else []):
                torch.manual_seed(make_generator("cpu", seed, 7, index).initial_seed())
                mcmc.run()
            told = mcmc.diagnostics()
            chains.append(mcmc.get_samples()["weights"])
            divergences.append(tuple(told["divergences"]["chain 0"]))
            rates.append(float(told["acceptance rate"]["chain 0"]))
            sizes.append(float(kernel.step_size))
    draws = torch.stack(chains)
    with pyro_session(), torch.no_grad():
        energies = torch.stack([target.energy(chain) for chain in draws])
    return draws, energies, divergences, rates, sizes
