"""Posterior draws with their log densities under the model and under the guide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..data.arrays import Standardizer, make_generator
from ..data.names import in_order, require_same_rows, row_names
from ..data.observed import Observed
from ..data.opening import pairs_of
from ..data.sources import Source
from ..data.trees import leaves
from ..model.bnn import BNN
from ..model.checks import check_inputs, check_observed
from ..model.density import pyro_session
from ..model.guides import AutoSPSNormal, site_distribution
from ..model.streams import Stream, stream_of
from ..posterior.fit import Fit
from ..posterior.outputs import Member
from ..posterior.predict import Prediction
from ..posterior.samples import Samples

# Data of data that is read in pieces which are looked at together, and bytes of them.
MOST_ROWS, MOST_BYTES = 20_000, 1 << 28


@dataclass(frozen=True)
class Data:
    """Inputs and targets in original units.

    Attributes:
        x: Inputs, of all rows, or of some that stand for all.
        y: Targets of them.
        whole: All rows, where these are some of them.
    """

    x: Tensor
    y: Tensor | Observed
    whole: Stream | None = None

    def pieces(self) -> Iterator[tuple[Tensor, Tensor | Observed]]:
        """All rows, in pieces that fit in memory."""
        return iter([(self.x, self.y)]) if self.whole is None else self.whole.in_order()

    @property
    def num_rows(self) -> int:
        """Number of all rows."""
        return len(self.x) if self.whole is None else self.whole.num_rows

    @property
    def num_entries(self) -> int:
        """Number of targets in all rows."""
        return self.num_rows * leaves(self.y)[0][0].numel()


@dataclass(frozen=True)
class Draws:
    """Posterior draws of one fit.

    Attributes:
        member: The fitted network, with the draws.
        log_guide: Log density of each draw under the guide, float64, shape (S,).
    """

    member: Member
    log_guide: Tensor

    def __len__(self) -> int:
        return len(self.log_guide)

    def log_joint(self, data: Data) -> Tensor:
        """Log joint density of data and each draw; see `log_joint`."""
        return log_joint(self.member, data, len(self))


def draw(fit: Fit, num_draws: int, seed: int) -> Draws:
    """Draw from a fit's guide.

    Args:
        fit: The fit.
        num_draws: Number of draws S.
        seed: Seeds them.
    """
    like = fit.bnn.like
    sites = fit.guide.draws(num_draws, make_generator(like.device, seed, 6))
    return Draws(replace(fit.member, sites=sites), log_guide(fit.guide, sites))


@torch.no_grad()
def log_guide(guide: AutoSPSNormal, sites: Mapping[str, Tensor]) -> Tensor:
    """Log density of a mean-field guide, of the constrained values.

    Args:
        guide: The guide.
        sites: Draws by site name, shape (S,) + the site's.

    Returns:
        Shape (S,), float64.
    """
    loc, scale = (value.double() for value in guide.parameters_of_sites())
    logs = [site_distribution(site, loc, scale).log_prob(sites[site.name].double()) for site in guide.sites]
    return torch.stack([log.reshape(len(log), -1).sum(-1) for log in logs]).sum(0)


@torch.no_grad()
def log_prior(bnn: BNN, sites: Mapping[str, Tensor]) -> Tensor:
    """Log prior density of draws.

    Args:
        bnn: The model.
        sites: Draws of every latent site by name, shape (S,) + the site's.

    Returns:
        Shape (S,), float64.
    """
    # A dimension of size 1 in the place of the model's plate, as guides and samplers have it.
    values = {name: value.unsqueeze(1) for name, value in sites.items()}
    with pyro_session():
        trace = poutine.block(poutine.trace(poutine.condition(bnn.sample_latents, data=values)).get_trace)()
    total = torch.zeros(len(next(iter(sites.values()))), dtype=torch.float64, device=bnn.like.device)
    for node in trace.nodes.values():
        if node["type"] == "sample" and node["name"] in values:
            # Densities of the single entries are rounded to the network's precision, their sum is not.
            total = total + _entries(node["fn"], node["value"]).double().reshape(len(total), -1).sum(-1)
    return total


def _entries(distribution: Any, value: Any) -> Tensor:
    """Log densities of a product's factors, where it says that it is one."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    log_prob: Tensor = distribution.log_prob(value)
    return log_prob


def log_joint(member: Member, data: Data, num_draws: int) -> Tensor:
    """Log joint density of weights and data: the prior's of a member's draws, the likelihood's in original units.

    Args:
        member: A network with draws.
        data: The data, of which all rows count.
        num_draws: Number of draws S.

    Returns:
        Shape (S,), float64. For standardised targets the Jacobian of the scaling is in it.
    """
    assert member.sites is not None
    total = log_prior(member.bnn, member.sites)
    for x, y in data.pieces():
        for _, logs in Prediction.of([member], x, num_draws, 0).log_likelihoods_by_rows(y):
            total = total + logs.reshape(num_draws, -1).sum(-1)
    return total


