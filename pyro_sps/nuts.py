"""The posterior of small networks by the no-U-turn sampler, to judge approximations by.

Pyro's NUTS samples it, but not from the Pyro model: that would run all of Pyro's handlers at every leapfrog step. The
joint density is written as a function of one flat vector of unconstrained weights, and its energy and gradient are
recorded once as tensor operations.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to
from torch.fx.experimental.proxy_tensor import make_fx

from .data import Standardizer, check_inputs, check_targets, make_generator
from .elbo import Params, Problem, negative_log_joint, prepare, pyro_session
from .guides import AutoSPSNormal
from .nn import BNN
from .predict import Member, Prediction
from .values import MAP

if TYPE_CHECKING:
    from .infer import Fit

# More weights than this take NUTS very long.
MANY_WEIGHTS = 2000


@dataclass(frozen=True)
class Target:
    """The unnormalised posterior of a network's stochastic weights, in unconstrained space.

    Parameters of the model (a learned c, a learned noise) are held at the values that the network has.

    Attributes:
        bnn: The model.
        problem: The layout of its sites in the flat vector.
        params: Values of the model's parameters.
        x: Inputs, in the units of the network.
        y: Targets, likewise.
    """

    bnn: BNN
    problem: Problem
    params: Params = field(repr=False)
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)

    @staticmethod
    def of(bnn: BNN, x: Tensor, y: Tensor) -> Target:
        """The target of checked data."""
        problem, own = prepare(bnn, AutoSPSNormal(bnn), x, y)
        return Target(bnn, problem, problem.constrain(own), x, y)

    def energy(self, flat: Tensor) -> Tensor:
        """Minus the log density with respect to the unconstrained weights: shape () for (n,), (S,) for (S, n)."""
        energy = negative_log_joint(self.problem, flat, (self.x, self.y), None, self.params)
        for site in self.problem.sites:
            if site.support is not None:  # such as ordered biases
                transform = biject_to(site.support)
                value = site.view(flat)
                log_det = transform.log_abs_det_jacobian(value, transform(value))
                energy = energy - log_det.reshape((*flat.shape[:-1], -1)).sum(-1)
        return energy

    def sites(self, flat: Tensor) -> dict[str, Tensor]:
        """Values of the sample sites, B + (entries,), from B + (n,)."""
        return {site.name: site.constrain(site.view(flat)) for site in self.problem.sites}

    def log_likelihood(self, flat: Tensor) -> Tensor:
        """Log density of the targets given the weights, shape B for B + (n,)."""
        weights = self.bnn.assemble(self.sites(flat))
        return self.bnn.likelihood(self.bnn.function(weights, self.x)).log_prob(self.y).sum(-1)

    def flat(self, sites: Mapping[str, Tensor]) -> Tensor:
        """The opposite of `sites`.

        Raises:
            ValueError: If a site is missing or has another size.
        """
        parts = []
        for site in self.problem.sites:
            value = sites.get(site.name)
            if value is None or value.shape[value.dim() - len(site.shape) :] != site.shape:
                found = "nothing" if value is None else f"shape {tuple(value.shape)}"
                raise ValueError(f"site {site.name!r} must have values of shape {tuple(site.shape)}, got {found}")
            value = value.detach().to(self.x)
            value = site.unconstrain(value)
            parts.append(value.reshape((*value.shape[: value.dim() - len(site.shape)], -1)))
        return torch.cat(parts, dim=-1)

    def prior_draws(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws of the prior in unconstrained space, shape (num_samples, n)."""
        devices = [self.x.device] if self.x.is_cuda else []
        with pyro_session(), torch.random.fork_rng(devices), torch.no_grad(), poutine.block():
            torch.manual_seed(generator.initial_seed())
            with poutine.trace() as tracer, pyro.plate("draws", num_samples, dim=-2):
                self.bnn(self.x[:1])
        nodes: Any = tracer.trace.nodes
        values = {site.name: nodes[site.name]["value"].reshape(num_samples, *site.shape) for site in self.problem.sites}
        return self.flat(values)


