"""Networks that are often wanted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

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
    skip: bool = False,
) -> nn.Module:
    """A fully connected network, as `nn.Sequential`, or with a linear path beside it.

    Args:
        widths: Units of each layer, inputs first; at least two.
        activation: One of `pyro_sps.network.ACTIVATIONS`, after every layer but the last.
        bias: Whether the layers have biases.
        device: Where the parameters are; `"meta"` where only the topology matters.
        dtype: Their dtype.
        skip: Whether a linear path leads from the inputs to the outputs beside the hidden layers. What is linear in the
            data then costs the hidden layers nothing, which helps small tables most. Its weights are the tensor
            `skip.weight`; the names of the others stay.

    Raises:
        ValueError: If a width is not positive or the activation is not known.

    Example:
        >>> from pyro_sps import Topology, mlp
        >>> len(mlp([8, 50, 50, 2], activation="relu"))
        5
        >>> print(Topology.of(mlp([8, 50, 2], skip=True)))
        input (8, pinned) - layer 1 (50, odd) - output (2, pinned)
          0.weight     50 x 8  input -> layer 1
          0.bias       50      layer 1
          2.weight     2 x 50  layer 1 -> output
          2.bias       2       output
          skip.weight  2 x 8   input -> output
    """
    if len(widths) < 2 or any(not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(f"widths must be at least two positive integers, got {widths}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias, device=device, dtype=dtype), ACTIVATIONS[activation]()]
    if skip:
        return WithSkip(layers[:-1], nn.Linear(widths[0], widths[-1], bias=False, device=device, dtype=dtype))
    return nn.Sequential(*layers[:-1])


class WithSkip(nn.Module):
    """Layers in sequence and a linear path beside them: the sum of both.

    Args:
        layers: The layers, named `0`, `1`, ... as in `nn.Sequential`.
        skip: What leads from the inputs to the outputs beside them, named `skip`.
    """

    def __init__(self, layers: Sequence[nn.Module], skip: nn.Module) -> None:
        super().__init__()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of shape (rows, outputs) for inputs of shape (rows, features)."""
        hidden = x
        for name, layer in self.named_children():
            if name != "skip":
                hidden = layer(hidden)
        outputs: Tensor = hidden + self.skip(x)
        return outputs
