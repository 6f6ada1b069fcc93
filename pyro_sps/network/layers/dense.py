"""Fully connected layers.

Between layers an activation has shape B + (units, rows): batched products of small matrices are faster with the
long dimension last, and biases are added to whole rows of memory.
"""

from __future__ import annotations

import operator

from torch import Tensor, fx, nn

from ..tracer import Tracer, Units, rule


@rule(nn.Linear)
def linear_module(tracer: Tracer, node: fx.Node) -> None:
    """`nn.Linear`."""
    module = tracer.module(node)
    _read(tracer, node, module.weight, module.bias)


@rule("linear")
def linear_function(tracer: Tracer, node: fx.Node) -> None:
    """`F.linear` with parameters of the network."""
    arguments = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
    weight, bias = (tracer.parameter(node, arguments.get(key)) for key in ("weight", "bias"))
    if weight is None:
        raise tracer.unsupported(node)
    _read(tracer, node, weight, bias)


def _read(tracer: Tracer, node: fx.Node, weight: Tensor, bias: Tensor | None) -> None:
    value = tracer.argument(node)
    outputs, inputs = weight.shape
    from_input = tracer.is_input(value)
    group = tracer.width(node, value, inputs)
    result = tracer.new_group(outputs)
    names = [tracer.tensor(weight, (result, group))]
    if bias is not None:
        names.append(tracer.tensor(bias, (result,)))
    nodes = [tracer.call(operator.getitem, tracer.weights, name) for name in names]
    tracer.values[node] = Units(result, tracer.call(_input_linear if from_input else _linear, value.node, *nodes))


def _input_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer on inputs without batch dimensions, (rows, features) -> B + (units, rows)."""
    if x.dim() != 2:
        raise ValueError(f"x must have shape (rows, features) where the first layer reads it, got {tuple(x.shape)}")
    if weight.shape[-1] == 1:  # an outer product, which the next elementwise operation takes in
        return _add_bias(weight * x.mT, bias)
    # All of B reads the same inputs: one matrix product instead of one for each. With the inputs transposed in
    # memory too, the derivative by the weights takes less than half the time.
    product = weight.reshape(-1, weight.shape[-1]) @ x.mT.contiguous()
    return _add_bias(product.reshape(*weight.shape[:-1], len(x)), bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer on B + (features, rows) with weights of shape B + (units, features)."""
    return _add_bias(weight @ x, bias)


def _add_bias(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias.unsqueeze(-1)
