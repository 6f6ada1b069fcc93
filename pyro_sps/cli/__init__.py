"""The command line: `pyro-sps fit`, `predict`, `diagnose`, `masks`, `symmetry`, `study` and `demo`.

Heavy imports are inside the functions, so that `--help` and wrong options are answered at once.
"""

from __future__ import annotations

import click

from .demo import demo
from .diagnose import diagnose
from .fit import fit
from .predict import predict
from .study import study
from .symmetry import masks, symmetry


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyro-sps")
def main() -> None:
    """Bayesian neural networks without redundant posterior modes, for Pyro."""


for _command in (fit, predict, diagnose, masks, symmetry, study, demo):
    main.add_command(_command)
