"""Classification of the rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from ..data.arrays import to_numpy
from ..data.frames import as_table
from ..model.likelihoods import Categorical, Likelihood
from .methods import Recipe
from .prediction import codes_of
from .table import TableEstimator


class BNNClassifier(ClassifierMixin, TableEstimator):
    """A Bayesian neural network for tables whose targets are labels, by scikit-learn's contract.

    Labels may be of any type; probabilities are in the order of `classes_`. Tables are read as by `BNNRegressor`.

    With `method="sample"` probabilities are the mean of two predictions: that of the chains and that of the
    early-stopped networks that the chains start from, a deep ensemble. Labels of tables have been looked at by people
    and are hardly ever as noisy as the model thinks possible (Aitchison 2021, A statistical theory of cold
    posteriors in deep neural networks), so that chains alone are too unsure where classes are far apart, and the
    ensemble alone is too sure where they are not. `posterior_` holds both; `posterior_.predict` is of the chains alone.

    Args:
        hidden: Widths of the hidden layers.
        activation: One of `pyro_sps.network.ACTIVATIONS`.
        likelihood: `"auto"` or `"categorical"`, which are the same: one of the classes, by softmax.
        scheme: As in `BNNRegressor`.
        values: As in `BNNRegressor`.
        method: As in `BNNRegressor`; of more than 200 rows networks have no linear path.
        chains: Number of chains, which run as one program.
        replicas: Number of fits, which run as one program.
        num_steps: Steps of each; default as in `BNNRegressor`.
        num_samples: Posterior draws that predictions are made of.
        preprocessing: As in `BNNRegressor`.
        time_limit: As in `BNNRegressor`.
        random_state: As in `BNNRegressor`.
        device: Where to compute; default: the CPU.
        progress: Whether to show progress bars (on a terminal).

    Attributes:
        classes_: The labels, in ascending order.
        preprocessing_: The fitted transformer.
        posterior_: The posterior, `Samples` or `Fits`.
        method_: How it was found.
        columns_: What each column holds: `"number"`, `"text"` or `"date"`.
        left_out_: Columns that are not used, for nearly every row has a text of its own.

    Raises:
        ValueError: By `fit`, as in `BNNRegressor`, and if there is one class only.

    Example:
        >>> import pandas as pd, pyro_sps as sps
        >>> table = pd.DataFrame({"size": [1.0, 2.0, 8.0, 9.0] * 5, "colour": ["red", "red", "blue", None] * 5})
        >>> model = sps.BNNClassifier(hidden=(5,), num_steps=150, chains=2, random_state=0)
        >>> model = model.fit(table, ["small", "small", "large", "large"] * 5)
        >>> model.classes_.tolist(), model.predict_proba(table[["colour", "size"]]).shape
        (['large', 'small'], (20, 2))
    """

    _LIKELIHOODS = ("auto", "categorical")

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BNNClassifier:
        """Fit to a table.

        Args:
            X: Inputs, a table or an array of shape (rows, columns).
            y: Labels, shape (rows,).
            sample_weight: As for `BNNRegressor`; weights of classes (`sklearn.utils.class_weight`) are given here too.
        """
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        table = as_table(y)
        labels = column_or_1d(np.asarray(y if table is None else table), warn=True)
        if labels.dtype == object:
            labels = _plain(labels)
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have at least two classes, got one class: {self.classes_[:1].tolist()}")
        given = None if sample_weight is None else np.asarray(sample_weight)
        if given is not None and given.shape == labels.shape:
            counted = np.unique(labels[given != 0])
            if len(counted) == 1:
                raise ValueError(f"y must have at least two classes in rows that count, got one class: {counted}")
        self._fit(X, codes_of(labels, self.classes_), len(self.classes_), sample_weight)
        return self

    def _likelihood(
        self, recipe: Recipe, x: np.ndarray, y: np.ndarray, seconds: float | None, weights: np.ndarray | None
    ) -> Likelihood:
        if isinstance(self.likelihood, Likelihood) and not isinstance(self.likelihood, Categorical):
            raise ValueError(f"likelihood must be Categorical, got {type(self.likelihood).__name__}")
        return Categorical()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, shape (rows, classes), in the order of `classes_`.

        Args:
            X: As in `fit`.
        """
        probabilities = to_numpy(self.prediction(X).mean)
        return probabilities / probabilities.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape (rows,).

        Args:
            X: As in `fit`.
        """
        best = self.predict_proba(X).argmax(1)
        labels: np.ndarray = self.classes_[best]
        return labels


def _plain(labels: np.ndarray) -> np.ndarray:
    """Labels that came as objects, as an array of their own type where they have one."""
    gaps = [row for row, label in enumerate(labels) if label is None or label != label]
    if gaps:
        raise ValueError(f"y must have a label in each row, got {labels[gaps[0]]!r} in row {gaps[0]}")
    kinds = {str if isinstance(label, str) else type(label) for label in labels}
    return np.array(labels.tolist()) if len(kinds) == 1 and kinds <= {str, int, bool, float} else labels
