"""`pyro-sps demo`."""

from __future__ import annotations

from pathlib import Path

import click

from .files import claim
from .options import Command, printer, quiet_option, seed_option


@click.command(cls=Command, epilog="\b\nExample:\n  pyro-sps demo --out demo")
@click.option("--out", type=click.Path(path_type=Path), default="demo", show_default=True, help="Folder.")
@click.option("--steps", type=click.IntRange(1), help="Steps of each fit, where the default is too long.")
@seed_option
@quiet_option
def demo(out: Path, steps: int | None, seed: int, quiet: bool) -> None:
    """Fit the one-dimensional toy with several schemes, and a table; about three minutes on two cores.

    Prints a table and draws the predictive bands of every scheme beside the data. With scikit-learn installed, its
    diabetes table is then taken from file to report, by `fit` and `diagnose`.
    """
    from .demo_table import run_table
    from .toy import run

    claim(out, force=True)
    say = printer(quiet)
    run(out, seed=seed, num_steps=steps, say=say, progress=not quiet)
    run_table(out, seed=seed, num_steps=steps, say=say, quiet=quiet)
