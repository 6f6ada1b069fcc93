"""`pyro-sps fit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..inference.settings import FitSettings
from .files import FORMAT, MAX_LAYERS, MAX_WEIGHTS, METRICS, OLD_MODEL, claim, require_file, too_large, write_json
from .options import (
    NAMES,
    NUMBERS,
    Command,
    activation_option,
    force_option,
    integers,
    make_scheme,
    make_values_rule,
    printer,
    quiet_option,
    scheme_options,
    seed_option,
    values_options,
)
from .scores import scores_of, table_of

if TYPE_CHECKING:
    import numpy as np

    from ..data.tables import Dataset
    from ..posterior.fit import Fit, Fits

LIKELIHOODS = ("gaussian", "heteroscedastic", "poisson", "bernoulli")
#: With fewer rows there is nothing to hold out.
MIN_ROWS = 5


@click.command(
    cls=Command,
    epilog="\b\nExample:\n  pyro-sps fit ENB2012_data.xlsx --target Y1 Y2 --hidden 50 50 --scheme heavy --out energy",
    several={"--hidden": NUMBERS, "--target": NAMES, "--feature": NAMES, "--drop": NAMES},
)
@click.argument("data")
@click.option("--target", "targets", multiple=True, help="Names of the target columns.")
@click.option("--feature", "features", multiple=True, help="Names of the feature columns.  [default: all others]")
@click.option("--drop", multiple=True, help="Columns that are neither feature nor target.")
@click.option("--hidden", multiple=True, default=("50", "50"), callback=integers, help="Widths.  [default: 50 50]")
@activation_option
@scheme_options("random")
@values_options("map")
@click.option(
    "--likelihood", type=click.Choice(LIKELIHOODS), default="gaussian", show_default=True, help="Observation model."
)
@click.option(
    "--noise", help="Gaussian noise: a standard deviation (standardised, if data is), or 'learned'.  [default: learned]"
)
@click.option("--prior-scale", type=float, help="Prior standard deviation of a weight.  [default: 2/√fan-in]")
@click.option(
    "--steps", type=click.IntRange(1), default=FitSettings.num_steps, show_default=True, help="Steps of Adam."
)
@click.option(
    "--particles",
    type=click.IntRange(1),
    default=FitSettings.num_particles,
    show_default=True,
    help="Posterior draws a step.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=FitSettings.batch_size,
    show_default=True,
    help="Rows a step, at most.",
)
@click.option(
    "--learning-rate",
    type=float,
    default=FitSettings.learning_rate,
    show_default=True,
    help="At the start; it decays to 0.3.",
)
@click.option("--init", type=click.Choice(["random", "map"]), help="Start.  [default: map with --values map]")
@click.option(
    "--replicas", type=click.IntRange(1), help="Independent fits, whose mixture predicts.  [default: a single fit]"
)
@click.option(
    "--test-fraction", type=click.FloatRange(0, 1, max_open=True), default=0.2, show_default=True, help="Held out."
)
@click.option("--standardize/--no-standardize", default=True, show_default=True, help="By the training part.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the result.")
@click.option("--checkpoint-every", type=click.IntRange(1), help="Steps between checkpoints in it.  [default: none]")
@click.option(
    "--resume", is_flag=True, help="Go on from the checkpoint in it; say again what was said at first, or more --steps."
)
@force_option
@seed_option
@quiet_option
def fit(
    data: str, out: Path, checkpoint_every: int | None, resume: bool, force: bool, quiet: bool, **options: Any
) -> None:
    """Fit a network to DATA: a CSV, Excel or Parquet file, or the name of a data set.

    DATA comes before the columns. Of the rows a share is held out at random, and the fit is scored on it. Names of
    data sets are energy, concrete, power-plant, wine-red and kin8nm; their targets need not be named.
    """
    say = printer(quiet)
    if not resume:
        claim(out, force)
    settings = _Settings(**{name: options.pop(name) for name in list(options) if name in _Settings.__annotations__})
    dataset = _training_data(data, options["targets"], options["features"], options["drop"])
    model = settings.model(dataset)
    x, y, x_test, y_test = parts(dataset, options["test_fraction"], options["seed"])
    say(f"{dataset.name}: {len(dataset):,} rows, {dataset.x.shape[1]} features, targets {', '.join(model['targets'])}")
    say(f"{len(x):,} rows to train on, {len(x_test):,} held out (seed {options['seed']})")

    if settings.likelihood == "gaussian" and (labels := _yes_no(dataset)):
        say(f"target {', '.join(labels)} holds zeros and ones only: --likelihood bernoulli is for such targets")

    import pyro_sps as sps

    from ..inference.checkpoint import FILE
    from ..posterior.save import save

    bnn = settings.bnn(model["widths"], options["seed"])
    say(settings.describe(bnn))
    asked: dict[str, Any] = {
        "num_steps": options["steps"],
        "num_particles": options["particles"],
        "batch_size": options["batch_size"],
        "learning_rate": options["learning_rate"],
        "init": options["init"],
        "standardize": options["standardize"],
        "seed": options["seed"],
        "replicas": options["replicas"],
    }
    if checkpoint_every is not None:
        asked["checkpoint_every"] = checkpoint_every
    if resume:
        result = _resumed(out, bnn, x, y, asked, not quiet)
    else:
        (out / FILE).unlink(missing_ok=True)  # of a fit that --force overwrites
        result = sps.fit(bnn, x, y, **asked, checkpoint=out if checkpoint_every else None, progress=not quiet)
    model |= {"target_scale": _scales(y).tolist(), "data": data, "options": {**asdict(settings), **options}}
    save(result, out, model)  # before anything else can fail, a message to a closed pipe too
    for left in (METRICS, OLD_MODEL):  # of a fit that --force overwrites
        (out / left).unlink(missing_ok=True)
    fits: Sequence[Fit] = result if isinstance(result, tuple) else (result,)
    if fits[0].stopped:
        then = "; --resume goes on with it" if (out / FILE).exists() else ""
        say(f"the fit was {fits[0].stopped}; what follows is the result so far{then}")
    metrics = _fit_metrics(result, fits, y, x_test, y_test, model, options["seed"])
    write_json(out / METRICS, metrics)
    elbo = ", ".join(f"{fit.elbo:,.1f}" for fit in fits)
    say(f"ELBO {elbo} nats after {metrics['steps']:,} steps, {metrics['seconds']:.0f} s")
    if len(x_test):
        say(table_of(metrics, "held-out target"))
    say(f"wrote {out}/: the model and {METRICS}")
    say(f"next: pyro-sps predict {out} DATA --out predictions.csv")


@dataclass(frozen=True)
class _Settings:
    """The options of a network."""

    hidden: list[int]
    activation: str
    scheme: str
    fraction: float | None
    values: str
    scale: float | None
    likelihood: str
    noise: str | None
    prior_scale: float | None

    def __post_init__(self) -> None:
        if self.noise is not None and self.likelihood != "gaussian":
            raise click.UsageError(f"--noise is for --likelihood gaussian, not {self.likelihood}")
        make_scheme(self.scheme, self.fraction)
        make_values_rule(self.values, self.scale)
        self._noise()

    def _noise(self) -> tuple[float, bool]:
        """Standard deviation of the noise, and whether it is learned."""
        if self.noise is None or self.noise == "learned":
            return 0.1, True
        try:
            noise = float(self.noise)
        except ValueError:
            noise = -1.0
        if not 0 < noise < float("inf"):
            raise click.UsageError(f"--noise must be a positive number or 'learned', got {self.noise!r}")
        return noise, False

    def model(self, dataset: Dataset) -> dict[str, Any]:
        """What `predict` must know besides the fit."""
        outputs = dataset.y.shape[1] * (2 if self.likelihood == "heteroscedastic" else 1)
        widths = [dataset.x.shape[1], *self.hidden, outputs]
        if too_large(widths):
            raise click.UsageError(
                f"networks of more than {MAX_LAYERS:,} layers or {MAX_WEIGHTS:,} weights are for the Python interface"
            )
        return {
            "format": FORMAT,
            "features": list(dataset.feature_names),
            "targets": list(dataset.target_names),
            "widths": widths,
            "activation": self.activation,
        }

    def bnn(self, widths: Sequence[int], seed: int) -> Any:
        """The network's model; its skeleton takes no memory."""
        import pyro_sps as sps

        scale, learn = self._noise()
        likelihoods: dict[str, Callable[[], Any]] = {
            "gaussian": lambda: sps.Gaussian(scale, learn=learn),
            "heteroscedastic": sps.HeteroscedasticGaussian,
            "poisson": sps.Poisson,
            "bernoulli": sps.Bernoulli,
        }
        return sps.BNN(
            sps.mlp(list(widths), self.activation, device="meta"),
            scheme=make_scheme(self.scheme, self.fraction),
            values=make_values_rule(self.values, self.scale),
            likelihood=likelihoods[self.likelihood](),
            prior_scale=self.prior_scale,
            seed=seed,
        )

    def describe(self, bnn: Any) -> str:
        """The network in one line."""
        widths = "-".join(str(group.size) for group in bnn.topology.groups)
        fixed = f"{bnn.num_fixed:,} of {bnn.topology.num_weights:,} weights fixed"
        how = f" ({self.scheme}, {self.values})" if bnn.num_fixed else ""
        return f"{widths} network, {self.activation}, {fixed}{how}"


