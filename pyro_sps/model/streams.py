"""Sources of data as what a fit reads: checked tensors in the units of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data.arrays import Standardizer, sent, some_of
from ..data.observed import Observed, observed_of, plain, without_gaps
from ..data.rows import DataError
from ..data.sources import Piece, Source
from ..data.trees import leaves, map_tree, num_rows, rows_of, stacked
from ..network.inputs import measured
from .bnn import BNN
from .checks import check_error_bars, check_inputs, check_targets, check_weights

#: Rows that are looked at for what one pass over all of them would not tell, and bytes of them.
EXAMPLE_ROWS, EXAMPLE_BYTES = 10_000, 1 << 26

#: Rows whose squares are in memory at once.
MOMENT_ROWS = 1 << 14


@dataclass
class Stream:
    """Rows of a source, checked and in the units of a network.

    Attributes:
        source: Where they are from.
        bnn: The model, which sets device and dtype.
        missing: What gaps in targets are.
        standardizer: The units.
        filler: A row of targets that stands in for gaps.
        shapes: Shape of a row of each tensor, once there was one.
    """

    source: Source
    bnn: BNN
    missing: str
    standardizer: Standardizer
    filler: Tensor | None = None
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    @cached_property
    def host(self) -> BNN:
        """The model where rows but the first are checked: on a CPU, so that nobody waits for an accelerator."""
        return self.bnn if self.bnn.like.device.type == "cpu" else self.bnn.copy().cpu()

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        assert self.source.num_rows is not None
        return self.source.num_rows

    def batches(
        self, seeds: Sequence[int], batch_size: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Any]:
        """Endless inputs and targets of minibatches, with a first dimension of one entry a seed; see `Source`."""
        every = [self.source.batches(seed, batch_size, self.scaled, start, rank, world) for seed in seeds]
        while True:
            yield stacked([next(one) for one in every])

    def in_order(self) -> Iterator[Any]:
        """All rows once, in pieces, in the units of the user."""
        return self.source.in_order(self.checked)

    def some(self, most: int, most_bytes: int) -> tuple[tuple[Tensor, Tensor | Observed], bool]:
        """All rows, or some drawn at random, in the units of the user; and whether they are all.

        Args:
            most: Number of rows that may be in memory.
            most_bytes: Bytes of them, at most.
        """
        first = next(iter(self.source.in_order(self.checked)), None)
        if first is None:
            raise DataError(f"{self.source.name} has no rows")
        numbers = some_of(self.num_rows, max(1, min(most, most_bytes // self.row_bytes(first))))
        x, y = self.source.rows(numbers, self.checked)
        if isinstance(y, Observed):  # without saying that all were measured, where all were
            y = observed_of(y.shown, y.weights, y.y_scale)
        return (x, y), len(numbers) == self.num_rows

    def example(self) -> tuple[Tensor, Tensor | Observed]:
        """The first rows, in the units of the user."""
        parts, count = [], 0
        for data in self.source.in_order(self.checked):
            parts.append(rows_of(data, slice(EXAMPLE_ROWS - count)))
            count += num_rows(parts[-1])
            if count >= min(EXAMPLE_ROWS, EXAMPLE_BYTES // self.row_bytes(data)):
                break
        if not parts:
            raise DataError(f"{self.source.name} has no rows")
        example: tuple[Tensor, Tensor | Observed] = map_tree(lambda *own: torch.cat(own), *parts)
        return example

    @staticmethod
    def row_bytes(data: Any) -> int:
        """Bytes of a row of checked data."""
        return max(1, sum(tensor[:1].nbytes for tensor in leaves(data)))

    def scaled(self, piece: Piece, where: str) -> tuple[Tensor, Tensor | Observed]:
        """Rows in the units of the network."""
        x, y = self.checked(piece, where)
        return self.standardizer.inputs(x), self.standardizer.targets(y)

    def checked(self, piece: Piece, where: str) -> tuple[Tensor, Tensor | Observed]:
        """Rows as tensors in the units of the user.

        Args:
            piece: The rows.
            where: What to call them in errors.

        Raises:
            DataError: If they are not numbers, do not fit the network, or have another shape than those before.
        """
        try:
            # The network is run once only: it may be at work at the same time.
            host = self.host if self.shapes else self.bnn
            x = check_inputs("x", piece.x, host, run=not self.shapes)
            if piece.y is None:
                raise ValueError("there are no targets: say which columns they are")
            found = (x, self._targets(piece, len(x), host))
        except (ValueError, TypeError) as error:
            raise DataError(f"{where}: {error}") from error
        shapes = [tuple(tensor.shape[1:]) for tensor in leaves(found)]
        if self.shapes and shapes != self.shapes:
            raise DataError(f"{where}: rows have the shapes {shapes}, where those before had {self.shapes}")
        self.shapes = shapes
        device = self.bnn.like.device
        return found if device.type == "cpu" else map_tree(lambda tensor: sent(tensor, device), found)

    def _targets(self, piece: Piece, rows: int, host: BNN) -> Tensor | Observed:
        """Targets of some rows with what says how they count: the same for all rows, so that one program does."""
        given, there = piece.y, None
        likelihood = host.likelihood
        if self.missing == "ignore":
            filler = None if self.filler is None else self.filler.numpy()
            given, known = without_gaps("y", piece.y, likelihood.event_dim == 0, filler)
            there = None if known is None else torch.as_tensor(known)
        targets = check_targets("y", given, host, rows)
        if self.missing == "ignore":
            there = torch.ones(targets.shape, dtype=torch.bool) if there is None else there
            there = there.reshape(targets.shape).to(targets.device)
            if self.filler is None:
                self.filler = targets[0].cpu()
        weights = bars = None
        if piece.weights is not None:
            weights = check_weights("weights", piece.weights, rows, host.like, some=False)
        if piece.y_scale is not None:
            bars = check_error_bars("y_scale", piece.y_scale, targets, there, host, run=not self.shapes)
        return plain(Observed(targets, weights, bars, there))


def stream_of(source: Source, bnn: BNN, missing: str, units: Standardizer | None = None) -> Stream:
    """A source for a network; where it has none of its own, rows are counted by one pass.

    Args:
        source: The source.
        bnn: The network.
        missing: What gaps in targets are.
        units: Those of the network; None for those that the rows come in.
    """
    stream = Stream(source, bnn, missing, Standardizer.identity(bnn.like) if units is None else units)
    if source.num_rows is None:
        stream.source = replace(source, num_rows=sum(num_rows(data) for data in stream.in_order()))
    return stream


def moments_of(stream: Stream, targets: bool) -> Standardizer:
    """Shift and scale of all rows, from one pass over them: exact, in double precision.

    Means and sums of squares of pieces are put together as Chan, Golub and LeVeque (1983, Algorithms for computing the
    sample variance) do, which loses no digits to means that are far from zero.

    Args:
        stream: The rows.
        targets: Whether targets are standardised too.

    Raises:
        DataError: If there are more or fewer rows than were told.
    """
    rows, of_x, of_y = 0, Moments(), Moments()
    for x, y in stream.in_order():
        rows += len(x)
        weights, counts = (None, None) if isinstance(y, Tensor) else (y.weights, y.counts)
        if x.is_floating_point():
            of_x.add(x, weights)
        if targets:
            of_y.add(leaves(y)[0], counts)
    if rows != stream.num_rows:
        found = f"{'only ' if rows < stream.num_rows else ''}{rows:,}"
        raise DataError(f"{stream.source.name} has {found} rows, where {stream.num_rows:,} were told")
    like = stream.bnn.like
    none = (like.new_zeros(()), like.new_ones(()))
    x_mean, x_scale = of_x.result(like) or none
    if (kinds := measured(stream.bnn.topology.inputs)) is not None:
        kinds = kinds.to(like.device)
        x_mean, x_scale = torch.where(kinds, x_mean, 0), torch.where(kinds, x_scale, 1)
    return Standardizer(x_mean, x_scale, *(of_y.result(like) or none))


class Moments:
    """Mean and standard deviation of columns that come in pieces.

    Example:
        >>> import torch
        >>> from pyro_sps.model.streams import Moments
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[1.0], [2.0]]))
        >>> moments.add(torch.tensor([[6.0]]))
        >>> moments.result(torch.zeros(()))
        (tensor([3.]), tensor([2.1602]))
    """

    count: Tensor | None = None

    def add(self, values: Tensor, counts: Tensor | None = None) -> None:
        """More rows, each of which, or each entry of which, counts so often."""
        for first in range(0, len(values), MOMENT_ROWS):
            rows = slice(first, first + MOMENT_ROWS)
            self._add(values[rows], None if counts is None else counts[rows])

    def _add(self, values: Tensor, counts: Tensor | None) -> None:
        values = values.double()
        share = (
            torch.ones(len(values), dtype=torch.float64, device=values.device) if counts is None else counts.double()
        )
        share = share.reshape(*share.shape, *(1,) * (values.dim() - share.dim())).expand(values.shape)
        count = share.sum(0)
        mean = (share * values).sum(0) / count.clamp_min(1e-300)
        squares = (share * (values - mean).square()).sum(0)
        largest = values.abs().amax(0)
        if self.count is None:
            self.count, self.mean, self.squares, self.largest = count, mean, squares, largest
            return
        total = (self.count + count).clamp_min(1e-300)
        apart = mean - self.mean
        self.squares = self.squares + squares + apart.square() * self.count * count / total
        self.mean = self.mean + apart * count / total
        self.count, self.largest = self.count + count, torch.maximum(self.largest, largest)

    def result(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of each column, 1 for a constant one; None if there were no rows.

        Args:
            like: Sets device and dtype.
        """
        if self.count is None:
            return None
        scale = (self.squares / self.count.clamp_min(1e-300)).sqrt()
        constant = scale <= 1e-12 * self.largest.clamp(min=1e-300)
        return self.mean.to(like), torch.where(constant, torch.ones_like(scale), scale).to(like)
