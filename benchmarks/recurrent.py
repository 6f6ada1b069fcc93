"""A recurrent network on series: mean field with and without masks, chains, ensembles.

    python benchmarks/recurrent.py run --temperatures FILE [--vowels FOLDER] [--methods ...] [--seeds 0 1 2]
    python benchmarks/recurrent.py show

`temperatures`: the next day's minimum (Melbourne, daily-min-temperatures.csv) from the 14 days before it and the time of the
year, by a GRU of 16 units; the last two of ten years are test. `vowels`: who of nine says it, from up to 29 times 12
coefficients (JapaneseVowels of the UEA archive, Kudo et al. 1999; 270 and 370 series in its .ts files, which FOLDER holds as
JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts), zeros in front of shorter ones. Normal noise of unknown scale, or classes.

Contenders: `plain`, without a network (linear regression on the same numbers, or logistic regression with C by
cross-validation); a MAP network and ten of them as an ensemble, early-stopped, where the chains start; mean field with
nothing fixed, heavy zeros, as many at random; four chains with the same masks (hierarchical prior, 1,000
steps to warm up and 1,000 of which every 20th is a draw). LPP with targets standardised; error: RMSE likewise, or share
of wrong classes; coverage of 95 % intervals, or expected calibration error.

Each result is a line of JSON in benchmarks/results/recurrent.jsonl, and what is there is not run again. `show` writes
benchmarks/results/recurrent.md.
"""

import itertools
import math
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from common import keep, over_seeds, run_or_show, stored, write_cases
from contenders import linear, of_classes

import pyro_sps as sps

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "recurrent.jsonl", HERE / "results" / "recurrent.md"
WINDOW, HIDDEN, TEST_DAYS, CHAINS = 14, 16, 730, 4
SAMPLED = {"chains": CHAINS, "warmup": 1000, "num_samples": 50, "thinning": 20, "map_steps": 1500}


# --- data ------------------------------------------------------------------------------------------


def temperatures(path):
    """Windows of scaled temperature, sine and cosine of the day; next days."""
    import csv
    import datetime

    with open(path) as file:
        rows = [
            (datetime.date.fromisoformat(day), float(value))
            for day, value in itertools.islice(csv.reader(file), 1, None)
        ]
    degrees = np.array([value for _, value in rows])
    angle = np.array([2 * math.pi * day.timetuple().tm_yday / 365.25 for day, _ in rows])
    known = degrees[:-TEST_DAYS]
    scaled = (degrees - known.mean()) / known.std()
    series = np.stack([scaled, np.sin(angle), np.cos(angle)], 1)
    x = np.stack([series[i : i + WINDOW] for i in range(len(series) - WINDOW)])
    y = scaled[WINDOW:, None]
    cut = len(x) - TEST_DAYS
    return _parts(x[:cut], y[:cut], x[cut:], y[cut:])


def vowels(folder):
    """The archive's split; coefficients scaled by those of training."""

    def read(name):
        lines = (Path(folder) / f"JapaneseVowels_{name}.ts").read_text().splitlines()
        start = next(i for i, line in enumerate(lines) if line.lower().startswith("@data"))
        series, labels = [], []
        for line in lines[start + 1 :]:
            *channels, label = line.split(":")
            series.append(np.array([[float(value) for value in channel.split(",")] for channel in channels]).T)
            labels.append(int(label) - 1)
        return series, np.array(labels)

    (train, y), (test, y_test) = read("TRAIN"), read("TEST")
    every = np.concatenate(train)
    longest = max(len(one) for one in [*train, *test])

    def padded(series):
        scaled = [(one - every.mean(0)) / every.std(0) for one in series]
        return np.stack([np.pad(one, ((longest - len(one), 0), (0, 0))) for one in scaled])

    return _parts(padded(train), y, padded(test), y_test)


def _parts(x, y, x_test, y_test):
    x, y, x_test, y_test = (torch.as_tensor(part) for part in (x, y, x_test, y_test))
    x, x_test = x.float(), x_test.float()
    return SimpleNamespace(x=x, y=y.float() if y.dim() > 1 else y, x_test=x_test, y_test=y_test, labels=y.dim() == 1)


# --- contenders: scores of the test part -----------------------------------------------------------


