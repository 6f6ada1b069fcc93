"""Functions of single numbers, sums of two values and products with a number.

What has to be right of a function is its class, for the certificate believes it. Even functions (abs, cos) are left
out on purpose: they have sign symmetries of another kind, which the certificate does not count.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from ..topology import UnsupportedLayerError
from ..tracer import GENERIC, HOMOGENEOUS, LINEAR, ODD, Flags, Tracer, Units, is_inplace, rule, transposed

_MODULES: dict[type[nn.Module], Flags] = {
    nn.Identity: LINEAR,
    nn.Tanh: ODD,
    nn.Softsign: ODD,
    nn.Tanhshrink: ODD,
    nn.ReLU: HOMOGENEOUS,
    nn.LeakyReLU: HOMOGENEOUS,
    nn.GELU: GENERIC,
    nn.SiLU: GENERIC,
    nn.ELU: GENERIC,
    nn.CELU: GENERIC,
    nn.SELU: GENERIC,
    nn.Softplus: GENERIC,
    nn.Sigmoid: GENERIC,
    nn.LogSigmoid: GENERIC,
    nn.Hardsigmoid: GENERIC,
    nn.Hardswish: GENERIC,
    nn.ReLU6: GENERIC,
    nn.Mish: GENERIC,
}
_NAMES: dict[str, Flags] = {
    **dict.fromkeys(("neg", "negative"), LINEAR),
    **dict.fromkeys(("tanh", "erf", "special_erf", "sin", "asinh", "sinh", "atan", "arctan"), ODD),
    **dict.fromkeys(("softsign", "tanhshrink"), ODD),
    **dict.fromkeys(("relu", "leaky_relu"), HOMOGENEOUS),
    **dict.fromkeys(("gelu", "silu", "elu", "celu", "selu", "softplus", "sigmoid"), GENERIC),
    **dict.fromkeys(("log_sigmoid", "special_expit", "hardsigmoid", "hardswish", "relu6", "mish", "exp"), GENERIC),
}


@rule(*_MODULES)
def module(tracer: Tracer, node: fx.Node) -> None:
    """An activation as a module."""
    _apply(tracer, node, tracer.argument(node), _MODULES[type(tracer.module(node))])


@rule(*_NAMES)
def function(tracer: Tracer, node: fx.Node) -> None:
    """An activation as a function or method."""
    _apply(tracer, node, tracer.argument(node), _NAMES[tracer.function_name(node)])


@rule(nn.Hardtanh)
def hardtanh(tracer: Tracer, node: fx.Node) -> None:
    """`nn.Hardtanh`, odd where its ends are opposite."""
    own = tracer.module(node)
    _apply(tracer, node, tracer.argument(node), ODD if own.min_val == -own.max_val else GENERIC)


@rule("add")
def add(tracer: Tracer, node: fx.Node) -> None:
    """The sum of two values of the same width, or of a value and a number."""
    first, second = (tracer.operand(argument) for argument in node.args[:2])
    if isinstance(first, int | float):
        first, second = second, first
    if node.kwargs or len(node.args) != 2 or not isinstance(first, Units):
        raise tracer.unsupported(node)
    if isinstance(second, int | float):
        return _apply(tracer, node, first, GENERIC if second else LINEAR)  # sum() starts from 0
    if not isinstance(second, Units):
        raise tracer.unsupported(node)
    known = second if first.group is None else first
    raw = [tracer.is_input(value) for value in (first, second)]
    if all(raw):
        raise UnsupportedLayerError(f"{tracer.place(node)} adds the raw input to itself, which is not supported")
    assert known.group is not None
    tied = tracer.tie(*(tracer.width(node, value, tracer.sizes[known.group]) for value in (first, second)))
    # The sum of the input and a hidden layer carries the weights' batch dimensions, so its group must
    # not be taken for the raw input again: a provisional group of its own, tied to the others.
    result = tracer.new_group(tracer.sizes[tied])
    tracer.tie(tied, result)
    operands = [
        tracer.call(transposed, value.node) if is_raw else value.node
        for value, is_raw in zip((first, second), raw, strict=True)
    ]
    tracer.values[node] = Units(result, tracer.call(operator.add, *operands))


@rule("mul", "div", "truediv")
def multiply(tracer: Tracer, node: fx.Node) -> None:
    """The product of a value and a number, or its quotient."""
    first, second = (tracer.operand(argument) for argument in node.args[:2])
    if isinstance(first, int | float) and tracer.function_name(node) == "mul":
        first, second = second, first
    if node.kwargs or not isinstance(first, Units) or not isinstance(second, int | float):
        raise tracer.unsupported(node)
    _apply(tracer, node, first, LINEAR)


def _apply(tracer: Tracer, node: fx.Node, value: Units, flags: Flags) -> None:
    """Apply an elementwise function; on the raw input it changes no symmetry."""
    if len(node.all_input_nodes) != 1:  # such as a parameter for a slope
        raise tracer.unsupported(node)
    if tracer.is_input(value) and is_inplace(tracer.net, node):
        raise UnsupportedLayerError(
            f"layer {tracer.place(node)} works in place on the network's input and would change the data; "
            "use inplace=False"
        )
    if value.group is not None:
        tracer.restrict(value.group, flags)
    tracer.values[node] = Units(value.group, tracer.copy(node))
