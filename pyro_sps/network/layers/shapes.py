"""Operations that change the shape of a value alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from ..topology import UnsupportedLayerError
from ..tracer import Tracer, Units, rule


@rule(nn.Flatten)
def flatten_module(tracer: Tracer, node: fx.Node) -> None:
    """`nn.Flatten`."""
    module = tracer.module(node)
    _flatten(tracer, node, module.start_dim, module.end_dim)


@rule("flatten")
def flatten_function(tracer: Tracer, node: fx.Node) -> None:
    """`torch.flatten` and the method."""
    arguments = {"start_dim": 0, "end_dim": -1} | dict(node.kwargs)
    arguments |= zip(("start_dim", "end_dim"), node.args[1:], strict=False)
    _flatten(tracer, node, arguments["start_dim"], arguments["end_dim"])


def _flatten(tracer: Tracer, node: fx.Node, start: Any, end: Any) -> None:
    value = tracer.argument(node)
    if start != 1 or end != -1:
        raise UnsupportedLayerError(f"{tracer.place(node)} must flatten from dimension 1 to -1, got {start} to {end}")
    if value.group is None:
        tracer.values[node] = Units(None, tracer.call(torch.flatten, value.node, 1))
    else:  # hidden units already are one dimension
        tracer.values[node] = value
