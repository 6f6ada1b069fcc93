"""The demonstration of `pyro-sps demo`: the paper's one-dimensional toy with several schemes."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..base.process import silenced
from ..data.datasets import Toy, toy_gp
from ..masks.schemes import Heavy, Light, Scheme, SymmetryWarning, Unmasked
from ..masks.values import Constant, Values, Zero
from ..posterior.fit import Fit
from ..posterior.predict import Prediction
from ..posterior.samples import Samples

#: Steps of each fit, and of each chain; all of them take about two minutes on two cores.
NUM_STEPS = 3000

NUM_PARTICLES = 16

WIDTHS = (1, 50, 50, 1)

#: What is compared, with the constants of arXiv 2405.17666.
CONFIGURATIONS: dict[str, tuple[Scheme, Values]] = {
    "none": (Unmasked(), Zero()),
    "light, zero": (Light(), Zero()),
    "light, ±15": (Light(), Constant(15.0)),
    "heavy, zero": (Heavy(), Zero()),
    "heavy, ±5": (Heavy(), Constant(5.0)),
}

#: One that is sampled by chains too, and the steps from one draw of them to the next.
SAMPLED, THINNING = "heavy, zero", 20


@dataclass(frozen=True)
class Outcome:
    """One row of the table, and the bands of one panel.

    Attributes:
        name: The configuration.
        fixed_weights: Number of fixed weights.
        elbo: Final ELBO on the training data, nats; None of chains.
        rmse: On all held-out points, those in the gap included.
        lpp: Likewise, nats a point.
        rmse_data: On the held-out points outside the gap.
        lpp_data: Likewise.
        seconds: Wall time of the fit.
    """

    name: str
    fixed_weights: int
    elbo: float | None
    rmse: float
    lpp: float
    rmse_data: float
    lpp_data: float
    seconds: float


def run(
    out: Path,
    *,
    seed: int = 0,
    num_steps: int | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> list[Outcome]:
    """Fit every configuration to the toy, sample one by chains, print a table, write `demo.json` and `demo.png`.

    Args:
        out: An existing folder.
        seed: Decides the toy and the fits.
        num_steps: Steps of each fit; default `NUM_STEPS`.
        say: Prints a line.
        progress: Whether to show progress bars.

    Returns:
        The rows of the table.
    """
    started = time.perf_counter()
    toy = toy_gp(seed)
    steps = num_steps or NUM_STEPS
    say(f"A draw of a Gaussian process: {len(toy.x)} points, none of them in {toy.gap}.")
    say(f"{'-'.join(map(str, WIDTHS))} networks, tanh, noise {toy.noise}, prior N(0, 1), {steps:,} steps each.")
    outcomes, predictions = [], []
    with _one_thread():
        for name, sampled in [*((name, False) for name in CONFIGURATIONS), (SAMPLED, True)]:
            outcome, prediction = _infer(name, sampled, toy, seed, steps, progress)
            outcomes.append(outcome)
            predictions.append(prediction)
            say(f"  {outcome.name}: {outcome.seconds:.0f} s")
    say("")
    say(table(outcomes))
    say(f"Held out: {len(toy.x_test)} points over the whole range, {int(toy.in_gap.sum())} of them in the gap.")
    (out / "demo.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1, ensure_ascii=False))
    figure(toy, outcomes, predictions).savefig(out / "demo.png", dpi=150)
    say(f"wrote {out / 'demo.png'} and {out / 'demo.json'} ({time.perf_counter() - started:.0f} s in all)")
    return outcomes


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of torch's: these networks are so small that a second one costs more than it does."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _infer(name: str, sampled: bool, toy: Toy, seed: int, num_steps: int, progress: bool) -> tuple[Outcome, Prediction]:
    """A mean-field fit of a configuration, or its chains."""
    import pyro_sps as sps

    scheme, values = CONFIGURATIONS[name]
    with silenced(SymmetryWarning):  # that light masks leave symmetries is what is shown
        bnn = sps.BNN(
            sps.mlp(WIDTHS),
            scheme=scheme,
            values=values,
            likelihood=sps.Gaussian(toy.noise),
            prior_scale=1.0,
            seed=seed,
        )
    # Programs to compile would take longer than what that saves.
    options: dict[str, Any] = {"standardize": False, "seed": seed, "progress": progress, "compile": False}
    started = time.perf_counter()
    elbo = None
    if sampled:
        third = max(1, num_steps // 3)
        found: Fit | Samples = sps.sample(
            bnn,
            toy.x,
            toy.y,
            map_steps=num_steps,
            warmup=third,
            num_samples=max(1, 2 * third // THINNING),
            thinning=min(third, THINNING),
            **options,
        )
    else:
        found = fit = sps.fit(bnn, toy.x, toy.y, num_steps=num_steps, num_particles=NUM_PARTICLES, **options)
        elbo = fit.elbo
    seconds = time.perf_counter() - started
    everywhere, outside = (found.predict(x, seed=seed) for x in (toy.x_test, toy.x_test[~toy.in_gap]))
    outcome = Outcome(
        name=f"{name}, sampled" if sampled else name,
        fixed_weights=bnn.num_fixed,
        elbo=elbo,
        rmse=everywhere.rmse(toy.y_test),
        lpp=everywhere.lpp(toy.y_test),
        rmse_data=outside.rmse(toy.y_test[~toy.in_gap]),
        lpp_data=outside.lpp(toy.y_test[~toy.in_gap]),
        seconds=seconds,
    )
    return outcome, found.predict(toy.x_grid, seed=seed)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as aligned text."""
    heads = ("scheme", "fixed weights", "ELBO", "RMSE", "LPP", "RMSE", "LPP", "seconds")
    rows = [
        (
            one.name,
            f"{one.fixed_weights:,}",
            "" if one.elbo is None else f"{one.elbo:.1f}",
            *(f"{score:.3f}" for score in (one.rmse, one.lpp, one.rmse_data, one.lpp_data)),
            f"{one.seconds:.0f}",
        )
        for one in outcomes
    ]
    widths = [max(9, *(len(row[column]) for row in (heads, *rows))) for column in range(len(heads))]
    above = " " * (sum(widths[:3]) + 4)  # over RMSE and LPP: of which points they are
    lines = [f"{above}  {'all held out':>{sum(widths[3:5]) + 2}}  {'outside the gap':>{sum(widths[5:7]) + 2}}"]
    for row in (heads, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([f"{row[0]:{widths[0]}}", *cells]))
    return "\n".join(lines)


