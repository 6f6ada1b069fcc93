"""Simple models that a network has to beat: a mean or a line, frequencies or a logistic regression."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Scores = dict[str, dict[str, float]]


def of_numbers(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> Scores:
    """RMSE and LPP of a linear model (least squares) and of the mean, averaged over targets.

    Args:
        x: Inputs to train on, shape (rows, inputs).
        y: Targets, shape (rows, targets).
        x_test: Inputs that are held out.
        y_test: Their targets.
    """
    import numpy as np

    scale = np.where(x.std(0) > 0, x.std(0), 1.0)
    one, one_test = (np.column_stack([np.ones(len(part)), (part - x.mean(0)) / scale]) for part in (x, x_test))
    found: Scores = {}
    for name, inputs, test in (("linear model", one, one_test), ("mean", one[:, :1], one_test[:, :1])):
        weights, _, rank, _ = np.linalg.lstsq(inputs, y, rcond=1e-8)
        left = max(1, len(y) - int(rank))
        spread = np.maximum(np.sqrt(np.square(y - inputs @ weights).sum(0) / left), 1e-9 * np.abs(y).max(0) + 1e-300)
        error = y_test - test @ weights
        logs = -0.5 * np.square(error / spread) - np.log(spread) - 0.5 * math.log(2 * math.pi)
        found[name] = {"rmse": float(np.sqrt(np.square(error).mean(0)).mean()), "lpp": float(logs.mean())}
    return found


def of_labels(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, classes: int) -> Scores:
    """Accuracy and LPP of a logistic regression, if scikit-learn is there, and of the frequencies of the classes.

    Args:
        x: Inputs to train on, shape (rows, inputs).
        y: Numbers of classes, shape (rows,).
        x_test: Inputs that are held out.
        y_test: Their classes.
        classes: How many there are.
    """
    import numpy as np

    counts = np.bincount(y, minlength=classes) + 1.0
    frequencies = np.tile(counts / counts.sum(), (len(y_test), 1))
    found: Scores = {}
    if importlib.util.find_spec("sklearn") and len(np.unique(y)) > 1:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
        probabilities = np.zeros((len(y_test), classes))
        probabilities[:, model.classes_] = model.predict_proba(x_test)
        found["logistic regression"] = _of_probabilities(probabilities, y_test)
    found["most frequent class"] = _of_probabilities(frequencies, y_test)
    return found


def _of_probabilities(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    import numpy as np

    own = np.maximum(probabilities[np.arange(len(y)), y], 1e-12)
    return {"accuracy": float((probabilities.argmax(1) == y).mean()), "lpp": float(np.log(own).mean())}
