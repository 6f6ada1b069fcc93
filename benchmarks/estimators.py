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
README.
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
from splits import CLASSES, FILES, PUBLISHED, UCI, encoded, is_made, split

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "estimators.jsonl", HERE / "RESULTS-estimators.md"
DRAWN = ["linear-20", "linear-50", "linear-200", "smooth-20", "smooth-200", "smooth-2000"]
DRAWN += ["tails-200", "outliers-200", "unequal-500"]
TABLES = [*DRAWN, "diabetes", *CLASSES, *UCI[:3]]
METHODS = ["ours", "normal", "heavy", "random", "map", "ensemble", "linear", "hgb", *BDE, "exact"]
README, MARKS = HERE.parent / "README.md", ("<!-- estimators: `benchmarks/estimators.py show` -->", "<!-- end -->")
SHOWN = {
    "ours": "default",
    "normal": "normal noise",
    "heavy": "heavy zeros",
    "random": "as many at random",
    "map": "MAP ensemble",
    "ensemble": "tuned ensemble",
    "bde": "bde",
    "hgb": "boosted trees",
    "linear": "linear, logistic",
}
BEST = "bde's best"


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
    for name in dict.fromkeys(row["table"] for row in rows):
        own = [row for row in rows if row["table"] == name]
        by = {m: {row["split"]: row for row in own if row["method"] == m} for m in METHODS}
        by[BEST] = best_of([by[name] for name in BDE])
        cells, errors = [], []
        for method in columns:
            found = by[method]
            base = by["normal"] if method in ("heavy", "random", "map") and by["normal"] else by["ours"]
            both = sorted(set(found) & set(base))
            cells.append("" if not found else f"{np.mean([row['lpp'] for row in found.values()]):.3f}")
            if found and method != "ours" and both:
                own_lpp, base_lpp = ({s: rows[s]["lpp"] for s in both} for rows in (found, base))
                cells[-1] += f" ({difference(own_lpp, base_lpp, overlap(name))})"
            mean = np.mean([row["error"] for row in found.values()]) if found else math.nan
            seconds = np.median([row["seconds"] for row in found.values()]) if found else math.nan
            errors.append(f"{mean:.3f}, {seconds:.0f} s" if found else "")
        head = f"| {name} | {own[0]['rows']:,} | {len(by['ours'])} | "
        lines.append(head + " | ".join(cells) + " |")
        tails.append(head + " | ".join(errors) + " |")
    if failed:
        tails += ["", f"Left out, for what it predicted was no number: {', '.join(failed)}."]
    PAGE.write_text("\n".join([*lines, *tails, ""]))
    README.write_text(with_headline(README.read_text(), "\n".join(short(rows)), MARKS))
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
    """The README's table: mean LPP of the splits that a table's contenders share."""
    yield "| LPP | rows | splits | " + " | ".join(SHOWN.values()) + " |"
    yield "| --- |" + " ---: |" * (2 + len(SHOWN))
    for name in dict.fromkeys(row["table"] for row in rows):
        own = [row for row in rows if row["table"] == name]
        by = {m: {row["split"]: row["lpp"] for row in own if row["method"] == m} for m in SHOWN}
        if not by["ours"]:
            continue
        both = set(by["ours"]).intersection(*(found for found in by.values() if found))
        means = [f"{np.mean([found[s] for s in both]):.2f}" if found and both else "" for found in by.values()]
        yield f"| {name} | {own[0]['rows']:,} | {len(both)} | " + " | ".join(means) + " |"


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
