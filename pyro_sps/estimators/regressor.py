"""Regression of numbers on the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array

from ..data.arrays import to_numpy
from ..data.frames import as_table
from ..model.likelihoods import Gaussian, HeteroscedasticGaussian, HeteroscedasticStudentT, Likelihood
from .methods import Recipe, choose_likelihood
from .table import TableEstimator


class BNNRegressor(RegressorMixin, TableEstimator):
    """A Bayesian neural network for tables whose targets are numbers, by scikit-learn's contract.

    It takes arrays and tables of pandas, polars and pyarrow. Text, categories, Booleans, dates and gaps are turned
    into numbers (`pyro_sps.estimators.preprocessing.default_preprocessing`), targets are scaled, and predictions
    come back in their units. Columns with names may come in another order than in training.

    Args:
        hidden: Widths of the hidden layers.
        activation: One of `pyro_sps.network.ACTIVATIONS`.
        likelihood: `"gaussian"` (normal noise, its scale learned), `"heteroscedastic"` (a scale that depends on the
            inputs), `"student-t"` (such a scale, and a t law in place of the normal one, of which outliers cost less:
            `pyro_sps.HeteroscedasticStudentT`), a real-valued likelihood of `pyro_sps`, or `"auto"`: Gaussian with
            fewer than 100 rows; else for samples Student's t, under a prior that holds noise to one scale until data
            says otherwise; for fits heteroscedastic where two short ones say that it predicts held-out rows better, by
            more than two standard errors.
        scheme: What is fixed: `"none"`, `"light"`, `"heavy"`, `"random"`, `"rigid"`, a scheme of `pyro_sps`, or
            `"auto"`: nothing for samples, 85 % of each weight matrix at random places for fits.
        values: At what: `"zero"`, `"constant"`, `"learned-constant"`, `"normal"`, `"ladder"`, `"map"`, a rule of
            `pyro_sps`, or `"auto"`: MAP values.
        method: How the posterior is found: `"sample"` by microcanonical Langevin chains (`pyro_sps.sample`), of a
            network with a linear path beside its hidden layers and the prior `pyro_sps.Hierarchical()`; `"fit"` as a
            mixture of `replicas` mean-field fits (`pyro_sps.fit`), which take less time but know less of their
            uncertainty; `"auto"`: samples where rows x weights are 30 million at most (10,000 rows and the default
            widths), on a GPU 300 million, else fits. Ten chains take about a minute for 1,000 rows and ten for 10,000,
            on one core of a CPU; a warning says if they will take longer.
        chains: Number of chains, which run as one program.
        replicas: Number of fits, which run as one program.
        num_steps: Steps of each fit; default 5,000, in tables of more than 20,000 rows 20 times over all rows, 20,000
            at most. Or steps of each chain, of which a third is warm-up; default 6,000.
        num_samples: Posterior draws that predictions are made of, at most.
        preprocessing: `"auto"`, a transformer of your own, or None for columns that are scaled numbers already.
        time_limit: Seconds after which a fit is ended, with the result so far. What comes before its first step, such
            as the search for MAP values, is not interrupted.
        random_state: Seed, as scikit-learn takes it. With an integer the same data gives the same numbers.
        device: Where to compute; default: the CPU.
        progress: Whether to show progress bars (on a terminal).

    Attributes:
        preprocessing_: The fitted transformer.
        posterior_: The posterior, `Samples` or `Fits`.
        method_: How it was found.
        likelihood_: The likelihood that was used.
        columns_: What each column holds: `"number"`, `"text"` or `"date"`.
        left_out_: Columns that are not used, for nearly every row has a text of its own.
        n_features_in_: Number of columns.
        feature_names_in_: Their names, where they have some.

    Raises:
        ValueError: By `fit`, if an option is out of range, or the data has gaps in the targets, infinite or complex
            numbers, a single row, or nothing but texts that differ in each row. Constant columns are no error: nothing
            is learned from them.

    Example:
        >>> import numpy as np, pyro_sps as sps
        >>> x = np.linspace(-1, 1, 30)[:, None]
        >>> model = sps.BNNRegressor(hidden=(5,), num_steps=150, chains=2, random_state=0).fit(x, x[:, 0] ** 2)
        >>> mean, std = model.predict([[0.5], [0.7]], return_std=True)
        >>> lower, upper = model.predict_interval([[0.5], [0.7]], level=0.9)
        >>> mean.shape, bool((lower < upper).all()), model.predict_quantiles([[0.5], [0.7]], [0.1, 0.5, 0.9]).shape
        ((2,), True, (2, 3))
    """

    _LIKELIHOODS = ("auto", "gaussian", "heteroscedastic", "student-t")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BNNRegressor:
        """Fit to a table.

        Args:
            X: Inputs, a table or an array of shape (rows, columns).
            y: Targets, shape (rows,) or (rows, targets).
            sample_weight: How often each row counts, shape (rows,): one of weight 2 as if it were there twice, one of
                weight 0 not at all. They are not normalised: their sum is what the data weighs against the prior.
                Default: once.
        """
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        table = as_table(y)
        values = check_array(
            y if table is None else table, ensure_2d=False, dtype=np.float64, input_name="y", ensure_min_samples=0
        )
        if values.ndim > 2:
            raise ValueError(f"y must have shape (rows,) or (rows, targets), got {values.shape}")
        self.is_vector_ = values.ndim == 1
        targets = values.reshape(len(values), -1)
        self._fit(X, targets, targets.shape[1], sample_weight)
        return self

    def _likelihood(
        self, recipe: Recipe, x: np.ndarray, y: np.ndarray, seconds: float | None, weights: np.ndarray | None
    ) -> Likelihood:
        if isinstance(self.likelihood, Likelihood):
            if not self.likelihood.real_valued:
                raise ValueError(f"likelihood must be one of real numbers, got {type(self.likelihood).__name__}")
            return self.likelihood
        if self.likelihood == "auto":
            return choose_likelihood(recipe, x, y, seconds, weights)
        per_output = y.shape[1] if y.shape[1] > 1 else None
        if self.likelihood == "gaussian":
            return Gaussian(learn=True, per_output=per_output)
        return HeteroscedasticStudentT() if self.likelihood == "student-t" else HeteroscedasticGaussian()

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Mean, and with `return_std` standard deviation, of the posterior predictive, in the units of the targets.

        Args:
            X: As in `fit`.
            return_std: Whether to return (mean, standard deviation); the noise is part of it.

        Returns:
            Shape (rows,), or that of the targets that `fit` was given.
        """
        prediction = self.prediction(X)
        mean = self._shaped(prediction.mean)
        return (mean, self._shaped(prediction.std)) if return_std else mean

    def predict_interval(self, X: Any, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of the central interval of the posterior predictive, noise included.

        Args:
            X: As in `fit`.
            level: Probability inside.

        Raises:
            ValueError: If `level` is not in (0, 1).
        """
        lower, upper = self.prediction(X).interval(level)
        return self._shaped(lower), self._shaped(upper)

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = (0.05, 0.5, 0.95)) -> np.ndarray:
        """Quantiles of the posterior predictive, noise included.

        Args:
            X: As in `fit`.
            quantiles: Their levels, in (0, 1).

        Returns:
            Shape (rows, quantiles), or (rows, targets, quantiles).

        Raises:
            ValueError: If a level is not in (0, 1).
        """
        found = self.prediction(X).quantiles(quantiles)
        return np.stack([self._shaped(one) for one in found], axis=-1)

    def _shaped(self, values: Any) -> np.ndarray:
        array = to_numpy(values)
        return array[:, 0] if self.is_vector_ else array
