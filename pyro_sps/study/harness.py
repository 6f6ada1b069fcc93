"""Run the experiments of a study, on one machine or many, and keep every result as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..base.cluster import dask_client
from ..base.terminal import progress_bar
from . import records
from .methods import METHODS
from .problems import load
from .scores import score

#: The file of results in a study's folder, a line of JSON a job.
RESULTS = "results.jsonl"
#: Splits on whose validation parts settings are chosen.
VALIDATION_SPLITS = 3


@dataclass(frozen=True)
class Run:
    """One configuration of an experiment.

    Attributes:
        name: What it is called in tables.
        method: One of `pyro_sps.study.methods.METHODS`.
        options: Its options, plain JSON values.
        grid: Options to choose among by the mean LPP on validation parts, for each data set; each is put over
            `options`.
        tuning: Options that are put over these while choosing, to make it cheaper.
        elsewhere: Options that are put over these for all data sets but `energy`.
        data: The data sets that it is for; none for all of the study.
    """

    name: str
    method: str = "partial"
    options: Mapping[str, Any] | None = None
    grid: tuple[Mapping[str, Any], ...] = ()
    tuning: Mapping[str, Any] | None = None
    elsewhere: Mapping[str, Any] | None = None
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Experiments that belong together.

    Attributes:
        name: Of the study, and of its folder.
        title: One line that says what it asks.
        data: Data sets.
        runs: Configurations.
        reference: Name of the run that the others are compared with, split by split.
        part: `test`, or `validation` for a study that only chooses settings.
    """

    name: str
    title: str
    data: tuple[str, ...]
    runs: tuple[Run, ...]
    reference: str
    part: str = "test"

    def __post_init__(self) -> None:
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            raise ValueError(f"the runs of study {self.name!r} must have different names, got {names}")
        if self.reference not in names:
            raise ValueError(f"reference must be one of {names}, got {self.reference!r}")

    def data_of(self, run: Run) -> tuple[str, ...]:
        """The data sets that a run is for, in the study's order."""
        return tuple(data for data in self.data if not run.data or data in run.data)


