"""Default `BNNRegressor` and `BNNClassifier` against what people use for tables, on the same splits.

    PYRO_SPS_DATA=... python benchmarks/estimators.py run [--tables energy concrete ...] [--splits 3 4 5] [--bde PYTHON]
                                                          [--folder FOLDER]
    python benchmarks/estimators.py show

A fifth of the rows is test. Contenders: `ours` with all defaults; `normal`, with normal noise in place of Student's t
(the default before; for numbers, from 100 rows on); with that noise too: `heavy`, the paper's heavy mask, 40 % of the
weights at zero, `random`, as many at random places, and `map`, the networks that chains start from, as an ensemble;
`ensemble`, ten networks in plain PyTorch with prior, noise and steps chosen on validation rows (`ensemble.py`);
`linear` (least squares with its predictive normal, or logistic regression with C by cross-validation); `hgb` (scikit-
learn's HistGradientBoosting, its learning rate and leaves by cross-validation; for numbers with a normal whose scale
is that of cross-validated errors); `bde` (scikit-learn-contrib's, of another interpreter that has it, with the
settings of its documentation, noise that depends on the inputs, [16, 16] relu; and with the networks [16]*4 relu,
[50]*2 silu, [64]*3 relu, the best of the four *on the test rows* being `bde's best`).

Tables KIND-N are drawn, N rows for training and 1,000 for test, anew for each split: `linear`, a linear model of eight inputs
(where `exact` is Bayes by quadrature over noise and prior scale); `smooth`, Friedman's function of ten inputs with normal
noise; `tails`, the same with noise of Student's t with two degrees of freedom; `outliers`, with normal noise that is
fifteen times as large in one row of twenty; `unequal`, three classes with 90, 8 and 2 % of the rows. NAME.csv are files in
FOLDER, with text, dates and gaps: ours get them as they are, the others the numbers that our transformers make of them.
`published-NAME` are files NAME.npz in FOLDER with the 20 splits that papers use (Gal and Ghahramani 2016), a tenth of the
rows test: splits 0 to 19.

LPP is in units of the standardised targets. Each result is a line of JSON in benchmarks/results/estimators.jsonl, and
what is there is not run again. `show` writes benchmarks/RESULTS-estimators.md: means over splits, and differences to
ours with intervals that are corrected for the rows that splits share (Nadeau and Bengio 2003); and a short table into the
README, one in the units of papers into that of the study.
"""

import argparse
import functools
import itertools
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from common import difference, keep, stored
from contenders import (
    BDE,
    as_many_at_random,
    bde,
    boosting,
    exact,
    has_tails,
    heavy,
    linear,
    normal,
    ours,
    starts_as_ensemble,
    tuned_ensemble,
)
from splits import CLASSES, FILES, PUBLISHED, UCI, encoded, is_made, split, unit

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "estimators.jsonl", HERE / "RESULTS-estimators.md"
DRAWN = ["linear-20", "linear-50", "linear-200", "smooth-20", "smooth-200", "smooth-2000"]
DRAWN += ["tails-200", "outliers-200", "unequal-500"]
TABLES = [*DRAWN, "diabetes", *CLASSES, *UCI[:3]]
ORDER = [*UCI, "diabetes", *FILES, *PUBLISHED, *DRAWN, *CLASSES]
METHODS = ["ours", "normal", "heavy", "random", "map", "ensemble", "linear", "hgb", *BDE, "exact"]
README, MARKS = HERE.parent / "README.md", ("<!-- estimators: `benchmarks/estimators.py show` -->", "<!-- end -->")
STUDY = HERE.parent / "study" / "README.md"
SHOWN = {"ensemble": "tuned ensemble", "bde": "bde", "hgb": "boosted trees", "linear": "linear, logistic"}
BEST = "bde's best"
#: Log likelihood and RMSE with standard errors, of Lakshminarayanan et al. (2017), table 1: probabilistic backpropagation,
#: MC dropout, and deep ensembles of five.
PAPERS = {
    "published-energy": ("-2.04 ± 0.02, 1.80 ± 0.05", "-1.99 ± 0.09, 1.66 ± 0.19", "-1.38 ± 0.22, 2.09 ± 0.29"),
    "published-concrete": ("-3.16 ± 0.02, 5.67 ± 0.09", "-3.04 ± 0.09, 5.23 ± 0.53", "-3.06 ± 0.18, 6.03 ± 0.58"),
    "published-wine-quality-red": (
        "-0.97 ± 0.01, 0.64 ± 0.01",
        "-0.93 ± 0.06, 0.62 ± 0.04",
        "-0.94 ± 0.12, 0.64 ± 0.04",
    ),
    "published-kin8nm": ("0.90 ± 0.01, 0.10 ± 0.00", "0.95 ± 0.03, 0.10 ± 0.00", "1.20 ± 0.02, 0.09 ± 0.00"),
    "published-power-plant": ("-2.84 ± 0.01, 4.12 ± 0.03", "-2.80 ± 0.05, 4.02 ± 0.18", "-2.79 ± 0.04, 4.11 ± 0.17"),
}


