"""Outputs of the networks of a posterior at some inputs, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.plain import plain_torch
from ..base.process import warn_user
from ..data.arrays import Standardizer, make_generator
from ..data.observed import Observed
from ..model.bnn import BNN
from ..model.guides import AutoSPSNormal
from ..model.likelihoods import Likelihood

# Draws of all weight tensors, and of what the likelihood samples with them, by site.
_Block = tuple[dict[str, Tensor], dict[str, Tensor]]

# Elements of the largest temporary tensors: 32 MB of float32 each.
_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Member:
    """One fitted network of a mixture: a model, where its posterior draws come from and the units it works in.

    Attributes:
        bnn: The model.
        guide: What draws are taken from; None if they are given.
        standardizer: Shift and scale between the user's units and the network's.
        sites: Given draws by site name, shape (S,) + the site's; they are used in place of the guide's.
        features: Names of the input columns, if there are some: columns of a DataFrame are put in this order.
        targets: Names of the target columns, likewise.
        missing: What gaps in targets are that predictions are scored against: an `"error"`, or what one is to
            `"ignore"`.

    Example:
        >>> import torch, pyro_sps as sps
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> fit.predict(x).members[0].guide is fit.guide
        True
    """

    bnn: BNN
    guide: AutoSPSNormal | None
    standardizer: Standardizer
    sites: Mapping[str, Tensor] | None = None
    features: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    missing: str = "error"


class Part(NamedTuple):
    """What one member has at some rows.

    Attributes:
        member: The member.
        likelihood: Its likelihood; where it samples something, with a value for each draw.
        outputs: Outputs of the network, shape (draws, rows, outputs).
    """

    member: Member
    likelihood: Likelihood
    outputs: Tensor


@dataclass(frozen=True)
class Outputs:
    """What the networks of a mixture give at some inputs, row by row and draw by draw.

    Attributes:
        members: The fitted networks; draws are divided equally among them.
        x: Inputs, shape (rows, ...), in original units.
        num_samples: Number of posterior draws S.
        seed: Seeds the draws.
        y_scale: Error bars of the targets, shape (rows, targets), in original units; None for none.
    """

    members: Sequence[Member]
    x: Any
    num_samples: int
    seed: int
    y_scale: Tensor | None = None

    @property
    def _bnn(self) -> BNN:
        return self.members[0].bnn

    def _counts(self) -> list[int]:
        """Draws of each member."""
        share, rest = divmod(self.num_samples, len(self.members))
        return [share + (index < rest) for index in range(len(self.members))]

    def _blocks(self, index: int) -> Iterator[_Block]:
        """Blocks of draws of one member; a block's size depends on the network alone."""
        member, count = self.members[index], self._counts()[index]
        block = max(1, min(64, _ELEMENTS // member.bnn.topology.num_weights))
        for start in range(0, count, block):
            size = min(block, count - start)
            if member.sites is not None:
                sites = {name: value[start : start + size] for name, value in member.sites.items()}
            else:
                assert member.guide is not None
                generator = make_generator(member.bnn.like.device, self.seed, 0, index, start)
                sites = member.guide.draws(size, generator)
            noise = {name: sites[name] for name in member.bnn.likelihood.starts()}
            yield member.bnn.assemble(sites), noise

    @cached_property
    def _cached_blocks(self) -> list[list[_Block]] | None:
        """All draws, where they are few enough to be kept between chunks of rows."""
        if self.num_samples * self._bnn.topology.num_weights > 4 * _ELEMENTS:
            return None
        return [list(self._blocks(index)) for index in range(len(self.members))]

    def chunks(self) -> Iterator[tuple[int, int, list[Part]]]:
        """Outputs of the networks for chunks of rows: (start, stop, what each member has there)."""
        width = self._bnn.topology.width
        rows = max(1, min(1024, _ELEMENTS // (self.num_samples * self._bnn.num_outputs), _ELEMENTS // width))
        for start in range(0, len(self.x), rows):
            x = self.x[start : start + rows]
            yield start, start + len(x), self._at(start, x, max(1, _ELEMENTS // (width * len(x))))

    @plain_torch()
    @torch.no_grad()
    def _at(self, start: int, x: Tensor, step: int) -> list[Part]:
        """What each member has at some rows, the first of which is number `start`, so many draws at once."""
        cached = self._cached_blocks
        outputs: list[Part] = []
        for index, member in enumerate(self.members):
            inputs = member.standardizer.inputs(x)
            parts: list[Tensor] = []
            noises = []
            for weights, noise in self._blocks(index) if cached is None else cached[index]:
                noises.append(noise)
                for first in range(0, next(iter(weights.values())).shape[0], step):
                    part = {name: value[first : first + step] for name, value in weights.items()}
                    draws = self._dropout(index, start, len(parts), inputs, part)
                    function: Any = member.bnn.function
                    parts.append(function(part, inputs) if draws is None else function(part, inputs, draws))
            noise = {name: torch.cat([own[name] for own in noises]) for name in noises[0]}
            outputs.append(Part(member, member.bnn.likelihood.at(noise), torch.cat(parts)))
        return outputs

    def _dropout(self, index: int, start: int, number: int, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor | None:
        """Draws for the masks of dropout of one member at some rows, where they act in predictions."""
        bnn = self.members[index].bnn
        if bnn.dropout != "always":
            return None
        shape = (len(next(iter(weights.values()))), bnn.num_dropout_draws(x))
        generator = make_generator(x.device, self.seed, 7, index, start, number)
        return torch.randn(shape, generator=generator, dtype=bnn.like.dtype, device=x.device)

    def rows_at_once(self) -> int:
        """Rows of a block of draws whose activations stay within bounds."""
        width = max(group.size for group in self._bnn.topology.groups)
        return max(1, min(1024, _ELEMENTS // (64 * width)))

    def error_bars(self, member: Member, start: int, rows: int) -> Tensor | None:
        """Error bars of some rows in the units of a member's network."""
        if self.y_scale is None:
            return None
        return self.y_scale[start : start + rows] / member.standardizer.y_scale

    def variance(self, part: Part, start: int) -> Tensor:
        """Variance of the noise of some rows under each draw, in the units of a member's network."""
        noise = part.likelihood.variance(part.outputs)
        bars = self.error_bars(part.member, start, noise.shape[1])
        return noise if bars is None else noise + bars.square()

    def weights(self) -> Iterator[tuple[Member, dict[str, Tensor]]]:
        """Blocks of draws of all weight tensors, with the member that they are of."""
        cached = self._cached_blocks
        for index, member in enumerate(self.members):
            for weights, _ in self._blocks(index) if cached is None else cached[index]:
                yield member, weights

    @plain_torch()
    @torch.no_grad()
    def targets_of(self, start: int, outputs: list[Part]) -> Tensor:
        """Draws of the targets for one chunk of rows, (draws, rows, targets) or (draws, rows) for labels."""
        parts = []
        for index, (member, likelihood, output) in enumerate(outputs):
            key = (self.seed, 1, index, start)
            law = likelihood.elementwise_of(output, self.error_bars(member, start, output.shape[1]))
            draws = sample_elements(law, make_generator(output.device, *key), key)
            parts.append(
                member.standardizer.y_mean + draws * member.standardizer.y_scale if draws.dim() == 3 else draws
            )
        return torch.cat(parts)

    @plain_torch()
    @torch.no_grad()
    def means_of(self, outputs: list[Part]) -> Tensor:
        """The likelihood's mean under each draw for one chunk of rows, (draws, rows, targets)."""
        return torch.cat([m.standardizer.y_mean + own.mean(o) * m.standardizer.y_scale for m, own, o in outputs])

    @plain_torch()
    @torch.no_grad()
    def logs_of(self, outputs: list[Part], y: Tensor | Observed) -> Tensor:
        """Log densities of the targets of one chunk of rows under each draw, in float64 and original units.

        What does not count like all others, counts in them as often as it does.
        """
        logs = []
        for member, likelihood, output in outputs:
            log = likelihood.log_density(output, member.standardizer.targets(y))
            if log.dim() == 3:
                units = member.standardizer.y_scale.log()
                counts = y.counts if isinstance(y, Observed) else None
                log = log - (units if counts is None else units * counts)
            logs.append(log)
        return torch.cat(logs).double()


class Rows:
    """Rows that come in pieces, in one tensor that is there from the first piece on.

    Many small tensors that stay, made between large ones that go, would break the memory into pieces too small for the
    next large ones.
    """

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0
        self.all = torch.empty(0)

    def add(self, part: Tensor) -> None:
        """The next rows."""
        if self.done == 0:
            self.all = part.new_empty((self.count, *part.shape[1:]))
        self.all[self.done : self.done + len(part)] = part
        self.done += len(part)


def sample_elements(distribution: Any, generator: torch.Generator, key: tuple[int, ...]) -> Tensor:
    """A draw of every element, from a generator where torch lets one be given."""
    if isinstance(distribution, torch.distributions.Normal):
        noise = torch.randn(
            distribution.loc.shape, generator=generator, dtype=distribution.loc.dtype, device=distribution.loc.device
        )
        return distribution.loc + distribution.scale * noise
    if isinstance(distribution, torch.distributions.Bernoulli):
        return torch.bernoulli(distribution.probs, generator=generator)
    if isinstance(distribution, torch.distributions.Poisson):
        return torch.poisson(distribution.rate, generator=generator)
    if isinstance(distribution, torch.distributions.Categorical):
        flat = distribution.probs.reshape(-1, distribution.probs.shape[-1])
        return torch.multinomial(flat, 1, generator=generator).reshape(distribution.batch_shape)
    devices = [generator.device] if generator.device.type != "cpu" else []
    with torch.random.fork_rng(devices):  # torch.distributions know no generators
        torch.manual_seed(generator.initial_seed())
        return distribution.sample()


def announced(what: str, values: Tensor, infinite: bool = False) -> Tensor:
    """The values, with a warning if there are some that are not finite (not numbers, if infinite ones may be)."""
    bad = values.isnan() if infinite else ~values.isfinite()
    if bad.any():
        warn_user(
            f"{int(bad.sum())} of {bad.numel()} predictive {what} are not finite in {values.dtype}: inputs or outputs "
            "of the network are too large; standardize=True or a network of dtype float64 may help",
            RuntimeWarning,
        )
    return values


def quantiles(draws: Tensor, levels: Tensor) -> Tensor:
    """Quantiles over the first dimension, linearly interpolated; `torch.quantile` refuses large tensors.

    Args:
        draws: Shape (S, ...).
        levels: Numbers in [0, 1], shape (n,).

    Returns:
        Shape (n, ...).
    """
    ordered = draws.sort(dim=0).values
    position = levels * (len(draws) - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=len(draws) - 1)
    weight = (position - below).reshape(-1, *(1,) * (draws.dim() - 1))
    return torch.lerp(ordered[below], ordered[above], weight)
