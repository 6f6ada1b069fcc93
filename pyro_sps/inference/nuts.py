"""The posterior of small networks by the no-U-turn sampler, to judge approximations by.

Pyro's NUTS samples it, but not from the Pyro model: that would run all of Pyro's handlers at every leapfrog step. The
joint density is written as a function of one flat vector of unconstrained weights, and its energy and gradient are
recorded once as tensor operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from ..base.plain import plain_torch
from ..base.process import warn_user
from ..base.terminal import progress_bar
from ..data.arrays import Standardizer, make_generator
from ..model.bnn import BNN
from ..model.checks import check_inputs, check_targets
from ..model.density import Target, pyro_session, recorded
from ..posterior.fit import Fit
from ..posterior.samples import NutsSamples

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


@plain_torch()
def sample_nuts(
    bnn: BNN,
    x: Any,
    y: Any,
    *,
    num_samples: int = 1000,
    warmup: int = 1000,
    num_chains: int = 4,
    starts: Fit | Sequence[Fit] | Mapping[str, Tensor] | None = None,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    standardize: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> NutsSamples:
    """Draw from the posterior of a small network with Pyro's NUTS, in several chains one after another.

    The target is that of `NUTS(bnn)`. What `fit` would learn beside the weights, a learned c or noise, is held at the
    values that `bnn` has: give `fit.bnn` to compare a fit with the posterior of its own model. `bnn` is not changed.
    Use float64: in float32 the energy of long trajectories is not exact enough.

    Args:
        bnn: The model.
        x: Inputs, shape (rows, features).
        y: Targets, shape (rows, targets) or (rows,).
        num_samples: Draws of each chain after warm-up, at least 4: Pyro's diagnostics need them.
        warmup: Draws before, in which step size and (diagonal) mass matrix adapt.
        num_chains: Number of chains.
        starts: Where chains start: None for a draw of the prior each, fits (chain i at a draw of fit i, in turn), or
            values of the sample sites by name, of shape (chains, entries).
        target_accept: Acceptance probability that the step size aims at.
        max_tree_depth: Trajectories have at most 2 to this power leapfrog steps.
        standardize: As in `fit`.
        seed: Seeds starts and chains. Chain c does not depend on the number of chains.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        The draws, which can be used wherever a `pyro.infer.MCMC` is read.

    Raises:
        TypeError: If `bnn` is no BNN.
        ValueError: If an argument is out of range or does not fit the network, before any work.

    Warns:
        RuntimeWarning: If the network has very many stochastic weights.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 10, dtype=torch.float64).unsqueeze(1)
        >>> net = sps.mlp([1, 2, 1], dtype=torch.float64)
        >>> bnn = sps.BNN(net, scheme=sps.Rigid(), values=sps.Constant(1.0), likelihood=sps.Gaussian(0.5))
        >>> nuts = sps.sample_nuts(bnn, x, x, num_samples=5, warmup=5, num_chains=2, progress=False)
        >>> nuts.samples["0.bias"].shape
        torch.Size([2, 5, 2])
    """
    settings = {name: value for name, value in locals().items() if name not in ("bnn", "x", "y", "starts", "progress")}
    _check_settings(bnn, settings)
    bnn = bnn.copy()
    x = check_inputs("x", x, bnn)
    y = check_targets("y", y, bnn, len(x))
    units = Standardizer.of(x, y, bnn.likelihood.real_valued) if standardize else Standardizer.identity(bnn.like)
    x, y = units.inputs(x), units.targets(y)
    started = time.perf_counter()
    target = Target.of(bnn, x, y)
    points = _starting_points(target, starts, num_chains, seed)
    gradient_and_energy = recorded(torch.func.grad_and_value(target.energy), points[0])

    def potential(params: dict[str, Tensor]) -> Any:
        return _Energy.apply(params["weights"], gradient_and_energy)

    chains, divergences, rates = [], [], []
    with _progress_bar(num_chains * (warmup + num_samples), progress) as bar:
        for index, point in enumerate(points):
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
    samples = target.sites(torch.stack(chains))
    seconds = time.perf_counter() - started
    return NutsSamples(bnn, samples, tuple(divergences), tuple(rates), units, seconds, settings, x, y)


def _check_settings(bnn: Any, settings: Mapping[str, Any]) -> None:
    """Raise for arguments out of range, before any work."""
    if not isinstance(bnn, BNN):
        raise TypeError(f"bnn must be a pyro_sps.BNN, got {type(bnn).__name__}")
    for name, least in (("num_samples", 4), ("warmup", 0), ("num_chains", 1), ("max_tree_depth", 1)):
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if not 0 < settings["target_accept"] < 1:
        raise ValueError(f"target_accept must be in (0, 1), got {settings['target_accept']!r}")
    make_generator("cpu", settings["seed"])
    if bnn.num_stochastic == 0:
        raise ValueError("bnn has no stochastic weight: every weight is fixed, so that nothing is left to sample")
    if bnn.awaits_map:
        raise ValueError("the MAP values of bnn are not set yet: sps.fit sets them, so give it fit.bnn")
    if bnn.num_stochastic > MANY_WEIGHTS:
        warn_user(
            f"NUTS on {bnn.num_stochastic:,} stochastic weights takes very long and will hardly mix", RuntimeWarning
        )


def _starting_points(target: Target, starts: Any, num_chains: int, seed: int) -> list[Tensor]:
    """A point in unconstrained space for each chain."""
    if starts is None:
        return [target.prior_draws(1, make_generator("cpu", seed, 6, c))[0] for c in range(num_chains)]
    if isinstance(starts, Mapping):
        given = target.flat(starts)
        if given.shape != (num_chains, target.problem.size):
            raise ValueError(
                f"starts must have a row for each of {num_chains} chains, got shapes "
                f"{ {name: tuple(value.shape) for name, value in starts.items()} }"
            )
        return list(given)
    fits = starts if isinstance(starts, Sequence) else [starts]
    if not fits:
        raise ValueError("starts must hold at least one fit, got none")
    points = []
    for chain in range(num_chains):
        guide = fits[chain % len(fits)].guide
        points.append(target.flat(guide.draws(1, make_generator(guide.loc.device, seed, 6, chain)))[0])
    return points


def _progress_bar(total: int, progress: bool) -> Any:
    return progress_bar(total, "NUTS", progress)
