"""Independent work on dask's workers: an existing cluster, or processes of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def dask_client(scheduler: Any, workers: int | None = None) -> Iterator[Any]:
    """A client of dask's.

    Args:
        scheduler: Address of a scheduler (`"tcp://..."`), or a client, which stays open; None for processes here.
        workers: Number of those.

    Raises:
        ImportError: If dask is not installed.
        OSError: If the scheduler does not answer within ten seconds.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError(
            "several jobs or a scheduler need dask (pip install 'pyro-sps[cluster]'); one job does not"
        ) from error
    if isinstance(scheduler, Client):
        yield scheduler
        return
    with ExitStack() as stack:
        local = None
        if scheduler is None:
            local = stack.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None))
        yield stack.enter_context(Client(scheduler or local, timeout=10))