def _yes_no(dataset: Dataset) -> list[str]:
    """Targets that hold nothing but 0 and 1."""
    only = ((dataset.y == 0) | (dataset.y == 1)).all(0)
    return [name for name, label in zip(dataset.target_names, only, strict=True) if label]


def _training_data(data: str, targets: Sequence[str], features: Sequence[str], drop: Sequence[str]) -> Dataset:
    """A file, or a data set by name with its own targets unless others are asked for."""
    from ..data.datasets import UCI, load_uci
    from ..data.tables import read_table

    if data in UCI and not Path(data).exists():
        if targets or features or drop:
            raise click.UsageError(f"the columns of the data set {data} are set; give a file to choose others")
        return load_uci(data)
    require_file(data)
    if not targets:
        raise click.UsageError("Missing option '--target': name the columns to predict.")
    return read_table(data, targets, features or None, drop, min_rows=MIN_ROWS, varying=True)


def parts(dataset: Dataset, test_fraction: float, seed: int) -> tuple[np.ndarray, ...]:
    """Inputs and targets to train on, and those held out, which may be none."""
    if test_fraction == 0:
        return dataset.x, dataset.y, dataset.x[:0], dataset.y[:0]
    split = dataset.split(seed, test_fraction)
    return split.x_train, split.y_train, split.x_test, split.y_test


