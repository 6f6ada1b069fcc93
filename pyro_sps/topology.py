"""Which units a network has, and which of its weight tensors join them.

A `Topology` is the narrow waist of the library: schemes, values and certificates read nothing else
of a network. Everything that knows about layer types lives in this module.
"""

from __future__ import annotations

import copy
import itertools
import math
import operator
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .process import process_lock

Masks = dict[str, Tensor]

SUPPORTED = (
    "nn.Linear and F.linear, elementwise activations (Tanh, ReLU, LeakyReLU, GELU, SiLU, ELU, Softplus, "
    "Sigmoid, Identity, erf, sin, ... as modules, functions or methods), sums of two layers of the same "
    "width, multiplication by a number, nn.Flatten of the input, nested nn.Sequential"
)


class UnsupportedLayerError(ValueError):
    """A network contains something that `Topology.of` cannot read.

    Example:
        >>> from torch import nn
        >>> from pyro_sps import Topology, UnsupportedLayerError
        >>> try:
        ...     Topology.of(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)))
        ... except UnsupportedLayerError as error:
        ...     print(str(error).split(". ")[0])
        layer '1' (LayerNorm) is not supported
    """


@dataclass(frozen=True)
class UnitGroup:
    """The units of one layer.

    Attributes:
        name: `"input"`, `"layer 1"`, ..., `"output"`.
        size: Number of units.
        pinned: True if each unit has an identity (inputs and outputs), False if the units are
            exchangeable.
        odd: True if everything between the group's weights on either side is odd, so that a unit's
            sign can be flipped.
        homogeneous: True if it is positively homogeneous, so that a unit can be rescaled.

    Example:
        >>> from pyro_sps import Topology, mlp
        >>> group = Topology.of(mlp([8, 50, 2], activation="relu")).groups[1]
        >>> group.size, group.pinned, group.activation
        (50, False, 'homogeneous')
    """

    name: str
    size: int
    pinned: bool
    odd: bool = True
    homogeneous: bool = True

    @property
    def activation(self) -> str:
        """Class of the activation, `linear`, `odd`, `homogeneous` or `generic`."""
        if self.odd and self.homogeneous:
            return "linear"
        return "odd" if self.odd else "homogeneous" if self.homogeneous else "generic"


