"""`pyro-sps predict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .files import claim_file, load_fit, require_file
from .options import Command, force_option, printer, quiet_option, seed_option
from .scores import scores_of, table_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.tables import Dataset
    from ..posterior.predict import Prediction


@click.command(cls=Command, epilog="\b\nExample:\n  pyro-sps predict energy new_buildings.csv --out predictions.csv")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="CSV file.  [default: standard output]")
@click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of intervals.",
)
@click.option("--num-samples", type=click.IntRange(1), default=1000, show_default=True, help="Posterior draws.")
@force_option
@seed_option
@quiet_option
def predict(
    directory: Path, data: str, out: Path | None, level: float, num_samples: int, force: bool, seed: int, quiet: bool
) -> None:
    """Predict the rows of DATA with the fit that `pyro-sps fit` wrote to DIR.

    DATA needs the feature columns of the fit, in any order; if it has the targets too, the predictions are scored
    (on all rows: if the network was fitted to some of them, that is no test).
    For each target the result has mean, standard deviation and the ends of a central interval, noise included, in
    the units of the data the network was fitted to.
    """
    claim_file("--out", out, force)
    say = printer(quiet, err=out is None)
    model, result = load_fit(directory)

    import numpy as np

    from ..base.files import write_atomically

    dataset = prediction_data(data, model["features"], model["targets"], say)
    prediction = result.predict(dataset.x, num_samples=num_samples, seed=seed)
    interval = prediction.interval(level)
    text = _csv_of(prediction, interval, model["targets"])
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomically(out, text.encode())
    say(f"predicted {', '.join(model['targets'])} for {len(dataset):,} rows of {data}")
    if dataset.y.shape[1]:
        scale = np.array(model["target_scale"])
        scores = scores_of(prediction, interval, level, dataset.y, scale, model["targets"])
        say(table_of(scores, "target"))
    if out is not None:
        say(f"wrote {out}")


def prediction_data(data: str, features: Sequence[str], targets: Sequence[str], say: Callable[[str], None]) -> Dataset:
    """The features the network was fitted to, and the targets if they are there and usable."""
    from ..data.datasets import UCI, load_uci
    from ..data.tables import DataError, column_names, read_table

    if data in UCI and not Path(data).exists():
        dataset = load_uci(data)
        if list(dataset.feature_names) != list(features):
            raise DataError(f"the data set {data} has other features than the fit: {', '.join(features)}")
        return dataset if list(dataset.target_names) == list(targets) else replace(dataset, y=dataset.y[:, :0])
    require_file(data)
    if set(targets) <= set(column_names(data)):
        dataset = read_table(data, features=features)
        try:
            return read_table(data, targets, features)
        except DataError as error:
            say(f"not scored: {error}")
            return dataset
    return read_table(data, features=features, min_rows=1)


def _csv_of(prediction: Prediction, interval: tuple[Tensor, Tensor], targets: Sequence[str]) -> str:
    """Mean, standard deviation and interval of every row and target."""
    import csv
    import io

    import torch

    parts = {"mean": prediction.mean, "std": prediction.std, "lower": interval[0], "upper": interval[1]}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *(f"{target}_{part}" for target in targets for part in parts)])
    values = torch.stack(list(parts.values()), dim=-1).reshape(len(prediction), -1)
    for number, row in enumerate(values.tolist(), start=1):
        writer.writerow([number, *(f"{value:.7g}" for value in row)])
    return text.getvalue()
