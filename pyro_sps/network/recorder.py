"""Runs a network once and follows every number through it, operation by operation, for the rules of `layers`.

The operations are those that PyTorch itself breaks modules and functions into (ATen): attention, recurrent cells and
whatever a user writes by hand come apart into products, sums and functions of numbers. Views need no rule: what is
known of elements is noted where they are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .codes import Codes, Ints, mix, pair
from .elements import Value
from .ledger import Ledger, constant
from .memory import address_of, leaves, shares
from .topology import UnsupportedLayerError

Handler = Callable[["Recorder", "Call"], None]

_HANDLERS: dict[str, Handler] = {}
# What makes a tensor of a shape and reads no number.
_FACTORIES = {
    *(f"{what}_like" for what in ("zeros", "ones", "empty", "full", "rand", "randn")),
    *(f"new_{what}" for what in ("zeros", "ones", "empty", "full", "empty_strided")),
    "_assert_tensor_metadata",
}
# What copies all numbers of a tensor and reads none of them.
COPIES = ("_to_copy", "clone", "contiguous", "convert_element_type", "copy_strided")
# What multiplies a parameter of several axes by numbers along each of them: no two axes say together which unit it is.
_APART = ("_trilinear",)
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


class Recorder(Ledger, TorchDispatchMode):
    """Follows the numbers of one run, and notes what is known of them.

    Args:
        net: The network.
        closed: Names of submodules in which operations need not be known.
        calls: The operations of the run, each with whether the output depends on it; those of which it does not are
            not followed.
        together: Parameters whose axes say together which unit it is where they lie beside what has an identity.

    Attributes:
        apart_by_axis: Parameters of which it may be so.
        uncounted: Names of those of which `Topology.uncounted` tells.
        number: How many operations there were so far.
        strayed: Whether they were others than the expected ones.
    """

    def __init__(
        self,
        net: nn.Module,
        closed: Collection[str] = (),
        calls: Sequence[tuple[str, bool]] | None = None,
        together: Collection[str] = (),
    ) -> None:
        super().__init__(net)
        self.closed, self.calls = set(closed), calls
        self.together |= set(together)
        self.apart_by_axis: set[str] = set()
        self.number, self.strayed, self.within = 0, False, False
        self.apart: list[tuple[str, Ints]] = []  # operations that no rule follows, and the atoms that entered them
        self.uncounted: list[str] = []
        self.largest = 1
        self.names = {id(module): name or "network" for name, module in net.named_modules()}
        self.inputs: dict[int, Ints] = {}  # pinned units by the code of the column that they read

    def operand(self, tensor: Tensor, call: Call) -> Value:
        """What is known of a tensor; numbers of a constant are told apart by what they are."""
        known = call.known(tensor)
        return constant(tensor) if known is None else known

    def _convolved(self, args: Any) -> None:
        """Read a kernel as one, before its numbers are read."""
        if self.is_parameter(args[1]):
            self.convolution(args[1], args[6], args[8])

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
        if not self.within:
            self.fresh.clear()
        if base in ("_local_scalar_dense", "is_nonzero", "equal"):
            raise UnsupportedLayerError(
                f"{self.place()} turns a value that depends on the inputs into a Python number, or branches on it; "
                "a network must not branch on values, or its symmetries cannot be read: choose by torch.where, or run "
                "that part on the data beforehand and make a BNN of what follows"
            )
        known, changes = base in _HANDLERS, schema.is_mutable
        if changes:  # its parts are looked for before it changes what they read
            self._read(base, tensors)
            if not known and (parts := self._in_parts(func, base, args, kwargs)) is not None:
                return parts
        out = func(*args, **kwargs)
        results = list(leaves(out))
        self.largest = max([self.largest, *(result.numel() for result in results)])
        if not changes:
            if results and all(shares(result, tensors) for result in results):
                return out  # a view
            self._read(base, tensors)
            if not known and (parts := self._in_parts(func, base, args, kwargs)) is not None:
                return out if self._carry_over(parts, results) else parts
        try:
            if not known:
                raise self.unsupported(
                    f"the operation {base!r} is not known (within a submodule whose weights are all in "
                    "deterministic=[...] it need not be)"
                )
            _HANDLERS[base](self, Call(base, _bind(schema, args, kwargs), values, out))
            self.fresh.difference_update(map(self.name_of, tensors))
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

    def _read(self, operation: str, tensors: Sequence[Tensor]) -> None:
        """Note that an operation reads numbers, which a view of them does not."""
        for tensor in tensors:
            name = self.name_of(tensor)
            if name in self.viewed and operation not in COPIES:
                self.viewed.discard(name)
                if operation not in _APART:
                    self.fresh.add(name)
            if (found := self.indices.get(address_of(tensor))) is not None:
                self.atoms.give_up(found[1])

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