def run(options):
    import torch

    torch.set_num_threads(options.threads)
    contenders = {"linear": linear, "exact": exact, "hgb": boosting, "ours": ours, "normal": normal, "heavy": heavy}
    contenders |= {"random": as_many_at_random, "map": starts_as_ensemble, "ensemble": tuned_ensemble}
    if options.bde:
        contenders |= {name: functools.partial(bde, options.bde, method=name) for name in BDE}
    done = {(row["table"], row["split"], row["method"]) for row in stored(RESULTS)}
    RESULTS.parent.mkdir(exist_ok=True)
    for seed, name in itertools.product(options.splits, options.tables):
        parts = split(name, seed, options.folder)
        numbers = encoded(*parts) if name in FILES else parts
        for method, contender in contenders.items():
            skipped = method not in options.methods or (method == "exact" and not name.startswith("linear"))
            skipped |= method == "normal" and not has_tails(*parts[:2])
            if (name, seed, method) in done or skipped:
                continue
            begun = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scores = contender(*(numbers if method in ("ensemble", "linear", "hgb", *BDE) else parts))
            row = {"table": name, "split": seed, "method": method, "seconds": time.perf_counter() - begun, **scores}
            row |= {"rows": len(parts[0])}
            if name in PUBLISHED:
                row["unit"] = unit(name, seed, options.folder)
            keep(RESULTS, row)
            print(f"{name} {seed} {method}: {row['lpp']:.3f} {row['error']:.3f} {row['seconds']:.0f} s", flush=True)


