"""A diagnosis as one web page that needs nothing but itself."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import plots
from ..data.arrays import to_numpy
from ..plots.axes import shades
from ..posterior.samples import Samples
from ..version import __version__
from .chains import ChainDiagnosis
from .diagnosis import Diagnosis
from .importance import Importance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Targets beyond these get no figure of their own.
_MOST_TARGETS = 6

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
pre { font-size: 13px; line-height: 1.35; background: #f4f4f4; padding: 1rem; overflow-x: auto; }
.warnings { margin-bottom: 1.5rem; border-left: 4px solid #b35900; padding: 0.2rem 1rem; background: #fff6ec; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; }
img { width: 100%; height: auto; }
figcaption, footer { font-size: 14px; color: #444; }
"""


def page(diagnosis: Diagnosis | ChainDiagnosis, labels: Sequence[str] | None = None) -> str:
    """One self-contained HTML page: the warnings, the figures, and the report as text.

    Args:
        diagnosis: What `pyro_sps.diagnose` found.
        labels: Names of the classes, if there are some.
    """
    title, *rest = str(diagnosis).split("\n\n")
    numbers = [section for section in rest if not section.startswith(("Warnings:", "No warnings.", "Not checked:"))]
    figures = "\n".join(_figure(name, caption, draw) for name, caption, draw in _figures(diagnosis, labels))
    left_out = diagnosis.left_out if isinstance(diagnosis, Diagnosis) else ()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{_warnings(diagnosis.warnings)}
<div class="figures">
{figures}
</div>
<h2>Numbers</h2>
<pre>{html.escape(chr(10).join(f"{section}{chr(10)}" for section in numbers))}</pre>
{_list("Not checked", left_out)}
<footer>pyro_sps {html.escape(__version__)}</footer>
</body>
</html>
"""


def _warnings(warnings: Sequence[str]) -> str:
    return f'<div class="warnings">{_list("Warnings", warnings)}</div>' if warnings else "<p>No warnings.</p>"


def _list(head: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    return f"<h2>{head}</h2><ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>"


def _figures(
    diagnosis: Diagnosis | ChainDiagnosis, labels: Sequence[str] | None
) -> Iterator[tuple[str, str, Callable[[Axes], Any]]]:
    """Name, caption and what draws it on given axes, of each figure that there is something for."""
    prediction, y = diagnosis.prediction, diagnosis.targets
    if isinstance(diagnosis, Diagnosis):
        fits = diagnosis.fits
        yield (
            "ELBO",
            "ELBO before each step of the optimisation.",
            lambda ax: plots.plot_elbo(fits if len(fits) > 1 else fits[0], ax),
        )
    else:
        yield (
            "Energy",
            "Minus the log density of weights and data at each draw, chain by chain. Chains that have mixed overlap, "
            "without a trend.",
            partial(_plot_energies, diagnosis.samples),
        )
    if diagnosis.predictive.calibration is not None:
        rows = "held-out rows" if diagnosis.predictive.held_out else "training rows, which is no test"
        yield (
            "Calibration",
            f"Share of targets inside central intervals against the nominal level ({rows}); calibrated: the diagonal.",
            lambda ax: plots.plot_calibration(prediction, y, ax),
        )
        yield (
            "PIT",
            "Where targets lie in their predictive distributions; flat if calibrated, a U if intervals are too narrow.",
            lambda ax: plots.plot_pit(prediction, y, ax=ax),
        )
        for target in range(min(_MOST_TARGETS, y.shape[1])):
            yield (
                f"Predicted against observed, target {target}",
                f"Predictive means with 95 % intervals against the observed values of target {target}.",
                partial(_plot_predicted, diagnosis, target),
            )
    if prediction.members[0].bnn.likelihood.event_dim == 0:
        rows = "held-out rows" if diagnosis.predictive.held_out else "training rows, which is no test"
        yield (
            "Reliability",
            f"How often the most probable class is right against its probability ({rows}); calibrated: the diagonal.",
            lambda ax: plots.plot_reliability(prediction, y, ax),
        )
        yield (
            "Confusion",
            "Rows by observed and predicted class; the darker, the larger a share of the observed class.",
            lambda ax: plots.plot_confusion(prediction, y, labels, ax),
        )
    if isinstance(diagnosis, Diagnosis) and diagnosis.importance:
        yield (
            "Importance weights",
            "Smoothed importance weights of the draws in order of size, with each fit's k̂. The flatter, the closer "
            "the guide is to the posterior; dashed: equal weights.",
            lambda ax: _plot_weights(diagnosis.importance, ax),
        )


def _plot_energies(samples: Samples, ax: Axes) -> None:
    energies = to_numpy(samples.energies)
    for index, (chain, grey) in enumerate(zip(energies, shades(len(energies)), strict=True)):
        ax.plot(range(1, len(chain) + 1), chain, ["-", ":", "-."][index % 3], color=grey, linewidth=1)
    ax.set(xlabel="draw", ylabel="energy (nats)", title=f"Energy of {len(energies)} chains")


def _plot_predicted(diagnosis: Diagnosis | ChainDiagnosis, target: int, ax: Axes) -> None:
    plots.plot_predicted(diagnosis.prediction, diagnosis.targets, target, 0.95, ax)


def _plot_weights(weighted: Sequence[Importance], ax: Axes) -> None:
    count = len(weighted[0].log_weights)
    ranks = np.arange(1, count + 1)
    styles = ["-", ":", "-."]
    for index, one in enumerate(weighted):
        weights = np.exp(np.sort(one.log_weights)[::-1])
        label = f"fit {index}: k̂ {one.khat:.2f}, {one.reading}" if index < 8 else None
        ax.plot(ranks, weights, styles[index % 3], color=str(0.55 * index / len(weighted)), label=label)
    ax.axhline(1 / count, color="0.5", linestyle="--", linewidth=1)
    ax.set(
        xscale="log",
        yscale="log",
        ylim=(1e-3 / count, 1.5),
        xlabel="rank of the draw",
        ylabel="importance weight",
        title="Pareto smoothed importance weights",
    )
    ax.legend(fontsize="small")


def _figure(name: str, caption: str, draw: Callable[[Axes], Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    draw(figure.add_subplot())
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=160)
    data = base64.b64encode(image.getvalue()).decode()
    return (
        f'<figure><img alt="{html.escape(name)}: {html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
