"""From a network to its topology and to a pure function of its weights."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from ..base.process import process_lock
from . import layers as layers  # registers their rules
from .record import MappedFunction, NoExampleError, record
from .run import NetworkFunction
from .topology import SUPPORTED, Topology, UnsupportedLayerError
from .tracer import Tracer, is_inplace

# What `h += 1` and its like are to torch.fx.
_OPERATORS = {operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul}


def _instead_of(module: nn.Module) -> str:
    """What to do about the hooks of a module."""
    hooks = {type(hook).__name__ for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())}
    if hooks == {"WeightNorm"}:
        return (
            "torch.nn.utils.weight_norm makes them; take it off by torch.nn.utils.remove_weight_norm(layer) and use "
            "torch.nn.utils.parametrizations.weight_norm(layer), which is the same without hooks"
        )
    return "remove them (handle.remove()), or do what they do in forward"


def trace(net: nn.Module, example: Any = None, deterministic: Sequence[Any] = ()) -> tuple[Topology, NetworkFunction]:
    """Read a network's topology and turn it into a pure function of its weights.

    Args:
        net: The network.
        example: Inputs that it can be run with, if it is not fully connected; see `Topology.of`.
        deterministic: Submodules whose operations need not be known; see `Topology.of`.

    Returns:
        The topology, and a function `(weights, x) -> outputs` with `x` of shape (rows, features) and
        `weights` a dictionary of tensors, all with the same leading batch dimensions B before the
        shapes of `Topology.tensors`. The outputs have shape B + (rows, units). All of B runs in one
        batched product a layer.

    Raises:
        UnsupportedLayerError: If the network has a layer that is not supported.

    Example:
        >>> import torch
        >>> from pyro_sps import mlp
        >>> from pyro_sps.network.trace import trace
        >>> topology, function = trace(mlp([8, 50, 2]))
        >>> draws = {tensor.name: torch.randn(100, *tensor.shape) for tensor in topology.tensors}
        >>> function(draws, torch.randn(7, 8)).shape
        torch.Size([100, 7, 2])
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    for name, module in net.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:  # torch.fx would not see what they do
            raise UnsupportedLayerError(
                f"layer {name or 'network'!r} ({type(module).__name__}) has forward hooks, which are not supported: "
                f"{_instead_of(module)}"
            )
    try:
        return _dense(net)  # the faster form, for networks that are fully connected
    except UnsupportedLayerError as error:
        dense = error
    try:
        topology = record(net, example, deterministic)
    except NoExampleError as error:
        # It may be a fully connected network with a mistake, such as widths that do not fit.
        known = any(word in str(dense) for word in ("is not supported", "could not trace", "second input"))
        raise (error if known else dense) from None
    function = MappedFunction(net, [tensor.name for tensor in topology.tensors], topology.inputs)
    dtype = next(net.parameters()).dtype
    function.try_out(topology.random_inputs(torch.Generator().manual_seed(0)), dtype)
    return topology, function


def _dense(net: nn.Module) -> tuple[Topology, NetworkFunction]:
    attributes = set(vars(net))
    try:
        with process_lock():
            graph = _ThreadTracer().trace(net)
    except Exception as error:
        raise UnsupportedLayerError(
            f"torch.fx could not trace the network ({type(error).__name__}: {error}); "
            f"its forward must not branch on values. Supported: {SUPPORTED}"
        ) from error
    finally:
        for name in set(vars(net)) - attributes:  # torch.fx stores tensors made in forward as attributes
            delattr(net, name)
    doubtful = _may_be_in_place(graph)
    _erase_what_is_not_read(graph, net)
    tracer = Tracer(net)
    for node in graph.nodes:
        tracer.visit(node)
    topology, function = tracer.topology(), tracer.function(_function_of)
    if doubtful and not _is_right(net, topology, function):
        raise UnsupportedLayerError(
            "torch.fx reads another network than the one that runs: a value is changed in place (h += 1) that is read "
            "under another name too"
        )
    return topology, function


def _may_be_in_place(graph: fx.Graph) -> bool:
    """Whether an operation may be one that changes a value (h += 1), which torch.fx reads as one that makes another."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    return any(
        order[user] > order[node]
        for node in graph.nodes
        if node.op == "call_function" and node.target in _OPERATORS and isinstance(node.args[0], fx.Node)
        for user in node.args[0].users
    )


def _is_right(net: nn.Module, topology: Topology, function: NetworkFunction) -> bool:
    """Whether a function computes what the network itself does, for random weights and inputs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.device("cpu"):
        weights = {
            tensor.name: torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
            for tensor in topology.tensors
        }
        x = topology.random_inputs(generator, rows=2)
        found, expected = function(weights, x), MappedFunction(net, list(weights))(weights, x)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


def _erase_what_is_not_read(graph: fx.Graph, net: nn.Module) -> None:
    """Take what the output does not depend on out of a graph; what works in place may be read under another name."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output") and not is_inplace(net, node):
            graph.erase_node(node)


def _function_of(net: nn.Module) -> NetworkFunction:
    return _dense(net)[1]


class _ThreadTracer(fx.Tracer):
    """Tracer of the modules that one thread calls.

    While torch.fx traces, all module calls of the process go through the tracer. Those of other threads go on as ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
