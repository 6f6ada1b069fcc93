"""`pyro-sps study`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .options import Command, printer, quiet_option

NAMES = ("toy", "energy", "matters", "alternatives", "sweep", "recipes", "headline", "nuts")


@click.command(cls=Command, epilog="\b\nExample:\n  pyro-sps study energy --out results --seeds 10 --jobs 2")
@click.argument("name", metavar="NAME", type=click.Choice(NAMES))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the results.")
@click.option("--seeds", type=click.IntRange(1), default=10, show_default=True, help="Number of random splits.")
@click.option("--quick", is_flag=True, help="Compute next to nothing, on one data set, to see that it runs.")
@click.option("--jobs", type=click.IntRange(1), help="Processes on this machine; default: one a core.")
@click.option("--scheduler", metavar="ADDRESS", help="A dask scheduler whose workers do the work, as tcp://HOST:PORT.")
@quiet_option
def study(name: str, out: Path, seeds: int, quick: bool, jobs: int | None, scheduler: str | None, quiet: bool) -> None:
    """Run the experiments of the study NAME, or go on with them.

    Every result is added to results.jsonl in the folder as soon as it is there. What is there is not computed again,
    failures are tried again. At the end the folder has the tables NAME.csv and NAME.md and the figures of the study.
    """
    from ..study import summary, table
    from ..study.harness import run_study

    out.mkdir(parents=True, exist_ok=True)
    say = printer(quiet)
    chosen = table.STUDIES[name]
    try:
        rows = run_study(
            chosen,
            out,
            splits=seeds,
            quick=quick,
            jobs=jobs or os.cpu_count() or 1,
            scheduler=scheduler,
            progress=not quiet,
            say=say,
        )
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    files = summary.write(chosen, rows, out)
    failed = sum("error" in row for row in rows)
    say(f"{len(rows) - failed} results" + (f", {failed} failures" if failed else "") + f"; see {files[1]}")
    if failed:
        raise click.exceptions.Exit(1)
