"""The tensor operations of a function, recorded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import fx
from torch.fx.experimental import proxy_tensor

from .process import process_lock


def record(function: Callable[..., Any], *arguments: Any, decompositions: Mapping[Any, Any] | None = None) -> Any:
    """One call of a pure function of tensors as a graph of operations, by torch's `make_fx`.

    Nodes of the graph do not say what their values look like. To note that takes two thirds of the time, and nobody
    reads it here.

    Args:
        function: The function.
        *arguments: What it is called with; the recording is for arguments of the same shapes.
        decompositions: What to record in place of some operations.

    Returns:
        A `torch.fx.GraphModule`.

    Example:
        >>> import torch
        >>> from pyro_sps.base.recording import record
        >>> double = record(lambda x: x + x, torch.ones(2))
        >>> double(torch.arange(2.0)), any("val" in node.meta for node in double.graph.nodes)
        (tensor([0., 2.]), False)
    """
    with _no_values():
        recorded: fx.GraphModule = proxy_tensor.make_fx(function, decomposition_table=decompositions)(*arguments)
    for node in recorded.graph.nodes:  # of this torch, None
        node.meta.pop("val", None)
    return recorded


@contextmanager
def _no_values() -> Iterator[None]:
    """Keep `make_fx` from noting values, in this thread; others that record meanwhile are not disturbed."""
    known, own = getattr(proxy_tensor, "extract_val", None), threading.get_ident()
    if known is None:  # in a torch that does it otherwise
        yield
        return

    def extract(value: Any, *args: Any, **kwargs: Any) -> Any:
        return None if threading.get_ident() == own else known(value, *args, **kwargs)

    with process_lock():
        proxy_tensor.extract_val = extract  # type: ignore[assignment]
        try:
            yield
        finally:
            proxy_tensor.extract_val = known
