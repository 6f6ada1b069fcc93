"""`pyro-sps fit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base.process import is_first
from ..inference.settings import LEARNING_RATES, FitSettings
from .files import (
    METRICS,
    OLD_MODEL,
    claim,
    digest,
    require_file,
    write_json,
)
from .method import method_asked, options_of, resolved, with_likelihood
from .metrics import metrics_of, scales_of
from .network import LIKELIHOODS, Settings
from .options import (
    NAMES,
    NUMBERS,
    Command,
    activation_option,
    device_option,
    force_option,
    integers,
    printer,
    quiet_option,
    reading_of,
    reading_options,
    scheme_options,
    seed_option,
    values_options,
)
from .scores import comparison, table_of
from .table import Training, from_data_set, from_file

if TYPE_CHECKING:
    import numpy as np


#: Most columns of which it is said what becomes of them.
MOST_WORDS = 40


@click.command(
    cls=Command,
    epilog="\b\nExample:\n  pyro-sps fit ENB2012_data.xlsx --target Y1 Y2 --hidden 50 50 --scheme heavy --out energy",
    several={"--hidden": NUMBERS, "--target": NAMES, "--feature": NAMES, "--drop": NAMES, "--noise-column": NAMES},
    groups={
        "The table": [
            "--target",
            "--feature",
            "--drop",
            "--weight",
            "--noise-column",
            "--task",
            "--test-fraction",
            "--out",
            "--force",
        ],
        "How the file is read": ["--no-header", "--decimal", "--thousands", "--encoding", "--missing"],
        "The network": ["--hidden", "--activation", "--likelihood", "--noise", "--prior-scale", "--standardize"],
        "How the posterior is found": [
            "--method",
            "--steps",
            "--device",
            "--time-limit",
            "--checkpoint-every",
            "--resume",
        ],
        "By chains": ["--chains"],
        "By fits": [
            "--replicas",
            "--particles",
            "--batch-size",
            "--optimizer",
            "--learning-rate",
            "--init",
        ],
        "What is fixed, and at what": ["--scheme", "--fraction", "--values", "--c"],
    },
)
@click.argument("data")
@click.option("--target", "targets", multiple=True, help="Names of the target columns.")
@click.option("--feature", "features", multiple=True, help="Names of the feature columns.  [default: all others]")
@click.option("--drop", multiple=True, help="Columns that are neither feature nor target.")
@click.option("--weight", metavar="COLUMN", help="Column that says how often each row counts.  [default: once]")
@click.option(
    "--noise-column",
    "noise_columns",
    metavar="COLUMN",
    multiple=True,
    help="Columns of known error bars (standard deviations) of the targets, one for all or one for each.",
)
@click.option(
    "--task",
    type=click.Choice(["auto", "regression", "classification"]),
    default="auto",
    show_default=True,
    help="auto: classification of text, of True and False, and of two numbers.",
)
@reading_options
@click.option("--hidden", multiple=True, default=("50", "50"), callback=integers, help="Widths.  [default: 50 50]")
@activation_option
@scheme_options("auto")
@values_options("auto")
@click.option(
    "--likelihood",
    type=click.Choice(LIKELIHOODS),
    help="Observation model.  [default: gaussian, or what predicts rows held out better; of labels categorical]",
)
@click.option(
    "--noise", help="Gaussian noise: a standard deviation (standardised, if data is), or 'learned'.  [default: learned]"
)
@click.option(
    "--prior-scale", type=float, help="Prior standard deviation of a weight.  [default: 2/√fan-in, of chains learned]"
)
@click.option(
    "--method",
    type=click.Choice(["auto", "sample", "fit"]),
    default="auto",
    show_default=True,
    help="Chains or mean-field fits.  [auto: chains where rows times weights are few and no option of fits is given]",
)
@click.option("--chains", type=click.IntRange(1), default=10, show_default=True, help="Markov chains.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    help=f"Of a fit, or of each chain, a third of them warm-up.  [default: {FitSettings.num_steps:,}, or 6,000]",
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
    help=f"Rows a step, at most.  [default: {FitSettings.batch_size}; beyond 20,000 rows 1,024, and more steps]",
)
@click.option(
    "--optimizer",
    type=click.Choice(sorted(LEARNING_RATES)),
    default=FitSettings.optimizer,
    show_default=True,
    help="Adam, or natural gradients (Shen et al. 2024).",
)
@click.option(
    "--learning-rate",
    type=float,
    help=f"At the start; it decays to 0.3.  [default: {LEARNING_RATES['adam']}, or {LEARNING_RATES['ivon']} with ivon]",
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
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    help="Seconds after which the steps end, with the result so far.  [default: none]",
)
@click.option("--checkpoint-every", type=click.IntRange(1), help="Steps between checkpoints in it.  [default: none]")
@click.option(
    "--resume", is_flag=True, help="Go on from the checkpoint in it; say again what was said at first, or more --steps."
)
@device_option
@force_option
@seed_option
@quiet_option
@click.pass_context
def fit(
    context: click.Context,
    data: str,
    out: Path,
    checkpoint_every: int | None,
    resume: bool,
    force: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Fit a network to DATA: a CSV, Excel or Parquet file, or the name of a data set.

    DATA comes before the columns. It may have text, gaps (nothing, ?, NA, ...) and dates; what becomes of each column
    is told. Of the rows a share is held out at random, and the fit is scored on it, beside simple models. Names of data
    sets are energy, concrete, power-plant, wine-red and kin8nm; their targets need not be named. Under torchrun
    (--no-python pyro-sps fit ...) all processes make one fit.
    """
    first = is_first()
    quiet = quiet or not first
    say = printer(quiet)
    if first and not resume:
        claim(out, force)
    method = method_asked(context)
    reading = reading_of(options)
    settings = Settings(**{name: options.pop(name) for name in list(options) if name in Settings.__annotations__})
    training = _training(data, options, reading, settings.task_of(options["task"]))
    if training.encoder is not None and not options["standardize"]:
        raise click.UsageError("--no-standardize is for tables of numbers without gaps; this one has more to it")
    settings, recipe = resolved(settings, training, method, options, not quiet)
    x, y, x_test = training.x, training.y, training.x_test
    for line in _about(training, options["seed"]):
        say(line)
    settings = with_likelihood(settings, recipe, training, method == "auto", say)
    model = settings.model(training) | {"reading": reading}
    if settings.likelihood == "gaussian" and (labels := _yes_no(training)):
        say(f"target {', '.join(labels)} holds zeros and ones only: --likelihood bernoulli is for such targets")

    import pyro_sps as sps

    from ..inference.checkpoint import FILE
    from ..posterior.save import save

    bnn = settings.bnn(model, options["seed"])
    say(settings.describe(bnn))
    asked = options_of(recipe, options, options["standardize"] and training.encoder is None, len(x))
    if checkpoint_every is not None:
        asked["checkpoint_every"] = checkpoint_every
    own, result_of = _own_units(training, settings.real_valued)
    extras: dict[str, Any] = {"weights": training.weights, "y_scale": training.noise, "device": options["device"]}
    if training.noise is not None and training.encoder is not None and settings.real_valued:
        extras["y_scale"] = training.noise / scales_of(y)
    limit = options["time_limit"]
    if resume:
        if limit is not None:
            raise click.UsageError("--time-limit is not for --resume, which goes on to the end")
        result = _resumed(out, bnn, x, own, extras, asked, not quiet)
    else:
        if first:
            (out / FILE).unlink(missing_ok=True)  # of a fit that --force overwrites
        engine = sps.fit if recipe.method == "fit" else sps.sample
        told = {"checkpoint": out if checkpoint_every else None, "progress": not quiet}
        result = engine(bnn, x, own, **asked, **extras, **recipe.limits(limit), **told)
    if not first:  # of several processes that torchrun has started
        return
    result = result_of(result)
    scale = [1.0] if training.classes else scales_of(y).tolist()
    model |= {"target_scale": scale, "data": data, "trained_on": digest(x, y)}
    model |= {"weight": [] if options["weight"] is None else [options["weight"]]}
    model |= {"noise": list(options["noise_columns"]), "options": {**asdict(settings), **options}}
    save(result, out, model)  # before anything else can fail, a message to a closed pipe too
    for left in (METRICS, OLD_MODEL):  # of a fit that --force overwrites
        (out / left).unlink(missing_ok=True)
    if stopped := (result[0] if isinstance(result, tuple) else result).stopped:
        then = "; --resume goes on with it" if (out / FILE).exists() else ""
        say(f"the fit was {stopped}; what follows is the result so far{then}")
    metrics, summary = metrics_of(result, training, options["seed"])
    write_json(out / METRICS, metrics)
    say(summary)
    if len(x_test):
        if not training.classes:
            say(table_of(metrics, "held-out target"))
        say(comparison({"network": metrics, **metrics["baselines"]}, f"on {len(x_test):,} held-out rows"))
    say(f"wrote {out}/: the model and {METRICS}")
    say(f"next: pyro-sps predict {out} DATA --out predictions.csv")