@dataclass(frozen=True)
class Job:
    """What one worker does at a time: a configuration on all splits of a data set.

    Attributes:
        run: Name of the configuration.
        method: Its method.
        options: All its options.
        data: The data set.
        part: `test` or `validation`.
        splits: Number of splits, with seeds from 0 on.
    """

    run: str
    method: str
    options: Mapping[str, Any]
    data: str
    part: str
    splits: int

    @property
    def key(self) -> str:
        """A digest of what is computed: not of the run's name, so that a renamed run keeps its results."""
        content = {name: value for name, value in asdict(self).items() if name != "run"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def execute(job: Job, threads: int | None = None, progress: bool = False) -> dict[str, Any]:
    """Do a job; whatever goes wrong comes back as a row with an `error`.

    Args:
        job: What to do.
        threads: Number of torch's threads; None leaves it as it is.
        progress: Whether fits show progress bars.

    Returns:
        A row: the job, its `key`, `seconds`, and `scores`, one dict a split.
    """
    import torch

    row: dict[str, Any] = {**asdict(job), "key": job.key}
    before, started = torch.get_num_threads(), time.perf_counter()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        problem = load(job.data, range(job.splits), job.part)
        outcomes = METHODS[job.method](problem, progress=progress, **job.options)
        held_out = problem.y_test.shape[1]
        row["scores"] = []
        for outcome, y in zip(outcomes, problem.y_test, strict=True):
            row["scores"].append({**score(outcome.mixture.first(held_out), y), **outcome.facts})
        if problem.x_test.shape[1] > held_out:
            row["bands"] = _bands(outcomes[0].mixture, held_out)
        bad = [index for index, one in enumerate(row["scores"]) if not np.isfinite([one["rmse"], one["lpp"]]).all()]
        if bad:
            raise FloatingPointError(f"the scores of splits {bad} are not finite")
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
        row["traceback"] = traceback.format_exc(limit=-4)
    finally:
        torch.set_num_threads(before)
    return row | {"seconds": time.perf_counter() - started}


def _bands(mixture: Any, start: int) -> dict[str, list[float]]:
    """Mean and standard deviation with noise of the predictions from row `start` on, rounded."""
    means = mixture.means[:, start:, 0].double()
    noise = mixture.scales.expand_as(mixture.means)[:, start:, 0].double()
    std = (means.var(0, unbiased=False) + noise.square().mean(0)).sqrt()
    return {"mean": means.mean(0).numpy().round(4).tolist(), "std": std.numpy().round(4).tolist()}


def run_study(
    study: Study,
    out: Path,
    *,
    splits: int = 10,
    quick: bool = False,
    jobs: int = 1,
    scheduler: str | None = None,
    progress: bool = True,
    say: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """Run what is not in the folder yet of a study's experiments, and add each result as it comes.

    Args:
        study: What to run.
        out: Folder of the results; may hold those of an earlier call, which are not computed again.
        splits: Number of random splits (of draws of the toy).
        quick: Compute next to nothing, on the first data set alone, to see that it runs.
        jobs: Number of processes on this machine.
        scheduler: Address of a dask scheduler, whose workers are used in place of processes here. They need this
            package and find data sets as `load_uci` does.
        progress: Whether to show progress.
        say: Told of failures and of where the results are.

    Returns:
        The rows of the study, those of failures too.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: If dask is needed (`jobs` above 1, or a scheduler) and not installed.
        OSError: If the scheduler does not answer within ten seconds.
    """
    for name, value in (("splits", splits), ("jobs", jobs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    path = out / RESULTS
    if quick:
        study = replace(study, data=study.data[:1])
    with _workers(jobs, scheduler, progress) as work:
        first = list(_validation_jobs(study, quick))
        _do(first, path, work, progress, say, "choose settings")
        final = list(_final_jobs(study, records.read(path), splits, quick))
        _do(final, path, work, progress, say, study.name)
    return rows_of([*first, *final], records.read(path))


def rows_of(jobs: Sequence[Job], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of each job, which may be of another run of the same content: a success, or the last failure."""
    last = {row["key"]: row for row in rows}
    return [{**last[job.key], "run": job.run} for job in jobs if job.key in last]


def _do(
    jobs: Sequence[Job],
    path: Path,
    work: Callable[[Sequence[Job]], Iterator[dict[str, Any]]],
    progress: bool,
    say: Callable[[str], object],
    label: str,
) -> None:
    """Do the jobs that have no result yet."""
    done = {row["key"] for row in records.read(path) if "error" not in row}
    left = list({job.key: job for job in jobs if job.key not in done}.values())
    about = environment()
    with progress_bar(len(left), label, progress, unit="run") as bar:
        for row in work(left):
            records.append(path, row | {"environment": about})
            if "error" in row:
                say(f"failed: {row['run']} on {row['data']}: {row['error']}")
            bar.update()


@contextmanager
def _workers(
    jobs: int, scheduler: str | None, progress: bool
) -> Iterator[Callable[[Sequence[Job]], Iterator[dict[str, Any]]]]:
    """Something that does jobs and yields their rows as they are ready: this process, or dask's."""
    if jobs == 1 and scheduler is None:
        yield lambda left: (execute(job, progress=progress) for job in left)
        return
    threads = None if scheduler else max(1, (os.cpu_count() or 1) // jobs)
    with dask_client(scheduler, jobs) as client:
        from distributed import as_completed

        def distribute(left: Sequence[Job]) -> Iterator[dict[str, Any]]:
            job_of = {client.submit(execute, job, threads, pure=False, retries=0): job for job in left}
            for future in as_completed(job_of):
                try:
                    yield future.result()
                except Exception as error:  # the worker died, of too much memory for instance
                    job = job_of[future]
                    yield {**asdict(job), "key": job.key, "error": f"{type(error).__name__}: {error}", "seconds": 0.0}
                future.release()

        yield distribute


def _validation_jobs(study: Study, quick: bool) -> Iterator[Job]:
    for run in study.runs:
        for options in run.grid:
            for data in study.data_of(run):
                yield _job(run, options, data, "validation", VALIDATION_SPLITS, quick)


def _final_jobs(study: Study, rows: Sequence[Mapping[str, Any]], splits: int, quick: bool) -> Iterator[Job]:
    """The jobs that a table reports, with the settings that were chosen."""
    lpp = {row["key"]: np.mean([one["lpp"] for one in row["scores"]]) for row in rows if "error" not in row}
    for run in study.runs:
        for data in study.data_of(run):
            tried = {
                _job(run, options, data, "validation", VALIDATION_SPLITS, quick).key: options for options in run.grid
            }
            found = {key: options for key, options in tried.items() if key in lpp}
            if tried and not found:
                continue  # every setting failed, as the rows say
            best = found[max(found, key=lambda key: lpp[key])] if found else {}
            yield _job(run, best, data, study.part, splits, quick)


def _job(run: Run, over: Mapping[str, Any], data: str, part: str, splits: int, quick: bool) -> Job:
    options = {**(run.options or {}), **over}
    if data != "energy":
        options |= run.elsewhere or {}
    if part == "validation" and run.grid:
        options |= run.tuning or {}
    if quick:
        options |= _quick_options(run.method, options)
        splits = min(splits, 2)
    return Job(run.name, run.method, options, data, part, splits)


def _quick_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that make a method as quick as it gets, by the same lines."""
    quick: dict[str, Any] = {"num_steps": 20}
    if method == "nuts":
        quick |= {"num_warmup": 2, "num_samples": 4, "max_tree_depth": 1}
    if method == "partial":
        quick |= {"map_steps": 10, "draws": 20}
        if options.get("values") == "map":
            quick["value_options"] = {"num_steps": 10}
    if "members" in options or method == "ensemble":
        quick["members"] = 2
    return quick


def environment() -> dict[str, str]:
    """Machine and versions, for the record."""
    versions = {}
    for name in ("pyro-sps", "torch", "pyro-ppl", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return {"python": platform.python_version(), "machine": f"{processor()}, {os.cpu_count()} cores", **versions}


def processor() -> str:
    """The model of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