def prior_draws(bnn: BNN, num_draws: int, seed: int) -> dict[str, Tensor]:
    """Draws of every latent site from the prior.

    Args:
        bnn: The model.
        num_draws: Number of draws S.
        seed: Seeds them.

    Returns:
        Tensors of shape (S,) + the site's, by site name.
    """

    def many() -> None:
        with pyro.plate("draws", num_draws, dim=-2):  # -1 is the place of the model's plate
            bnn.sample_latents()

    devices = [bnn.like.device] if bnn.like.is_cuda else []
    with pyro_session(), torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(make_generator("cpu", seed, 7).initial_seed())
        trace = prune_subsample_sites(poutine.block(poutine.trace(many).get_trace)())
    values: dict[str, Any] = {name: node["value"] for name, node in trace.iter_stochastic_nodes()}
    return {name: value.squeeze(1) for name, value in values.items()}


def chain_seed(seed: int, index: int) -> int:
    """A seed for each chain, so that chains with equal guides have draws of their own.

    Args:
        seed: The user's seed.
        index: Number of the chain.

    Raises:
        ValueError: If the seed is not a non-negative integer.
    """
    return make_generator("cpu", seed, 8, index).initial_seed()


def check_data(bnn: BNN, x: Any, y: Any, prefix: str = "", fit: Fit | Samples | None = None) -> Data:
    """Inputs and targets as tensors that fit a network; of what is read in pieces some, where it has many rows.

    Args:
        bnn: The network.
        x: Inputs, or a data set as `fit` takes it.
        y: Targets; of files and tables the names of their columns, where they are not those of the fit.
        prefix: What to call them in errors: `prefix` + x.
        fit: A fit whose names of columns they must have, if it has some.

    Raises:
        ValueError: If they do not fit.
    """
    names = (None, None) if fit is None else (fit.features, fit.targets)
    missing = "error" if fit is None else str(fit.settings.get("missing", "error"))
    if (source := pairs_of(x, y, *names)) is not None:
        return _of_source(source, bnn, missing)
    if y is None:
        raise ValueError(f"{prefix}x and y must be given together, got x alone")
    require_same_rows(f"{prefix}x", row_names(x), f"{prefix}y", row_names(y))
    if fit is not None:
        x, y = in_order(f"{prefix}x", x, fit.features), in_order(f"{prefix}y", y, fit.targets)
    inputs = check_inputs(f"{prefix}x", x, bnn)
    return Data(inputs, check_observed(f"{prefix}y", y, bnn, len(inputs), missing=missing))


def _of_source(source: Source, bnn: BNN, missing: str) -> Data:
    stream = stream_of(source, bnn, missing)
    data, whole = stream.some(MOST_ROWS, MOST_BYTES)
    return Data(*data, None if whole else stream)


def training_data(fits: Sequence[Fit | Samples], x: Any, y: Any) -> Data:
    """The data that all of some fits were made with, in original units, with its weights, error bars and gaps.

    Args:
        fits: The fits.
        x: Inputs in original units, or None for those that the fits hold.
        y: Targets, likewise.

    Raises:
        ValueError: If only one of both is given, a fit holds no data, fits hold different data, or the data does not
            fit the network.
    """
    bnn = fits[0].bnn
    if x is None and y is not None:
        raise ValueError("x and y must be given together, got y alone")
    if x is not None:
        return check_data(bnn, x, y, fit=fits[0])
    every: list[Data] = []
    for fit in fits:
        if fit.source is not None:  # which replicas share
            again = bool(every) and fit.source is fits[0].source
            missing = str(fit.settings.get("missing", "error"))
            every.append(every[0] if again else _of_source(fit.source, fit.bnn, missing))
            continue
        targets = fit.observed
        if fit.x is None or targets is None:
            what = "fit holds" if isinstance(fit, Fit) else "samples hold"
            raise ValueError(f"the {what} no training data (loaded from a file): give it as x and y")
        every.append(Data(*_original(fit.standardizer, fit.x, targets)))
    for other in every[1:]:
        own, first = (leaves((data.x, data.y)) for data in (other, every[0]))
        if other.num_rows != every[0].num_rows or len(own) != len(first) or not all(map(_same, own, first)):
            raise ValueError("the fits have different training data: give the data that they are to be judged on, x, y")
    return every[0]


def _original(standardizer: Standardizer, x: Tensor, y: Tensor | Observed) -> tuple[Tensor, Tensor | Observed]:
    inputs = x * standardizer.x_scale + standardizer.x_mean
    if isinstance(y, Tensor):
        return inputs, y * standardizer.y_scale + standardizer.y_mean if y.is_floating_point() else y
    targets = y.y * standardizer.y_scale + standardizer.y_mean if y.y.is_floating_point() else y.y
    bars = None if y.y_scale is None else y.y_scale * standardizer.y_scale
    return inputs, y._replace(y=targets, y_scale=bars)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether tensors are equal up to the rounding of a standardisation and back."""
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return bool(((one - other).abs() <= torch.finfo(one.dtype).eps * 100 * other.abs().max()).all())