def _yes_no(training: Training) -> list[str]:
    """Targets that hold nothing but 0 and 1."""
    only = ((training.y == 0) | (training.y == 1)).all(0)
    return [name for name, label in zip(training.targets, only, strict=True) if label]


def _training(data: str, options: Mapping[str, Any], reading: Mapping[str, Any], task: str) -> Training:
    """A file, or a data set by name with its own targets."""
    from ..data.datasets import UCI

    targets, features, drop = (options[name] for name in ("targets", "features", "drop"))
    weight, noise = options["weight"], options["noise_columns"]
    fraction, seed = options["test_fraction"], options["seed"]
    if data in UCI and not Path(data).exists():
        if targets or features or drop or reading or weight or noise:
            raise click.UsageError(f"the columns of the data set {data} are set; give a file to choose others")
        if task == "classification":
            raise click.UsageError(f"the targets of the data set {data} are numbers, not labels")
        return from_data_set(data, fraction, seed)
    require_file(data)
    if not targets:
        raise click.UsageError("Missing option '--target': name the columns to predict.")
    if noise and len(noise) not in (1, len(targets)):
        raise click.UsageError(f"--noise-column: there are {len(targets)} targets; name one column, or one for each")
    return from_file(data, targets, features, drop, task, fraction, seed, reading, weight, noise)


