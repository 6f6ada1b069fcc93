"""Runs a network once and follows every number through it, operation by operation, for the rules of `layers`.

The operations are those that PyTorch itself breaks modules and functions into (ATen): attention, recurrent cells and
whatever a user writes by hand come apart into products, sums and functions of numbers. Views need no rule: what is
known of elements is noted where they are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .codes import Codes, Ints, mix, pair
from .elements import SCALE, SIGN, Atoms, Value
from .memory import address_of, elements_of, leaves, places_of, shares, view_of
from .topology import SUPPORTED, UnsupportedLayerError

Handler = Callable[["Recorder", "Call"], None]

_HANDLERS: dict[str, Handler] = {}
# What makes a tensor of a shape and reads no number.
_FACTORIES = {
    *(f"{what}_like" for what in ("zeros", "ones", "empty", "full", "rand", "randn")),
    *(f"new_{what}" for what in ("zeros", "ones", "empty", "full", "empty_strided")),
    "_assert_tensor_metadata",
}
# What changes the shape of a tensor in place, and no number.
_RESHAPED = {"transpose_", "t_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_", "detach_", "as_strided_"}


#: Operations that other ones make up, as functions of the same arguments that are written with these.
_PARTS: dict[str, Callable[..., Any]] = {}


def made_of(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what makes up an operation of ATen: a function of the same arguments."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _PARTS[name] = function
        return function

    return register


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register what the recorder does at operations of ATen, by names without overloads and without a last `_`."""

    def register(handler: Handler) -> Handler:
        for name in names:
            _HANDLERS[name] = handler
        return handler

    return register


@dataclass
class Weight:
    """A parameter that the network reads.

    Attributes:
        shape: Its shape.
        axes: For each axis its atoms, or None where its indices are positions.
        grouped: For a grouped convolution, the axis of which the atoms depend on the index of the other, else None;
            its atoms have shape (groups, size of the axis).
        roles: For each axis +1 if outputs of a layer are along it, −1 if inputs are.
        gates: Where the parameter multiplies units: signs and scales of what it multiplies, by index of that axis.
    """

    shape: tuple[int, ...]
    axes: list[Ints | None]
    grouped: int | None = None
    roles: dict[int, int] = field(default_factory=dict)
    gates: dict[int, tuple[Ints, Ints]] = field(default_factory=dict)
    looked_up: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Call:
    """One operation.

    Attributes:
        name: Its name.
        args: Arguments by name, with defaults.
        values: What is known of each tensor among them; those of constants are None.
        out: What it returned.
    """

    name: str
    args: Mapping[str, Any]
    values: Mapping[int, Value | None]
    out: Any

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def known(self, argument: Any) -> Value | None:
        """What is known of a tensor; None for a constant."""
        return self.values.get(id(argument)) if isinstance(argument, Tensor) else None


