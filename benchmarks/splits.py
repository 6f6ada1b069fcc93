"""Tables of the benchmarks of estimators, and how they are split."""

from pathlib import Path

import numpy as np

CLASSES = {"iris": "load_iris", "wine": "load_wine", "breast-cancer": "load_breast_cancer", "digits": "load_digits"}
FILES = {"auto_imports.csv": "price", "abalone.csv": "rings", "daily-min-temperatures.csv": "Temp"}
PUBLISHED = {
    f"published-{name}": f"{name}.npz" for name in ("energy", "concrete", "wine-quality-red", "kin8nm", "power-plant")
}
UCI = ["energy", "concrete", "wine-red", "power-plant", "kin8nm"]
#: Test rows of a table that is drawn, anew for each split.
FRESH = 1000


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
    elif is_made(name):
        kind, rows = name.split("-")
        x, y = MADE[kind](int(rows) + FRESH, np.random.default_rng([seed, 1]))
        train, test = np.arange(int(rows)), np.arange(int(rows), len(x))
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
    numbers = name not in CLASSES and not name.startswith("unequal")
    scaled.append(units(*(y[i].reshape(len(i), -1) for i in (train, test))) if numbers else (y[train], y[test]))
    (x, x_test), (y, y_test) = scaled
    return x, y, x_test, y_test


def unit(name, seed, folder):
    """Of a table that papers use, the standard deviation of the targets in training, in their units."""
    with np.load(Path(folder) / PUBLISHED[name]) as file:
        return float(file["y"][~file["test"][seed]].std())


def is_made(name):
    """Whether a table is drawn, a new one for each split, so that splits share no rows."""
    return name.split("-")[0] in MADE


def linear_model(count, rng):
    """Eight inputs, noise of 0.3 standard deviations."""
    x = rng.normal(size=(count, 8))
    weights = rng.normal(size=8)
    return x, x @ weights + 0.3 * np.linalg.norm(weights) * rng.normal(size=count)


def friedman(noise):
    """The first function of Friedman (1991), smooth, of five of ten inputs; its standard deviation is about 5."""

    def draw(count, rng):
        x = rng.uniform(size=(count, 10))
        mean = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        return x, mean + noise(count, rng)

    return draw


def outlying(count, rng):
    """Normal noise, fifteen times as large in one row of twenty."""
    return rng.normal(size=count) * np.where(rng.uniform(size=count) < 0.05, 15.0, 1.0)


def unequal(count, rng):
    """Three classes with 90, 8 and 2 % of the rows, five of ten inputs informative."""
    from sklearn.datasets import make_classification

    return make_classification(
        count,
        10,
        n_informative=5,
        n_classes=3,
        n_clusters_per_class=1,
        weights=[0.9, 0.08, 0.02],
        flip_y=0,
        random_state=int(rng.integers(2**31)),
    )


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


MADE = {
    "linear": linear_model,
    "smooth": friedman(lambda count, rng: rng.normal(size=count)),
    "tails": friedman(lambda count, rng: rng.standard_t(2, size=count)),
    "outliers": friedman(outlying),
    "unequal": unequal,
}
