"""`pyro-sps predict`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .files import claim_file, load_fit, require_file
from .method import predicted
from .options import Command, force_option, printer, quiet_option, refuse, seed_option
from .scores import class_scores_of, comparison, scores_of, table_of
from .table import new_rows, numbers_beside

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..data.mixed import Column, MixedTable
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
@click.option("--keep", is_flag=True, help="Write the columns of DATA too, before the predictions.")
@click.option("--num-samples", type=click.IntRange(1), default=1000, show_default=True, help="Posterior draws.")
@force_option
@seed_option
@quiet_option
@click.pass_context
def predict(
    context: click.Context,
    directory: Path,
    data: str,
    out: Path | None,
    level: float,
    keep: bool,
    num_samples: int,
    force: bool,
    seed: int,
    quiet: bool,
) -> None:
    """Predict the rows of DATA with the fit that `pyro-sps fit` wrote to DIR.

    DATA needs the feature columns of the fit, in any order; if it has the targets too, the predictions are scored
    (on all rows: if the network was fitted to some of them, that is no test).
    If the fit was made with --noise-column, those columns are error bars here too, where DATA has them.
    For each target the result has mean, standard deviation and the ends of a central interval, noise included, in
    the units of the data the network was fitted to; for labels the most probable one and the probability of each.
    """
    claim_file("--out", out, force)
    say = printer(quiet, err=out is None)
    model, result = load_fit(directory)

    import numpy as np

    from ..base.files import write_atomically

    rows = prediction_data(data, model, say)
    if model.get("classes"):
        refuse(context, {"level"}, "on labels, which have no intervals")
    prediction = predicted(result, rows.x, num_samples, seed, rows.noise)
    columns = {"row": [str(number) for number in range(1, len(rows.x) + 1)]}
    if keep:
        if rows.table is None:
            raise click.UsageError(f"--keep is for files; the columns of the data set {data} are known")
        # A column of the predictions may have the name of one of the file.
        columns |= {name: _kept(column) for name, column in rows.table.columns.items() if name != "row"}
    classes = model.get("classes")
    if classes:
        interval = None
        columns |= _class_columns(prediction, model["targets"][0], classes)
    else:
        interval = prediction.interval(level)
        columns |= _number_columns(prediction, interval, model["targets"])
    text = _csv_of(columns)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomically(out, text.encode())
    say(f"predicted {', '.join(model['targets'])} for {len(rows.x):,} rows of {data}")
    if rows.y is not None:
        if interval is None:
            say(comparison({"target": class_scores_of(prediction, rows.y)}, model["targets"][0]))
        else:
            scale = np.array(model["target_scale"])
            say(table_of(scores_of(prediction, interval, level, rows.y, scale, model["targets"]), "target"))
    if out is not None:
        say(f"wrote {out}")


@dataclass(frozen=True)
class Rows:
    """Rows to predict: inputs, and what else is known of them.

    Attributes:
        x: Inputs.
        y: Targets.
        table: The table that they are from, if it is a file.
        weights: How often each counts, if the fit had weights.
        noise: Error bars, if the fit had some.
    """

    x: np.ndarray
    y: np.ndarray | None
    table: MixedTable | None
    weights: np.ndarray | None = None
    noise: np.ndarray | None = None


def prediction_data(data: str, model: Mapping[str, Any], say: Callable[[str], None]) -> Rows:
    """The inputs that the network was fitted to, and the targets if they are there and usable."""
    import numpy as np

    from ..data.datasets import UCI, load_uci
    from ..data.rows import DataError

    features, targets = model["features"], model["targets"]
    if data in UCI and not Path(data).exists():
        dataset = load_uci(data)
        if list(dataset.feature_names) != list(features) or model.get("encoder") is not None:
            raise DataError(f"the data set {data} has other features than the fit: {', '.join(features)}")
        return Rows(dataset.x, dataset.y if list(dataset.target_names) == list(targets) else None, None)
    require_file(data)
    x, y, table = new_rows(data, model, say)
    beside: dict[str, np.ndarray] = {}
    for what in ("weight", "noise"):
        names = model.get(what) or []
        if unknown := [name for name in names if name not in table.columns]:
            if what == "noise":
                say(f"no error bars are added: {data} has no column {', '.join(unknown)}")
        elif names:
            found = numbers_beside(data, table, names, np.ones(len(table), dtype=bool))
            beside[what] = found if what == "noise" else found[:, 0]
    return Rows(x, y, table, beside.get("weight"), beside.get("noise"))


def _kept(column: Column) -> list[str]:
    return ["" if label is None else label for label in column.labels()]


def _number_columns(
    prediction: Prediction, interval: tuple[Tensor, Tensor], targets: Sequence[str]
) -> dict[str, list[str]]:
    """Mean, standard deviation and interval of every target, by column."""
    parts = {"mean": prediction.mean, "std": prediction.std, "lower": interval[0], "upper": interval[1]}
    return {
        f"{target}_{part}": [f"{value:.7g}" for value in values[:, index].tolist()]
        for index, target in enumerate(targets)
        for part, values in parts.items()
    }


def _class_columns(prediction: Prediction, target: str, classes: Sequence[str]) -> dict[str, list[str]]:
    """The most probable class, its probability and those of all, by column."""
    best, which = prediction.mean.max(-1)
    found = {
        f"{target}_predicted": [classes[index] for index in which.tolist()],
        f"{target}_probability": [f"{value:.7g}" for value in best.tolist()],
    }
    for index, label in enumerate(classes):
        found[f"p_{label}"] = [f"{value:.7g}" for value in prediction.mean[:, index].tolist()]
    return found


def _csv_of(columns: Mapping[str, Sequence[str]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()
