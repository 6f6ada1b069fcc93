"""What of torch's state would change numbers in silence, held at what torch starts with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def plain_torch() -> Iterator[None]:
    """Run without the autocast, inference mode, disabled gradients and default device of whoever calls.

    All of these belong to the thread, so that others do not notice. (The default dtype belongs to the process: what is
    run here names its dtypes.)

    Example:
        >>> import torch
        >>> from pyro_sps.base.plain import plain_torch
        >>> with torch.inference_mode(), plain_torch():
        ...     torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        (False, True)
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(True))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # a mode that every call of torch's goes through
            stack.enter_context(torch.device("cpu"))
        yield