def show():
    from pyro_sps.study.summary import with_headline

    every, lines = stored(RESULTS), [f"# Estimators\n\n```\n{__doc__.strip()}\n```\n"]
    rows = [row for row in every if math.isfinite(row["lpp"])]
    failed = [
        f"{row['method']} on split {row['split']} of {row['table']}" for row in every if not math.isfinite(row["lpp"])
    ]
    lines += [
        "LPP, and of the others the difference with a 95 % interval: to ours, of heavy, random and map to normal, where it was run.",
        "Bold: surely better or worse.",
        "",
    ]
    columns = [*METHODS[:-1], BEST, METHODS[-1]]
    lines += ["| table | rows | splits | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (2 + len(columns))]
    tails = [
        "",
        "Error: RMSE in standard deviations, or the share of rows whose class is wrong; seconds (median, of the clock).",
        "",
    ]
    tails += lines[3:5]
    for name, by in by_table(rows):
        by[BEST] = best_of([by[name] for name in BDE])
        cells, errors = [], []
        for method in columns:
            found = by[method]
            base = by["normal"] if method in ("heavy", "random", "map") and by["normal"] else by["ours"]
            cells.append("" if not found else f"{np.mean([row['lpp'] for row in found.values()]):.3f}")
            if method != "ours" and set(found) & set(base):
                cells[-1] += f" ({difference(lpp_of(found), lpp_of(base), overlap(name))})"
            mean = np.mean([row["error"] for row in found.values()]) if found else math.nan
            noted = [row["seconds"] for row in found.values() if math.isfinite(row["seconds"])]  # not if it was paused
            took = f", {np.median(noted):.0f} s" if noted else ""
            errors.append(f"{mean:.3f}{took}" if found else "")
        head = f"| {name} | {rows_of(by):,} | {len(by['ours'])} | "
        lines.append(head + " | ".join(cells) + " |")
        tails.append(head + " | ".join(errors) + " |")
    if failed:
        tails += ["", f"Left out, for what it predicted was no number: {', '.join(failed)}."]
    tails += [
        "",
        "Shares of targets in 95 % intervals and CRPS; of classes, expected calibration errors (ten bins).",
        "",
    ]
    tails += intervals(rows)
    tails += [
        "",
        "Targets that are whole numbers: the mean log probability of the number itself, which its cell has (half a step to either",
        "side), where densities grow without bound as noise shrinks; differences to ours as above.",
        "",
    ]
    tails += of_cells(rows)
    tails += [
        "",
        "The splits that papers use, log likelihood and RMSE in their units with standard errors, as papers give them; the last three are those of Lakshminarayanan et al. (2017), table 1.",
        "",
    ]
    published = list(in_units(rows))
    tails += published
    PAGE.write_text("\n".join([*lines, *tails, ""]))
    README.write_text(with_headline(README.read_text(), "\n".join(short(rows)), MARKS))
    STUDY.write_text(with_headline(STUDY.read_text(), "\n".join(published), (MARKS[0], "<!-- end of estimators -->")))
    print(PAGE.read_text())


def overlap(name):
    """Test rows for each row of training, where splits share them."""
    return 0.0 if is_made(name) else 1 / 9 if name in PUBLISHED else 1 / 4


def best_of(several):
    """Of methods' rows by split, those with the best LPP on the splits that all have, and the seconds of all."""
    found = {}
    for seed in set(several[0]).intersection(*several[1:]):
        rows = [own[seed] for own in several]
        found[seed] = max(rows, key=lambda row: row["lpp"]) | {"seconds": sum(row["seconds"] for row in rows)}
    return found


def short(rows):
    """The README's table: mean LPP of the default, and of each other the difference on the splits that both have."""
    yield "| LPP | rows | splits | default | " + " | ".join(SHOWN.values()) + " |"
    yield "| --- |" + " ---: |" * (3 + len(SHOWN))
    for name, own in by_table(rows):
        lpp = {m: lpp_of(found) for m, found in own.items()}
        others = [
            difference(lpp[m], lpp["ours"], overlap(name), 2) if set(lpp[m]) & set(lpp["ours"]) else "" for m in SHOWN
        ]
        mean = np.mean(list(lpp["ours"].values()))
        yield f"| {name} | {rows_of(own):,} | {len(lpp['ours'])} | {mean:.2f} | " + " | ".join(others) + " |"


def by_table(rows):
    """Of each table that the default has seen, its rows by method and split."""
    seen = {row["table"] for row in rows if row["method"] == "ours"}
    for name in [name for name in ORDER if name in seen]:
        own = [row for row in rows if row["table"] == name]
        yield name, {m: {row["split"]: row for row in own if row["method"] == m} for m in METHODS}


def lpp_of(found):
    """By split."""
    return {seed: row["lpp"] for seed, row in found.items()}


def rows_of(own):
    return next(iter(own["ours"].values()))["rows"]


def intervals(rows):
    """Whether uncertainties are right: of the default and of the tuned ensemble, on the splits that both have."""
    yield "| table | splits | what | default | tuned ensemble |"
    yield "| --- | ---: | --- | ---: | ---: |"
    every = {}
    for name, own in by_table(rows):
        for what in ("coverage", "crps", "calibration"):
            both = [s for s in own["ours"] if what in own["ours"][s] and what in own["ensemble"].get(s, {})]
            if both:
                pair = [np.mean([own[m][s][what] for s in both]) for m in ("ours", "ensemble")]
                every.setdefault(what, []).append(pair)
                yield f"| {name} | {len(both)} | {what} | {pair[0]:.3f} | {pair[1]:.3f} |"
    for what, pairs in every.items():
        yield f"| mean of {len(pairs)} | | {what} | " + " | ".join(f"{mean:.3f}" for mean in np.mean(pairs, 0)) + " |"


def of_cells(rows):
    """Log probabilities of whole numbers, of the methods that have them."""
    found = {}
    for name, own in by_table(rows):
        cells = {m: {s: r["cell"] for s, r in by.items() if "cell" in r} for m, by in own.items()}
        found |= {name: cells} if cells["ours"] else {}
    methods = [m for m in METHODS if any(cells[m] for cells in found.values())]
    yield "| table | splits | " + " | ".join(methods) + " |"
    yield "| --- |" + " ---: |" * (1 + len(methods))
    for name, cells in found.items():
        means = [f"{np.mean(list(cells[m].values())):.3f}" if cells[m] else "" for m in methods]
        common = {m: set(cells[m]) & set(cells["ours"]) for m in methods}
        others = [f" ({difference(cells[m], cells['ours'], overlap(name))})" if common[m] else "" for m in methods]
        row = [mean + (other if m != "ours" else "") for m, mean, other in zip(methods, means, others, strict=True)]
        yield f"| {name} | {len(cells['ours'])} | " + " | ".join(row) + " |"


def in_units(rows):
    """Log likelihood and RMSE as papers give them, with standard errors over splits."""
    methods = {"ours": "default", "map": "MAP ensemble", "ensemble": "tuned ensemble", "hgb": "boosted trees"}
    yield "| table | splits | " + " | ".join(methods.values()) + " | PBP | MC dropout | deep ensembles |"
    yield "| --- |" + " ---: |" * (4 + len(methods))
    for name, own in by_table(rows):
        if name in PUBLISHED:
            cells = []
            for found in (list(own[m].values()) for m in methods):
                lpp, error = [r["lpp"] - math.log(r["unit"]) for r in found], [r["error"] * r["unit"] for r in found]
                cells.append(f"{with_error(lpp)}, {with_error(error)}" if found else "")
            yield f"| {name} | {len(own['ours'])} | " + " | ".join([*cells, *PAPERS[name]]) + " |"


def with_error(values):
    """The mean and its standard error, where there are several."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "show"])
    parser.add_argument("--tables", nargs="+", default=TABLES)
    parser.add_argument("--splits", nargs="+", type=int, default=list(range(3, 13)))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--folder", help="where the tables are that are files")
    parser.add_argument("--bde", help="a Python interpreter with scikit-learn-contrib's bde")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.command == "show":
        show()
    else:
        run(options)


if __name__ == "__main__":
    sys.exit(main())