def _about(training: Training, seed: int) -> Iterator[str]:
    """What the data is and what is done to it, for a reader."""
    what = f"targets {', '.join(training.targets)}"
    if training.classes:
        shown = ", ".join(training.classes[:10]) + (", ..." if len(training.classes) > 10 else "")
        what = f"classes of {training.targets[0]}: {shown}"
    yield f"{training.name}: {training.rows:,} rows, {len(training.features)} features, {what}"
    if training.weights is not None:
        own = training.weights
        yield f"rows count {own.min():g} to {own.max():g} times, {own.sum():g} in all"
    if training.noise is not None:
        yield f"targets have error bars of {training.noise.min():g} to {training.noise.max():g}"
    yield from training.notes
    if training.encoder is not None:
        width = max(len(name) for name, _ in training.words)
        for name, words in training.words[:MOST_WORDS]:
            yield f"  {name.ljust(width)}  {words}"
        if len(training.words) > MOST_WORDS:
            yield f"  ... ({len(training.words)} columns in all)"
        yield f"they become {training.x.shape[1]} inputs"
    yield f"{len(training.x):,} rows to train on, {len(training.x_test):,} held out (seed {seed})"


def _own_units(training: Training, real_valued: bool) -> tuple[np.ndarray, Callable[[Any], Any]]:
    """Targets as the network learns them, and what gives its fits the units of the table.

    Where columns are encoded, inputs have their scale already: only targets are standardised, here.
    """
    if training.encoder is None or not real_valued:
        return training.y, lambda result: result

    import dataclasses

    import torch

    from ..data.arrays import Standardizer

    mean, scale = training.y.mean(0), scales_of(training.y)

    def in_units(fit: Any) -> Any:
        if isinstance(fit, tuple):
            return type(fit)(in_units(one) for one in fit)
        like = fit.bnn.like
        units = dataclasses.replace(
            Standardizer.identity(like), y_mean=torch.as_tensor(mean).to(like), y_scale=torch.as_tensor(scale).to(like)
        )
        return dataclasses.replace(fit, standardizer=units)

    return (training.y - mean) / scale, in_units


def _resumed(
    out: Path,
    bnn: Any,
    x: np.ndarray,
    y: np.ndarray,
    extras: Mapping[str, Any],
    asked: Mapping[str, Any],
    progress: bool,
) -> Any:
    """The rest of a fit that was asked for in the same words."""
    import pyro_sps as sps

    from ..inference.checkpoint import Checkpoint

    before = {"optimizer": "adam", **Checkpoint.read(out).settings}  # which older ones do not say
    if ("kernel" in before) != ("chains" in asked):
        kinds = ("chains", "fits") if "kernel" in before else ("fits", "chains")
        raise click.UsageError(f"--resume: {out} was started by {kinds[0]}, not by {kinds[1]}; say the same --method")
    more: dict[str, int] = {}
    same = all(before.get(name) == value for name, value in asked.items() if name != "num_steps")
    if same and asked.get("num_steps", 0) > before.get("num_steps", math.inf):
        more = {"num_steps": asked["num_steps"]}
        asked = {**asked, "num_steps": before["num_steps"]}
    if other := [f"{n} {before.get(n)}, not {value}" for n, value in asked.items() if before.get(n) != value]:
        raise click.UsageError(f"--resume: the fit in {out} was started with {'; '.join(other)}")
    return sps.resume(out, bnn, x, y, **extras, progress=progress, **more)
