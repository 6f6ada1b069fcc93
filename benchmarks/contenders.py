"""What the benchmarks of estimators compare: each returns LPP, and RMSE or the share of errors."""

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BDE = {"bde": (2, 16, "relu"), "bde-16x4": (4, 16, "relu"), "bde-50x2": (2, 50, "silu"), "bde-64x3": (3, 64, "relu")}


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
        return {**of_classes(model.predict_proba(x_test), y_test), **extra}
    return {
        "lpp": prediction.lpp(y_test),
        "error": prediction.rmse(y_test),
        "coverage": prediction.coverage(y_test),
        "crps": crps(prediction.draws.numpy(), y_test),
        **cell_of_density(lambda at: prediction.log_prob(at).numpy(), y, y_test),
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
        return of_classes(model.predict_proba(x_test), y_test)
    design, test = (np.column_stack([one, np.ones(len(one))]) for one in (x, x_test))
    weights = np.linalg.lstsq(design, y, rcond=None)[0]
    variance = ((y - design @ weights) ** 2).sum(0) / max(1, len(x) - np.linalg.matrix_rank(design))
    leverage = np.einsum("ij,jk,ik->i", test, np.linalg.pinv(design.T @ design), test)
    return of_normal(test @ weights, np.sqrt(variance * (1 + leverage[:, None])), y, y_test)


def boosting(x, y, x_test, y_test):
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.model_selection import GridSearchCV, cross_val_predict

    grid = {"learning_rate": [0.03, 0.1], "max_leaf_nodes": [4, 15, 31]}
    folds = 3 if len(x) < 50 else 5
    if y.ndim == 1:
        search = GridSearchCV(HistGradientBoostingClassifier(random_state=0), grid, scoring="neg_log_loss", cv=folds)
        return of_classes(search.fit(x, y).predict_proba(x_test), y_test)
    means, scales = [], []
    for target in y.T:
        model = GridSearchCV(HistGradientBoostingRegressor(random_state=0), grid, cv=folds).fit(x, target)
        errors = target - cross_val_predict(model.best_estimator_, x, target, cv=folds)
        means.append(model.predict(x_test))
        scales.append(np.full(len(x_test), errors.std()))
    return of_normal(np.stack(means, 1), np.stack(scales, 1), y, y_test)


def tuned_ensemble(x, y, x_test, y_test):
    """Ten networks with noise, steps and prior chosen on validation rows."""
    from ensemble import ensemble

    predicted, chosen = ensemble(x, y, x_test)
    if y.ndim == 1:
        return {**of_classes(predicted, y_test), "chosen": chosen}
    means, scales = predicted
    noise = np.random.default_rng(0).normal(size=(100, *means.shape))
    draws = (means + scales * noise).reshape(-1, *y_test.shape)
    lower, upper = np.quantile(draws, [0.025, 0.975], axis=0)
    return {
        "lpp": mixture_lpp(means, scales, y_test),
        "error": float(np.sqrt(((means.mean(0) - y_test) ** 2).mean(0)).mean()),
        "coverage": float(((y_test >= lower) & (y_test <= upper)).mean()),
        "crps": crps(draws, y_test),
        **cell_of_mixture(means, scales, y, y_test),
        "chosen": chosen,
    }


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
        command = [python, __file__, str(path), method]
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
        scores = of_classes(np.asarray(model.predict_proba(x_test)), y_test)
    else:
        every = []
        for column in range(y.shape[1]):
            model = BdeRegressor(loss=GaussianNLL(), **options).fit(x=x, y=y[:, column : column + 1])
            raw = np.asarray(model.predict(x_test, raw=True), dtype=np.float64)
            raw = raw.reshape(-1, len(x_test), 2)
            scale = np.logaddexp(0, raw[..., 1]) + 1e-6
            target = y_test[:, column]
            own = {"lpp": mixture_lpp(raw[..., 0], scale, target)}
            own["error"] = math.sqrt(((raw[..., 0].mean(0) - target) ** 2).mean())
            every.append(own | cell_of_mixture(raw[..., 0], scale, y[:, column], target))
        scores = {key: float(np.mean([own[key] for own in every])) for key in every[0]}
    print(json.dumps({**scores, "seconds": time.perf_counter() - begun}))


def crps(draws, y):
    """The continuous ranked probability score of draws (draws, rows, targets), which estimates that of their law."""
    import scoringrules

    return float(scoringrules.crps_ensemble(y, np.moveaxis(draws, 0, -1), estimator="pwm").mean())


def of_classes(probabilities, y):
    chosen = probabilities[np.arange(len(y)), y]
    error = float((probabilities.argmax(1) != y).mean())
    return {
        "lpp": float(np.log(chosen.clip(1e-12)).mean()),
        "error": error,
        "calibration": calibration(probabilities, y),
    }


def calibration(probabilities, y, bins=10):
    sure, right = probabilities.max(1), probabilities.argmax(1) == y
    place = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [abs(sure[place == b].mean() - right[place == b].mean()) * (place == b).mean() for b in set(place)]
    return float(sum(gaps))


def mixture_lpp(means, scales, y):
    """Of equally weighted normals, whose means and scales have them in front of the shape of y."""
    return mean_of_mixture(-0.5 * ((y - means) / scales) ** 2 - np.log(scales) - 0.5 * math.log(2 * math.pi))


def mean_of_mixture(log):
    """Over all that is predicted the mean logarithm of a mixture, from the logarithms of its parts."""
    return float((np.logaddexp.reduce(log, 0) - math.log(len(log))).mean())


def cell_of_mixture(means, scales, y, y_test):
    """Of such a mixture, for targets on a coarse grid: the mean log probability of the cells that the targets stand for."""
    from scipy.special import log_ndtr

    if not (step := step_of(y)):
        return {}
    lower, upper = ((y_test + side * step / 2 - means) / scales for side in (-1, 1))
    # In the lower tail, where differences of log Φ keep their digits.
    lower, upper = np.where(lower > 0, -upper, lower), np.where(lower > 0, -lower, upper)
    high = log_ndtr(upper)
    log = high + np.log1p(-np.exp(np.minimum(log_ndtr(lower) - high, -1e-300)))
    return {"cell": mean_of_mixture(log)}


def cell_of_density(log_density, y, y_test):
    """The same of a density that is smooth within a cell, by Gauss and Legendre's rule."""
    if not (step := step_of(y)):
        return {}
    nodes, weights = np.polynomial.legendre.leggauss(16)
    logs = [
        log_density(y_test + node * step / 2) + math.log(w * step / 2) for node, w in zip(nodes, weights, strict=True)
    ]
    return {"cell": float(np.logaddexp.reduce(logs, 0).mean())}


def step_of(y):
    """Of targets that are whole numbers, before they were standardised, and few of them: what lies between two."""
    values = np.unique(y)
    steps = np.diff(values) / np.diff(values).min() if 1 < len(values) <= 20 else np.array([0.5])
    return float(np.diff(values).min()) if np.abs(steps - steps.round()).max() < 1e-6 else None


def of_normal(mean, scale, y, y_test):
    inside = float((np.abs(y_test - mean) < 1.96 * scale).mean())
    return {
        "lpp": mixture_lpp(mean[None], scale[None], y_test),
        "error": float(np.sqrt(((mean - y_test) ** 2).mean(0)).mean()),
        "coverage": inside,
        **cell_of_mixture(mean[None], scale[None], y, y_test),
    }


if __name__ == "__main__":  # in the interpreter that has bde
    bde_worker(*sys.argv[1:])
