"""Tables of a study's results, and the files that are written of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .figures import band_figure, differences, fractions, shares
from .harness import Study
from .records import markdown, write_csv

#: Scores of which a smaller value is better.
_LOWER = ("rmse", "crps")
#: Test rows per training row of a split; draws of the toy are independent.
_OVERLAP = {"toy": 0.0}
_DEFAULT_OVERLAP = 0.25


def paired_interval(differences: Sequence[float], overlap: float, level: float = 0.95) -> tuple[float, float]:
    """Mean of paired differences over random splits and the half-width of its confidence interval.

    Random splits share rows, so that their differences are correlated and the usual t-interval is too narrow. Nadeau
    and Bengio (2003), Inference for the generalization error, section 3, correct the variance of the mean of J
    differences by the ratio of test to training rows: (1/J + n_test / n_train) S².

    Args:
        differences: One number a split.
        overlap: n_test / n_train; 0 for independent data sets.
        level: Of the interval.

    Returns:
        Mean and half-width; the latter is NaN for fewer than two splits.

    Example:
        >>> from pyro_sps.study.summary import paired_interval
        >>> mean, half = paired_interval([0.1, 0.2, 0.3], overlap=0.0)
        >>> round(mean, 3), round(half, 3)
        (0.2, 0.248)
    """
    from scipy.stats import t

    values = np.asarray(differences, dtype=float)
    count = len(values)
    if count < 2:
        return float(values.mean()), math.nan
    error = math.sqrt((1 / count + overlap) * values.var(ddof=1))
    return float(values.mean()), float(t.ppf((1 + level) / 2, count - 1)) * error


def summarise(study: Study, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a run and data set: means, standard errors and paired differences to the reference.

    Args:
        study: The study.
        rows: Its results, those of failures too.

    Returns:
        Rows in the study's order, with keys such as `rmse`, `rmse_se`, `rmse_difference`, `rmse_half` (half-width of
        the 95 % interval); those of failed runs have `error` in place of scores.
    """
    of = {(row["run"], row["data"]): row for row in rows if row["part"] == study.part}
    table = []
    for data in study.data:
        base = of.get((study.reference, data), {}).get("scores")
        for run in study.runs:
            row = of.get((run.name, data))
            if row is None:
                continue
            entry: dict[str, Any] = {"data": data, "run": run.name, "splits": row["splits"]}
            entry["seconds"] = row["seconds"]
            if "error" in row:
                table.append(entry | {"error": row["error"]})
                continue
            for name in dict.fromkeys(name for one in row["scores"] for name in one):
                values = [one[name] for one in row["scores"]]
                entry[name] = float(np.mean(values))
                if name in ("rmse", "lpp", "crps", "coverage", "elbo"):
                    entry[f"{name}_se"] = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
                if base and run.name != study.reference and name in base[0] and name in ("rmse", "lpp", "crps", "elbo"):
                    pairs = [a[name] - b[name] for a, b in zip(row["scores"], base, strict=True)]
                    overlap = _OVERLAP.get(data, _DEFAULT_OVERLAP)
                    entry[f"{name}_difference"], entry[f"{name}_half"] = paired_interval(pairs, overlap)
            entry["chosen"] = _chosen(run.grid, row["options"])
            table.append(entry)
    return table