@dataclass(frozen=True)
class WeightTensor:
    """One named parameter of the network.

    Attributes:
        name: Its name in `net.named_parameters()`, such as `0.weight`.
        shape: Its shape in PyTorch's layout, (out, in) for a matrix and (out,) for a bias.
        groups: For each axis, the index in `Topology.groups` of the units it counts.

    Example:
        >>> from pyro_sps import Topology, mlp
        >>> tensor = Topology.of(mlp([8, 50, 2]))["0.weight"]
        >>> tensor.shape, tensor.groups, tensor.fan_in
        ((50, 8), (1, 0), 8)
    """

    name: str
    shape: tuple[int, ...]
    groups: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """True if the tensor joins two groups, False for a bias."""
        return len(self.groups) == 2

    @property
    def fan_in(self) -> int:
        """Number of inputs that one output unit sums over through this tensor; 1 for a bias."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True)
class Topology:
    """Unit groups and the weight tensors between them.

    Attributes:
        groups: Unit groups in order of computation; inputs first.
        tensors: Weight tensors in order of computation.

    Example:
        >>> from pyro_sps import Topology, mlp
        >>> print(Topology.of(mlp([8, 50, 2])))
        input (8, pinned) - layer 1 (50, odd) - output (2, pinned)
          0.weight  50 x 8  input -> layer 1
          0.bias    50      layer 1
          2.weight  2 x 50  layer 1 -> output
          2.bias    2       output
    """

    groups: tuple[UnitGroup, ...]
    tensors: tuple[WeightTensor, ...]

    @staticmethod
    def of(net: nn.Module) -> Topology:
        """Trace a network.

        Args:
            net: The network. It is read, not changed; its parameters may be on the meta device.

        Raises:
            UnsupportedLayerError: If the network has a layer that is not supported.

        Example:
            >>> from torch import nn
            >>> from pyro_sps import Topology
            >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
            >>> [group.size for group in Topology.of(net).groups]
            [3, 4, 1]
        """
        return trace(net)[0]

    @property
    def matrices(self) -> tuple[WeightTensor, ...]:
        """The tensors that join two groups, in order of computation (l = 1 ... L)."""
        return tuple(tensor for tensor in self.tensors if tensor.is_matrix)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Indices of the exchangeable groups."""
        return tuple(i for i, group in enumerate(self.groups) if not group.pinned)

    @property
    def num_weights(self) -> int:
        """Number of entries of all weight tensors."""
        return sum(tensor.numel for tensor in self.tensors)

    def __getitem__(self, name: str) -> WeightTensor:
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(f"no weight tensor {name!r}; there are {[t.name for t in self.tensors]}")

    def check_masks(self, masks: Mapping[str, Tensor]) -> Masks:
        """Complete and check a set of stochastic masks.

        Args:
            masks: Boolean tensors by name of the weight tensor, True where the weight is stochastic.
                Tensors that are not named are stochastic everywhere.

        Returns:
            A mask for every weight tensor, in the order of `tensors`.

        Raises:
            ValueError: If a name, a dtype or a shape is wrong.
        """
        if not isinstance(masks, Mapping):
            raise TypeError(f"masks must map tensor names to Boolean tensors, got {type(masks).__name__}")
        names = [tensor.name for tensor in self.tensors]
        if unknown := sorted(set(masks) - set(names)):
            raise ValueError(f"masks name {unknown}, which the network does not have; it has {names}")
        checked = {}
        for tensor in self.tensors:
            mask = masks.get(tensor.name)
            if mask is None:
                mask = torch.ones(tensor.shape, dtype=torch.bool)
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != tensor.shape:
                found = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
                raise ValueError(
                    f"masks[{tensor.name!r}] must be a torch.bool tensor of shape {tensor.shape}, got {found}"
                )
            checked[tensor.name] = mask
        return checked

    def fully_connected(self, masks: Mapping[str, Tensor]) -> dict[str, int]:
        """Count the units without any fixed connection in each hidden group.

        The paper asks for at most one of them in each hidden layer (arXiv 2405.17666).
        That is necessary but not sufficient for breaking all permutations: see `pyro_sps.certify`.
        In a chain of layers with widths D the light scheme leaves max(0, D_l - m_l - m_(l+1) + 2) of them, where m_l is
        the smaller width of the tensor before the layer and m_(l+1) of that behind it, and the heavy scheme at least 1.

        Args:
            masks: Stochastic masks by tensor name. Biases are not connections and do not count.

        Returns:
            Number of fully connected units by name of the hidden group.
        """
        masks = self.check_masks(masks)
        free = {index: torch.ones(self.groups[index].size, dtype=torch.bool) for index in self.hidden}
        for tensor in self.matrices:
            mask = masks[tensor.name].cpu()
            for axis, index in enumerate(tensor.groups):
                if index in free:
                    free[index] &= mask.all(dim=1 - axis)
        return {self.groups[index].name: int(units.sum()) for index, units in free.items()}

    def neighbours(self, group: int) -> tuple[UnitGroup, ...]:
        """The groups on the other side of the tensors that join `group`, in order of computation."""
        return tuple(
            self.groups[tensor.groups[1 - axis]]
            for tensor in self.matrices
            for axis in (0, 1)
            if tensor.groups[axis] == group
        )

    def __str__(self) -> str:
        groups = " - ".join(
            f"{group.name} ({group.size}, {'pinned' if group.pinned else group.activation})" for group in self.groups
        )
        rows = [
            (
                tensor.name,
                " x ".join(map(str, tensor.shape)),
                " -> ".join(self.groups[index].name for index in reversed(tensor.groups)),
            )
            for tensor in self.tensors
        ]
        widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        lines = [f"  {name:{widths[0]}}  {shape:{widths[1]}}  {joins}" for name, shape, joins in rows]
        return "\n".join([groups, *lines])


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
        activation: One of `pyro_sps.topology.ACTIVATIONS`, after every layer but the last.
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


# --- tracing ---------------------------------------------------------------------------------------

_LINEAR, _ODD, _HOMOGENEOUS, _GENERIC = (True, True), (True, False), (False, True), (False, False)

