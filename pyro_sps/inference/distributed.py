"""One fit on several processes, which `torchrun` has started.

Each process runs the same script, with the same model, data and seeds. Of the rows of a step each takes a part, and one
sum of all gradients (`torch.distributed`: gloo on CPUs, nccl on GPUs) makes every process take the same step.
"""

from __future__ import annotations

import atexit
import datetime
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..base.checks import require_device
from ..base.process import started_together

# Within this the others hear that a process is gone; a search or a start that takes longer on one than on another must
# not look like that.
TIMEOUT = datetime.timedelta(seconds=60)


@dataclass(frozen=True)
class Processes:
    """The processes of a fit, as one of them sees it.

    Attributes:
        rank: Its number.
        count: Their number.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.rank == 0

    def total(self, *tensors: Tensor) -> list[Tensor]:
        """Sums of tensors of one dtype over all processes, by one message."""
        if self.count == 1:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _told():
            dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def share(self, *tensors: Tensor) -> None:
        """Overwrite tensors by those of the first process."""
        for tensor in tensors if self.count > 1 else ():
            with _told():
                dist.broadcast(tensor, 0)

    def any(self, flags: list[bool], like: Tensor) -> list[bool]:
        """Of flags that differ between the processes, which one of them has raised."""
        found = self.total(torch.tensor(flags, dtype=torch.float32, device=like.device))[0]
        return [value > 0 for value in found.tolist()]

    def require_same(self, what: Any, like: Tensor) -> None:
        """Refuse processes that are not at the same work.

        Args:
            what: Plain values that say what the work is.
            like: A tensor on the device that messages go through.

        Raises:
            ValueError: On every process, if they differ.
        """
        if self.count == 1:
            return
        number = int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:6], "big")
        mine = torch.tensor([number], dtype=torch.float64, device=like.device)
        low, high = mine.clone(), mine.clone()
        with _told():
            dist.all_reduce(low, dist.ReduceOp.MIN)
            dist.all_reduce(high, dist.ReduceOp.MAX)
        if low.item() != high.item():
            raise ValueError(
                "the processes of torchrun must make the same fit, of the same model, data and settings, but they "
                "differ; fits of their own are for processes that torchrun has not started together"
            )


ALONE = Processes()


class ProcessesError(RuntimeError):
    """Another process of the same fit is gone, or none of them can be reached.

    Example:
        >>> from pyro_sps.inference.distributed import ProcessesError
        >>> issubclass(ProcessesError, RuntimeError)
        True
    """


@contextmanager
def _told() -> Iterator[None]:
    """Say what the failure of a message means."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessesError(
            f"another process of this fit has ended or cannot be reached ({str(error).splitlines()[0][:200]}); start "
            "all of them again, and go on by pyro_sps.resume if there is a checkpoint"
        ) from error


def processes_of(device: torch.device) -> Processes:
    """The processes that run this fit together: those that `torchrun` has started, or this one alone.

    Args:
        device: Where the fit runs.

    Raises:
        ProcessesError: If they cannot be reached within a minute.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if not started_together():
            return ALONE
        with _told():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        atexit.register(_leave)
    return Processes(dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def own_device(device: torch.device | str | None) -> torch.device | str | None:
    """Of several GPUs of a machine, the one that this process of `torchrun` has.

    Raises:
        ValueError: If there is no such device.
    """
    require_device(device)
    if device is None or torch.device(device).type != "cuda" or torch.device(device).index is not None:
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if started_together() else device
