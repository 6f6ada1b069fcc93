"""Independent work on dask's workers: an existing cluster, or processes of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from .process import warn_user

# How often a task is tried again whose worker raised or was killed.
RETRIES = 2


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


def gathered(
    client: Any, function: Callable[..., Any], tasks: Sequence[Sequence[Any]], what: str, done: Callable[[], Any]
) -> dict[int, Any]:
    """What a function returns for each of several tasks, each on some worker.

    A task whose worker raised or was killed is tried again. Those that fail for good are left out, and those that have
    not ended at Ctrl-C, which is raised only where none has.

    Args:
        client: A client of dask's.
        function: The function.
        tasks: Its arguments, for each task; futures among them stand for their results.
        what: What a task is called, for errors, such as `replica`.
        done: Called after each task.

    Returns:
        Results by number of the task, in order.

    Raises:
        Exception: Of the first task, if all fail.

    Warns:
        RuntimeWarning: If some do, or at Ctrl-C.
    """
    from distributed import as_completed

    found, failed = {}, {}
    futures = {
        client.submit(function, *arguments, retries=RETRIES, pure=False): index for index, arguments in enumerate(tasks)
    }
    try:
        for future in as_completed(futures):
            index, error = futures[future], future.exception()
            if error is None:
                found[index] = future.result()
            else:
                failed[index] = error
            future.release()
            done()
    except KeyboardInterrupt:
        client.cancel(list(futures))
        if not found:
            raise
        warn_user(f"interrupted: the {len(found)} of {len(tasks)} that had ended are the result", RuntimeWarning)
    if failed:
        first = min(failed)
        if not found:
            raise failed[first]
        warn_user(
            f"{what} {first} failed on the cluster: {type(failed[first]).__name__}: {failed[first]}; the {len(found)} "
            f"of {len(tasks)} that succeeded are the result",
            RuntimeWarning,
        )
    return {index: found[index] for index in sorted(found)}
