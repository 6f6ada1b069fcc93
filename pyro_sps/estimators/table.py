"""What `BNNRegressor` and `BNNClassifier` have in common: the way from a table to a posterior and back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from ..base.checks import is_integer, require_count, require_positive
from ..base.process import warn_user
from ..data.encoding import Encoder
from ..data.frames import TEXT, as_frame, as_table, typed
from ..model.likelihoods import Likelihood
from ..network.build import ACTIVATIONS
from ..posterior.samples import Samples
from .files import load_table_model, save_table_model
from .methods import SCHEMES, VALUES, Recipe, infer, members_of
from .prediction import TablePrediction, in_double
from .preprocessing import default_preprocessing, encoder_of

#: So many standard deviations of a column beyond its training range count as far outside.
FAR = 1.0


class TableEstimator(BaseEstimator):
    """Base of the estimators: it reads tables, fits networks to them and notes where predictions extrapolate."""

    #: Names that `likelihood` may have.
    _LIKELIHOODS: tuple[str, ...] = ()

    def __init__(
        self,
        hidden: Sequence[int] = (50, 50),
        *,
        activation: str = "tanh",
        likelihood: Any = "auto",
        scheme: Any = "auto",
        values: Any = "auto",
        method: str = "auto",
        chains: int = 10,
        replicas: int = 10,
        num_steps: int | None = None,
        num_samples: int = 1000,
        preprocessing: Any = "auto",
        time_limit: float | None = None,
        random_state: Any = None,
        device: Any = None,
        progress: bool = True,
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.likelihood = likelihood
        self.scheme = scheme
        self.values = values
        self.method = method
        self.chains = chains
        self.replicas = replicas
        self.num_steps = num_steps
        self.num_samples = num_samples
        self.preprocessing = preprocessing
        self.time_limit = time_limit
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.string = tags.input_tags.categorical = True
        return tags

    # --- fitting ----------------------------------------------------------------------------------

    def _fit(self, x: Any, y: np.ndarray, outputs: int, sample_weight: Any) -> None:
        """Fit to a table and targets that have been checked, but for their number."""
        started = time.monotonic()
        self._check_options()
        given, frame, self.columns_ = self._read(x, None)
        check_consistent_length(frame, y)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, frame, dtype=np.float64)
            if (weights < 0).any():
                raise ValueError("Negative values in data passed to `sample_weight`")
            if not weights.any():
                raise ValueError("sample_weight must have at least one non-zero weight, got zeros only")
            if not (kept := weights > 0).all():  # nothing at all is learned of the others
                given = given[kept] if isinstance(given, np.ndarray) else given.loc[kept]
                frame, y, weights = frame.loc[kept].reset_index(drop=True), y[kept], weights[kept]
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._fit_preprocessing(given, frame)
        numbers = self._numbers(given, frame)
        self._note_range(frame, numbers)
        recipe = Recipe(
            method=self.method,
            hidden=tuple(int(width) for width in self.hidden),
            activation=self.activation,
            scheme=self.scheme,
            values=self.values,
            chains=self.chains,
            replicas=self.replicas,
            num_steps=self.num_steps,
            seed=self.seed_,
            device=self.device,
            progress=self.progress,
        )
        recipe = recipe.resolved(len(numbers), numbers.shape[1], outputs)
        self.method_ = recipe.method
        limit = self.time_limit
        self.likelihood_ = self._likelihood(recipe, numbers, y, None if limit is None else 0.1 * limit, weights)
        left = None if limit is None else max(0.0, limit - (time.monotonic() - started))
        self.posterior_ = infer(recipe, numbers, y, outputs, self.likelihood_, left, weights)

    def _likelihood(
        self, recipe: Recipe, x: np.ndarray, y: np.ndarray, seconds: float | None, weights: np.ndarray | None
    ) -> Likelihood:
        """The observation model that was asked for, or that fits best."""
        raise NotImplementedError

    def _check_options(self) -> None:
        """Check all options, before any work."""
        try:
            hidden = list(self.hidden)
        except TypeError:
            hidden = [0]
        if not all(is_integer(width) for width in hidden):
            raise ValueError(f"hidden must be a sequence of positive integers, got {self.hidden!r}")
        choices = {"activation": [*ACTIVATIONS], "scheme": ["auto", *SCHEMES], "values": ["auto", *VALUES]}
        for name, known in choices.items():
            value = getattr(self, name)
            if (isinstance(value, str) or name == "activation") and value not in known:
                raise ValueError(f"{name} must be one of {', '.join(sorted(known))}, got {value!r}")
        if not isinstance(self.likelihood, Likelihood) and self.likelihood not in self._LIKELIHOODS:
            names = ", ".join(map(repr, self._LIKELIHOODS))
            raise ValueError(f"likelihood must be {names} or a likelihood of pyro_sps, got {self.likelihood!r}")
        if self.method not in ("auto", "sample", "fit"):
            raise ValueError(f"method must be 'auto', 'sample' or 'fit', got {self.method!r}")
        require_count("chains", self.chains)
        require_count("replicas", self.replicas)
        require_count("num_samples", self.num_samples)
        if self.num_samples < self.replicas:
            raise ValueError(f"num_samples must be at least replicas, {self.replicas}, got {self.num_samples}")
        if self.num_steps is not None:
            require_count("num_steps", self.num_steps)
        if self.time_limit is not None:
            require_positive("time_limit", self.time_limit)

    def _fit_preprocessing(self, given: Any, frame: pd.DataFrame) -> None:
        self.left_out_: list[str] = []
        if isinstance(self.preprocessing, str) and self.preprocessing == "auto":
            transformer, self.left_out_ = default_preprocessing(frame, self.columns_)
            if len(self.left_out_) == frame.shape[1]:
                raise ValueError(f"X has no columns but {self.left_out_}, texts that differ in nearly every row")
            if self.left_out_:
                warn_user(
                    f"left out: {', '.join(self.left_out_)}, text that differs in nearly every row and says nothing of "
                    "new ones; drop it, or give a preprocessing= of your own"
                )
            self.preprocessing_ = transformer.fit(frame)
        elif self.preprocessing is None:
            if text := [name for name, kind in self.columns_.items() if kind == TEXT]:
                raise ValueError(f"preprocessing=None takes numbers only; these columns of X hold text: {text}")
            self.preprocessing_ = None
        else:
            self.preprocessing_ = clone(self.preprocessing).fit(given)

    def _read(self, x: Any, kinds: Any) -> tuple[Any, pd.DataFrame, dict[str, str]]:
        """What was given (a table in the order of training, or an array), and its typed columns with their kinds."""
        table, new = as_table(x), kinds is None
        if table is None:
            given = validate_data(
                self, x, reset=new, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=2 if new else 1
            )
            frame = as_frame(given)
        else:
            known = getattr(self, "feature_names_in_", None)
            if not new and known is not None and set(known) == set(table.columns):
                table = table[list(known)]
            given = frame = validate_data(self, table, reset=new, skip_check_array=True)
            for what, count, least in (("sample", len(table), 2 if new else 1), ("feature", table.shape[1], 1)):
                if count < least:
                    raise ValueError(
                        f"Found array with {count} {what}(s) (shape={table.shape}) while a minimum of {least} is "
                        f"required by {type(self).__name__}."
                    )
        if not new:
            frame = frame.set_axis(list(self.columns_), axis=1)
        return given, *typed(frame, kinds)

    def _numbers(self, given: Any, frame: pd.DataFrame) -> np.ndarray:
        """What the network reads, float64, shape (rows, inputs)."""
        if self.preprocessing_ is None:
            numbers = frame.to_numpy(dtype=np.float64)
        elif isinstance(self.preprocessing, str):
            numbers = self.preprocessing_.transform(frame)
        else:
            numbers = self.preprocessing_.transform(given)
            numbers = numbers.toarray() if hasattr(numbers, "toarray") else numbers
        return check_array(numbers, dtype=np.float64, input_name="X after preprocessing")

    # --- where predictions extrapolate ------------------------------------------------------------

    def _note_range(self, frame: pd.DataFrame, numbers: np.ndarray) -> None:
        self.range_ = np.stack([numbers.min(0), numbers.max(0), numbers.std(0)])
        self.levels_ = {
            name: sorted(frame[name].dropna().unique())
            for name, kind in self.columns_.items()
            if kind == TEXT and name not in self.left_out_
        }

    def _is_far(self, frame: pd.DataFrame, numbers: np.ndarray) -> np.ndarray:
        low, high, spread = self.range_
        outside = np.maximum(low - numbers, numbers - high)
        # Rounding moves a row that is at the edge.
        far: np.ndarray = (outside > FAR * spread + 1e-9 * np.maximum(np.abs(low), np.abs(high))).any(1)
        for name, levels in self.levels_.items():
            far |= (~frame[name].isin(levels) & frame[name].notna()).to_numpy()
        return far

    # --- predicting -------------------------------------------------------------------------------

    def prediction(self, X: Any) -> TablePrediction:
        """The posterior predictive distribution for the rows of a table.

        Args:
            X: A table with the columns of training, in any order where they have names, or an array.

        Returns:
            A lazy `TablePrediction`: `mean`, `std`, `interval`, `quantiles`, `draws`, `lpp`, `extrapolates`, ...

        Raises:
            ValueError: If a column is missing or unknown, or holds something else than in training.
            sklearn.exceptions.NotFittedError: If there was no fit.

        Warns:
            UserWarning: If there are rows far outside the training table, with their number.
        """
        check_is_fitted(self)
        given, frame, _ = self._read(X, self.columns_)
        numbers = self._numbers(given, frame)
        far = self._is_far(frame, numbers)
        if far.any():
            warn_user(
                f"{int(far.sum()):,} of {len(far):,} rows are far outside the training table: what is predicted for "
                "them, its uncertainty too, is a guess; prediction(X).extrapolates says which"
            )
        draws = self.num_samples
        if isinstance(self.posterior_, Samples):
            labels = self.posterior_.bnn.likelihood.event_dim == 0
            chosen, draws = members_of(self.posterior_, draws, labels)
            members = [in_double(one) for one in chosen]
        else:
            members = [in_double(one.member) for one in self.posterior_]
        plain = TablePrediction.of(members, numbers, draws, self.seed_)
        classes = getattr(self, "classes_", None)
        return TablePrediction(plain.members, plain.x, plain.num_samples, plain.seed, extrapolates=far, classes=classes)

    def describe(self, X: Any) -> list[tuple[str, str]]:
        """What is done to each column of a table, in words.

        Args:
            X: A table with the columns of training.

        Returns:
            Names of the columns and what is done to them.

        Raises:
            ValueError: If the preprocessing is one of your own.
        """
        check_is_fitted(self)
        encoder = self._encoder()
        if encoder is None:
            raise ValueError("describe is for preprocessing='auto'")
        _, frame, _ = self._read(X, self.columns_)
        return encoder.describe(frame)

    def save(self, directory: str | Path) -> None:
        """Write the fitted model to a folder, which is made if need be; `load` reads it again.

        One file holds the networks, what is done to the columns, and labels: numbers and JSON, never a pickle.
        Predictions after loading are equal bit for bit. Options that are objects (a scheme, a `RandomState`) are not
        kept: `get_params` has the defaults for them.

        Args:
            directory: Where to.

        Raises:
            ValueError: If the preprocessing is one of your own, which only joblib could keep; or the labels are
                neither text nor numbers.
            OSError: If the folder cannot be written.
        """
        check_is_fitted(self)
        save_table_model(self, directory, self._encoder())

    @classmethod
    def load(cls, directory: str | Path) -> Any:
        """Read what `save` wrote. The file is not trusted: nothing in it is executed, and all that it says is checked.

        Args:
            directory: Where it is.

        Returns:
            The fitted model, whose `preprocessing_` is a `pyro_sps.data.encoding.Encoder`.

        Raises:
            LoadError: If the file is missing, damaged or of another version, or holds another kind of model.
        """
        return load_table_model([cls], directory)

    def _encoder(self) -> Encoder | None:
        """The preprocessing as plain data, if it is ours."""
        if isinstance(self.preprocessing_, Encoder):  # of a model that was saved
            return self.preprocessing_
        if isinstance(self.preprocessing, str):
            return encoder_of(self.preprocessing_, self.columns_, self.left_out_)
        return None
