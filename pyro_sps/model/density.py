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

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence, transform_to

from ..base.plain import plain_torch
from ..base.process import process_lock
from .guides import AutoSPSNormal, Site, site_distribution

Params = dict[str, Tensor]


@contextmanager
def pyro_session() -> Iterator[None]:
    """Run model code alone in the process, out of reach of the caller's handlers, settings and parameter store."""
    stack = poutine.runtime._PYRO_STACK
    with (
        process_lock(),
        plain_torch(),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
        pyro.settings.context(module_local_params=False),
    ):
        handlers = list(stack)
        stack.clear()
        try:
            yield
        finally:
            stack[:] = handlers


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
    params = {name: _unconstrained(trace.nodes[name]["value"]).detach() for name in names}
    constraints = {name: known[name] for name in names}
    return Problem(model, guide.sites, _nesting(trace), constraints), params


def _unconstrained(parameter: Any) -> Tensor:
    """A parameter as it is optimised; one without a constraint is just that."""
    unconstrained: Tensor = parameter.unconstrained() if hasattr(parameter, "unconstrained") else parameter
    return unconstrained


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
    latents = latents_of(problem, loc + scale * noise)
    run = run_model(problem, latents, args, kwargs, params)
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


def normal_prior(
    problem: Problem, like: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> tuple[Tensor, Tensor] | None:
    """Means and standard deviations of the prior of all latent values, each of shape (n,), if all are normal.

    Args:
        problem: The model and its layout.
        like: A tensor whose device and dtype the values have.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.

    Returns:
        None if the prior of some site is another one, or depends on other sites or on parameters of the model.
    """
    found = []
    with pyro_session(), torch.random.fork_rng(devices=[]):
        for value in (0.0, 1.0):
            flat = like.new_full((1, problem.size), value)
            run = run_model(problem, latents_of(problem, flat), args, kwargs, None)
            priors = [_plain_normal(run[site.name]) for site in problem.sites]
            parts = [(p.loc.reshape(-1), p.scale.reshape(-1)) for p in priors if p is not None]
            if len(parts) < len(priors):
                return None
            found.append([torch.cat(own) for own in zip(*parts, strict=True)])
    if any(own.requires_grad or not torch.equal(own, other) for own, other in zip(*found, strict=True)):
        return None
    return found[0][0], found[0][1]


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
    flat = loc if many else loc.unsqueeze(0)
    run = run_model(problem, latents_of(problem, flat), args, kwargs, params)
    total, plain = _plain_energy(problem, flat, run)
    for name, node in run.items():
        if name in plain:
            continue
        log_prob = _log_prob(node, node["value"])
        if log_prob.dim() > problem.nesting:  # carries the dimension of the points
            total = total - log_prob.reshape((log_prob.shape[0], -1)).sum(-1)
        else:
            total = total - log_prob.sum()
    return total if many else total.squeeze(0)


def _plain_energy(problem: Problem, flat: Tensor, run: Mapping[str, Any]) -> tuple[Tensor, set[str]]:
    """Minus the log density of all sites with a plain normal prior at once, shape (S,), and their names.

    Term by term, priors are most of the operations of a small network.
    """
    plain = {}
    for site in problem.sites:
        prior = _plain_normal(run[site.name]) if site.support is None else None
        if prior is not None:
            plain[site.name] = prior
    if not plain:
        return flat.new_zeros(len(flat)), set()
    # Other sites do not count: their precision is zero.
    centres, widths = [], []
    for site in problem.sites:
        prior, size = plain.get(site.name), site.stop - site.start
        centres.append(flat.new_zeros(size) if prior is None else prior.loc.reshape(-1))
        widths.append(flat.new_full((size,), math.inf) if prior is None else prior.scale.reshape(-1))
    width = torch.cat(widths)
    constant = torch.where(width.isinf(), 0.0, width.log() + math.log(2 * math.pi) / 2).sum()
    return ((flat - torch.cat(centres)) / width).square().sum(-1) / 2 + constant, set(plain)


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


def run_model(
    problem: Problem,
    latents: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    params: Mapping[str, Tensor] | None,
) -> dict[str, Any]:
    """What the model makes of its sites: messages of latent and observed ones, by name, in the order of the model.

    Args:
        problem: The model and its layout.
        latents: Values of its latent sites.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        params: Values of the model's parameters; those not given are the model's own.

    Raises:
        ValueError: If the model did not sample a site that it sampled before.
    """
    with _Replay(latents, params or {}) as replay:
        problem.model(*args, **(kwargs or {}))
    if missing := [name for name in latents if name not in replay.nodes]:
        raise ValueError(f"the model did not sample {missing} this time; its sites must not change between runs")
    return replay.nodes


def latents_of(problem: Problem, flat: Tensor) -> Params:
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