def _chosen(grid: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """The settings that were chosen from a grid, as text: those in which its entries differ."""
    names = [name for name in dict.fromkeys(chain(*grid)) if any(one.get(name) != grid[0].get(name) for one in grid)]
    return ", ".join(f"{name} {_plain(options[name])}" for name in names if name in options)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def write(study: Study, rows: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Write `NAME.csv`, `NAME.md` and the figures of a study.

    Returns:
        The files.
    """
    table = summarise(study, rows)
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{study.name}.csv", out / f"{study.name}.md"]
    write_csv(files[0], table)
    files[1].write_text(report(study, rows, table), encoding="utf-8")
    if any("error" not in row for row in table):
        files.append(out / f"{study.name}.png")
        differences(study, table).savefig(files[-1], dpi=110)
    if len(files) > 2 and shares(study):
        files.append(out / f"{study.name}-fractions.png")
        fractions(study, table).savefig(files[-1], dpi=110)
    bands = [row for row in rows if "bands" in row]
    if bands:
        files.append(out / f"{study.name}-bands.png")
        band_figure(bands).savefig(files[-1], dpi=110)
    return files


# --- tables ----------------------------------------------------------------------------------------


def report(study: Study, rows: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, Any]]) -> str:
    """The study's page: how it was made, and a table a data set."""
    lines = [f"# {study.title}", ""]
    about = {str(row["environment"]) for row in rows if "environment" in row}
    splits = max((row["splits"] for row in table), default=0)
    what = "draws of the toy" if study.data == ("toy",) else "random 80/20 splits"
    held = " of the training part (a fifth of it held out)" if study.part == "validation" else ""
    lines += [
        f"`pyro-sps study {study.name} --out DIR --seeds {splits}`: mean ± standard error over {splits} {what}{held}; "
        f"targets in units of their standard deviation. Δ is the difference to *{study.reference}*, split by split, "
        "with a 95 % interval corrected for the rows that splits share (Nadeau and Bengio, 2003); bold where it "
        "excludes zero in favour of the run.",
        "",
    ]
    for data in study.data:
        cells = [_cells(row) for row in table if row["data"] == data]
        if cells:
            lines += [f"## {data}", "", markdown(cells, _columns(cells)), ""]
    lines += [f"Made on {_sentence(one)}." for one in sorted(about)]
    return "\n".join(lines) + "\n"


def _sentence(environment: str) -> str:
    return environment.strip("{}").replace("'", "")


_HEADINGS = {
    "run": "",
    "fixed": "fixed weights",
    "permutations": "permutations left",
    "rmse": "RMSE",
    "rmse_delta": "Δ RMSE",
    "lpp": "LPP",
    "lpp_delta": "Δ LPP",
    "crps": "CRPS",
    "single": "LPP of one fit",
    "coverage": "in 95 % interval",
    "elbo": "ELBO",
    "c": "c",
    "noise": "noise",
    "chosen": "chosen settings",
}


def _columns(cells: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Format strings of the columns that are not empty, by their headings."""
    return {heading: "{" + name + "}" for name, heading in _HEADINGS.items() if any(cell[name] for cell in cells)}


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    cells = dict.fromkeys(_HEADINGS, "")
    cells["run"] = row["run"]
    if "error" in row:
        return cells | {"rmse": f"failed: {row['error'].splitlines()[0][:80]}"}
    for name, digits in (("rmse", 3), ("lpp", 3), ("crps", 4), ("elbo", 0)):
        if name in row:
            cells[name] = f"{row[name]:.{digits}f} ± {row[f'{name}_se']:.{digits}f}"
    for name in ("rmse", "lpp"):
        if f"{name}_difference" in row:
            mean, half = row[f"{name}_difference"], row[f"{name}_half"]
            text = f"{mean:+.3f} ± {half:.3f}"
            better = (mean + half < 0) if name in _LOWER else (mean - half > 0)
            cells[f"{name}_delta"] = f"**{text}**" if better else text
    cells["coverage"] = f"{row['coverage']:.1%}"
    if "fixed" in row:
        cells["fixed"] = f"{row['fixed']:,.0f}"
        cells["noise"] = f"{row['noise']:.3f}"
    if "log10_permutations" in row:
        power = row["log10_permutations"]
        cells["permutations"] = f"10^{power:.0f}" if power >= 6 else f"{round(10**power):,}"
    if "single_lpp" in row:
        cells["single"] = f"{row['single_lpp']:.3f}"
    # One, or one a layer.
    cells["c"] = " / ".join(f"{value:.2f}" for name, value in row.items() if name == "c" or name.startswith("c "))
    return cells | {"chosen": row.get("chosen", "")}


# --- the table of study/README.md -------------------------------------------------------------------

#: Where it is in that page.
_MARKS = ("<!-- headline: written by `python -m pyro_sps.study.summary` -->", "<!-- end of headline -->")


def headline(path: Path) -> str:
    """The table of the study's page from `headline.csv`: RMSE and LPP of every method on every data set, as Markdown.

    Args:
        path: The file that `pyro-sps study headline` wrote.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    data = list(dict.fromkeys(row["data"] for row in rows))
    lines = []
    for run in dict.fromkeys(row["run"] for row in rows):
        line = {"run": run}
        for name in data:
            line[name] = next((_headline_cell(row) for row in rows if (row["run"], row["data"]) == (run, name)), "")
        lines.append(line)
    return markdown(lines, {"RMSE, LPP": "{run}", **{name: "{" + name + "}" for name in data}})


def _headline_cell(row: Mapping[str, str]) -> str:
    if row.get("error"):
        return "failed"
    text = f"{float(row['rmse']):.3f}, {float(row['lpp']):.3f}"
    better = bool(row["lpp_difference"]) and float(row["lpp_difference"]) > float(row["lpp_half"])
    return f"**{text}**" if better else text


def with_headline(page: str, table: str, marks: tuple[str, str] = _MARKS) -> str:
    """A page's text with its table replaced.

    Args:
        page: The text.
        table: The table.
        marks: The lines before and after it.

    Raises:
        ValueError: If the text has no place for it.
    """
    start, end = marks
    before, found, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the text must have the lines {start} and {end} around the table")
    return f"{before}{start}\n{table}\n{end}{after}"


if __name__ == "__main__":
    place = Path("study/README.md")
    text = with_headline(place.read_text(encoding="utf-8"), headline(Path("study/headline.csv")))
    place.write_text(text, encoding="utf-8")
