"""Arrays from users, checked and turned into tensors; standardisation; minibatches; seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ..base.checks import require_seed
from .observed import Observed


def make_generator(device: torch.device | str, *key: int) -> Generator:
    """A random generator whose stream depends on every number of `key`.

    Args:
        device: Where the generator draws.
        *key: Non-negative integers: the user's seed first, then what tells streams of one seed apart.

    Raises:
        ValueError: If the seed is not a non-negative integer.
    """
    for number in key:
        require_seed(number)
    # The length, since SeedSequence does not tell (1,) from (1, 0).
    state = np.random.SeedSequence([len(key), *(int(number) for number in key)]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def as_tensor(name: str, value: Any, like: Tensor, integer: bool = False) -> Tensor:
    """An array as a finite tensor on the device and of the dtype of `like`, with memory of its own.

    Integers, Booleans (0 and 1) and floats of any size are taken, whatever their strides and flags, on any device.
    Text, dates, complex, missing and masked values are not: what they should count as is for the user to say.
    Columns count by their position; `pyro_sps.data.names` looks at their names.

    Args:
        name: The argument's name, for errors.
        value: A tensor, NumPy array, pandas object or nested list of numbers, of at least one dimension.
        like: Sets device and dtype.
        integer: Whether the values are labels, which become int64.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If there are none, if rows differ in length, or if some are missing, not finite or leave the range
            of the dtype.
    """
    if isinstance(value, Tensor):
        tensor = value.detach()
        if tensor.is_complex() or tensor.is_quantized or tensor.is_nested or tensor.layout != torch.strided:
            raise TypeError(
                f"{name} must be a dense tensor of real numbers, got dtype {tensor.dtype} and layout {tensor.layout}"
            )
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device, where tensors have no values")
        if tensor.is_floating_point() and tensor.element_size() == 1:  # of which torch can do next to nothing
            tensor = tensor.to(torch.float32)
    else:
        tensor = torch.from_numpy(_as_array(name, value))
    if tensor.dim() == 0:
        raise ValueError(f"{name} must have one row per observation, got a single number")
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty: its shape is {tuple(tensor.shape)}")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        place = _place(value, (~tensor.isfinite()).reshape(len(tensor), -1).nonzero()[0].tolist())
        raise ValueError(f"{name} must be finite, got NaN or infinity in {place}: drop such rows or fill them")
    if integer:
        if tensor.is_floating_point() and not (tensor == tensor.round()).all():
            raise ValueError(f"{name} must hold integer labels, got fractions")
        return _own(tensor.to(device=like.device, dtype=torch.int64), value)
    converted = tensor.to(dtype=like.dtype)
    if not converted.isfinite().all():
        raise ValueError(
            f"{name} has values up to {tensor.abs().max():.3g}, out of the range of {like.dtype}; rescale it"
        )
    return _own(converted.to(device=like.device), value)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for what an accelerator is at: the copy takes its turn there."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_numpy(values: Any) -> np.ndarray:
    """An array or tensor, wherever it is, as float64."""
    array: np.ndarray = torch.as_tensor(values).detach().cpu().double().numpy()
    return array


def _own(tensor: Tensor, value: Any) -> Tensor:
    """Memory that the caller does not change: predictions, for instance, are computed when they are asked for."""
    return tensor.clone() if isinstance(value, Tensor) and tensor.data_ptr() == value.data_ptr() else tensor


def _as_array(name: str, value: Any) -> np.ndarray:
    """Anything but a tensor as an array of a dtype that torch has."""
    if np.ma.is_masked(value):
        raise ValueError(f"{name} has masked values; fill them or drop their rows")
    try:
        array = np.asarray(value)
    except Exception as error:  # nested lists of unequal lengths, of tensors with gradients, on other devices, ...
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype == object:
        array = _from_objects(name, array, value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if array.dtype.itemsize > 8 or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
        array = array.astype(np.float64)
    return np.array(array, order="C", dtype=array.dtype.newbyteorder("="))


def _place(value: Any, where: Sequence[int]) -> str:
    """Row and column of an entry, by the name of the column if there is one."""
    row, column = where
    names = getattr(value, "column_names", None)
    names = list(getattr(value, "columns", ())) if names is None else list(names)
    if column < len(names):
        return f"row {row} of column {names[column]!r}"
    shape = np.shape(value)
    return f"row {row}, column {column}" if len(shape) > 1 and shape[1] > 1 else f"row {row}"


def _from_objects(name: str, array: np.ndarray, value: Any) -> np.ndarray:
    """Objects as numbers; NumPy would also read text, and None as NaN."""
    if array.ndim == 0:
        raise TypeError(f"{name} must be an array of numbers, got {type(array.item()).__name__}")
    for position, item in enumerate(array.flat):
        place = _place(value, divmod(position, array.size // len(array)))
        if item is None or type(item).__name__ in ("NAType", "NaTType"):
            raise ValueError(
                f"{name} must be finite, got the missing value {item} in {place}: drop such rows or fill them"
            )
        if isinstance(item, str | bytes | np.datetime64 | np.timedelta64) or not hasattr(item, "__float__"):
            raise TypeError(f"{name} must hold real numbers, got {repr(item)[:80]} in {place}: encode it as numbers")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must hold real numbers: {error}") from error


def check_resolution(name: str, value: Any, tensor: Tensor) -> None:
    """Refuse training data whose variation was lost when it became a tensor.

    Args:
        name: The argument's name, for errors.
        value: What the user gave.
        tensor: What `as_tensor` made of it.

    Raises:
        ValueError: If rounding to the dtype changed a column by more than 1 % of its standard deviation.
    """
    exact = as_tensor(name, value, torch.zeros((), dtype=torch.float64, device=tensor.device)).reshape(len(tensor), -1)
    error = (exact - tensor.reshape(exact.shape).double()).square().mean(0).sqrt()
    if (lost := error > 0.01 * exact.std(0, unbiased=False)).any():
        column = int(lost.nonzero()[0])
        low, high = exact[:, column].aminmax()
        if low < high:  # a constant column has no variation
            raise ValueError(
                f"{name} column {column} goes from {low:.10g} to {high:.10g}, a variation that {tensor.dtype} cannot "
                "resolve; subtract an offset, or use a network of dtype float64"
            )


# Values this much larger or smaller than 1 are far from what priors, starts and learning rates are made for.
_FAR, _OUTLYING = 30.0, 30.0


def far_off(name: str, values: Tensor, names: Sequence[str] | None = None) -> str:
    """What is far from a scale of 1 in data, in words; nothing where all is near it.

    Args:
        name: The argument's name.
        values: Shape (rows, ...), in the units of the network.
        names: Names of its columns, if they have some.
    """
    columns = values.reshape(len(values), -1).double()
    largest, size = columns.abs().amax(0), columns.square().mean(0).sqrt()
    varies = columns.amax(0) > columns.amin(0)
    far = {
        "large, of size": (size > _FAR, size),
        "small, at most": (varies & (largest < 1 / _FAR), largest),
        "dominated by outliers, up to": ((size <= _FAR) & (largest > _OUTLYING) & (largest > 20 * size), largest),
    }
    found = []
    for words, (where, sizes) in far.items():
        if where.any():
            shown = [str(index) if names is None else repr(names[index]) for index in where.nonzero()[:3, 0].tolist()]
            more = ", ..." if int(where.sum()) > 3 else ""
            found.append(f"column {', '.join(shown)}{more} of {name} is {words} {sizes[where][0].item():.3g}")
    return "; ".join(found)


def is_stacked(x: Any, count: int, features: int) -> bool:
    """Whether inputs are (replicas, rows, ...): data of their own for each of `count` replicas."""
    return np.ndim(x) >= 3 and len(x) == count and math.prod(np.shape(x)[2:]) == features


def grid_of(values: Tensor) -> Tensor:
    """The step of the grid that each column of numbers lies on: 1 for whole numbers, and 0 where there is none.

    The step is the largest number of which all differences are multiples, up to rounding. Only columns in which values
    repeat count: any few numbers lie on some grid.

    Args:
        values: Shape (rows, columns), in any units: standardised whole numbers lie on a grid too.

    Returns:
        Shape (columns,), float64.

    Example:
        >>> import torch
        >>> from pyro_sps.data.arrays import grid_of
        >>> grid_of(torch.tensor([[0.0, 2.71828], [20.0, 1.41421], [30.0, 2.71828], [30.0, 3.14159]]))
        tensor([10.,  0.], dtype=torch.float64)
    """
    eps = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    return torch.tensor([_step_of(column.double(), eps) for column in values.T], dtype=torch.float64)


def _step_of(values: Tensor, eps: float) -> float:
    """The step of the grid of one column, whose numbers were rounded with a relative error of `eps`; 0 for none."""
    distinct = values.unique()
    if len(distinct) in (1, len(values)):
        return 0.0
    places = distinct - distinct[0]
    # With room for what was rounded off numbers that were far from zero before they were standardised.
    rounding = max(16 * eps, 1e-10) * distinct.abs().max().item()
    step, error, span = places.diff().min().item(), rounding, places[-1].item()
    # Euclid's algorithm on all numbers at once. An error of the step counts as often as the span has steps.
    while (spread := rounding + error * span / step) < step / 10:
        rest = (places - step * (places / step).round()).abs()
        if (rest <= spread).all():
            return span / round(span / step)
        step, error = rest[rest > spread].min().item(), spread
    return 0.0


@dataclass(frozen=True)
class Standardizer:
    """Shift and scale of inputs and targets, from training data.

    Attributes:
        x_mean: Mean of each feature.
        x_scale: Standard deviation of each feature; 1 for a constant one.
        y_mean: Mean of each target; 0 where targets are not standardised.
        y_scale: Standard deviation of each target; 1 where targets are not standardised or constant.

    Example:
        >>> import torch
        >>> from pyro_sps.data.arrays import Standardizer
        >>> x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[10.0], [30.0]])
        >>> Standardizer.of(x, y, targets=True).targets(y)
        tensor([[-1.],
                [ 1.]])
    """

    x_mean: Tensor
    x_scale: Tensor
    y_mean: Tensor
    y_scale: Tensor

    @staticmethod
    def of(x: Tensor, y: Tensor | Observed, targets: bool, measured: Tensor | None = None) -> Standardizer:
        """Statistics of training data, computed in double precision; weights count, and gaps do not.

        Args:
            x: Inputs, shape (rows, ...).
            y: Targets.
            targets: Whether targets are standardised too (real-valued ones).
            measured: Which columns of inputs of shape (rows, columns) are measurements; others, whole numbers and masks
                beside them, are left alone. None if all are.
        """
        weights, counts = (None, None) if isinstance(y, Tensor) else (y.weights, y.counts)
        y = y if isinstance(y, Tensor) else y.y
        like = next((t for t in (x, y) if t.is_floating_point()), torch.zeros((), device=x.device))
        none = (like.new_zeros(()), like.new_ones(()))  # for words and labels
        x_mean, x_scale = _moments(x, weights) if x.is_floating_point() else none
        if measured is not None:
            measured = measured.to(x.device)
            x_mean, x_scale = torch.where(measured, x_mean, 0), torch.where(measured, x_scale, 1)
        y_mean, y_scale = _moments(y, counts) if targets else none
        return Standardizer(x_mean, x_scale, y_mean, y_scale)

    @staticmethod
    def identity(like: Tensor) -> Standardizer:
        """The one that changes nothing."""
        zero, one = like.new_zeros(()), like.new_ones(())
        return Standardizer(zero, one, zero, one)

    def inputs(self, x: Tensor) -> Tensor:
        """Inputs in the units of the network; whole numbers, such as those of words, are left alone."""
        return (x - self.x_mean) / self.x_scale if x.is_floating_point() else x

    def targets(self, y: Any) -> Any:
        """Targets, a tensor or `Observed`, in the units of the network; labels are left alone."""
        if isinstance(y, Observed):
            error = None if y.y_scale is None else y.y_scale / self.y_scale
            return y._replace(y=self.targets(y.y), y_scale=error)
        return (y - self.y_mean) / self.y_scale if y.is_floating_point() else y

    def to(self, like: Tensor) -> Standardizer:
        """The same on the device and of the dtype of `like`."""
        return Standardizer(*(getattr(self, name).to(like) for name in self.__dataclass_fields__))


def _moments(values: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, where every entry, or every row, counts so often."""
    double = values.double()
    if counts is None:
        mean, scale = double.mean(0), double.std(0, unbiased=False)
    else:
        share = counts.double().reshape(*counts.shape, *(1,) * (values.dim() - counts.dim()))
        share = share / share.sum(0)
        mean = (share * double).sum(0)
        scale = (share * (double - mean).square()).sum(0).sqrt()
    # A column is constant where its spread is rounding only.
    constant = scale <= 1e-12 * double.abs().amax(0).clamp(min=1e-300)
    return mean.to(values.dtype), torch.where(constant, torch.ones_like(scale), scale).to(values.dtype)