# Even functions (abs, cos) are left out on purpose: they have sign symmetries of another kind,
# which the certificate does not count.
_MODULES: dict[type[nn.Module], tuple[bool, bool]] = {
    nn.Identity: _LINEAR,
    nn.Tanh: _ODD,
    nn.Softsign: _ODD,
    nn.Tanhshrink: _ODD,
    nn.ReLU: _HOMOGENEOUS,
    nn.LeakyReLU: _HOMOGENEOUS,
    nn.GELU: _GENERIC,
    nn.SiLU: _GENERIC,
    nn.ELU: _GENERIC,
    nn.CELU: _GENERIC,
    nn.SELU: _GENERIC,
    nn.Softplus: _GENERIC,
    nn.Sigmoid: _GENERIC,
    nn.LogSigmoid: _GENERIC,
    nn.Hardsigmoid: _GENERIC,
    nn.Hardswish: _GENERIC,
    nn.ReLU6: _GENERIC,
    nn.Mish: _GENERIC,
}
_NAMES: dict[str, tuple[bool, bool]] = {
    **dict.fromkeys(("neg", "negative"), _LINEAR),
    **dict.fromkeys(("tanh", "erf", "special_erf", "sin", "asinh", "sinh", "atan", "arctan"), _ODD),
    **dict.fromkeys(("softsign", "tanhshrink"), _ODD),
    **dict.fromkeys(("relu", "leaky_relu"), _HOMOGENEOUS),
    **dict.fromkeys(("gelu", "silu", "elu", "celu", "selu", "softplus", "sigmoid"), _GENERIC),
    **dict.fromkeys(("log_sigmoid", "special_expit", "hardsigmoid", "hardswish", "relu6", "mish", "exp"), _GENERIC),
}
_SUMS = {operator.add, torch.add}
_PRODUCTS = {operator.mul, operator.truediv, torch.mul, torch.div}

# A network as a pure function of its weights: (weights by name, inputs) -> outputs, see `trace`.
NetworkFunction = Callable[[Mapping[str, Tensor], Tensor], Tensor]


