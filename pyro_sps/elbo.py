r"""The objective of mean-field variational inference, as a pure function.

For a model with latent sites :math:`w` and a guide :math:`q(w) = \prod_i \mathcal N(w_i; m_i, s_i^2)` over them,

.. math::
   \mathcal L(m, s, \theta) = \frac{1}{S} \sum_{k=1}^{S} \log p_\theta(y \mid x, m + s \epsilon_k)
   - \mathrm{KL}(q \,\|\, p_\theta), \qquad \epsilon_k \sim \mathcal N(0, 1),

with the KL divergence in closed form where one is known and the likelihood scaled by the model's plates. Where Pyro
traces guide and model with all their handlers for every particle, here the model runs once, over all particles, under
one light handler, and every tensor it depends on is an argument: parameters, noise, data. So the result can be
differentiated, mapped over replicas and compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence, transform_to

from .guides import AutoSPSNormal, Site, site_distribution
from .process import process_lock

Params = dict[str, Tensor]


@contextmanager
def pyro_session() -> Iterator[None]:
    """Run model code alone in the process, with a parameter store of its own and without validation."""
    with process_lock(), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        yield


@dataclass(frozen=True)
class Problem:
    """A model and the layout of its latent sites and parameters.

    Attributes:
        model: The Pyro model, a callable.
        sites: Latent sites in the guide's flat order.
        nesting: Number of plate dimensions of the model.
        constraints: Constraint of every parameter of the model, by name.
    """

    model: Callable[..., Any]
    sites: tuple[Site, ...]
    nesting: int
    constraints: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Number of latent values n."""
        return self.sites[-1].stop

    def constrain(self, params: Mapping[str, Tensor]) -> Params:
        """The model's parameters from unconstrained ones."""
        return {name: transform_to(constraint)(params[name]) for name, constraint in self.constraints.items()}


def prepare(model: Callable[..., Any], guide: AutoSPSNormal, *args: Any, **kwargs: Any) -> tuple[Problem, Params]:
    """Run model and guide once to learn their layout.

    Args:
        model: A Pyro model.
        guide: A guide of it.
        *args: Arguments of both.
        **kwargs: Arguments of both.

    Returns:
        The problem, and the model's parameters in unconstrained space, by name.
    """
    # Looking at the model must not advance the user's random state.
    with pyro_session(), torch.random.fork_rng(devices=[]), torch.no_grad():
        trace = _trace(model, guide, args, kwargs)
        known = pyro.get_param_store().get_state()["constraints"]
    names = [name for name, node in trace.nodes.items() if node["type"] == "param"]
    params = {name: trace.nodes[name]["value"].unconstrained().detach() for name in names}  # type: ignore[union-attr]
    constraints = {name: known[name] for name in names}
    return Problem(model, guide.sites, _nesting(trace), constraints), params


