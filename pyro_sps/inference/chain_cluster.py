"""Chains on the workers of a dask cluster.

What chains tune they tune together. So starts and warm-up are made here, as one program, and after it chains do not
depend on each other any more: each worker draws from some of them. Chains of NUTS are each their own from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base.cluster import dask_client, gathered
from ..base.plain import plain_torch
from ..base.terminal import progress_bar
from ..model.streams import Stream
from ..model.target import Target
from .chains import KEPT, ChainRun
from .coordinates import Coordinates
from .langevin import Chains, Tuning
from .nuts import run_nuts
from .sample_settings import SampleSettings


def check_spread(asked: SampleSettings, callbacks: Sequence[Any]) -> None:
    """Refuse what chains on other machines cannot do, before any work.

    Args:
        asked: What was asked for.
        callbacks: There must be none.

    Raises:
        ValueError: If they cannot.
    """
    given = {"callbacks": callbacks or None, "checkpoint": asked.checkpoint, "time_limit": asked.time_limit}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is of no use with scheduler, whose workers know nothing of it: leave one out")


@dataclass(frozen=True)
class _Part:
    """Some chains at the end of the warm-up, and how they go on."""

    numbers: list[int]
    starts: Tensor
    state: Chains
    tuning: Tuning
    length: int
    options: dict[str, Any]


def draw_on_cluster(run: ChainRun, scheduler: Any, progress: bool) -> list[int]:
    """Go on with chains from the end of their warm-up to the end, on workers, whose draws come into `run`.

    Args:
        run: The run, after the warm-up.
        scheduler: As in `sample`.
        progress: Whether to show a bar.

    Returns:
        The chains that succeeded.
    """
    with dask_client(scheduler) as client:
        count = len(run.starts)
        workers = max(1, sum(client.nthreads().values()))
        every = torch.arange(count).chunk(min(count, workers))
        # As a result of work, which can be done again: what is scattered to a worker is lost with it.
        data = client.submit(tuple, [run.coordinates, run.stream], pure=False)
        with progress_bar(len(every), run.kernel, progress, unit="part") as bar:
            found = gathered(client, _drawn, [(data, _part(run, own)) for own in every], "part", bar.update)
    kept: list[int] = []
    for index, tensors in found.items():
        for name, values in tensors.items():
            getattr(run, name)[every[index]] = values.to(run.starts)
        kept += every[index].tolist()
    run.done, run.drawn = run.num_steps, run.num_samples
    return kept


def _part(run: ChainRun, chains: Tensor) -> _Part:
    def own(value: Tensor) -> Tensor:
        return value[chains].clone() if value.dim() else value.clone()

    names = ("kernel", "warmup", "num_samples", "thinning", "batch_size", "target", "seed", "compile")
    return _Part(
        numbers=chains.tolist(),
        starts=own(run.starts),
        state=Chains(*(own(value) for value in run.chains.tensors())),
        tuning=Tuning(**{name: own(value) for name, value in run.tuning.tensors().items()}),
        length=run.length,
        options={name: getattr(run, name) for name in names},
    )


@plain_torch()
def _drawn(data: tuple[Coordinates, Stream | None], part: _Part) -> dict[str, Tensor]:
    """Draws of some chains, on a worker."""
    coordinates, stream = data
    run = ChainRun(coordinates, starts=part.starts, progress=False, stream=stream, numbers=part.numbers, **part.options)
    run.chains, run.tuning, run.length, run.done = part.state, part.tuning, part.length, run.warmup
    run()
    return {name: getattr(run, name).cpu() for name in KEPT}


def nuts_on_cluster(
    target: Target, points: Tensor, scheduler: Any, progress: bool, *options: Any
) -> tuple[list[int], tuple[Any, ...]]:
    """`run_nuts` with each chain on some worker.

    Args:
        target: The posterior.
        points: Where chains start.
        scheduler: As in `sample`.
        progress: Whether to show a bar.
        *options: Of `run_nuts`, from `num_samples` to `seed`.

    Returns:
        The chains that succeeded, and what `run_nuts` returns of them.
    """
    with dask_client(scheduler) as client:
        data = client.submit(tuple, [target], pure=False)
        tasks = [(data, point, index, options) for index, point in enumerate(points)]
        with progress_bar(len(points), "NUTS", progress, unit="chain") as bar:
            found = gathered(client, _nuts_chain, tasks, "chain", bar.update)
    draws, energies, *rest = zip(*found.values(), strict=True)
    lists = [[one for own in every for one in own] for every in rest]
    return list(found), (torch.cat(draws).to(points), torch.cat(energies).to(points), *lists)


@plain_torch()
def _nuts_chain(data: tuple[Target], point: Tensor, index: int, options: tuple[Any, ...]) -> tuple[Any, ...]:
    num_samples, warmup, aim, depth, seed = options
    draws, energies, *rest = run_nuts(
        data[0], point.unsqueeze(0), num_samples, warmup, aim, depth, seed, progress=False, first=index
    )
    return draws.cpu(), energies.cpu(), *rest