def trace(net: nn.Module) -> tuple[Topology, NetworkFunction]:
    """Read a network's topology and turn it into a pure function of its weights.

    Args:
        net: The network.

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
        >>> from pyro_sps.topology import trace
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
                f"layer {name or 'network'!r} ({type(module).__name__}) has forward hooks, which are not supported. "
                f"Supported: {SUPPORTED}"
            )
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
    tracer = _Tracer(net)
    for node in graph.nodes:
        tracer.visit(node)
    return tracer.topology(), tracer.function()


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


@dataclass
class _Units:
    """What the tracer knows of one intermediate value."""

    group: int | None  # None: the raw input, whose width the first linear layer tells
    node: Any  # the node of the rewritten graph that computes it


class _Tracer:
    """Walks an fx graph once, collecting groups and rewriting linear layers to batched ones."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.names = {id(parameter): name for name, parameter in net.named_parameters()}
        self.values: dict[fx.Node, _Units] = {}
        # Groups are merged by residual sums and shared tensors: a union-find over provisional indices.
        self.parent: list[int] = []
        self.sizes: list[int] = []
        self.flags: list[tuple[bool, bool]] = []
        self.tensors: dict[str, WeightTensor] = {}
        self.pinned: set[int] = set()
        self.input: int | None = None
        self.graph = fx.Graph()
        self.weights = self.graph.placeholder("weights")

    # groups

    def new_group(self, size: int) -> int:
        self.parent.append(len(self.parent))
        self.sizes.append(size)
        self.flags.append(_LINEAR)
        return len(self.parent) - 1

    def find(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def tie(self, first: int, second: int) -> int:
        first, second = sorted((self.find(first), self.find(second)))
        if first != second:
            self.parent[second] = first
            self.restrict(first, self.flags[second])
        return first

    def restrict(self, group: int, flags: tuple[bool, bool]) -> None:
        group = self.find(group)
        odd, homogeneous = self.flags[group]
        self.flags[group] = (odd and flags[0], homogeneous and flags[1])

    # nodes

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.placeholder(node)
        elif node.op == "output":
            self.output(node)
        elif node.op == "call_module":
            self.module(node)
        elif node.op in ("call_function", "call_method"):
            self.call(node)
        elif node.op != "get_attr":  # parameters are looked at where F.linear uses them
            raise self.unsupported(node)

    def placeholder(self, node: fx.Node) -> None:
        if self.values:
            raise UnsupportedLayerError(f"the network takes a second input, {node.name!r}; one tensor is supported")
        self.values[node] = _Units(None, self.graph.placeholder("x"))

    def module(self, node: fx.Node) -> None:
        module = self.net.get_submodule(str(node.target))
        value = self.argument(node)
        if type(module) is nn.Linear:
            self.linear(node, value, module.weight, module.bias)
        elif type(module) is nn.Flatten:
            self.flatten(node, value, module.start_dim, module.end_dim)
        elif type(module) in _MODULES:
            self.elementwise(node, value, _MODULES[type(module)])
        elif type(module) is nn.Hardtanh:
            self.elementwise(node, value, _ODD if module.min_val == -module.max_val else _GENERIC)
        else:
            raise self.unsupported(node)

    def call(self, node: fx.Node) -> None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        if node.target is F.linear or name == "linear":
            arguments = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
            weight, bias = (self.parameter(node, arguments.get(key)) for key in ("weight", "bias"))
            if weight is None:
                raise self.unsupported(node)
            self.linear(node, self.argument(node), weight, bias)
        elif name == "flatten":
            arguments = {"start_dim": 0, "end_dim": -1} | dict(node.kwargs)
            arguments |= zip(("start_dim", "end_dim"), node.args[1:], strict=False)
            self.flatten(node, self.argument(node), arguments["start_dim"], arguments["end_dim"])
        elif node.target in _SUMS or name == "add":
            self.add(node)
        elif node.target in _PRODUCTS or name in ("mul", "div"):
            self.multiply(node)
        elif name in _NAMES:
            self.elementwise(node, self.argument(node), _NAMES[name])
        else:
            raise self.unsupported(node)

    def argument(self, node: fx.Node) -> _Units:
        first = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(first, fx.Node) or first not in self.values:
            raise self.unsupported(node)
        return self.values[first]

    def operand(self, argument: Any) -> Any:
        """What is known of an argument: units if a layer computed it, else itself."""
        return self.values.get(argument, argument) if isinstance(argument, fx.Node) else argument

    def parameter(self, node: fx.Node, argument: Any) -> Tensor | None:
        if argument is None:
            return None
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            raise self.unsupported(node)
        owner, _, name = str(argument.target).rpartition(".")
        parameter = getattr(self.net.get_submodule(owner), name)
        if id(parameter) not in self.names:
            raise self.unsupported(node)
        return parameter

    def linear(self, node: fx.Node, value: _Units, weight: Tensor, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        from_input = value.group is None or value.group == self.input
        group = self.width(node, value, inputs)
        result = self.new_group(outputs)
        names = [self.tensor(weight, (result, group))]
        if bias is not None:
            names.append(self.tensor(bias, (result,)))
        nodes = [self.graph.call_function(operator.getitem, (self.weights, name)) for name in names]
        self.values[node] = _Units(
            result, self.graph.call_function(_input_linear if from_input else _linear, (value.node, *nodes))
        )

    def width(self, node: fx.Node, value: _Units, inputs: int) -> int:
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
        name = self.names[id(parameter)]
        if name in self.tensors:  # shared by two layers: their units can only be relabelled together
            for old, new in zip(self.tensors[name].groups, groups, strict=True):
                self.tie(old, new)
        else:
            self.tensors[name] = WeightTensor(name, tuple(parameter.shape), groups)
        return name

    def flatten(self, node: fx.Node, value: _Units, start: Any, end: Any) -> None:
        if start != 1 or end != -1:
            raise UnsupportedLayerError(f"{self.place(node)} must flatten from dimension 1 to -1, got {start} to {end}")
        if value.group is None:
            self.values[node] = _Units(None, self.graph.call_function(torch.flatten, (value.node, 1)))
        else:  # hidden units already are one dimension
            self.values[node] = value

    def elementwise(self, node: fx.Node, value: _Units, flags: tuple[bool, bool]) -> None:
        """Apply an elementwise function; on the raw input it changes no symmetry."""
        if len(node.all_input_nodes) != 1:  # such as a parameter for a slope
            raise self.unsupported(node)
        if value.group in (None, self.input) and self.is_inplace(node):
            raise UnsupportedLayerError(
                f"layer {self.place(node)} works in place on the network's input and would change the data; "
                "use inplace=False"
            )
        if value.group is not None:
            self.restrict(value.group, flags)
        self.values[node] = _Units(value.group, self.copy(node))

    def add(self, node: fx.Node) -> None:
        first, second = (self.operand(argument) for argument in node.args[:2])
        if isinstance(first, int | float):
            first, second = second, first
        if node.kwargs or len(node.args) != 2 or not isinstance(first, _Units):
            raise self.unsupported(node)
        if isinstance(second, int | float):
            return self.elementwise(node, first, _GENERIC if second else _LINEAR)  # sum() starts from 0
        if not isinstance(second, _Units):
            raise self.unsupported(node)
        known = second if first.group is None else first
        if all(value.group in (None, self.input) for value in (first, second)):
            raise UnsupportedLayerError(f"{self.place(node)} adds the raw input to itself, which is not supported")
        assert known.group is not None
        raw = [value.group in (None, self.input) for value in (first, second)]
        tied = self.tie(*(self.width(node, value, self.sizes[known.group]) for value in (first, second)))
        # The sum of the input and a hidden layer carries the weights' batch dimensions, so its group must
        # not be taken for the raw input again: a provisional group of its own, tied to the others.
        result = self.new_group(self.sizes[tied])
        self.tie(tied, result)
        operands = [
            self.graph.call_function(_transposed, (value.node,)) if is_raw else value.node
            for value, is_raw in zip((first, second), raw, strict=True)
        ]
        self.values[node] = _Units(result, self.graph.call_function(operator.add, tuple(operands)))

    def multiply(self, node: fx.Node) -> None:
        first, second = (self.operand(argument) for argument in node.args[:2])
        if isinstance(first, int | float) and node.target not in (operator.truediv, torch.div):
            first, second = second, first
        if node.kwargs or not isinstance(first, _Units) or not isinstance(second, int | float):
            raise self.unsupported(node)
        self.elementwise(node, first, _LINEAR)

    def output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or result not in self.values or self.values[result].group is None:
            raise UnsupportedLayerError("the network must return one tensor that its layers computed")
        value = self.values[result]
        assert value.group is not None
        self.pinned.add(value.group)
        self.graph.output(self.graph.call_function(_transposed, (value.node,)))

    def is_inplace(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return getattr(self.net.get_submodule(str(node.target)), "inplace", False)
        return node.kwargs.get("inplace", False) is True or any(argument is True for argument in node.args)

    def copy(self, node: fx.Node) -> fx.Node:
        return self.graph.node_copy(node, lambda argument: self.values[argument].node)

    def place(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target!r} ({type(self.net.get_submodule(str(node.target))).__name__})"
        return f"{node.name!r} ({getattr(node.target, '__name__', node.target)})"

    def unsupported(self, node: fx.Node) -> UnsupportedLayerError:
        return UnsupportedLayerError(f"layer {self.place(node)} is not supported. Supported: {SUPPORTED}")

    # results

    def topology(self) -> Topology:
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

    def function(self) -> NetworkFunction:
        # Elementwise modules hold no tensors, so the graph module refers to them and to nothing of the net's size.
        return _NetworkFunction(self.net, fx.GraphModule(self.net, self.graph))


class _NetworkFunction:
    """The network as a function of its weights, which other processes can be sent."""

    def __init__(self, net: nn.Module, run: fx.GraphModule) -> None:
        self.run = run
        # The network without its numbers: what it takes to trace it again there.
        weightless: dict[int, Any] = {
            id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in net.parameters()
        }
        self.skeleton = copy.deepcopy(net, weightless)

    def __call__(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = self.run(weights, x)
        return outputs

    def __reduce__(self) -> tuple[Any, ...]:
        return _function_of, (self.skeleton,)


def _function_of(net: nn.Module) -> NetworkFunction:
    return trace(net)[1]


# Between layers an activation has shape B + (units, rows): batched products of small matrices are faster with the
# long dimension last, and biases are added to whole rows of memory.


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


def _transposed(value: Tensor) -> Tensor:
    """From (rows, units) to (units, rows), or back."""
    return value.mT
