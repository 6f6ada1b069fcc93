"""Default `BNNRegressor` and `BNNClassifier` against what people use for tables, on the same splits.

    PYRO_SPS_DATA=... python benchmarks/estimators.py run [--tables energy concrete ...] [--splits 3 4 5] [--bde PYTHON]
                                                          [--folder FOLDER]
    python benchmarks/estimators.py show

A fifth of the rows is test. Contenders: `ours` with all defaults; `normal`, with normal noise in place of Student's t
(the default before; for numbers, from 100 rows on); with that noise too: `heavy`, the paper's heavy mask, 40 % of the
weights at zero, `random`, as many at random places, and `map`, the networks that chains start from, as an ensemble;
`linear` (least squares with its predictive normal, or logistic regression with C by cross-validation); `hgb` (scikit-
learn's HistGradientBoosting, its learning rate and leaves by cross-validation; for numbers with a normal whose scale
is that of cross-validated errors); `bde` (scikit-learn-contrib's, of another interpreter that has it, with the
settings of its documentation, noise that depends on the inputs, [16, 16] relu; and with the networks [16]*4 relu,
[50]*2 silu, [64]*3 relu, the best of the four *on the test rows* being `bde's best`). For tables `linear-N`, which are drawn from a linear
model, also `exact`: Bayes by quadrature over noise and prior scale. The tables `NAME.csv` are files in FOLDER, with
text, dates and gaps: ours get them as they are, the others the numbers that our transformers make of them. Those named
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
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from common import difference, keep, stored

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "estimators.jsonl", HERE / "RESULTS-estimators.md"
CLASSES = {"iris": "load_iris", "wine": "load_wine", "breast-cancer": "load_breast_cancer", "digits": "load_digits"}
FILES = {"auto_imports.csv": "price", "abalone.csv": "rings", "daily-min-temperatures.csv": "Temp"}
PUBLISHED = {
    f"published-{name}": f"{name}.npz" for name in ("energy", "concrete", "wine-quality-red", "kin8nm", "power-plant")
}
UCI = ["energy", "concrete", "wine-red", "power-plant", "kin8nm"]
TABLES = ["linear-20", "linear-50", "linear-200", "diabetes", *CLASSES, *UCI[:3]]
BDE = {"bde": (2, 16, "relu"), "bde-16x4": (4, 16, "relu"), "bde-50x2": (2, 50, "silu"), "bde-64x3": (3, 64, "relu")}
METHODS = ["ours", "normal", "heavy", "random", "map", "linear", "hgb", *BDE, "exact"]
README, MARKS = HERE.parent / "README.md", ("<!-- estimators: `benchmarks/estimators.py show` -->", "<!-- end -->")
SHOWN = {
    "ours": "default",
    "normal": "normal noise",
    "heavy": "heavy zeros",
    "random": "as many at random",
    "map": "MAP ensemble",
    "bde": "bde",
    "hgb": "boosted trees",
    "linear": "linear, logistic",
}
BEST = "bde's best"
#: Test rows of a linear table, which is drawn anew for each split.
FRESH = 1000


# --- data ------------------------------------------------------------------------------------------


def split(name, seed, folder=None):
    """Training and test parts, inputs standardised or a frame, targets standardised or numbers of classes."""
    from sklearn import datasets

    if name in FILES:
        from pyro_sps.data.mixed import read_mixed

        table = read_mixed(str(Path(folder) / name), [FILES[name]])
        frame = table.frame(list(table.columns))
        y = frame.pop(FILES[name]).to_numpy(float)
        train, test = test_rows(len(y), seed)
        y, y_test = units(y[train].reshape(-1, 1), y[test].reshape(-1, 1))
        return frame.iloc[train], y, frame.iloc[test], y_test
    if name in PUBLISHED:
        with np.load(Path(folder) / PUBLISHED[name]) as file:
            x, y, held = file["x"], file["y"], file["test"][seed]
        train, test = np.flatnonzero(~held), np.flatnonzero(held)
    elif name.startswith("linear-"):
        rows, rng = int(name.removeprefix("linear-")), np.random.default_rng([seed, 1])
        x = rng.normal(size=(rows + FRESH, 8))
        weights = rng.normal(size=8)
        y = x @ weights + 0.3 * np.linalg.norm(weights) * rng.normal(size=len(x))
        train, test = np.arange(rows), np.arange(rows, len(x))
    else:
        if name in CLASSES:
            x, y = getattr(datasets, CLASSES[name])(return_X_y=True)
        elif name == "diabetes":
            x, y = datasets.load_diabetes(return_X_y=True)
        else:
            from pyro_sps.data.datasets import load_uci

            table = load_uci(name)
            x, y = table.x, table.y
        train, test = test_rows(len(x), seed)
    scaled = [units(x[train], x[test])]
    scaled.append((y[train], y[test]) if name in CLASSES else units(*(y[i].reshape(len(i), -1) for i in (train, test))))
    (x, x_test), (y, y_test) = scaled
    return x, y, x_test, y_test


def test_rows(count, seed):
    """Numbers of the rows of training and test."""
    order = np.random.default_rng([seed, 2]).permutation(count)
    return order[count // 5 :], order[: count // 5]


def encoded(x, y, x_test, y_test):
    """The same with numbers for what else is in a frame."""
    from pyro_sps.data.frames import typed
    from pyro_sps.estimators.preprocessing import default_preprocessing

    frame, kinds = typed(x)
    transformer, _ = default_preprocessing(frame, kinds)
    return transformer.fit_transform(frame), y, transformer.transform(typed(x_test, kinds)[0]), y_test


def units(train, test):
    scale = train.std(0)
    scale[scale == 0] = 1.0
    return (train - train.mean(0)) / scale, (test - train.mean(0)) / scale


# --- contenders: each returns LPP, and RMSE or the share of errors ------------------------------------


def ours(x, y, x_test, y_test, **options):
    import pyro_sps as sps

    classes = y.ndim == 1
    estimator = sps.BNNClassifier if classes else sps.BNNRegressor
    model = estimator(random_state=0, progress=False, **options).fit(x, y)
    prediction = model.prediction(x_test)
    extra = {"inference": model.method_, "likelihood": type(model.likelihood_).__name__}
    if model.method_ == "sample":
        posterior = model.posterior_
        extra |= {"energy_error": posterior.errors.mean().item(), "failures": posterior.failures.mean().item()}
    if classes:
        return {**_of_classes(model.predict_proba(x_test), y_test), **extra}
    return {
        "lpp": prediction.lpp(y_test),
        "error": prediction.rmse(y_test),
        "coverage": prediction.coverage(y_test),
        **extra,
    }


def has_tails(x, y):
    """Whether the default's noise is Student's t: for numbers, from 100 rows on."""
    return y.ndim == 2 and len(x) >= 100


def normal(*parts, **options):
    """With the noise that was the default before."""
    return ours(*parts, **({"likelihood": "heteroscedastic"} if has_tails(*parts[:2]) else {}), **options)


def heavy(*parts):
    return normal(*parts, scheme="heavy", values="zero")


def as_many_at_random(*parts):
    import pyro_sps as sps

    return normal(*parts, scheme=sps.Random(like=sps.Heavy()), values="zero")


def starts_as_ensemble(x, y, x_test, y_test):
    """What the chains of the default start from, the same seeds."""
    from pyro_sps.estimators import methods

    plain = methods.sample
    methods.sample = lambda *args, **options: plain(*args, **options | {"warmup": 0, "num_samples": 1, "thinning": 1})
    try:
        return normal(x, y, x_test, y_test)
    finally:
        methods.sample = plain


def linear(x, y, x_test, y_test):
    if y.ndim == 1:
        from sklearn.linear_model import LogisticRegressionCV

        model = LogisticRegressionCV(Cs=7, cv=5, scoring="neg_log_loss", max_iter=5000).fit(x, y)
        return _of_classes(model.predict_proba(x_test), y_test)
    design, test = (np.column_stack([one, np.ones(len(one))]) for one in (x, x_test))
    weights = np.linalg.lstsq(design, y, rcond=None)[0]
    variance = ((y - design @ weights) ** 2).sum(0) / max(1, len(x) - np.linalg.matrix_rank(design))
    leverage = np.einsum("ij,jk,ik->i", test, np.linalg.pinv(design.T @ design), test)
    return _of_normal(test @ weights, np.sqrt(variance * (1 + leverage[:, None])), y_test)


def boosting(x, y, x_test, y_test):
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.model_selection import GridSearchCV, cross_val_predict

    grid = {"learning_rate": [0.03, 0.1], "max_leaf_nodes": [4, 15, 31]}
    folds = 3 if len(x) < 50 else 5
    if y.ndim == 1:
        search = GridSearchCV(HistGradientBoostingClassifier(random_state=0), grid, scoring="neg_log_loss", cv=folds)
        return _of_classes(search.fit(x, y).predict_proba(x_test), y_test)
    means, scales = [], []
    for target in y.T:
        model = GridSearchCV(HistGradientBoostingRegressor(random_state=0), grid, cv=folds).fit(x, target)
        errors = target - cross_val_predict(model.best_estimator_, x, target, cv=folds)
        means.append(model.predict(x_test))
        scales.append(np.full(len(x_test), errors.std()))
    return _of_normal(np.stack(means, 1), np.stack(scales, 1), y_test)


def exact(x, y, x_test, y_test):
    """Linear regression with priors N(0, a²) of weights, log σ ~ N(-2, 1.5²), log a ~ N(0, 1), by quadrature."""
    from scipy.special import logsumexp

    design, test = (np.column_stack([one, np.ones(len(one))]) for one in (x, x_test))
    weights, logs, targets = [], [], y[:, 0]
    gram, moment = design.T @ design, design.T @ targets
    for log_noise, log_scale in itertools.product(np.linspace(-6, 1, 71), np.linspace(-3, 3, 31)):
        noise, scale = math.exp(2 * log_noise), math.exp(2 * log_scale)
        precision = gram / noise + np.eye(len(gram)) / scale
        covariance = np.linalg.inv(precision)
        mean = covariance @ moment / noise
        fit = (targets @ targets - moment @ mean) / noise
        volume = np.linalg.slogdet(precision)[1] + len(gram) * 2 * log_scale + len(x) * 2 * log_noise
        weights.append(-0.5 * (fit + volume + ((log_noise + 2) / 1.5) ** 2 + log_scale**2))
        logs.append((test @ mean, noise + np.einsum("ij,jk,ik->i", test, covariance, test)))
    weights = np.array(weights) - logsumexp(weights)
    means, variances = (np.array(part) for part in zip(*logs, strict=True))
    density = -0.5 * (np.log(2 * np.pi * variances) + (y_test[:, 0] - means) ** 2 / variances)
    mean = np.exp(weights) @ means
    return {
        "lpp": float(logsumexp(density + weights[:, None], 0).mean()),
        "error": float(np.sqrt(((mean - y_test[:, 0]) ** 2).mean())),
    }


def bde(python, *parts, method="bde"):
    """One of its networks, in the interpreter that has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "split.npz"
        np.savez(path, *parts)
        command = [python, __file__, "worker", str(path), "--methods", method]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def bde_worker(path, method):
    """Both tasks with the settings of bde's documentation; one target at a time."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    from bde import BdeClassifier, BdeRegressor
    from bde.loss import CategoricalCrossEntropy, GaussianNLL

    with np.load(path) as file:
        x, y, x_test, y_test = (file[f"arr_{i}"] for i in range(4))
    depth, width, activation = BDE[method]
    options = {
        "hidden_layers": [width] * depth,
        "activation": activation,
        "n_members": 8,
        "seed": 0,
        "epochs": 200,
        "validation_split": 0.15,
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "warmup_steps": 5000,
        "n_samples": 2000,
        "n_thinning": 2,
        "patience": 10,
    }
    begun = time.perf_counter()
    if y.ndim == 1:
        model = BdeClassifier(loss=CategoricalCrossEntropy(), **options).fit(x=x, y=y)
        scores = _of_classes(np.asarray(model.predict_proba(x_test)), y_test)
    else:
        every = []
        for column in range(y.shape[1]):
            model = BdeRegressor(loss=GaussianNLL(), **options).fit(x=x, y=y[:, column : column + 1])
            raw = np.asarray(model.predict(x_test, raw=True), dtype=np.float64)
            raw = raw.reshape(-1, len(x_test), 2)
            scale = np.logaddexp(0, raw[..., 1]) + 1e-6
            log = -0.5 * ((y_test[:, column] - raw[..., 0]) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)
            top = log.max(0)
            lpp = (np.log(np.exp(log - top).mean(0)) + top).mean()
            every.append((lpp, math.sqrt(((raw[..., 0].mean(0) - y_test[:, column]) ** 2).mean())))
        scores = dict(zip(("lpp", "error"), np.mean(every, 0).tolist(), strict=True))
    print(json.dumps({**scores, "seconds": time.perf_counter() - begun}))


def _of_classes(probabilities, y):
    chosen = probabilities[np.arange(len(y)), y]
    calibration = _calibration(probabilities, y)
    error = float((probabilities.argmax(1) != y).mean())
    return {"lpp": float(np.log(chosen.clip(1e-12)).mean()), "error": error, "calibration": calibration}


def _calibration(probabilities, y, bins=10):
    sure, right = probabilities.max(1), probabilities.argmax(1) == y
    place = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [abs(sure[place == b].mean() - right[place == b].mean()) * (place == b).mean() for b in set(place)]
    return float(sum(gaps))


def _of_normal(mean, scale, y):
    log = -0.5 * ((y - mean) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)
    inside = float((np.abs(y - mean) < 1.96 * scale).mean())
    return {
        "lpp": float(log.mean()),
        "error": float(np.sqrt(((y - mean) ** 2).mean(0)).mean()),
        "coverage": inside,
    }


# --- running and showing -------------------------------------------------------------------------


def run(options):
    import torch

    torch.set_num_threads(options.threads)
    contenders = {"linear": linear, "exact": exact, "hgb": boosting, "ours": ours, "normal": normal, "heavy": heavy}
    contenders |= {"random": as_many_at_random, "map": starts_as_ensemble}
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
                scores = contender(*(numbers if method in ("linear", "hgb", *BDE) else parts))
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
    return 0.0 if name.startswith("linear") else 1 / 9 if name in PUBLISHED else 1 / 4


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
    parser.add_argument("command", choices=["run", "show", "worker"])
    parser.add_argument("path", nargs="?")
    parser.add_argument("--tables", nargs="+", default=TABLES)
    parser.add_argument("--splits", nargs="+", type=int, default=list(range(3, 13)))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--folder", help="where the tables are that are files")
    parser.add_argument("--bde", help="a Python interpreter with scikit-learn-contrib's bde")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.command == "worker":
        bde_worker(options.path, options.methods[0])
    elif options.command == "show":
        show()
    else:
        run(options)


if __name__ == "__main__":
    sys.exit(main())
