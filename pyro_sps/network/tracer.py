"""Walks the graph of a network once, operation by operation; what each does is for the rules of `layers` to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from .run import NetworkFunction, WeightFunction
from .topology import SUPPORTED, Topology, UnsupportedLayerError
from .units import UnitGroup, WeightTensor

# Whether an operation is odd and whether it is positively homogeneous.
Flags = tuple[bool, bool]
LINEAR: Flags = (True, True)
ODD: Flags = (True, False)
HOMOGENEOUS: Flags = (False, True)
GENERIC: Flags = (False, False)

Rule = Callable[["Tracer", fx.Node], None]

_MODULES: dict[type[nn.Module], Rule] = {}
_FUNCTIONS: dict[str, Rule] = {}


def rule(*operations: type[nn.Module] | str) -> Callable[[Rule], Rule]:
    """Register what the tracer does at an operation.

    Args:
        *operations: Types of modules, and names of functions and methods.
    """

    def register(function: Rule) -> Rule:
        for operation in operations:
            if isinstance(operation, str):
                _FUNCTIONS[operation] = function
            else:
                _MODULES[operation] = function
        return function

    return register


@dataclass
class Units:
    """What the tracer knows of one intermediate value.

    Attributes:
        group: The group of units that it has a number for; None for the raw input, whose width the first layer tells.
        node: The node of the rewritten graph that computes it.
    """

    group: int | None
    node: Any


class Tracer:
    """Collects groups and tensors, and rewrites the graph as a function of the weights.

    Attributes:
        net: The network.
        values: What is known of the value of each node so far; a rule adds that of its own.
        graph: The rewritten graph. Its activations have shape B + (units, rows).
        weights: The node of its weights by name.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.names = {id(parameter): name for name, parameter in net.named_parameters()}
        self.values: dict[fx.Node, Units] = {}
        # Groups are merged by residual sums and shared tensors: a union-find over provisional indices.
        self.parent: list[int] = []
        self.sizes: list[int] = []
        self.flags: list[Flags] = []
        self.tensors: dict[str, WeightTensor] = {}
        self.pinned: set[int] = set()
        self.input: int | None = None
        self.graph = fx.Graph()
        self.weights = self.graph.placeholder("weights")

    # groups

    def new_group(self, size: int) -> int:
        """A group of units of which nothing is known yet."""
        self.parent.append(len(self.parent))
        self.sizes.append(size)
        self.flags.append(LINEAR)
        return len(self.parent) - 1

    def find(self, group: int) -> int:
        """The group that a group has been merged into."""
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def tie(self, first: int, second: int) -> int:
        """Merge two groups, whose units can only be relabelled together."""
        first, second = sorted((self.find(first), self.find(second)))
        if first != second:
            self.parent[second] = first
            self.restrict(first, self.flags[second])
        return first

    def restrict(self, group: int, flags: Flags) -> None:
        """Note an operation that the units of a group pass."""
        group = self.find(group)
        odd, homogeneous = self.flags[group]
        self.flags[group] = (odd and flags[0], homogeneous and flags[1])

    def is_input(self, value: Units) -> bool:
        """Whether a value is the network's input, which has no dimensions of particles or draws."""
        return value.group is None or value.group == self.input

    def width(self, node: fx.Node, value: Units, inputs: int) -> int:
        """The group of `value`, which a layer with this many inputs reads."""
        if value.group is None:
            if self.input is None:
                self.input = self.new_group(inputs)
                self.pinned.add(self.input)
            value.group = self.input
        if self.sizes[value.group] != inputs:
            raise UnsupportedLayerError(
                f"layer {self.place(node)} reads {inputs} features, but the layer before it has "
                f"{self.sizes[value.group]} units"
            )
        return value.group

    def tensor(self, parameter: Tensor, groups: tuple[int, ...]) -> str:
        """Register a parameter, with the group that each of its axes counts; its name."""
        name = self.names[id(parameter)]
        if name in self.tensors:  # shared by two layers: their units can only be relabelled together
            for old, new in zip(self.tensors[name].groups, groups, strict=True):
                self.tie(old, new)
        else:
            self.tensors[name] = WeightTensor(name, tuple(parameter.shape), groups)
        return name

    # nodes

    def visit(self, node: fx.Node) -> None:
        """Look at the next node of the graph."""
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "output":
            self._output(node)
        elif node.op == "call_module":
            self._apply(_MODULES.get(type(self.module(node))), node)
        elif node.op in ("call_function", "call_method"):
            self._apply(_FUNCTIONS.get(self.function_name(node)), node)
        elif node.op != "get_attr":  # parameters are looked at where a function uses them
            raise self.unsupported(node)

    def _apply(self, found: Rule | None, node: fx.Node) -> None:
        if found is None:
            raise self.unsupported(node)
        found(self, node)

    def _placeholder(self, node: fx.Node) -> None:
        if self.values and node.args:
            raise UnsupportedLayerError(
                f"the network's forward has a second argument, {node.name!r} with the default {node.args[0]!r}; give a "
                "network whose forward takes the inputs alone, such as a module that calls this one"
            )
        if self.values:
            raise UnsupportedLayerError(f"the network takes a second input, {node.name!r}; one tensor is supported")
        self.values[node] = Units(None, self.graph.placeholder("x"))

    def _output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or result not in self.values or self.values[result].group is None:
            raise UnsupportedLayerError("the network must return one tensor that its layers computed")
        value = self.values[result]
        assert value.group is not None
        self.pinned.add(value.group)
        self.graph.output(self.graph.call_function(transposed, (value.node,)))

    # what rules ask

    def module(self, node: fx.Node) -> Any:
        """The module that a node calls."""
        return self.net.get_submodule(str(node.target))

    def function_name(self, node: fx.Node) -> str:
        """The name of the function or method that a node calls."""
        return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))

    def argument(self, node: fx.Node) -> Units:
        """What is known of a node's first argument."""
        first = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(first, fx.Node) or first not in self.values:
            raise self.unsupported(node)
        return self.values[first]

    def operand(self, argument: Any) -> Any:
        """What is known of an argument: units if a layer computed it, else itself."""
        return self.values.get(argument, argument) if isinstance(argument, fx.Node) else argument

    def parameter(self, node: fx.Node, argument: Any) -> Tensor | None:
        """The network's parameter that an argument names."""
        if argument is None:
            return None
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            raise self.unsupported(node)
        owner, _, name = str(argument.target).rpartition(".")
        parameter = getattr(self.net.get_submodule(owner), name)
        if id(parameter) not in self.names:
            raise self.unsupported(node)
        return parameter

    def call(self, function: Callable[..., Any], *arguments: Any) -> fx.Node:
        """A node of the rewritten graph that calls a function of tensors."""
        return self.graph.call_function(function, arguments)

    def copy(self, node: fx.Node) -> fx.Node:
        """A node of the rewritten graph that does what a node of the network does."""
        return self.graph.node_copy(node, lambda argument: self.values[argument].node)

    # errors

    def place(self, node: fx.Node) -> str:
        """A node in words."""
        if node.op == "call_module":
            return f"{node.target!r} ({type(self.module(node)).__name__})"
        return f"{node.name!r} ({getattr(node.target, '__name__', node.target)})"

    def unsupported(self, node: fx.Node) -> UnsupportedLayerError:
        """What to raise at a node that no rule can read."""
        return UnsupportedLayerError(f"layer {self.place(node)} is not supported. Supported: {SUPPORTED}")

    # results

    def topology(self) -> Topology:
        """The topology of all that was visited."""
        if not self.tensors:
            raise UnsupportedLayerError(f"the network has no weights. Supported: {SUPPORTED}")
        pinned = {self.find(group) for group in self.pinned}
        roots = [group for group in range(len(self.parent)) if self.find(group) == group]
        index = {root: position for position, root in enumerate(roots)}
        assert self.input is not None
        groups, hidden = [], 0
        for root in roots:
            if root in pinned:
                name = "input" if root == self.find(self.input) else "output"
            else:
                hidden += 1
                name = f"layer {hidden}"
            groups.append(UnitGroup(name, self.sizes[root], root in pinned, *self.flags[root]))
        tensors = tuple(
            WeightTensor(tensor.name, tensor.shape, tuple(index[self.find(group)] for group in tensor.groups))
            for tensor in self.tensors.values()
        )
        return Topology(tuple(groups), tensors)

    def function(self, rebuild: Callable[[nn.Module], NetworkFunction]) -> NetworkFunction:
        """The network as a function of its weights.

        Args:
            rebuild: What makes the same function of a network without numbers, in another process.
        """
        # Elementwise modules hold no tensors, so the graph module refers to them and to nothing of the net's size.
        return WeightFunction(self.net, fx.GraphModule(self.net, self.graph), rebuild)


def transposed(value: Tensor) -> Tensor:
    """From (rows, units) to (units, rows), or back."""
    return value.mT


def is_inplace(net: nn.Module, node: fx.Node) -> bool:
    """Whether a node changes what it reads."""
    if node.op == "call_module":
        return bool(getattr(net.get_submodule(str(node.target)), "inplace", False))
    return node.kwargs.get("inplace", False) is True or any(argument is True for argument in node.args)
