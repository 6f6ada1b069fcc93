"""What a network computes, told by its outputs on a few inputs: names and shapes of weights do not tell it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .inputs import FLOAT, are_several, named_parts, random_inputs, with_names
from .record import MappedFunction
from .run import NetworkFunction, WeightFunction
from .topology import Topology
from .tracer import transposed

# Inputs of these sizes: activations that agree near zero differ far from it, and the other way round.
SIZES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

# Sums of a few hundred products are rounded to some tens of this, on whatever machine.
TOLERANCE = 300


def probe(function: NetworkFunction, topology: Topology, like: Tensor, shape: Sequence[int] | None) -> Tensor:
    """Outputs of a network at weights and inputs that depend on its shapes alone.

    Args:
        function: The network as a function of its weights.
        topology: Its topology.
        like: Sets device and dtype.
        shape: Shape of a row of inputs; None for a vector of features.

    Returns:
        Shape (inputs, outputs), on the CPU and of float64.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(size: Sequence[int]) -> Tensor:
        return torch.randn(tuple(size), dtype=torch.float64, generator=generator)

    weights = {t.name: (draw((1, *t.shape)) / math.sqrt(t.fan_in)).to(like) for t in topology.tensors}
    sizes = torch.tensor(SIZES, dtype=torch.float64).repeat_interleave(2)

    def sized(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.to(like.device)
        return (x * sizes.reshape(-1, *(1,) * (x.dim() - 1))).to(like)

    known = {kind for _, kind, _ in topology.inputs}
    if are_several(topology.inputs) or known - {FLOAT}:  # words, masks and the like
        inputs = topology.inputs
        if not are_several(inputs) and shape is not None:
            inputs = (inputs[0]._replace(shape=(len(sizes), *shape)),)
        x = random_inputs(inputs, generator, topology.vocabulary, len(sizes))
        x = with_names(inputs, [sized(part) for _, part in named_parts(x)]) if are_several(inputs) else sized(x)
    else:
        x = sized(draw((len(sizes), *(shape or (topology.groups[0].size,)))))
    with torch.no_grad():
        return function(weights, x)[0].double().cpu()


def same(first: Tensor, second: Tensor, dtype: torch.dtype) -> bool:
    """Whether outputs of `probe` are equal to the rounding of a dtype, row by row."""
    if first.shape != second.shape:
        return False
    size = torch.maximum(first.abs(), second.abs()).nan_to_num(0, 0, 0).amax(-1, keepdim=True)
    close = (first - second).abs() <= TOLERANCE * torch.finfo(dtype).eps * size
    return bool((close | (first == second) | (first.isnan() & second.isnan())).all())


def last_operation(function: NetworkFunction) -> str:
    """Name of what a network does last: `Sigmoid` or `sigmoid`, for instance; empty where that is a layer."""
    if not isinstance(function, WeightFunction):
        return ""
    (result,) = (node for node in function.run.graph.nodes if node.op == "output")
    node = result.args[0]
    while getattr(node, "target", None) in (transposed, torch.flatten) or str(getattr(node, "target", "")) == "mT":
        node = node.args[0]
    if node.op == "call_module":
        return type(function.run.get_submodule(str(node.target))).__name__
    if node.op in ("call_function", "call_method"):
        return str(getattr(node.target, "__name__", node.target)).strip("_")
    return ""


def described(function: NetworkFunction) -> str:
    """The operations of a network in order, with their constants, for a reader."""
    if isinstance(function, MappedFunction):
        return str(function.skeleton)[:4000]
    if not isinstance(function, WeightFunction):
        return ""
    words = []
    for node in function.run.graph.nodes:
        if node.op == "call_module":
            words.append(str(function.run.get_submodule(str(node.target))))
        elif node.op in ("call_function", "call_method"):
            name = str(getattr(node.target, "__name__", node.target)).strip("_")
            constants = [repr(one) for one in node.args if isinstance(one, int | float)]
            constants += [f"{key}={one!r}" for key, one in node.kwargs.items() if not hasattr(one, "op")]
            if name not in ("getitem", "transposed"):
                words.append(f"{name}({', '.join(constants)})" if constants else name)
    return ", ".join(words)[:4000]
