"""A census-like table of a million rows, from file to report on the command line: seconds and memory.

    python benchmarks/census.py [--rows 1000000] [--folder FOLDER] [--out benchmarks/results] [-- options of fit]

The table is drawn here: numbers, text of 2 to 300 levels, dates, gaps, and wages that depend on most of it, with noise
that grows with age. `pyro-sps fit`, `predict` and `diagnose` run on it as a user would run them; peak memory is that of
the process that ran, as the system counts it. scikit-learn's HistGradientBoosting on the same rows, its text as
categories, says what is in the table.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HELD = 0.1


def table(rows, seed=0):
    """The table as a frame, and the mean and standard deviation of the logarithm of its wages."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    age = rng.integers(17, 91, rows)
    schooling = rng.choice(
        ["none", "school", "college", "bachelor", "master", "doctor"], rows, p=[0.1, 0.4, 0.2, 0.2, 0.08, 0.02]
    )
    job = rng.choice([f"job {i:03d}" for i in range(300)], rows, p=_zipf(300))
    state = rng.choice([f"state {i:02d}" for i in range(50)], rows, p=_zipf(50))
    sex = rng.choice(["female", "male"], rows)
    hours = np.clip(rng.normal(38, 11, rows).round(), 1, 99)
    capital = np.where(rng.random(rows) < 0.92, 0, rng.lognormal(8, 1.5, rows)).round()
    day = np.datetime64("2020-01-01") + rng.integers(0, 1500, rows)
    levels = {
        name: np.random.default_rng([seed, i]).normal(size=300) for i, name in enumerate(("job", "state", "school"))
    }
    years = np.select(
        [schooling == name for name in ("school", "college", "bachelor", "master", "doctor")], [1, 2, 3, 4, 5]
    )
    mean = (
        9.0
        + 0.25 * years * (1 + 0.2 * np.sin(age / 12))
        - ((age - 50) / 30) ** 2
        + 0.4 * levels["job"][[int(name[-3:]) for name in job]]
        + 0.1 * levels["state"][[int(name[-2:]) for name in state]]
        + np.log(hours / 38)
        + 0.05 * np.log1p(capital)
        + 0.1 * (sex == "male") * (years > 2)
    )
    scale = 0.2 + 0.004 * age
    frame = pd.DataFrame(
        {"age": age, "schooling": schooling, "job": job, "state": state, "sex": sex, "hours": hours, "capital gain": capital,
         "interviewed": day.astype(str), "log wage": np.round(mean + scale * rng.normal(size=rows), 4)}
    )  # fmt: skip
    for name in ("hours", "schooling", "job"):
        frame.loc[rng.random(rows) < 0.05, name] = None
    return frame, mean, scale


def _zipf(levels):
    weights = 1 / np.arange(1, levels + 1)
    return weights / weights.sum()


def run(*command):
    """What the command printed, its seconds and its peak memory in GB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{said}")
    return said, seconds, usage.ru_maxrss / 1e6


def boosted(train, test):
    from sklearn.ensemble import HistGradientBoostingRegressor

    def numbers(frame):
        frame = frame.drop(columns="log wage")
        frame["interviewed"] = frame["interviewed"].str[:4].astype(int)
        jobs = frame.pop("job").str[-3:].astype(float)  # more levels than it takes as categories: as a number
        return frame.assign(job=jobs).astype({name: "category" for name in ("schooling", "state", "sex")})

    start = time.perf_counter()
    model = HistGradientBoostingRegressor(
        categorical_features="from_dtype", random_state=0, max_iter=500, early_stopping=True
    )
    model.fit(numbers(train), train["log wage"])
    residuals = test["log wage"] - model.predict(numbers(test))
    scale = np.std(train["log wage"] - model.predict(numbers(train)))
    return np.sqrt(np.mean(residuals**2)), _lpp(residuals, scale), time.perf_counter() - start


def _lpp(residuals, scale):
    return float(np.mean(-0.5 * (residuals / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("options", nargs="*", help="of pyro-sps fit, after --")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    frame, mean, scale = table(asked.rows)
    held = int(HELD * asked.rows)
    frame[held:].to_csv(folder / "census.csv", index=False)
    frame[:held].to_csv(folder / "new.csv", index=False)
    size = (folder / "census.csv").stat().st_size / 1e6

    fitted = run(
        "pyro-sps",
        "fit",
        str(folder / "census.csv"),
        "--target",
        "log wage",
        "--out",
        str(folder / "run"),
        *asked.options,
    )
    print(fitted[0])
    predicted = run(
        "pyro-sps", "predict", str(folder / "run"), str(folder / "new.csv"), "--out", str(folder / "predictions.csv")
    )
    print(predicted[0])
    diagnosed = run(
        "pyro-sps", "diagnose", str(folder / "run"), str(folder / "census.csv"), "--html", str(folder / "page.html")
    )
    print(diagnosed[0])

    import pandas as pd

    found = pd.read_csv(folder / "predictions.csv")
    middle, spread = (found[next(c for c in found if c.endswith(end))].to_numpy() for end in ("mean", "std"))
    truth = frame["log wage"][:held].to_numpy()
    residuals = truth - middle
    trees = boosted(frame[held:], frame[:held])
    rows = {
        "pyro-sps fit": (np.sqrt(np.mean(residuals**2)), _lpp(residuals, spread), *fitted[1:]),
        "pyro-sps predict": (None, None, *predicted[1:]),
        "pyro-sps diagnose": (None, None, *diagnosed[1:]),
        "boosted trees": (*trees, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6),
        "the law it was drawn from": (
            np.sqrt(np.mean((truth - mean[:held]) ** 2)),
            _lpp(truth - mean[:held], scale[:held]),
            None,
            None,
        ),
    }
    lines = [
        "# A census-like table", "",
        f"`python benchmarks/census.py --rows {asked.rows}`: {asked.rows:,} rows, {size:.0f} MB of CSV, a tenth held out; LPP in",
        "units of the logarithm of wages, of a normal with the predicted mean and standard deviation. The law knows the",
        "cells that are gaps to the others.", "",
        "| | RMSE | LPP | seconds | peak memory, GB |", "| --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name, row in rows.items():
        cells = [
            "" if value is None else f"{value:.{digits}f}" for value, digits in zip(row, (4, 4, 0, 2), strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "What `fit` printed:", "", "```text", fitted[0].strip(), "```"]
    (asked.out / "census.md").write_text("\n".join(lines) + "\n")
    (asked.out / "census.json").write_text(
        json.dumps({n: [None if v is None else float(v) for v in r] for n, r in rows.items()}) + "\n"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
