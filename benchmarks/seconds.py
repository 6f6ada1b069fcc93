"""Seconds to the score of scikit-learn-contrib's bde: the default regressor, cut short or not, on the same rows.

    PYRO_SPS_DATA=... python benchmarks/seconds.py --bde PYTHON [--splits 3 4] [--threads 2] [--out FOLDER]

Energy (heating load alone), concrete, and 1,200 rows of kin8nm; splits of benchmarks/estimators.py. bde has the settings of
its documentation and an interpreter of its own, with all cores that it wants; ours are `BNNRegressor(num_steps=n)`, which
shares n steps between warm-up and draws, after n / 2 steps towards its starts; "default" has its own 6,000. Both are timed
from within, imports excluded. Ours compile, from 4,500 steps on, what an earlier run has not compiled, on this disk or in
this process, as in the first split of each table: 8 s. JAX compiles in each process of bde's. One after the other, split by
split, on one machine.
"""

import statistics
import time
import warnings

from common import arguments, report
from contenders import bde
from splits import split

TABLES = ("energy", "concrete", "kin8nm")
STEPS = (1000, 2000, 3000, 4500, None)
MOST_ROWS = 1_200


def parts_of(table, seed):
    """A split with one target, and with 1,200 training rows at most."""
    x, y, x_test, y_test = split(table, seed)
    return x[:MOST_ROWS], y[:MOST_ROWS, :1], x_test, y_test[:, :1]


def ours(parts, steps):
    """LPP and seconds of the default, or of fewer steps."""
    import pyro_sps as sps

    x, y, x_test, y_test = parts
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sps.BNNRegressor(random_state=0, progress=False, num_steps=steps).fit(x, y)
        lpp = model.prediction(x_test).lpp(y_test)
    return lpp, time.perf_counter() - begun


def main():
    """All contenders, split by split."""
    options = arguments(__doc__, {"--splits": [3, 4], "--bde": ""})
    results = []
    for table in TABLES:
        for seed in options.splits:
            parts = parts_of(table, seed)
            if options.bde:
                found = bde(options.bde, *parts)
                results.append({"table": table, "split": seed, "method": "bde", **found})
                print(results[-1], flush=True)
            for steps in STEPS:
                lpp, seconds = ours(parts, steps)
                name = f"{steps:,} steps" if steps else "default"
                results.append({"table": table, "split": seed, "method": name, "lpp": lpp, "seconds": seconds})
                print(results[-1], flush=True)
    lines = [
        "| | split | " + " | ".join(dict.fromkeys(row["method"] for row in results)) + " | share of bde's seconds |"
    ]
    lines.append("| --- |" + " ---: |" * (lines[0].count("|") - 2))
    shares = []
    for table in TABLES:
        for seed in options.splits:
            own = {row["method"]: row for row in results if (row["table"], row["split"]) == (table, seed)}
            cells = [f"{row['lpp']:.3f}, {row['seconds']:.0f} s" for row in own.values()]
            share = ""
            if peer := own.get("bde"):
                reached = [r["seconds"] for name, r in own.items() if name != "bde" and r["lpp"] >= peer["lpp"]]
                shares.append(min(reached, default=float("inf")) / peer["seconds"])
                share = f"{shares[-1]:.2f}"
            lines.append(f"| {table} | {seed} | {' | '.join(cells)} | {share} |")
    lines += [
        "",
        "LPP, targets standardised, and seconds; at the end the least seconds of ours whose LPP is bde's or better.",
    ]
    if shares:
        lines.append(f"Median share: {statistics.median(shares):.2f}.")
    report("seconds", options, results, lines)


if __name__ == "__main__":
    main()
