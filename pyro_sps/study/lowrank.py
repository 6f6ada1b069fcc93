"""Low-rank normal posteriors by Pyro's own guide and `SVI`, to compare the mean-field ones with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from ..base.terminal import progress_bar
from ..data.arrays import make_generator, minibatches
from ..inference.loop import decaying_rates
from ..inference.variational import fit
from ..model.bnn import BNN
from ..model.density import Problem, negative_log_joint, prepare, pyro_session
from ..model.guides import AutoSPSNormal
from ..posterior.fit import Fit


@dataclass(frozen=True)
class LowRank:
    """A fit with a low-rank normal posterior: what of `Fit` and its guide a study needs.

    Attributes:
        bnn: The fitted model.
        posterior: Over all stochastic weights in the order of `problem.sites`.
        problem: Their layout.
        x: Training inputs.
        y: Training targets.
    """

    bnn: BNN
    posterior: torch.distributions.LowRankMultivariateNormal
    problem: Problem
    x: Tensor
    y: Tensor

    @property
    def guide(self) -> LowRank:
        """What has `draws`."""
        return self

    def draws(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Posterior draws of every site, shape (num_samples, entries)."""
        flat = self._flat(num_samples, generator)
        return {site.name: site.constrain(site.view(flat)) for site in self.problem.sites}

    def elbo_draws(self, num_samples: int) -> Tensor:
        """Single-draw estimates of the ELBO on the whole training data, in nats, shape (num_samples,)."""
        flat = self._flat(num_samples, make_generator(self.x.device, 0, 2))
        with pyro_session(), torch.no_grad():
            return -negative_log_joint(self.problem, flat, (self.x, self.y)) - self.posterior.log_prob(flat)

    def _flat(self, num_samples: int, generator: torch.Generator) -> Tensor:
        q = self.posterior
        n, rank = q.cov_factor.shape
        noise = torch.randn((num_samples, n + rank), generator=generator, dtype=q.loc.dtype, device=q.loc.device)
        return q.loc + noise[:, :n] * q.cov_diag.sqrt() + noise[:, n:] @ q.cov_factor.mT


def low_rank(
    bnn: BNN,
    x: Tensor,
    y: Tensor,
    rank: int,
    *,
    seed: int,
    progress: bool,
    num_steps: int,
    num_particles: int,
    batch_size: int | None,
    learning_rate: float = 0.01,
    **settings: Any,
) -> list[LowRank]:
    """Fit a low-rank normal posterior to each of several data sets, from where `pyro_sps.fit` would start.

    Args:
        bnn: The model.
        x: Inputs, shape (data sets, rows, features).
        y: Targets, shape (data sets, rows, targets).
        rank: Of the posterior's covariance, besides its diagonal.
        seed: As of `fit`.
        progress: Likewise.
        num_steps: Likewise.
        num_particles: Likewise.
        batch_size: Likewise.
        learning_rate: Likewise.
        **settings: Others of `fit`, for the start.
    """
    # One step that does not move: what is wanted is the start, with its MAP values.
    still: dict[str, Any] = {"num_steps": 1, "learning_rate": 1e-12, "standardize": False}
    starts = fit(bnn, x, y, replicas=len(x), seed=seed, progress=progress, **{**still, **settings})
    found = []
    with progress_bar(len(starts), "low rank", progress) as bar:
        for index, start in enumerate(starts):
            devices = [x.device] if x.is_cuda else []
            with pyro_session(), torch.random.fork_rng(devices):
                torch.manual_seed(seed + index)
                found.append(_one(start, rank, seed + index, num_steps, num_particles, batch_size, learning_rate))
            bar.update()
    return found


def _one(
    start: Fit, rank: int, seed: int, num_steps: int, num_particles: int, batch_size: int | None, learning_rate: float
) -> LowRank:
    bnn, x, y = start.bnn, start.x, start.y
    assert x is not None
    assert y is not None
    rows = len(x)
    batch = rows if batch_size is None else min(batch_size, rows)
    values = start.guide.median()
    scale = start.guide.parameters_of_sites()[1].mean().item()  # Pyro has one for all
    guide = AutoLowRankMultivariateNormal(bnn, init_to_value(values=values), init_scale=scale, rank=rank)
    rate = decaying_rates(learning_rate, None, num_steps)
    decay = rate(1) / rate(0) if num_steps > 1 else 1.0
    optimiser = pyro.optim.ClippedAdam({"lr": learning_rate, "lrd": decay, "clip_norm": 1e6})
    elbo = Trace_ELBO(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
    svi = SVI(bnn, guide, optimiser, elbo)
    batches = minibatches([seed], rows, batch)
    for _ in range(num_steps):
        own = next(batches)[0].to(x.device)
        svi.step(x[own], y[own], num_data=rows)
    with torch.no_grad():
        posterior = guide.get_posterior()
    problem, _ = prepare(bnn, AutoSPSNormal(bnn), x[:1], y[:1])
    return LowRank(bnn, posterior, problem, x, y)
