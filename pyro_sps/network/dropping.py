"""Dropout of a network's own layers, by masks that are given and not drawn: a step is a pure function of its noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import NormalDist
from types import FunctionType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .topology import Topology

# What dropout does in a Bayesian network: nothing, its usual work in fits, or that in predictions too.
DROPOUT = ("ignore", "train", "always")

# The value that `alpha_dropout` puts in place of what it drops, -λα of SELU (Klambauer et al. 2017, 2.3).
_ALPHA = -1.0507009873554805 * 1.6732632423543772


class Dropping(TorchFunctionMode):
    """Lets the functions of dropout take their masks from normal draws, while the network runs in training mode.

    Args:
        draws: Standard normal draws, shape (n,), which are used up one after the other; None to drop nothing and note
            how many are needed.

    Attributes:
        used: How many draws were used, or are needed.
        rates: The rate of each mask, in order.

    Example:
        >>> import torch
        >>> from pyro_sps.network.dropping import Dropping
        >>> x = torch.ones(2, 3)
        >>> with Dropping() as needed:
        ...     same = torch.nn.functional.dropout(x, 0.5)
        >>> needed.used, needed.rates, bool((same == x).all())
        (6, [0.5], True)
        >>> with Dropping(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])):
        ...     torch.nn.functional.dropout(x, 0.5)
        tensor([[2., 0., 2.],
                [2., 0., 2.]])
    """

    def __init__(self, draws: Tensor | None = None) -> None:
        super().__init__()
        self.draws, self.used = draws, 0
        self.rates: list[float] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function."""
        rule = _RULES.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(self, *args, **(kwargs or {}))

    def keep(self, shape: Sequence[int], rate: float) -> Tensor | None:
        """What to keep, Boolean; None for everything."""
        start, self.used = self.used, self.used + math.prod(shape)
        self.rates.append(rate)
        if self.draws is None:
            return None
        return self.draws[start : self.used].reshape(tuple(shape)) > (
            NormalDist().inv_cdf(rate) if rate < 1 else math.inf
        )


def _dropped(
    mode: Dropping, input: Tensor, rate: float, training: bool, shape: Sequence[int], alpha: bool = False
) -> Tensor:
    if not training or not 0 < rate <= 1:
        return input
    keep = mode.keep(shape, rate)
    if keep is None:
        return input
    if not alpha:
        return input * (keep.to(input.dtype) * (1 / (1 - rate) if rate < 1 else 0.0))
    scale = 1 / math.sqrt((1 - rate) * (1 + rate * _ALPHA**2)) if rate < 1 else 0.0
    return scale * torch.where(keep, input, input.new_full((), _ALPHA)) - scale * rate * _ALPHA


def _entries(mode: Dropping, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _dropped(mode, input, p, training, input.shape)


def _alpha(mode: Dropping, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    return _dropped(mode, input, p, training, input.shape, alpha=True)


def _channels(
    positions: int, mode: Dropping, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    # Of three dimensions, `dropout2d` takes the first for rows, as ever.
    leading = 2 if (positions, input.dim()) == (2, 3) else input.dim() - positions
    return _dropped(mode, input, p, training, (*input.shape[:leading], *(1,) * (input.dim() - leading)))


def _alpha_channels(
    mode: Dropping, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _dropped(mode, input, p, training, (*input.shape[:2], *(1,) * (input.dim() - 2)), alpha=True)


def _attention(
    mode: Dropping,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`, whose weights are dropped."""
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    keep_all = partial(F.scaled_dot_product_attention, query, key, value, attn_mask, 0.0, is_causal, scale=scale)
    if dropout_p == 0:
        return keep_all()
    shape = (*batch, query.shape[-2], key.shape[-2])
    if mode.draws is None:
        mode.keep(shape, dropout_p)
        return keep_all()
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        allowed = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if allowed else scores + attn_mask
    return _dropped(mode, scores.softmax(-1), dropout_p, True, shape) @ value


def _multi_head(mode: Dropping, *args: Any, **kwargs: Any) -> Any:
    """PyTorch's own function, in which those that drop are ours: inside of it no mode would be asked."""
    whole: Any = F.multi_head_attention_forward
    inside = {
        "has_torch_function": lambda tensors: False,
        "dropout": partial(_entries, mode),
        "scaled_dot_product_attention": partial(_attention, mode),
    }
    own = FunctionType(whole.__code__, {**whole.__globals__, **inside}, whole.__name__, whole.__defaults__)
    return own(*args, **kwargs)


_RULES: dict[Any, Callable[..., Any]] = {
    F.dropout: _entries,
    torch.dropout: _entries,
    F.alpha_dropout: _alpha,
    F.dropout1d: partial(_channels, 1),
    F.dropout2d: partial(_channels, 2),
    F.dropout3d: partial(_channels, 3),
    F.feature_alpha_dropout: _alpha_channels,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
}


def set_training(net: nn.Module) -> None:
    """Put a network into training mode, but for what keeps statistics: those are frozen."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()


def check_dropout(function: Any, topology: Topology, like: Tensor) -> tuple[float, ...]:
    """Make sure that dropout is all that a network does otherwise in training mode.

    Args:
        function: The network as a function of its weights.
        topology: Its topology.
        like: Sets device and dtype.

    Returns:
        The rate of each mask.

    Raises:
        ValueError: If it drops nothing, or does something else.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {
        t.name: (torch.randn(t.shape, dtype=torch.float64, generator=generator) / math.sqrt(t.fan_in)).to(like)
        for t in topology.tensors
    }
    x = _placed(topology.random_inputs(generator), like)
    needed, expected, before = Dropping(), function(weights, x), _random_states()
    try:
        # A network that is fully connected by its layers has no dropout among them.
        found = function.run_dropping(weights, x, needed) if topology.inputs else expected
        drawn = before != _random_states()
    except Exception as error:
        raise ValueError(
            f"dropout: the network cannot be run in training mode ({error}); use dropout='ignore'"
        ) from error
    finally:
        torch.set_rng_state(torch.tensor(before[0], dtype=torch.uint8))
        random.setstate(before[1])
        np.random.set_state(before[2])  # noqa: NPY002
    if not needed.rates:
        raise ValueError("dropout has no effect: the network has no dropout of a rate above 0; leave it out")
    if (
        drawn
        or not isinstance(found, Tensor)
        or found.shape != expected.shape
        or not torch.allclose(found, expected, 1e-3, 1e-5, equal_nan=True)
    ):
        raise ValueError(
            "dropout: in training mode the network does more than dropout (batch norm keeps the statistics that it "
            "has): write what it does by random numbers of its own with torch.nn.functional.dropout, or use "
            "dropout='ignore'"
        )
    return tuple(needed.rates)


def _placed(x: Any, like: Tensor) -> Any:
    """Inputs where the network is, numbers in its dtype."""
    if isinstance(x, Tensor):
        return x.to(like) if x.is_floating_point() else x.to(like.device)
    if isinstance(x, Mapping):
        return {name: _placed(part, like) for name, part in x.items()}
    return tuple(_placed(part, like) for part in x)


def _random_states() -> tuple[Any, ...]:
    """States of what a network might draw from; they can be compared."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), (name, np.asarray(keys).tolist(), *rest)
