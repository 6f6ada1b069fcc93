"""Networks that are often wanted."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


def mlp(
    widths: list[int] | tuple[int, ...],
    activation: str = "tanh",
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """A fully connected network, as `nn.Sequential`.

    Args:
        widths: Units of each layer, inputs first; at least two.
        activation: One of `pyro_sps.network.ACTIVATIONS`, after every layer but the last.
        bias: Whether the layers have biases.
        device: Where the parameters are; `"meta"` where only the topology matters.
        dtype: Their dtype.

    Raises:
        ValueError: If a width is not positive or the activation is not known.

    Example:
        >>> from pyro_sps import mlp
        >>> len(mlp([8, 50, 50, 2], activation="relu"))
        5
    """
    if len(widths) < 2 or any(not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(f"widths must be at least two positive integers, got {widths}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias, device=device, dtype=dtype), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