def figure(toy: Toy, outcomes: Sequence[Outcome], predictions: Sequence[Prediction]) -> Figure:
    """One panel a configuration: predictive mean, 95 % band, the true function and the data.

    Args:
        toy: The problem.
        outcomes: The rows of the table.
        predictions: On the toy's grid, in the same order.
    """
    # A figure of the object interface belongs to no window, so it needs no display.
    from matplotlib.figure import Figure

    from ..plots import plot_bands

    columns = min(3, len(outcomes))
    rows = math.ceil(len(outcomes) / columns)
    drawn = Figure(figsize=(1 + 3.4 * columns, 0.8 + 2.6 * rows), layout="constrained")
    axes = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for ax, outcome, prediction in zip(axes, outcomes, predictions, strict=False):
        plot_bands(prediction, (toy.x, toy.y), toy.f_grid, draws=0, ax=ax)
        if toy.gap:
            for end in toy.gap:
                ax.axvline(end, color="0.5", linewidth=0.6, linestyle=":")
        elbo = "chains" if outcome.elbo is None else f"ELBO {outcome.elbo:.0f}"
        scores = f"{elbo}, LPP {outcome.lpp:.1f} ({outcome.lpp_data:.2f} outside the gap)"
        ax.set_title(f"{outcome.name}\n{scores.replace('-', '−')}", fontsize=9)
        ax.set(xlabel="", ylabel="")
        ax.tick_params(labelbottom=True)
    axes[0].set_ylim(*_limits(toy, predictions))  # of all panels, which share it
    handles = axes[0].get_legend_handles_labels()
    for ax in axes[len(outcomes) :]:
        ax.set_axis_off()
    if len(axes) > len(outcomes):
        axes[len(outcomes)].legend(*handles, loc="center", frameon=False)
    else:
        drawn.legend(*handles, loc="outside upper center", ncols=4, frameon=False)
    drawn.supxlabel("input x")
    drawn.supylabel("target y")
    return drawn


def _limits(toy: Toy, predictions: Sequence[Prediction]) -> tuple[float, float]:
    """What all panels show: the data and most of the bands, but not their farthest reaches."""
    low, high = min(toy.f_grid.min(), toy.y.min()), max(toy.f_grid.max(), toy.y.max())
    intervals = [prediction.interval(0.95) for prediction in predictions]
    lowest = min(float(lower.min()) for lower, _ in intervals)
    highest = max(float(upper.max()) for _, upper in intervals)
    reach = 0.75 * (high - low)
    return min(low, max(low - reach, lowest)) - 0.2, max(high, min(high + reach, highest)) + 0.2
