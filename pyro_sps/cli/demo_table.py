"""The second picture of `pyro-sps demo`: a real table, from file to report, by the commands that a user would give."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .diagnose import diagnose
from .files import load_fit
from .fit import fit
from .method import predicted
from .table import divide, new_rows

TARGET = "progression"


def run_table(out: Path, *, seed: int, num_steps: int | None, say: Callable[[str], None], quiet: bool) -> None:
    """Fit the diabetes table of scikit-learn by `fit`, check it by `diagnose`, and draw its held-out rows.

    Args:
        out: An existing folder.
        seed: Of the split and the chains.
        num_steps: Steps of each chain; default as in `fit`.
        say: Prints a line.
        quiet: Whether nothing else is to be printed.
    """
    if importlib.util.find_spec("sklearn") is None:
        say("the second picture, of a table, needs scikit-learn: pip install 'pyro-sps[sklearn]'")
        return
    from sklearn.datasets import load_diabetes

    file, folder = out / "diabetes.csv", out / "table"
    bunch = load_diabetes(as_frame=True, scaled=False)
    bunch.frame.rename(columns={"target": TARGET}).to_csv(file, index=False)
    hush = ["--quiet"] if quiet else []
    steps = [] if num_steps is None else ["--steps", str(num_steps)]
    command = [str(file), "--target", TARGET, "--out", str(folder), "--seed", str(seed), "--force"]
    say(f"\npyro-sps fit {' '.join(command)}")
    fit.main([*command, *steps, *hush], standalone_mode=False)
    page = ["--html", str(out / "table.html"), "--force"]
    say(f"\npyro-sps diagnose {folder} {file} {' '.join(page)}")
    diagnose.main([str(folder), str(file), *page, *hush], standalone_mode=False)
    _figure(folder, file, seed, say).savefig(out / "table.png", dpi=150)
    say(f"wrote {out / 'table.png'}")


def _figure(folder: Path, file: Path, seed: int, say: Callable[[str], None]) -> Any:
    """Predicted against observed, and coverage of intervals, on the rows held out."""
    from matplotlib.figure import Figure

    from .. import plots

    model, result = load_fit(folder)
    x, y = new_rows(str(file), model, say)[:2]
    assert y is not None
    test = divide(len(x), model["options"]["test_fraction"], seed)[1]
    prediction = predicted(result, x[test], 1000, seed)
    drawn = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = drawn.subplots(1, 2)
    plots.plot_predicted(prediction, y[test], 0, 0.95, left)
    left.set(xlabel="disease progression after one year, observed", ylabel="predicted: mean and 95 % interval")
    plots.plot_calibration(prediction, y[test], right)
    rmse, spread = prediction.rmse(y[test]), float(y[test].std())
    scores = f"RMSE {rmse:.0f} (of the mean: {spread:.0f}), LPP {prediction.lpp(y[test]):.2f} nats"
    right.set_title(scores.replace("-", "−"), fontsize=10)
    return drawn
