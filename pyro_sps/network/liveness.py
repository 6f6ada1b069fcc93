"""Which operations of a network its output depends on: what is computed and thrown away says nothing of symmetries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .memory import address_of, leaves

# Operations of which more is read than the numbers that they return: Python sees a number, or a shape.
_SEEN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Dataflow(TorchDispatchMode):
    """Notes what memory each operation of one run reads and writes.

    Args:
        given: Tensors that are there before the run. Who writes to them is needed, whatever becomes of it.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.given = {address_of(tensor) for tensor in given}
        # So that no memory is used twice. Tensors that are kept would make torch return copies of what it makes.
        self.kept: list[torch.UntypedStorage] = []
        self.calls: list[tuple[str, set[int], set[int], bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it reads and writes."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read, made = list(leaves((args, kwargs))), list(leaves(out))
        self.kept += [tensor.untyped_storage() for tensor in (*read, *made)]
        written = {address_of(tensor) for tensor in made}
        changed = {
            address_of(leaf)
            for number, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            for leaf in leaves(args[number] if number < len(args) else kwargs.get(argument.name))
        }
        root = not made or bool(_SEEN & set(func.tags)) or bool(changed & self.given)
        self.calls.append((func.name(), {address_of(tensor) for tensor in read}, written | changed, root))
        return out

    def needed(self, out: Any) -> list[tuple[str, bool]]:
        """For each operation its name, and whether what the network returns depends on it.

        Args:
            out: What the network returned.
        """
        live = {address_of(leaf) for leaf in leaves(out)}
        result = []
        for name, read, written, root in reversed(self.calls):
            needed = root or not live.isdisjoint(written)
            if needed:
                live |= read
            result.append((name, needed))
        return result[::-1]
