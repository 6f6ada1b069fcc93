"""The replicas of a fit on the workers of a dask cluster, each as a fit of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..base.cluster import dask_client, gathered
from ..base.plain import plain_torch
from ..base.terminal import progress_bar
from ..data.observed import Extras
from ..data.sources import Indexed, Streamed
from ..model.bnn import BNN
from ..model.checks import are_stacked
from ..posterior.fit import Fit, Fits, NonFiniteLossError
from .checkpoint import FILE
from .effects import check_effects
from .resume import resume
from .run_fit import run_fit, warn_of_failures
from .settings import FitSettings
from .warm_start import check_start, fits_of


def fit_on_cluster(
    bnn: BNN,
    x: Any,
    y: Any,
    validation: Any,
    callbacks: Sequence[Any],
    asked: FitSettings,
    extras: Extras,
    scheduler: Any,
) -> Fits:
    """`fit` with replicas, each of them on some worker.

    Args:
        bnn: The model.
        x: Inputs.
        y: Targets.
        validation: As in `fit`.
        callbacks: There must be none.
        asked: The other options.
        extras: Weights and error bars.
        scheduler: As in `fit`.

    Returns:
        The fits that succeeded, in order.

    Raises:
        ValueError: If there are no replicas, or callbacks.
    """
    if asked.replicas is None:
        raise ValueError("scheduler has no effect on a single fit: give replicas")
    if callbacks:
        raise ValueError("callbacks cannot be called on other machines: leave out scheduler or callbacks")
    check_effects(bnn, validation, callbacks, asked, resumed=False)
    check_start(bnn, asked)
    count = asked.replicas
    stacked = isinstance(bnn, BNN) and are_stacked(x, count, bnn)
    starts = fits_of(asked.start)
    with dask_client(scheduler) as client, progress_bar(count, "fit", asked.progress, unit="replica") as bar:
        # As a result of work, which can be done again: what is scattered to a worker is lost with it.
        whole = None if stacked else client.submit(tuple, [x, y, extras, validation], pure=False)
        tasks = []
        for index in range(count):
            own = (x[index], y[index], extras.of_replica(index), validation) if stacked else whole
            settings = replace(
                asked,
                replicas=None,
                seed=asked.seed + index,
                start=starts[index] if starts else None,
                checkpoint=None if asked.checkpoint is None else Path(asked.checkpoint) / f"replica-{index}",
                progress=False,
            )
            tasks.append((bnn, own, settings))
        done = gathered(client, _one, tasks, "replica", bar.update)
    broken = {index: step for index, (_, step) in done.items() if step is not None}
    if broken:
        warn_of_failures(broken)
    streamed = isinstance(x, Indexed | Streamed)
    return Fits(replace(fit, source=x) if streamed else fit for fit, _ in done.values())


@plain_torch()
def _one(bnn: BNN, data: tuple[Any, Any, Extras, Any], asked: FitSettings) -> tuple[Fit, int | None]:
    """One replica, from a checkpoint where there is one already, and at which step its loss stopped being finite."""
    x, y, extras, validation = data
    try:
        if asked.checkpoint is not None and (Path(asked.checkpoint) / FILE).exists():
            options: Mapping[str, Any] = {"validation": validation, "progress": False}
            return resume(asked.checkpoint, bnn, x, y, **extras._asdict(), **options), None
        return run_fit(bnn, x, y, validation, (), asked, extras=extras), None
    except NonFiniteLossError as error:
        return error.fit, error.step
