"""Arrays from users, checked against a model before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.arrays import as_tensor, check_resolution, is_stacked
from ..data.observed import NO_EXTRAS, Extras, Observed, plain, without_gaps
from ..network.inputs import BOOL, FLOAT, Input, are_several, pack
from .bnn import BNN


def check_inputs(name: str, x: Any, bnn: BNN, run: bool = True) -> Tensor:
    """Inputs as one tensor of shape (rows, ...), in which several are side by side.

    Args:
        name: The argument's name, for errors.
        x: What the user gave.
        bnn: The model, which sets device and dtype.
        run: Whether to run the network on a row, where its layers do not say what it can be run on.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If they are not those that the network takes.
    """
    if are_several(bnn.topology.inputs):
        return _check_several(name, x, bnn, run)
    if isinstance(x, Mapping) or (isinstance(x, tuple) and any(isinstance(part, Tensor) for part in x)):
        raise ValueError(
            f"{name} must be one tensor or array, got a {type(x).__name__} of {len(x)}: the network was read with one "
            "input; of several give BNN an example, such as example=(a, b)"
        )
    if bnn.topology.inputs:
        return _check_shaped(name, x, bnn, run)
    tensor = as_tensor(name, x, bnn.like)
    if tensor.dim() < 2:
        raise ValueError(f"{name} must have shape (rows, features), got {tuple(tensor.shape)}")
    features, found = bnn.topology.groups[0].size, tensor[0].numel()
    if found != features:
        raise ValueError(f"{name} must have {features} features a row, as the network has, got {found}")
    return tensor


def _check_shaped(name: str, x: Any, bnn: BNN, run: bool) -> Tensor:
    """Inputs of a network that takes images, sequences, token ids, ...: whether it can be run on one of them."""
    (shape, kind, _) = bnn.topology.inputs[0]
    tensor = as_tensor(name, x, bnn.like, integer=kind != FLOAT)
    tensor = tensor.to(torch.bool) if kind == BOOL else tensor
    if tensor.dim() != len(shape):
        raise ValueError(
            f"{name} must have {len(shape)} dimensions, such as {('rows', *shape[1:])}, got shape {tuple(tensor.shape)}"
        )
    if run:
        _try(name, tensor, f"rows of shape {tuple(tensor.shape[1:])}", bnn)
    return tensor


def _try(name: str, tensor: Tensor, what: str, bnn: BNN) -> None:
    """Refuse inputs that the network cannot be run on."""
    weights = {t.name: bnn.like.new_zeros(t.shape) for t in bnn.topology.tensors}
    try:
        with torch.no_grad():
            outputs = bnn.function(weights, tensor[:1])
    except Exception as error:
        raise ValueError(f"{name} has {what}, on which the network cannot be run: {error}") from error
    if outputs.dim() != 2 or outputs.shape[1] != bnn.num_outputs:
        raise ValueError(
            f"the network must give outputs of shape (rows, {bnn.num_outputs}), but for {what} in {name} it gives "
            f"{tuple(outputs.shape)}"
        )


def _check_several(name: str, x: Any, bnn: BNN, run: bool) -> Tensor:
    """Several inputs side by side in one tensor; one that is so already passes."""
    inputs, size = bnn.topology.inputs, sum(one.size for one in bnn.topology.inputs)
    if isinstance(x, Tensor) and x.dim() == 2 and x.shape[1] == size:
        return as_tensor(name, x, bnn.like)
    if inputs[0].name is not None:
        names = [one.name for one in inputs]
        if not isinstance(x, Mapping) or set(x) != set(names):
            found = f"one of {list(x)}" if isinstance(x, Mapping) else type(x).__name__
            raise ValueError(f"{name} must be a dictionary of {names}, as the network takes them, got {found}")
        parts = [(f"{name}[{one.name!r}]", x[one.name], one) for one in inputs]
    else:
        if not isinstance(x, tuple | list) or len(x) != len(inputs):
            found = f"{len(x)}" if isinstance(x, tuple | list) else type(x).__name__
            raise ValueError(f"{name} must be a tuple of {len(inputs)} inputs, as the network takes them, got {found}")
        parts = [(f"{name}[{i}]", part, one) for i, (part, one) in enumerate(zip(x, inputs, strict=True))]
    tensors = [_check_part(said, part, one, bnn) for said, part, one in parts]
    rows = [len(tensor) for tensor in tensors]
    if len(set(rows)) > 1:
        raise ValueError(f"all inputs in {name} must have the same number of rows, got {rows}")
    packed = pack(inputs, tensors, bnn.like)
    if run:
        _try(name, packed, f"rows of shapes {[one.shape[1:] for one in inputs]}", bnn)
    return packed


def _check_part(name: str, x: Any, one: Input, bnn: BNN) -> Tensor:
    """One of several inputs."""
    tensor = as_tensor(name, x, bnn.like, integer=one.kind != FLOAT)
    if tensor.shape[1:] != one.shape[1:]:
        raise ValueError(
            f"{name} must have rows of shape {one.shape[1:]}, as in the example that the network was read with, got "
            f"{tuple(tensor.shape[1:])}"
        )
    return tensor.to(torch.bool) if one.kind == BOOL else tensor


def check_resolutions(name: str, x: Any, inputs: Tensor, bnn: BNN) -> None:
    """Refuse training inputs whose variation was lost when they became a tensor: see `check_resolution`.

    Args:
        name: The argument's name, for errors.
        x: What the user gave.
        inputs: What `check_inputs` made of it.
        bnn: The model.
    """
    several = bnn.topology.inputs
    if not are_several(several):
        if inputs.is_floating_point():
            check_resolution(name, x, inputs)
        return
    if isinstance(x, Tensor):
        return
    parts = x if several[0].name is None else [x[one.name] for one in several]
    for one, part, own in zip(several, parts, inputs.split([one.size for one in several], dim=1), strict=True):
        if one.kind == FLOAT:
            check_resolution(f"{name}[{one.name!r}]" if one.name else name, part, own)


def are_stacked(x: Any, count: int, bnn: BNN) -> bool:
    """Whether inputs are (replicas, rows, ...): data of their own for each of `count` replicas."""
    if are_several(bnn.topology.inputs):
        return False
    if bnn.topology.inputs:
        return np.ndim(x) == len(bnn.topology.inputs[0][0]) + 1 and len(x) == count
    return is_stacked(x, count, bnn.topology.groups[0].size)


def check_targets(name: str, y: Any, bnn: BNN, rows: int) -> Tensor:
    """Targets as a tensor of shape (rows, targets), or (rows,) for labels.

    Args:
        name: The argument's name, for errors.
        y: What the user gave.
        bnn: The model, which sets device and dtype.
        rows: Rows of the inputs.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If they do not fit the likelihood, the network or the inputs.
    """
    likelihood = bnn.likelihood
    tensor = as_tensor(name, y, bnn.like, integer=likelihood.event_dim == 0)
    if likelihood.event_dim == 0 and tensor.dim() == 2 and tensor.shape[1] == 1:
        tensor = tensor.squeeze(1)
    if likelihood.event_dim == 1 and tensor.dim() == 1:
        tensor = tensor.unsqueeze(1)
    if len(tensor) != rows:
        raise ValueError(f"{name} must have as many rows as x, {rows}, got {len(tensor)}")
    try:
        likelihood.check_targets(tensor, bnn.num_outputs)
    except ValueError as error:
        raise ValueError(str(error).replace("y must", f"{name} must", 1)) from None
    return tensor


def check_observed(
    name: str, y: Any, bnn: BNN, rows: int, extras: Extras = NO_EXTRAS, missing: str = "error"
) -> Tensor | Observed:
    """Targets with what says how each counts.

    Args:
        name: The argument's name, for errors.
        y: What the user gave; `Observed` has all in it.
        bnn: The model, which sets device and dtype.
        rows: Rows of the inputs.
        extras: Weights and error bars, if there are some.
        missing: Whether gaps in the targets are an `"error"` or one is to `"ignore"` them.

    Raises:
        TypeError: If something is not numbers.
        ValueError: If it does not fit the likelihood, the network or the inputs; if weights are negative or all zero;
            if a column of targets has nothing but gaps.
    """
    measured: Any
    if isinstance(y, Observed):
        given, measured, extras = y.y, y.measured, Extras(y.weights, y.y_scale)
    else:
        given, measured = without_gaps(name, y, bnn.likelihood.event_dim == 0) if missing == "ignore" else (y, None)
    targets = check_targets(name, given, bnn, rows)
    known = None if measured is None else torch.as_tensor(measured, device=targets.device).reshape(targets.shape)
    weights = None if extras.weights is None else check_weights("weights", extras.weights, rows, bnn.like)
    error = None if extras.y_scale is None else check_error_bars("y_scale", extras.y_scale, targets, known, bnn)
    return plain(Observed(targets, weights, error, known))


def check_weights(name: str, weights: Any, rows: int, like: Tensor, some: bool = True) -> Tensor:
    """Weights of rows as a tensor of shape (rows,).

    Args:
        name: The argument's name, for errors.
        weights: What the user gave.
        rows: Number of rows.
        like: Sets device and dtype.
        some: Whether there must be one that is not zero.

    Raises:
        ValueError: If there is not one a row, one is negative or not finite, or all are zero.
    """
    tensor = as_tensor(name, weights, like)
    tensor = tensor.squeeze(1) if tensor.dim() == 2 and tensor.shape[1] == 1 else tensor
    if tensor.shape != (rows,):
        raise ValueError(f"{name} must have one number for each of {rows} rows, got shape {tuple(tensor.shape)}")
    if (tensor < 0).any():
        row = int((tensor < 0).nonzero()[0])
        raise ValueError(f"{name} must not be negative, got {tensor[row].item():.4g} in row {row}")
    if some and not tensor.any():
        raise ValueError(f"{name} are all zero: nothing would count")
    return tensor


def check_error_bars(name: str, y_scale: Any, y: Tensor, measured: Tensor | None, bnn: BNN, run: bool = True) -> Tensor:
    """Error bars as a tensor of the shape of the targets; what it says of gaps does not matter.

    Args:
        name: The argument's name, for errors.
        y_scale: What the user gave: one a row, or one an entry.
        y: The targets.
        measured: Which of them were measured; None for all.
        bnn: The model.
        run: Whether to ask the likelihood if its noise is normal.

    Raises:
        ValueError: If there is not one a row or an entry, one is negative or not finite, or the noise is not normal.
    """
    if measured is not None:
        y_scale = np.array(y_scale.detach().cpu().numpy() if isinstance(y_scale, Tensor) else y_scale, dtype=np.float64)
        bars = y_scale.reshape(len(y_scale), -1)
        gaps = ~measured.cpu().numpy()
        bars[gaps if bars.shape == gaps.shape else gaps.all(1)] = 1.0
        y_scale = bars
    tensor = as_tensor(name, y_scale, bnn.like)
    tensor = tensor.unsqueeze(1) if tensor.dim() == 1 else tensor
    if y.dim() != 2 or tensor.dim() != 2 or len(tensor) != len(y) or tensor.shape[1] not in (1, y.shape[1]):
        raise ValueError(
            f"{name} must have one number for each of {len(y)} rows, or for each entry of y, whose shape is "
            f"{tuple(y.shape)}, got shape {tuple(tensor.shape)}"
        )
    if (tensor < 0).any():
        row = int((tensor < 0).any(1).nonzero()[0])
        raise ValueError(f"{name} must not be negative, got {tensor[row].tolist()} in row {row}")
    if run:
        bnn.likelihood.elementwise_of(bnn.like.new_zeros(1, bnn.num_outputs), tensor[:1].expand(1, y.shape[1]))
    return tensor.expand(y.shape).contiguous()