def model(data, scheme, seed, prior=None):
    """The GRU as a `BNN`."""
    outputs = int(data.y.max()) + 1 if data.labels else 1
    torch.manual_seed(seed)
    net = sps.networks.gru(data.x.shape[-1], HIDDEN, 1, outputs)
    likelihood = sps.Categorical() if data.labels else sps.Gaussian(0.7, learn=True)
    return sps.BNN(net, scheme, sps.Zero(), likelihood, prior=prior, example=data.x[:2], seed=seed)


def scored(prediction, data):
    """Scores of a `Prediction`."""
    y = data.y_test.numpy()
    if data.labels:
        return of_classes(prediction.probabilities.double().numpy(), y)
    y = data.y_test.float()
    return {"lpp": prediction.lpp(y), "error": prediction.rmse(y), "coverage": prediction.coverage(y)}


def plain(data, seed):
    """Without a network."""
    x, x_test = (part.flatten(1).double().numpy() for part in (data.x, data.x_test))
    return linear(x, data.y.numpy(), x_test, data.y_test.numpy())


def mean_field(data, seed, scheme):
    """`pyro_sps.fit` with its defaults, one particle less."""
    fit = sps.fit(
        model(data, scheme, seed), data.x, data.y, num_particles=2, standardize=False, seed=seed, progress=False
    )
    return scored(fit.predict(data.x_test, 200), data)


def chains(data, seed, scheme, **changed):
    """`pyro_sps.sample`; what it says of itself beside the scores."""
    bnn = model(data, scheme, seed, sps.Hierarchical())
    samples = sps.sample(bnn, data.x, data.y, standardize=False, seed=seed, progress=False, **SAMPLED | changed)
    facts = scored(samples.predict(data.x_test, 1000), data)
    if changed:
        return facts
    found = sps.diagnose(samples)
    names = ("rhat_weights", "rhat_predictions", "ess_weights", "ess_predictions")
    return facts | {name: float(np.nanmedian(getattr(found, name))) for name in names}


def methods():
    """Contenders by name."""
    start = {"warmup": 0, "num_samples": 1, "thinning": 1}
    found = {
        "plain": plain,
        "MAP": lambda data, seed: chains(data, seed, sps.Unmasked(), **start, chains=1),
        "ensemble of ten": lambda data, seed: chains(data, seed, sps.Unmasked(), **start, chains=10),
    }
    schemes = {"none": sps.Unmasked(), "heavy zeros": sps.Heavy(), "as heavy at random": sps.Random(like=sps.Heavy())}
    for name, scheme in schemes.items():
        found[f"mean field, {name}"] = lambda data, seed, scheme=scheme: mean_field(data, seed, scheme)
    for name, scheme in schemes.items():
        found[f"chains, {name}"] = lambda data, seed, scheme=scheme: chains(data, seed, scheme)
    return found


# --- running and showing -------------------------------------------------------------------------------


def run(options):
    """What is asked for and not there yet."""
    torch.set_num_threads(options.threads)
    done, every = {(row["case"], row["seed"], row["method"]) for row in stored(RESULTS)}, methods()
    cases = {"temperatures": (temperatures, options.temperatures), "vowels": (vowels, options.vowels)}
    for seed, (case, (load, path)) in itertools.product(options.seeds, cases.items()):
        if path is None:
            continue
        data = load(path)
        for name in options.methods or every:
            if (case, seed, name) in done or (name == "plain" and seed):
                continue
            begun = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scores = every[name](data, seed)
            row = {"case": case, "seed": seed, "method": name, "seconds": time.perf_counter() - begun, **scores}
            keep(RESULTS, row)
            print(f"{case} {seed} {name}: {scores} {row['seconds']:.0f} s", flush=True)


def cells(every, last):
    """Of a method's rows."""
    found = [over_seeds([row[name] for row in every]) for name in ("lpp", "error", last)]
    for what in ("weights", "predictions"):
        mixing = [np.mean([row.get(f"{name}_{what}", np.nan) for row in every]) for name in ("rhat", "ess")]
        found.append("" if np.isnan(mixing[0]) else f"{mixing[0]:.2f}, {mixing[1]:.0f}")
    return found


def show():
    """The page: means over seeds, with half their range where there are several."""

    def table(own):
        last = "coverage" if "coverage" in own[0] else "calibration"
        columns = ["LPP", "error", last, "R-hat, ESS of weights", "of functions"]
        return own[0]["case"], columns, lambda every: cells(every, last)

    write_cases(PAGE, "Series", __doc__, stored(RESULTS), methods(), table)


if __name__ == "__main__":
    run_or_show(__doc__, run, show, temperatures=None, vowels=None, seeds=[0])