def recorded(function: Callable[..., Any], *examples: Tensor) -> Callable[..., Any]:
    """A pure function of tensors as recorded operations, without the Python that led to them.

    Args:
        function: The function; it may run Pyro models.
        *examples: Arguments; later ones must have the same shapes.
    """
    with pyro_session(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of TorchScript's deprecation: nothing else is as fast for tiny tensors
        operations = make_fx(lambda *args: function(*args))(*examples)  # which cannot read bound methods
        try:
            return torch.jit.freeze(torch.jit.trace(operations.eval(), examples, check_trace=False))
        except Exception:  # on a Python without TorchScript
            return operations


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


@dataclass(frozen=True)
class NutsSamples:
    """Draws from the posterior of a network, with the interface of a `pyro.infer.MCMC` that has run.

    Attributes:
        bnn: The model.
        samples: Values of each sample site, shape (chains, draws, entries).
        divergences: For each chain the draws whose trajectory diverged.
        acceptance_rates: For each chain the share of accepted draws.
        standardizer: Shift and scale between the user's units and the network's.
        seconds: Wall time.
        settings: What `sample_nuts` was asked for.
        x: Training inputs, in the units of the network.
        y: Training targets, likewise.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 10, dtype=torch.float64).unsqueeze(1)
        >>> net = sps.mlp([1, 2, 1], dtype=torch.float64)
        >>> bnn = sps.BNN(net, scheme=sps.Rigid(), values=sps.Constant(1.0), likelihood=sps.Gaussian(0.5))
        >>> nuts = sps.sample_nuts(bnn, x, x, num_samples=5, warmup=5, num_chains=2, progress=False)
        >>> nuts.weights()["0.weight"].shape, nuts.predict(x, num_samples=10).mean.shape
        (torch.Size([2, 5, 2, 1]), torch.Size([10, 1]))
    """

    bnn: BNN
    samples: Mapping[str, Tensor] = field(repr=False)
    divergences: Sequence[Sequence[int]] = field(repr=False)
    acceptance_rates: Sequence[float]
    standardizer: Standardizer = field(repr=False)
    seconds: float
    settings: Mapping[str, Any] = field(repr=False)
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return len(self.acceptance_rates)

    @property
    def num_divergent(self) -> int:
        """Number of draws whose trajectory diverged, in all chains."""
        return sum(map(len, self.divergences))

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Values of the sample sites, as `pyro.infer.MCMC.get_samples` gives them.

        Args:
            num_samples: Number of draws, taken at random with replacement; None for all.
            group_by_chain: Whether to keep the dimension of the chains.

        Returns:
            Shape (draws, entries), or (chains, draws, entries), by site.
        """
        from pyro.infer.mcmc.util import select_samples

        selected: dict[str, Tensor] = select_samples(dict(self.samples), num_samples, group_by_chain)
        return selected

    def diagnostics(self) -> dict[str, Any]:
        """R-hat and effective sample size by site, divergences and acceptance rates by chain, as Pyro gives them."""
        from pyro.infer.mcmc.util import diagnostics

        found: dict[str, Any] = diagnostics(dict(self.samples))
        chains = [f"chain {index}" for index in range(self.num_chains)]
        found["divergences"] = dict(zip(chains, map(list, self.divergences), strict=True))
        found["acceptance rate"] = dict(zip(chains, self.acceptance_rates, strict=True))
        return found

    def weights(self) -> dict[str, Tensor]:
        """All weight tensors in full, fixed entries included: shape (chains, draws) + the tensor's, by name."""
        with torch.no_grad():
            return self.bnn.assemble(self.samples)

    def draws(self, num_samples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draws of every site at random, with replacement, as a guide gives them: shape (num_samples, entries)."""
        flat = {name: value.flatten(0, 1) for name, value in self.samples.items()}
        first = next(iter(flat.values()))
        index = torch.randint(len(first), (num_samples,), generator=generator, device=first.device)
        return {name: value[index] for name, value in flat.items()}

    def predict(self, x: Any, num_samples: int = 1000, seed: int = 0) -> Prediction:
        """The posterior predictive distribution at new inputs; see `Fit.predict`."""
        guide: Any = self
        return Prediction.of([Member(self.bnn, guide, self.standardizer)], x, num_samples, seed)


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
    x = check_inputs("x", x, bnn.like, bnn.topology.groups[0].size)
    y = check_targets("y", y, bnn.like, bnn.likelihood, bnn.num_outputs, len(x))
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
    if isinstance(bnn.values, MAP) and bnn.num_fixed and not any(value.any() for value in bnn.fixed.values()):
        raise ValueError("the MAP values of bnn are not set yet: sps.fit sets them, so give it fit.bnn")
    if bnn.num_stochastic > MANY_WEIGHTS:
        warnings.warn(
            f"NUTS on {bnn.num_stochastic:,} stochastic weights takes very long and will hardly mix",
            RuntimeWarning,
            stacklevel=3,
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
    from tqdm import tqdm

    return tqdm(total=total, desc="NUTS", disable=None if progress else True, mininterval=0.5, file=sys.stderr)