class Recorder(TorchDispatchMode):
    """Follows the numbers of one run.

    Args:
        net: The network.
        closed: Names of submodules in which operations need not be known.
        calls: The operations of the run, each with whether the output depends on it; those of which it does not are
            not followed.

    Attributes:
        atoms: All atoms.
        weights: The parameters in the order in which they were read.
        uncounted: Names of those of which `Topology.uncounted` tells.
        number: How many operations there were so far.
        strayed: Whether they were others than the expected ones.
    """

    def __init__(
        self, net: nn.Module, closed: Collection[str] = (), calls: Sequence[tuple[str, bool]] | None = None
    ) -> None:
        super().__init__()
        self.net, self.closed, self.calls = net, set(closed), calls
        self.number, self.strayed, self.within = 0, False, False
        self.apart: list[tuple[str, Ints]] = []  # operations that no rule follows, and the atoms that entered them
        self.atoms = Atoms()
        self.weights: dict[str, Weight] = {}
        self.uncounted: list[str] = []
        self.order: list[str] = []
        self.storages: dict[int, tuple[Any, Value]] = {}
        self.parameters = {address_of(p): (name, p) for name, p in net.named_parameters()}
        # Parts of kernels that are computed, as by `weight_norm`: from the third axis on their indices are positions.
        self.of_kernels = {
            address_of(parameter)
            for layer in net.modules()
            if isinstance(layer, nn.modules.conv._ConvNd)
            for parameter in layer.parameters()
            if parameter.dim() == 2 + len(layer.kernel_size)
        }
        self.stack: list[str] = []
        self.operation = ""
        self.largest = 1
        self.given: set[int] = set()
        self.names = {id(module): name or "network" for name, module in net.named_modules()}
        self.indices: dict[int, tuple[Tensor, Ints]] = {}  # tensors that say which unit it was, and these units
        self.inputs: dict[int, Ints] = {}  # pinned units by the code of the column that they read

    # memory

    def value(self, tensor: Tensor) -> Value | None:
        """What is known of a tensor; None for a constant."""
        address = address_of(tensor)
        if address not in self.storages and address in self.parameters:
            self.register(address)
        if address not in self.storages:
            return None
        return self.storages[address][1].map(lambda array: view_of(array, tensor))

    def operand(self, tensor: Tensor, call: Call) -> Value:
        """What is known of a tensor; numbers of a constant are told apart by what they are."""
        known = call.known(tensor)
        return constant(tensor) if known is None else known

    def write(self, tensor: Tensor, value: Value, fresh: bool = True) -> None:
        """Note what is known of a tensor, which may be a view of a larger one."""
        address = address_of(tensor)
        if address in self.parameters:
            raise UnsupportedLayerError(f"{self.place()} changes a parameter of the network in place")
        if address in self.given:
            raise UnsupportedLayerError(
                f"{self.place()} works in place on the network's input and would change the data; use inplace=False"
            )
        index, size = places_of(tensor), elements_of(tensor)
        value = Value(value.tokens, value.place, value.characters)
        if index.size != size or not fresh:
            event = self.atoms.event()
            value = Value(value.tokens, pair(value.place, event), value.characters)
        old = self.storages.get(address)
        base = Value.pinned(np.zeros(size, dtype=np.uint64)) if old is None else old[1]
        tokens = []
        for i in range(max(len(value.tokens), len(base.tokens))):
            array = base.tokens[i].copy() if i < len(base.tokens) else np.full(size, -1)
            array[index] = value.tokens[i] if i < len(value.tokens) else -1
            tokens.append(array)
        place = base.place.copy()
        place[index] = value.place
        characters = [array.copy() for array in base.characters]
        for array, own in zip(characters, value.characters, strict=True):
            array[index] = own
        whole = Value(tuple(token for token in tokens if (token >= 0).any()), place, (characters[0], characters[1]))
        self.storages[address] = (tensor, whole)

    # parameters

    def register(self, address: int, kind: str = "plain", groups: int = 1) -> None:
        """Make the atoms of a parameter that is read for the first time."""
        name, parameter = self.parameters[address]
        shape = tuple(parameter.shape)
        axes: list[Ints | None] = [None] * len(shape)
        grouped = None
        if kind == "plain":
            for axis in reversed(range(2 if address in self.of_kernels else len(shape))):
                if shape[axis] > 1 or len(shape) <= 2:
                    axes[axis] = self.atoms.new(shape[axis])
        else:
            # A transposed convolution has its inputs first; the other axis counts within one group.
            inputs, outputs = (0, 1) if kind == "transposed" else (1, 0)
            for axis in (inputs, outputs):
                count = shape[axis] * (groups if axis == 1 else 1)
                axes[axis] = self.atoms.new(count)
            if groups > 1:
                grouped = 1
                axes[1] = axes[1].reshape(groups, -1)  # type: ignore[union-attr]
        self.weights[name] = Weight(shape, axes, grouped)
        self.order.append(name)
        count = int(np.prod(shape))
        tokens = []
        if kind == "plain":
            for axis, atoms in enumerate(axes):
                if atoms is not None:
                    tokens.append(
                        np.broadcast_to(
                            atoms.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape
                        ).ravel()
                    )
        none, place = np.full(count, -1), np.zeros(count, dtype=np.uint64)
        if address in self.of_kernels:
            positions = math.prod(shape[2:])
            place = mix(np.arange(count) % positions)
        self.storages[address] = (parameter, Value(tuple(tokens), place, (none, none), name))

    def convolution(self, tensor: Tensor, transposed: bool, groups: int) -> Weight:
        """The parameter that a convolution reads as its kernel."""
        address = address_of(tensor)
        kind = "transposed" if transposed else "convolution"
        name = self.parameters[address][0]
        if name not in self.weights:
            self.register(address, kind, groups)
        weight = self.weights[name]
        known = self.storages[address][1]
        if known.tokens or tuple(tensor.shape) != weight.shape:
            raise UnsupportedLayerError(f"{self.place()} uses {name!r} as a kernel, which is used in another way too")
        return weight

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter of the network, or a view of one."""
        return address_of(tensor) in self.parameters

    def _convolved(self, args: Any) -> None:
        """Read a kernel as one, before its numbers are read."""
        if self.is_parameter(args[1]):
            self.convolution(args[1], args[6], args[8])

    def axis_of(self, name: str, atom: int) -> int:
        """The axis of a parameter that an atom is an index of."""
        for axis, atoms in enumerate(self.weights[name].axes):
            if atoms is not None and atom in (known := atoms.ravel()) and known.size:
                return axis
        raise AssertionError(f"{name} has no atom {atom}")

    def role(self, name: str, axis: int, role: int) -> None:
        """Note that outputs (+1) or inputs (−1) of a layer are along an axis of a parameter."""
        weight = self.weights[name]
        if weight.roles.setdefault(axis, role) != role:  # its scale would have to be its own inverse
            atoms = weight.axes[axis]
            assert atoms is not None
            self.atoms.lose(SCALE, atoms.ravel())

    def as_value(self, value: Value) -> Value:
        """A parameter as units that are read: along its last axis its numbers have signs and scales of their own."""
        if value.weight is None or not value.tokens:
            return value
        tokens, place = self.atoms.settle(value.tokens, value.place)
        axes = [self.axis_of(value.weight, int(token[token >= 0][0])) for token in tokens]
        none = np.full(value.shape, -1)
        own = none
        for axis, token in zip(axes, tokens, strict=True):
            if axis == max(axes):
                self.role(value.weight, axis, 1)
                own = token
            else:
                for kind in (SIGN, SCALE):
                    self.atoms.lose(kind, token.ravel())
        return Value(tokens, place, (own, own))

    def pin(self, value: Value) -> Ints:
        """Give an identity to all units that a value has, and no sign or scale; returns their atoms."""
        value = self.as_value(value)
        for kind in (SIGN, SCALE):
            self.atoms.lose(kind, value.characters[kind].ravel())
        atoms = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(token.ravel() for token in value.tokens)]))
        self.atoms.pin(atoms)
        return atoms[atoms >= 0]

    def give(self, tensors: list[Tensor]) -> None:
        """Note the inputs: numbers that have an identity."""
        for number, tensor in enumerate(tensors):
            place = mix(np.arange(tensor.numel()) + (number << 40)).reshape(tuple(tensor.shape))
            self.write(tensor, Value.pinned(place))
        self.given = {address_of(tensor) for tensor in tensors}

    # running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what is known of its result."""
        kwargs = kwargs or {}
        if not self._is_needed(func.name()):
            return func(*args, **kwargs)
        schema = func._schema
        name = schema.name.split("::")[1]
        tensors = list(leaves((args, kwargs)))
        base = name.removesuffix("_") if schema.is_mutable else name
        if base == "convolution":
            self._convolved(args)
        values = {id(tensor): self.value(tensor) for tensor in tensors}
        if base in _FACTORIES or name in _RESHAPED or not any(value is not None for value in values.values()):
            return func(*args, **kwargs)
        self.operation = base
        if base in ("_local_scalar_dense", "is_nonzero", "equal"):
            raise UnsupportedLayerError(
                f"{self.place()} turns a value that depends on the inputs into a Python number, or branches on it; "
                "a network must not branch on values, or its symmetries cannot be read: choose by torch.where, or run "
                "that part on the data beforehand and make a BNN of what follows"
            )
        known, changes = base in _HANDLERS, schema.is_mutable
        if changes:  # its parts are looked for before it changes what they read
            self._read(tensors)
            if not known and (parts := self._in_parts(func, base, args, kwargs)) is not None:
                return parts
        out = func(*args, **kwargs)
        results = list(leaves(out))
        self.largest = max([self.largest, *(result.numel() for result in results)])
        if not changes:
            if results and all(shares(result, tensors) for result in results):
                return out  # a view
            self._read(tensors)
            if not known and (parts := self._in_parts(func, base, args, kwargs)) is not None:
                return out if self._carry_over(parts, results) else parts
        try:
            if not known:
                raise self.unsupported(
                    f"the operation {base!r} is not known (within a submodule whose weights are all in "
                    "deterministic=[...] it need not be)"
                )
            _HANDLERS[base](self, Call(base, _bind(schema, args, kwargs), values, out))
        except UnsupportedLayerError:
            if self.closed.isdisjoint(self.stack):
                raise
            self._tell_apart(values, results)
        return out

    def _is_needed(self, name: str) -> bool:
        """Whether the network's output depends on the next operation."""
        if self.calls is None or self.within:
            return True
        known = self.calls[self.number] if self.number < len(self.calls) else ("", True)
        self.number += 1
        self.strayed |= known[0] != name
        return known[1]

    def says_which(self, indices: Tensor, units: Ints) -> None:
        """Note that a tensor says which of some units a number was of: whoever reads it tells them apart."""
        self.indices[address_of(indices)] = (indices, units)

    def _read(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if (found := self.indices.get(address_of(tensor))) is not None:
                self.atoms.pin(found[1])

    def _in_parts(self, func: Any, base: str, args: Any, kwargs: Any) -> Any:
        """The result of an operation that no rule is for, by known ones that make it up; None if there are none."""
        changes = func._schema.is_mutable
        parts = _PARTS.get(base) or _pytorchs_parts(func, base if changes else "")
        within, self.within = self.within, True
        try:
            with self:  # so that the parts are followed
                out = parts(*args, **kwargs)
                return None if out is NotImplemented else args[0].copy_(out) if changes else out
        except (UnsupportedLayerError, NotImplementedError):
            self.operation = base
            return None
        finally:
            self.within = within

    def _carry_over(self, parts: Any, results: Sequence[Tensor]) -> bool:
        """Note of results what is known of those of an operation's parts, whose memory may be in another order.

        Returns:
            False where there are not as many of them.
        """
        own = list(leaves(parts))
        if [part.shape for part in own] != [result.shape for result in results]:
            return False
        for part, result in zip(own, results, strict=True):
            if (value := self.value(part)) is not None:
                self.write(result, value)
            if (found := self.indices.get(address_of(part))) is not None:
                self.says_which(result, found[1])
        return True

    def _tell_apart(self, values: Mapping[int, Value | None], results: Sequence[Tensor]) -> None:
        """Give an identity to all that enters or leaves an operation."""
        entering = [self.pin(value) for value in values.values() if value is not None]
        self.apart.append((f"{self.place()}, operation {self.operation!r}", np.unique(np.concatenate(entering))))
        for result in results:
            place = pair(mix(np.arange(result.numel())), self.atoms.event())
            self.write(result, Value.pinned(place.reshape(tuple(result.shape))))

    def place(self) -> str:
        """Where in the network this is."""
        if not self.stack or self.stack[-1] == "network":
            return f"operation {self.operation!r} in the network's forward"
        module = self.net.get_submodule(self.stack[-1])
        return f"layer {self.stack[-1]!r} ({type(module).__name__})"

    def unsupported(self, why: str) -> UnsupportedLayerError:
        """What to raise where a rule cannot follow."""
        return UnsupportedLayerError(f"{self.place()} is not supported: {why}. Supported: {SUPPORTED}")


def constant(tensor: Tensor) -> Value:
    """Numbers of a constant: equal ones are alike."""
    if tensor.is_meta:
        return Value.pinned(mix(np.arange(tensor.numel())).reshape(tuple(tensor.shape)))
    numbers = tensor.detach().cpu().to(torch.float64).numpy() + 0.0
    return Value.pinned(mix(np.ascontiguousarray(numbers).view(np.uint64).reshape(numbers.shape)))


def _pytorchs_parts(func: Any, base: str) -> Callable[..., Any]:
    """What PyTorch itself takes an operation apart into where a compiler does not know it.

    Args:
        func: The operation.
        base: For one that works in place, the name of the one that does not; else empty.
    """
    if base:
        func = getattr(getattr(torch.ops.aten, base, None), func._overloadname, func)
    try:
        from torch._decomp import decomposition_table as table
    except ImportError:  # it is no part of the public interface
        table = {}
    found: Callable[..., Any] = table.get(func, func.decompose)
    return found


def _bind(schema: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name."""
    bound = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def rows_code(place: Codes) -> Codes:
    """A code of the places along the last axis, in order."""
    if (place == place[..., :1]).all():
        return place[..., 0]
    return (mix(place) * (mix(np.arange(place.shape[-1])) | np.uint64(1))).sum(-1, dtype=np.uint64)
