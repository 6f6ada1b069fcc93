"""Arrays from users, checked against a model before any work."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.arrays import as_tensor, is_stacked
from .bnn import BNN


def check_inputs(name: str, x: Any, bnn: BNN) -> Tensor:
    """Inputs as a tensor of shape (rows, ...).

    Args:
        name: The argument's name, for errors.
        x: What the user gave.
        bnn: The model, which sets device and dtype.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If their number of features is not that of the network.
    """
    if bnn.topology.inputs:
        return _check_shaped(name, x, bnn)
    tensor = as_tensor(name, x, bnn.like)
    if tensor.dim() < 2:
        raise ValueError(f"{name} must have shape (rows, features), got {tuple(tensor.shape)}")
    features, found = bnn.topology.groups[0].size, tensor[0].numel()
    if found != features:
        raise ValueError(f"{name} must have {features} features a row, as the network has, got {found}")
    return tensor


def _check_shaped(name: str, x: Any, bnn: BNN) -> Tensor:
    """Inputs of a network that takes images, sequences, token ids, ...: whether it can be run on one of them."""
    if len(bnn.topology.inputs) > 1:
        raise ValueError(f"{name} must be one tensor, but the network takes {len(bnn.topology.inputs)}")
    (shape, floating) = bnn.topology.inputs[0]
    tensor = as_tensor(name, x, bnn.like, integer=not floating)
    if tensor.dim() != len(shape):
        raise ValueError(
            f"{name} must have {len(shape)} dimensions, such as {('rows', *shape[1:])}, got shape {tuple(tensor.shape)}"
        )
    weights = {t.name: bnn.like.new_zeros(t.shape) for t in bnn.topology.tensors}
    try:
        with torch.no_grad():
            outputs = bnn.function(weights, tensor[:1])
    except Exception as error:
        raise ValueError(
            f"{name} has rows of shape {tuple(tensor.shape[1:])}, on which the network cannot be run: {error}"
        ) from error
    if outputs.dim() != 2 or outputs.shape[1] != bnn.num_outputs:
        raise ValueError(
            f"the network must give outputs of shape (rows, {bnn.num_outputs}), but for rows of shape "
            f"{tuple(tensor.shape[1:])} in {name} it gives {tuple(outputs.shape)}"
        )
    return tensor


def are_stacked(x: Any, count: int, bnn: BNN) -> bool:
    """Whether inputs are (replicas, rows, ...): data of their own for each of `count` replicas."""
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
