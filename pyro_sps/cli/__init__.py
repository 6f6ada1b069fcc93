"""The command line: `pyro-sps fit`, `predict`, `diagnose`, `masks`, `symmetry`, `study` and `demo`.

Heavy imports are inside the functions, so that `--help` and wrong options are answered at once.
"""

from __future__ import annotations

from pathlib import Path

import click

from .diagnose import diagnose
from .files import claim
from .fit import fit
from .options import Command, printer, quiet_option, seed_option
from .predict import predict
from .study import study
from .symmetry import masks, symmetry


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyro-sps")
def main() -> None:
    """Bayesian neural networks without redundant posterior modes, for Pyro."""


@click.command(cls=Command, epilog="\b\nExample:\n  pyro-sps demo --out demo")
@click.option("--out", type=click.Path(path_type=Path), default="demo", show_default=True, help="Folder.")
@click.option("--steps", type=click.IntRange(1), help="Steps of each fit, where the default is too long.")
@seed_option
@quiet_option
def demo(out: Path, steps: int | None, seed: int, quiet: bool) -> None:
    """Fit the one-dimensional toy with several schemes; about two minutes on two cores.

    Prints a table and draws the predictive bands of every scheme beside the data.
    """
    from ..demo import run

    claim(out, force=True)
    run(out, seed=seed, num_steps=steps, say=printer(quiet), progress=not quiet)


for _command in (fit, predict, diagnose, masks, symmetry, study, demo):
    main.add_command(_command)