def negative_elbo(
    problem: Problem,
    loc: Tensor,
    scale: Tensor,
    noise: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    params: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """An estimate of the negative ELBO, a pure function of its tensors.

    Args:
        problem: The model and its layout.
        loc: Means of the guide in unconstrained space, shape (n,).
        scale: Standard deviations, shape (n,).
        noise: Standard normal draws, shape (particles, n).
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        params: Values of the model's parameters; those not given are the model's own.

    Returns:
        A scalar: the sum over the data (scaled by the model's plates), averaged over particles.
    """
    return sum_terms(elbo_terms(problem, loc, scale, noise, args, kwargs, params))


def sum_terms(terms: Mapping[str, Tensor]) -> Tensor:
    """Sum of scalars."""
    return torch.stack(list(terms.values())).sum() if len(terms) > 1 else next(iter(terms.values()))


def elbo_terms(
    problem: Problem,
    loc: Tensor,
    scale: Tensor,
    noise: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    params: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The terms of `negative_elbo` by site: KL divergences of latent sites, -log-likelihoods of observed ones.

    The KL divergences of all sites with a plain normal prior are one term, named `KL`.
    """
    latents = _latents(problem, loc + scale * noise)
    run = _run(problem, latents, args, kwargs, params)
    terms = {}
    for name, node in run.items():
        if name not in latents:
            terms[name] = -_mean_over_particles(_log_prob(node, node["value"]), problem.nesting)
    priors = [_plain_normal(run[site.name]) for site in problem.sites]
    if all(prior is not None for prior in priors):
        prior = torch.distributions.Normal(
            torch.cat([p.loc.reshape(-1) for p in priors if p is not None]),
            torch.cat([p.scale.reshape(-1) for p in priors if p is not None]),
        )
        return {"KL": kl_divergence(torch.distributions.Normal(loc, scale), prior).sum(), **terms}
    return {
        **{
            site.name: _mean_over_particles(_kl(site, loc, scale, run[site.name]), problem.nesting)
            for site in problem.sites
        },
        **terms,
    }


def negative_log_joint(
    problem: Problem,
    loc: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    params: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Minus the log joint density at one point, shape () for `loc` of shape (n,), or (S,) for (S, n).

    Densities are those of the constrained values, as in Pyro's `AutoDelta`.
    """
    many = loc.dim() == 2
    latents = _latents(problem, loc if many else loc.unsqueeze(0))
    total = loc.new_zeros(latents[problem.sites[0].name].shape[0])
    for node in _run(problem, latents, args, kwargs, params).values():
        log_prob = _log_prob(node, node["value"])
        if log_prob.dim() > problem.nesting:  # carries the dimension of the points
            total = total - log_prob.reshape((log_prob.shape[0], -1)).sum(-1)
        else:
            total = total - log_prob.sum()
    return total if many else total.squeeze(0)


class MeanFieldELBO(ELBO):
    """The ELBO for stock `SVI` with an `AutoSPSNormal` guide: `TraceMeanField_ELBO` at a fraction of its cost.

    All particles run at once, the KL divergence of every latent site is taken once, in closed form where it is
    known, and guide and model are not traced. Equal to `TraceMeanField_ELBO` in expectation.

    Args:
        num_particles: Number of draws S the likelihood is averaged over.

    Example:
        >>> import torch, pyro, pyro_sps as sps
        >>> from pyro.infer import SVI
        >>> pyro.clear_param_store()
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> svi = SVI(bnn, sps.AutoSPSNormal(bnn), pyro.optim.Adam({"lr": 0.01}), sps.MeanFieldELBO(16))
        >>> loss = svi.step(torch.zeros(3, 1), torch.zeros(3, 1))
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self._problems: dict[int, tuple[Any, Any, Problem]] = {}

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("MeanFieldELBO does not trace guide and model")

    def differentiable_loss(self, model: Callable[..., Any], guide: AutoSPSNormal, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO as a differentiable scalar.

        Raises:
            TypeError: If the guide is not an `AutoSPSNormal`.
        """
        if not isinstance(guide, AutoSPSNormal):
            raise TypeError(
                f"guide must be an AutoSPSNormal, got {type(guide).__name__}; use TraceMeanField_ELBO for others"
            )
        problem = self._problem(model, guide, args, kwargs)
        with guide._pyro_context:  # so that SVI sees the guide's parameters
            loc, scale = guide.parameters_of_sites()
        noise = torch.randn((self.num_particles, len(loc)), dtype=loc.dtype, device=loc.device)
        return negative_elbo(problem, loc, scale, noise, args, kwargs)

    def _problem(self, model: Any, guide: AutoSPSNormal, args: Any, kwargs: Any) -> Problem:
        known = self._problems.get(id(guide))
        if known is None or known[0] is not model or known[1] is not guide:
            with torch.no_grad():
                trace = _trace(model, guide, args, kwargs)
            known = (model, guide, Problem(model, guide.sites, _nesting(trace), {}))
            self._problems[id(guide)] = known
        return known[2]

    def loss(self, model: Callable[..., Any], guide: AutoSPSNormal, *args: Any, **kwargs: Any) -> float:
        """An estimate of the negative ELBO."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Callable[..., Any], guide: AutoSPSNormal, *args: Any, **kwargs: Any) -> float:
        """An estimate of the negative ELBO; its gradients are added to the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


class _Replay(Messenger):
    """Gives sites and parameters their values and notes what the model made of them."""

    def __init__(self, latents: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.latents, self.params = latents, params
        self.nodes: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.latents:
            msg["value"], msg["done"] = self.latents[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.latents or (msg["is_observed"] and not msg["infer"].get("_deterministic")):
            self.nodes[msg["name"]] = msg

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.params:
            msg["value"], msg["done"] = self.params[msg["name"]], True


def _run(
    problem: Problem,
    latents: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    params: Mapping[str, Tensor] | None,
) -> dict[str, Any]:
    with _Replay(latents, params or {}) as replay:
        problem.model(*args, **(kwargs or {}))
    if missing := [name for name in latents if name not in replay.nodes]:
        raise ValueError(f"the model did not sample {missing} this time; its sites must not change between runs")
    return replay.nodes


def _latents(problem: Problem, flat: Tensor) -> Params:
    """Values of shape (particles,) + 1s for missing plate dimensions + the site's shape, from (particles, n)."""
    latents = {}
    # Split at once: its derivative is one concatenation, that of slices a sum of as many vectors padded with zeros.
    parts = flat.split([site.stop - site.start for site in problem.sites], dim=-1)
    for site, part in zip(problem.sites, parts, strict=True):
        missing = problem.nesting - (len(site.shape) - site.event_dim)
        latents[site.name] = site.constrain(part.reshape(flat.shape[:1] + (1,) * missing + site.shape))
    return latents


def _trace(model: Callable[..., Any], guide: AutoSPSNormal, args: tuple[Any, ...], kwargs: Any) -> poutine.Trace:
    """A trace of the model at the guide's median, hidden from handlers outside; the guide learns its sites."""
    guide(*args, **kwargs)
    conditioned = poutine.condition(model, data=guide.median())
    trace: poutine.Trace = poutine.block(poutine.trace(conditioned).get_trace)(*args, **kwargs)
    return trace


def _nesting(trace: poutine.Trace) -> int:
    frames = [f for node in trace.nodes.values() if node["type"] == "sample" for f in node["cond_indep_stack"]]
    return max((-frame.dim for frame in frames if frame.dim is not None), default=0)


def _log_prob(node: Any, value: Tensor) -> Tensor:
    return scale_and_mask(node["fn"].log_prob(value), node["scale"], node["mask"])


def _mean_over_particles(value: Tensor, nesting: int) -> Tensor:
    """Sum over plates, mean over the particle dimension on their left if there is one."""
    return value.sum() / value.shape[0] if value.dim() > nesting else value.sum()


def _plain_normal(node: Any) -> torch.distributions.Normal | None:
    """The prior of a latent site if it is a product of normals that no particle, plate scale or mask changes."""
    prior = node["fn"]
    while isinstance(prior, torch.distributions.Independent):
        prior = prior.base_dist
    plain = (
        isinstance(prior, torch.distributions.Normal)
        and prior.batch_shape.numel() * node["value"].shape[0] == node["value"].numel()
        and node["mask"] is None
        and not isinstance(node["scale"], Tensor)
        and node["scale"] == 1
    )
    return prior if plain else None


def _kl(site: Site, loc: Tensor, scale: Tensor, node: Any) -> Tensor:
    guide = site_distribution(site, loc, scale)
    try:
        divergence = kl_divergence(guide, node["fn"])
    except NotImplementedError:
        divergence = guide.log_prob(node["value"]) - node["fn"].log_prob(node["value"])
    return scale_and_mask(divergence, node["scale"], node["mask"])
