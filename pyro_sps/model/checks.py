"""Arrays from users, checked against a model before any work."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..data.arrays import as_tensor
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
    tensor = as_tensor(name, x, bnn.like)
    if tensor.dim() < 2:
        raise ValueError(f"{name} must have shape (rows, features), got {tuple(tensor.shape)}")
    features, found = bnn.topology.groups[0].size, tensor[0].numel()
    if found != features:
        raise ValueError(f"{name} must have {features} features a row, as the network has, got {found}")
    return tensor


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