def _scales(y: np.ndarray) -> np.ndarray:
    """Standard deviations of the targets; 1 for one that is constant in the training part."""
    spread = y.std(0)
    spread[spread == 0] = 1.0
    return spread


def _resumed(out: Path, bnn: Any, x: np.ndarray, y: np.ndarray, asked: Mapping[str, Any], progress: bool) -> Fit | Fits:
    """The rest of a fit that was asked for in the same words."""
    import pyro_sps as sps

    from ..inference.checkpoint import Checkpoint

    before = Checkpoint.read(out).settings
    more = asked["num_steps"] if asked["num_steps"] > before.get("num_steps", math.inf) else None
    if more is not None and all(before.get(name) == value for name, value in asked.items() if name != "num_steps"):
        asked = {**asked, "num_steps": before["num_steps"]}
    if other := [f"{n} {before.get(n)}, not {value}" for n, value in asked.items() if before.get(n) != value]:
        raise click.UsageError(f"--resume: the fit in {out} was started with {'; '.join(other)}")
    result: Fit | Fits = sps.resume(out, bnn, x, y, progress=progress, num_steps=more)
    return result


def _fit_metrics(
    result: Fit | Fits,
    fits: Sequence[Fit],
    y: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    model: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    scores = {}
    if len(x_test):
        prediction = result.predict(x_test, seed=seed)
        scores = scores_of(prediction, prediction.interval(0.95), 0.95, y_test, _scales(y), model["targets"])
    scales = [fit.bnn.constant_scale() for fit in fits]
    learned = [None if scale is None else scale.tolist() for scale in scales]
    elbos = [fit.elbo for fit in fits]
    many = len(fits) > 1
    return {
        "train_rows": len(y),
        "test_rows": len(x_test),
        "replicas": len(fits),
        "weights": fits[0].bnn.topology.num_weights,
        "fixed_weights": fits[0].bnn.num_fixed,
        "learned_c": learned if many and learned[0] is not None else learned[0],
        "elbo": elbos if many else elbos[0],
        "steps": len(fits[0].losses),
        "seconds": sum(fits[0].seconds.values()),
        **scores,
    }
