"""`pyro-sps diagnose`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .files import claim_file, digest, load_fit
from .options import Command, force_option, printer, quiet_option, seed_option
from .predict import Rows, prediction_data
from .table import divide

if TYPE_CHECKING:
    import numpy as np

    from ..posterior.fit import Fit, Fits


@click.command(cls=Command, epilog="\b\nExample:\n  pyro-sps diagnose run energy --html diagnosis.html")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Web page with figures to write.")
@click.option(
    "--baseline",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A fit with nothing fixed, of the same data, to compare predictions with.",
)
@click.option("--num-samples", type=click.IntRange(10), default=1000, show_default=True, help="Posterior draws.")
@force_option
@seed_option
@quiet_option
def diagnose(
    directory: Path,
    data: str,
    html: Path | None,
    baseline: Path | None,
    num_samples: int,
    force: bool,
    seed: int,
    quiet: bool,
) -> None:
    """Check whether the fit that `pyro-sps fit` wrote to DIR is any good.

    If DATA is what the network was fitted to, its rows are divided as they were then: importance sampling and the
    ELBO need the training part, predictions are checked on the part held out. Other DATA with the same columns
    counts as held out: predictions are checked on all of its rows.
    """
    claim_file("--html", html, force)
    say = printer(quiet)
    model, fit = load_fit(directory)
    other = None
    if baseline is not None:
        other_model, other = load_fit(baseline)
        for name in ("features", "targets"):
            if other_model[name] != model[name]:
                raise click.UsageError(f"--baseline {baseline} has other {name} than {directory}")
    rows = prediction_data(data, model, say)
    if model.get("classes"):
        say("classes: " + ", ".join(f"{number} is {label}" for number, label in enumerate(model["classes"][:20])))
    if rows.y is None:
        raise click.UsageError(f"{data} has no usable target columns {', '.join(model['targets'])} to check against")
    parts = _divide(model, fit, data, rows.x, rows.y, say)
    train, held_out = (None if part is None else (rows.x[part], _observed(rows, part)) for part in parts)

    import pyro_sps as sps

    from ..posterior.samples import Samples

    sampled = isinstance(fit, Samples)
    x, y = (None, None) if train is None or (sampled and held_out is not None) else train
    if sampled and baseline is not None:
        raise click.UsageError("--baseline is for fits; the scores of `pyro-sps fit` compare chains")
    diagnosis = sps.diagnose(fit, x, y, held_out=held_out, baseline=other, draws=num_samples, seed=seed)
    say(str(diagnosis))
    if sampled and model.get("classes"):
        say("\nThese are the chains alone; `predict` takes the mean with the networks that they start from.")
    if html is not None:
        diagnosis.save_html(html, model.get("classes"))
        say(f"\nwrote {html}")


def _divide(
    model: Mapping[str, Any],
    fit: Fit | Fits,
    data: str,
    x: np.ndarray,
    y: np.ndarray,
    say: Callable[[str], None],
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Which rows are the training part, if DATA is what the network was fitted to, and which are held out, if any."""
    import numpy as np

    options = model.get("options", {})
    train, test = divide(len(x), options.get("test_fraction", 0), options.get("seed", 0))
    known = model.get("trained_on")
    if known is not None:
        same = known == digest(x[train], y[train])
    else:  # of an older version
        same = _is_training_data(fit, x[train], y[train], options.get("standardize"), data, str(model.get("data")))
    if not same:
        say(f"{data} is not what the network was fitted to: all of its {len(x):,} rows count as held out\n")
        return None, np.arange(len(x))
    say(f"{data}: {len(train):,} rows were trained on, {len(test):,} held out\n")
    return train, test if len(test) else None


def _observed(rows: Rows, part: np.ndarray) -> Any:
    """Targets of some rows, with weights and error bars where the fit had them."""
    import torch

    from ..data.observed import Observed

    assert rows.y is not None
    y = rows.y[part]
    if rows.weights is None and rows.noise is None:
        return y
    weights, noise = (None if own is None else torch.as_tensor(own[part]) for own in (rows.weights, rows.noise))
    return Observed(torch.as_tensor(y), weights, noise)


def _is_training_data(fit: Fit | Fits, x: np.ndarray, y: np.ndarray, standardized: Any, data: str, fitted: str) -> bool:
    """Whether a fit was made with these rows: by the means and scales that it kept, else by the name of the data."""
    if not standardized:
        return Path(data).name == Path(fitted).name

    import torch

    from ..data.arrays import Standardizer, as_tensor

    first = fit[0] if isinstance(fit, tuple) else fit
    like, own = first.bnn.like, first.standardizer
    found = Standardizer.of(as_tensor("x", x, like), as_tensor("y", y, like), first.bnn.likelihood.real_valued)
    return all(torch.allclose(getattr(own, n), getattr(found, n), rtol=1e-4) for n in own.__dataclass_fields__)
