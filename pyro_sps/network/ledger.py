"""What is known of the numbers in memory while a network runs, and of the parameters that it has read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .codes import Ints, mix, pair
from .elements import SCALE, SIGN, Atoms, Value
from .memory import address_of, elements_of, places_of, view_of
from .topology import SUPPORTED, UnsupportedLayerError


@dataclass
class Weight:
    """A parameter that the network reads.

    Attributes:
        shape: Its shape.
        axes: For each axis its atoms, or None where its indices are positions.
        over: Where several axes say which atom it is, these axes, by the one of them that has the atoms in `axes`, an
            array of their sizes.
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
    over: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def is_followed(self) -> bool:
        """Whether there are atoms for all axes, in no more than two arrays, so that each has a sign and a scale."""
        some = {axis for axis, size in enumerate(self.shape) if size > 1}
        known = [axis for axis, atoms in enumerate(self.axes) if atoms is not None and axis in some]
        return len(known) <= 2 and some <= {one for axis in known for one in self.over.get(axis, (axis,))}


class Ledger:
    """Notes of numbers, by where they are in memory.

    Args:
        net: The network.

    Attributes:
        atoms: All atoms.
        weights: The parameters in the order in which they were read.
        parameters: Name and tensor of every parameter of the network, by address.
        stack: Names of the submodules that are running.
        operation: The operation that is running.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.atoms = Atoms(at=self.place)
        self.weights: dict[str, Weight] = {}
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
        self.viewed: set[str] = set()  # parameters of which there are views, and that nothing has read yet
        self.fresh: set[str] = set()  # parameters that the operation that is running is the first to read
        self.together: set[str] = set()  # parameters whose axes say together which unit it is, if nothing meets them
        self.copies: dict[int, str] = {}  # parameters by the addresses of their copies
        self.given: set[int] = set()
        self.indices: dict[int, tuple[Tensor, Ints]] = {}  # tensors that say which unit it was, and these units
        self.stack: list[str] = []
        self.operation = ""

    def value(self, tensor: Tensor) -> Value | None:
        """What is known of a tensor; None for a constant."""
        address = address_of(tensor)
        if address not in self.storages and address in self.parameters:
            self.register(address)
        if address not in self.storages:
            return None
        return self.storages[address][1].map(lambda array: view_of(array, tensor))

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
        for known, token in zip_longest(base.tokens, self.atoms.in_step(value.tokens, base.tokens)):
            array = np.full(size, -1) if known is None else known.copy()
            array[index] = -1 if token is None else token
            tokens.append(array)
        place = base.place.copy()
        place[index] = value.place
        characters = [array.copy() for array in base.characters]
        for array, own in zip(characters, value.characters, strict=True):
            array[index] = own
        whole = Value(tuple(token for token in tokens if (token >= 0).any()), place, (characters[0], characters[1]))
        self.storages[address] = (tensor, whole)

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
        if kind == "plain":
            self.viewed.add(name)
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
        whole = np.array_equal(places_of(tensor), places_of(self.parameters[address][1]))
        if name not in self.weights or (name in self.viewed and whole and name not in self.copies.values()):
            self.register(address, kind, groups)
            self.viewed.discard(name)
        weight = self.weights[name]
        known = self.storages[address][1]
        if known.tokens or tuple(tensor.shape) != weight.shape:
            raise UnsupportedLayerError(f"{self.place()} uses {name!r} as a kernel, which is used in another way too")
        return weight

    def copy(self, tensor: Tensor, value: Value) -> None:
        """Note a copy of a parameter, or of a view of one, which is read in its place."""
        assert value.weight is not None
        address = address_of(tensor)
        self.write(tensor, value)
        if len(self.storages[address][1].tokens) == len(value.tokens):
            self.storages[address] = (tensor, replace(self.storages[address][1], weight=value.weight))
            self.copies[address] = value.weight

    def name_of(self, tensor: Tensor) -> str | None:
        """Name of the parameter that a tensor is, is a view of, or a copy; None for others."""
        address = address_of(tensor)
        return self.parameters[address][0] if address in self.parameters else self.copies.get(address)

    def put_together(
        self, name: str, sides: Sequence[tuple[int, ...]], blocks: tuple[int, ...] = ()
    ) -> Callable[[Value], Value]:
        """Let several axes of a parameter that nothing has read yet say together which unit it is.

        Args:
            name: The parameter.
            sides: For each set of units the axes that say which of them it is.
            blocks: Axes that are among those of all sides: units of both sides belong together there.

        Returns:
            What a view of the parameter is now.
        """
        weight = self.weights[name]
        before = list(weight.axes)
        owner = self.atoms.new(math.prod(weight.shape[axis] for axis in blocks), signed=False) if blocks else None
        for axis in {axis for side in sides for axis in side}:
            weight.axes[axis] = None
        made: dict[tuple[int, ...], Ints] = {}
        for side in sides:
            sizes = [weight.shape[axis] for axis in side]
            made[side] = self.atoms.new(math.prod(sizes)).reshape(sizes)
            at = max(axis for axis in side if axis not in blocks or side == blocks)
            weight.axes[at], weight.over[at] = made[side], side
            if owner is not None:
                belongs = np.expand_dims(
                    owner.reshape([weight.shape[axis] for axis in blocks]),
                    tuple(i for i, axis in enumerate(side) if axis not in blocks),
                )
                label = np.full(made[side].size, self.atoms.event())
                self.atoms.link(made[side].ravel(), np.broadcast_to(belongs, sizes).ravel(), label)

        def translate(value: Value) -> Value:
            index: dict[int, Ints] = {}
            rest = []
            for token in value.tokens:
                axis = next(i for i, own in enumerate(before) if own is not None and token.flat[0] in own)
                own = before[axis]
                assert own is not None
                index[axis] = token - own[0]
                if not any(axis in side for side in sides):
                    rest.append(token)
            tokens = [made[side][tuple(index[axis] for axis in side)] for side in sides]
            return replace(value, tokens=(*rest, *tokens))

        for address, (tensor, value) in self.storages.items():
            if value.weight == name:
                self.storages[address] = (tensor, translate(value))
        self.fresh.discard(name)
        return translate

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter of the network, or a view of one."""
        return address_of(tensor) in self.parameters

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

    def gathered(self, value: Value) -> Value:
        """A parameter of which each number is a unit of its own, if it is one of `together` that nothing has read."""
        if value.weight is None or value.weight not in self.together & self.fresh or len(value.tokens) < 2:
            return value
        axes = tuple(axis for axis, atoms in enumerate(self.weights[value.weight].axes) if atoms is not None)
        return self.put_together(value.weight, [axes])(value)

    def as_value(self, value: Value) -> Value:
        """A parameter as units that are read: along its last axis its numbers have signs and scales of their own."""
        if value.weight is None or not value.tokens:
            return value
        name, value = value.weight, self.gathered(value)
        tokens, place = self.atoms.settle(value.tokens, value.place)
        axes = [self.axis_of(name, int(token[token >= 0][0])) for token in tokens]
        shape = self.weights[name].shape
        last = max(axes, key=lambda axis: (shape[axis] > 1, axis), default=0)  # of one index, there is nothing to count
        own = np.full(value.shape, -1)
        kept = []
        for axis, token in zip(axes, tokens, strict=True):
            if axis == last:
                self.role(name, axis, 1)
                own = token
            else:
                for kind in (SIGN, SCALE):
                    self.atoms.lose(kind, token.ravel())
            if axis == last or shape[axis] > 1:
                kept.append(token)
        return Value(tuple(kept), place, (own, own))

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

    def says_which(self, indices: Tensor, units: Ints) -> None:
        """Note that a tensor says which of some units a number was of: whoever reads it tells them apart."""
        self.indices[address_of(indices)] = (indices, units)

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
