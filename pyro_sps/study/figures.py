"""Figures of a study's results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.datasets import toy_gp
from .harness import Study
from .problems import GRID

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def differences(study: Study, table: Sequence[Mapping[str, Any]]) -> Figure:
    """Paired differences of LPP to the reference with their intervals, a panel a data set.

    Those many times larger than most are arrows at the edge with their value, so that the others can be told apart.
    """
    from matplotlib.figure import Figure

    shown = [data for data in study.data if any(row["data"] == data for row in table)]
    done = {row["run"] for row in table if "lpp_difference" in row}
    names = [run.name for run in study.runs if run.name in done]
    drawn = Figure(figsize=(2.6 + 2.2 * len(shown), 1.2 + 0.24 * len(names)), layout="constrained")
    axes = drawn.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for ax, data in zip(axes, shown, strict=True):
        of = {row["run"]: row for row in table if row["data"] == data and "lpp_difference" in row}
        reaches = [abs(row["lpp_difference"]) + np.nan_to_num(row["lpp_half"]) for row in of.values()]
        edge = 5 * np.quantile(reaches, 0.75, method="lower") if reaches else math.inf
        for place, name in enumerate(names):
            if name not in of:
                continue
            mean, half = of[name]["lpp_difference"], of[name]["lpp_half"]
            sure = abs(mean) > half
            if abs(mean) > edge:
                side = float(mean > 0)
                ax.plot(side, place, "k>" if side else "k<", transform=ax.get_yaxis_transform(), clip_on=False)
                ax.annotate(
                    f"{mean:.2g}",
                    (side, place),
                    xytext=(-8 if side else 8, 0),
                    textcoords="offset points",
                    xycoords=ax.get_yaxis_transform(),
                    ha="right" if side else "left",
                    va="center",
                    fontsize="small",
                )
                continue
            ax.errorbar(
                mean,
                place,
                xerr=0.0 if math.isnan(half) else half,
                fmt="o",
                markersize=4,
                capsize=2,
                color="black",
                markerfacecolor="black" if sure else "white",
                elinewidth=1.0,
            )
        ax.axvline(0.0, color="0.5", linewidth=0.8)
        ax.grid(axis="y", color="0.9", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.set_title(data, fontsize="medium")
        ax.set_xlabel(f"LPP − LPP of “{study.reference}” (nats)", fontsize="small")
        ax.tick_params(labelsize="small")
        ax.locator_params(axis="x", nbins=4)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    legend = "Right of the line is better; filled: the 95 % interval excludes zero."
    if any(ax.texts for ax in axes):
        legend += "\nArrows: far beyond the edge."
    drawn.supxlabel(legend, fontsize="small")
    return drawn


def shares(study: Study) -> dict[str, tuple[str, float, str]]:
    """Of the runs of a study that fixes several shares of the weights: where, how much and at what."""
    found = {}
    for run in study.runs:
        options = run.options or {}
        share = options.get("scheme_options", {}).get("fraction")
        if share is not None:
            found[run.name] = (options["scheme"], share, run.name.partition(", ")[2])
    several = len({share for _, share, _ in found.values()}) > 2
    return found if several and len(set(found.values())) == len(found) else {}


_LINES = (("o", "black", "-"), ("s", "0.45", "--"), ("^", "tab:blue", "-."), ("D", "tab:orange", ":"))


def fractions(study: Study, table: Sequence[Mapping[str, Any]]) -> Figure:
    """Paired differences of LPP to the reference against the share of fixed weights, with their 95 % intervals.

    A panel a data set and kind of places, a line for what weights are fixed at. Panels show what is best; of what is
    far worse, or of a wide interval, it is only seen that it leaves.
    """
    from matplotlib.figure import Figure

    settings = shares(study)
    lines: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}  # by data set, places and values
    for row in table:
        if row["run"] in settings and "lpp_difference" in row:
            place, share, what = settings[row["run"]]
            point = (100 * share, row["lpp_difference"], float(np.nan_to_num(row["lpp_half"])))
            lines.setdefault((row["data"], place, what), []).append(point)
    shown = list(dict.fromkeys(data for data, _, _ in lines))
    places = list(dict.fromkeys(place for place, _, _ in settings.values()))
    whats = list(dict.fromkeys(what for _, _, what in settings.values()))
    drawn = Figure(figsize=(1.2 + 2.5 * len(shown), 0.7 + 2.3 * len(places)), layout="constrained")
    axes = drawn.subplots(len(places), len(shown), squeeze=False, sharex=True, sharey="col")
    for ax, (place, data) in zip(axes.flat, product(places, shown), strict=True):
        for index, (what, (marker, color, style)) in enumerate(zip(whats, _LINES, strict=False)):
            if (data, place, what) not in lines:
                continue
            x, y, half = np.array(lines[data, place, what]).T
            ax.errorbar(
                x + (index - 1.5) * 0.8,  # so that intervals do not hide each other
                y,
                yerr=half,
                marker=marker,
                color=color,
                linestyle=style,
                label=what,
                markersize=4,
                capsize=2,
                linewidth=1.1,
                elinewidth=0.8,
            )
        if not ax.containers:
            ax.text(50.0, 0.0, "not run", ha="center", va="bottom", color="0.4", fontsize="small")
        ax.axhline(0.0, color="0.6", linewidth=0.8)
        ax.tick_params(labelsize="small", labelleft=True)
        ax.set_xlim(0.0, 100.0)
    for column, data in enumerate(shown):
        _, y, half = np.concatenate([points for (own, _, _), points in lines.items() if own == data]).T
        top = max(0.0, y.max()) + np.median(half) or 1.0
        axes[0, column].set_ylim(-2 * top, top)
        axes[0, column].set_title(data, fontsize="medium")
        axes[-1, column].set_xlabel("fixed weights (%)", fontsize="small")
    for ax, place in zip(axes[:, 0], places, strict=True):
        name = {"wedge": "structured"}.get(place, place)
        ax.set_ylabel(f"{name} places:\nLPP − LPP of “{study.reference}” (nats)", fontsize="small")
    drawn.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small", title="fixed at"
    )
    return drawn


def band_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean and 95 % band of every run on the first draw of the toy."""
    from matplotlib.figure import Figure

    toy = toy_gp(seed=0)
    grid = toy.x_grid[::GRID, 0]
    columns = min(4, len(rows))
    height = -(-len(rows) // columns)
    drawn = Figure(figsize=(2.9 * columns, 2.3 * height), layout="constrained")
    axes = drawn.subplots(height, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for ax, row in zip(axes, rows, strict=False):
        mean, std = (np.array(row["bands"][name]) for name in ("mean", "std"))
        ax.fill_between(grid, mean - 1.96 * std, mean + 1.96 * std, color="0.8", label="95 % band")
        ax.plot(grid, mean, color="tab:blue", label="mean")
        ax.plot(toy.x_grid[:, 0], toy.f_grid[:, 0], color="0.4", linewidth=0.8, linestyle="--", label="truth")
        ax.plot(toy.x[:, 0], toy.y[:, 0], ".", color="black", markersize=4, label="training data")
        ax.set_title(row["run"], fontsize="medium")
    for ax in axes[len(rows) :]:
        ax.remove()
    axes[0].set_ylim(-3.5, 3.5)
    for index, ax in enumerate(axes[: len(rows)]):
        ax.set_xlabel("x")
        ax.tick_params(labelbottom=True)  # also where no panel is below
        if index % columns == 0:
            ax.set_ylabel("y")
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return drawn