# Row numbers and normal draws of a stream that are made at once. Every block has a generator of its own, so that a
# stream can start at any step; more in a block would only cost memory.
INDEX_BLOCK = 1 << 16

NOISE_BLOCK = 1 << 18

_CPU = torch.device("cpu")


def minibatches(
    seeds: Sequence[int], rows: int, batch_size: int, start: int = 0, device: torch.device = _CPU
) -> Iterator[Tensor]:
    """Endless row numbers of minibatches, shape (streams, batch_size).

    Every epoch of a stream has an order of its own, of which the incomplete last batch is left out.

    Args:
        seeds: One for each stream, whose batches depend on no other.
        rows: Number of rows of the data.
        batch_size: Rows of a batch.
        start: Number of batches to leave out.
        device: Where they are wanted.
    """
    in_epoch = rows // batch_size
    epochs = max(1, INDEX_BLOCK // rows)
    block, skip = divmod(start, epochs * in_epoch)
    while True:
        orders = []
        for seed in seeds:
            generator = make_generator("cpu", seed, 5, block)
            drawn = [torch.randperm(rows, generator=generator)[: in_epoch * batch_size] for _ in range(epochs)]
            orders.append(torch.cat(drawn).reshape(-1, batch_size))
        yield from sent(torch.stack(orders, dim=1)[skip:], device).unbind()
        block, skip = block + 1, 0


def some_of(rows: int, most: int) -> Tensor:
    """Numbers of at most `most` rows: all in their order, or some drawn at random, always the same.

    Memory is that of `most` numbers, however many rows there are.

    Args:
        rows: Number of rows.
        most: Number of them that can be looked at.
    """
    if rows <= most:
        return torch.arange(rows)
    return torch.from_numpy(np.random.default_rng([rows, 9]).choice(rows, most, replace=False))


def noise_stream(seeds: Sequence[int], shape: tuple[int, ...], like: Tensor, start: int = 0) -> Iterator[Tensor]:
    """Endless standard normal draws, (streams, *shape), each to be used before the next is asked for.

    Args:
        seeds: One for each stream, whose draws depend on no other.
        shape: Shape of a draw.
        like: A tensor whose device and dtype the draws follow.
        start: Number of draws to leave out.
    """
    size = max(1, NOISE_BLOCK // max(1, torch.Size(shape).numel()))
    # Written again and again: fresh memory for every block would cost as much as the numbers in it.
    buffer = like.new_empty((len(seeds), size, *shape))
    block, skip = divmod(start, size)
    while True:
        for own, seed in zip(buffer, seeds, strict=True):
            own.normal_(generator=make_generator(like.device, seed, 4, block))
        yield from buffer.transpose(0, 1)[skip:].unbind()
        block, skip = block + 1, 0
