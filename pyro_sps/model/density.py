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
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to, kl_divergence, transform_to

from ..base.plain import plain_torch
from ..base.process import process_lock
from ..base.recording import record
from ..data.observed import Observed
from .bnn import BNN
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
            run = _run(problem, _latents(problem, flat), args, kwargs, None)
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
    run = _run(problem, _latents(problem, flat), args, kwargs, params)
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
    nodes = {site: _plain_normal(run[site.name]) for site in problem.sites if site.support is None}
    plain = {site.name: prior for site, prior in nodes.items() if prior is not None}
    if not plain:
        return flat.new_zeros(len(flat)), set()
    # Of other sites nothing counts: their precision is zero.
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
        num_data: Size of the whole data set if these rows are some of it, drawn at random: they stand for all then.
    """

    bnn: BNN
    problem: Problem
    params: Params = field(repr=False)
    x: Tensor = field(repr=False)
    y: Tensor | Observed = field(repr=False)
    num_data: int | None = None

    @staticmethod
    def of(bnn: BNN, x: Tensor, y: Tensor | Observed, num_data: int | None = None) -> Target:
        """The target of checked data."""
        problem, own = prepare(bnn, AutoSPSNormal(bnn), x, y)
        return Target(bnn, problem, problem.constrain(own), x, y, num_data)

    @property
    def rows(self) -> int:
        """Number of rows of the data."""
        return len(self.x) if self.num_data is None else self.num_data

    def energy(self, flat: Tensor) -> Tensor:
        """Minus the log density with respect to the unconstrained weights: shape () for (n,), (S,) for (S, n)."""
        return self.energy_on(flat, self.x, self.y, self.num_data)

    def energy_on(self, flat: Tensor, x: Tensor, y: Tensor | Observed, num_data: int | None = None) -> Tensor:
        """`energy` on other data.

        Args:
            flat: Unconstrained weights, shape (n,) or (S, n).
            x: Inputs, in the units of the network.
            y: Targets, likewise.
            num_data: Size of the whole data set if this is a minibatch of it.
        """
        energy = negative_log_joint(self.problem, flat, (x, y), {"num_data": num_data}, self.params)
        for site in self.problem.sites:
            if site.support is not None:  # such as ordered biases
                transform = biject_to(site.support)
                value = site.view(flat)
                log_det = transform.log_abs_det_jacobian(value, transform(value))
                energy = energy - log_det.reshape((*flat.shape[:-1], -1)).sum(-1)
        return energy

    @torch.no_grad()
    def log_likelihoods(self, flat: Tensor, x: Tensor, y: Tensor | Observed) -> Tensor:
        """Log densities of the targets of each row given draws, shape (S, rows), whatever else the model samples.

        What does not count like all others, counts in them as often as it does.

        Args:
            flat: Unconstrained weights, shape (S, n).
            x: Inputs, in the units of the network.
            y: Targets, likewise.
        """
        with pyro_session():
            node = _run(self.problem, _latents(self.problem, flat), (x, y), None, self.params)["obs"]
            log_prob: Tensor = node["fn"].log_prob(node["value"])
        if isinstance(y, Observed) and y.weights is not None:
            log_prob = log_prob * y.weights
        return log_prob.reshape(-1, len(x)).expand(len(flat), -1)

    def sites(self, flat: Tensor) -> dict[str, Tensor]:
        """Values of the sample sites, B + (entries,), from B + (n,)."""
        return {site.name: site.constrain(site.view(flat)) for site in self.problem.sites}

    def log_likelihood(self, flat: Tensor) -> Tensor:
        """Log density of the targets given the weights, shape B for B + (n,)."""
        sites = self.sites(flat)
        outputs = self.bnn.function(self.bnn.assemble(sites), self.x)
        log: Tensor = self.bnn.likelihood.at(sites).log_density(outputs, self.y)
        return log.flatten(-1 - self.bnn.likelihood.event_dim).sum(-1)

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
        operations = record(lambda *args: function(*args), *examples)  # which cannot read bound methods
        try:
            return torch.jit.freeze(torch.jit.trace(operations.eval(), examples, check_trace=False))
        except Exception:  # on a Python without TorchScript
            return operations
