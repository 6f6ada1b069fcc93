"""Targets of which not all count the same: with weights, with known error bars, with gaps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Extras(NamedTuple):
    """What a user gave beside inputs and targets; see `pyro_sps.fit`.

    Attributes:
        weights: A number a row.
        y_scale: An error bar a row or entry.
    """

    weights: Any = None
    y_scale: Any = None

    def of_replica(self, index: int) -> Extras:
        """Those of one replica, where each has data of its own."""
        return Extras(*(None if value is None else value[index] for value in self))


NO_EXTRAS = Extras()


class Observed(NamedTuple):
    """Targets, and how each of them counts. A `BNN` takes it in place of targets; so does any Pyro inference with it.

    Attributes:
        y: Targets, shape (rows, targets), or labels, (rows,). Where one was not measured, any value that it could have.
        weights: How often each row counts, shape (rows,); None for once.
        y_scale: Standard deviation of a noise that is known, shape (rows, targets), in the units of `y`, on top of what
            the likelihood has; None for no such noise.
        measured: Whether a target counts at all, Boolean, of the shape of `y`; None if all do.

    Example:
        >>> import torch, pyro_sps as sps
        >>> bnn = sps.BNN(sps.mlp([1, 5, 1]), sps.Unmasked(), sps.Zero())
        >>> x, twice = torch.zeros(3, 1), torch.tensor([1.0, 1.0, 2.0])
        >>> bnn(x, sps.Observed(torch.zeros(3, 1), weights=twice)).shape
        torch.Size([3, 1])
    """

    y: Tensor
    weights: Tensor | None = None
    y_scale: Tensor | None = None
    measured: Tensor | None = None

    @property
    def shown(self) -> Tensor:
        """The targets with NaN, or -1 for labels, where there is none."""
        if self.measured is None:
            return self.y
        return self.y.where(self.measured, -1 if not self.y.is_floating_point() else torch.nan)

    @property
    def counts(self) -> Tensor | None:
        """How often each target counts, of the shape of `y`; None for once."""
        if self.weights is None and self.measured is None:
            return None
        own = self.weights if self.weights is not None else torch.ones(len(self.y), device=self.y.device)
        own = own.reshape(-1, *(1,) * (self.y.dim() - 1)).expand(self.y.shape)
        return own if self.measured is None else own * self.measured


def fields_of(y: Tensor | Observed) -> dict[str, Any]:
    """The fields of a result that hold its targets: `y` with gaps, `row_weights` and `y_scale`."""
    if isinstance(y, Tensor):
        return {"y": y}
    return {"y": y.shown, "row_weights": y.weights, "y_scale": y.y_scale}


def shown_of(y: Tensor | Observed) -> tuple[Tensor, Tensor | None]:
    """Targets with gaps, and their error bars."""
    return (y, None) if isinstance(y, Tensor) else (y.shown, y.y_scale)


def plain(observed: Observed) -> Tensor | Observed:
    """Targets alone, where all count the same."""
    return observed.y if all(other is None for other in observed[1:]) else observed


def observed_of(shown: Tensor, weights: Tensor | None, y_scale: Tensor | None) -> Tensor | Observed:
    """The opposite of `Observed.shown`: NaN, and -1 of labels, are gaps.

    Args:
        shown: Targets with gaps, shape (rows, targets), or (rows,) for labels.
        weights: As in `Observed`.
        y_scale: As in `Observed`.
    """
    measured = ~shown.isnan() if shown.is_floating_point() else shown >= 0
    if measured.all():
        return plain(Observed(shown, weights, y_scale))
    return Observed(filled(shown, measured), weights, y_scale, measured)


def filled(values: Tensor, measured: Tensor) -> Tensor:
    """Values with the first one of the column that was measured in place of those that were not."""
    first = measured.to(torch.uint8).argmax(0, keepdim=True)
    return values.where(measured, values.gather(0, first))


def without_gaps(name: str, y: Any, labels: bool, filler: np.ndarray | None = None) -> tuple[Any, np.ndarray | None]:
    """Targets with a measured value in place of each gap (NaN, None, a masked value), and what was measured.

    Args:
        name: The argument's name, for errors.
        y: What a user gave.
        labels: Whether they are labels, of which -1 is a gap too.
        filler: A row that stands in for gaps; None for the first measured value of each column.

    Returns:
        An array and a Boolean one, None if there are no gaps.

    Raises:
        ValueError: If a column has nothing but gaps.
    """
    if isinstance(y, Tensor):
        y = (y.detach().cpu().double() if y.is_floating_point() else y.cpu()).numpy()
    array, gaps = np.asarray(y), np.ma.getmaskarray(y) if np.ma.isMaskedArray(y) else np.zeros((), dtype=bool)
    if array.dtype == object:
        gaps = gaps | np.vectorize(_is_gap, otypes=[bool])(array)
    elif array.dtype.kind == "f":
        gaps = gaps | np.isnan(array)
    if labels and array.dtype.kind in "if":
        gaps = gaps | (array == -1)
    if array.ndim == 0 or not gaps.any():
        return array, None
    if filler is not None:
        return np.where(gaps, np.broadcast_to(filler, array.shape[1:]) if array.ndim > 1 else filler, array), ~gaps
    if (empty := gaps.all(0)).any():
        column = "" if array.ndim == 1 else f" in column {int(np.argmax(empty))}"
        raise ValueError(f"{name} has no measured value{column}, so that nothing can be learned of it")
    first = np.take_along_axis(array, (~gaps).argmax(0, keepdims=True), 0)
    return np.where(gaps, first, array), ~gaps


def _is_gap(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value
