"""From columns of any kind to the numbers that a network reads, by scikit-learn's own transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, PowerTransformer, RobustScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted

from ..data.frames import DATE, NUMBER, TEXT

#: Text with more levels than this keeps the most frequent ones; the others share a column.
MAX_LEVELS = 20

#: Numbers whose skewness is beyond this are scaled robustly and made more symmetric.
SKEWED = 3.0

#: Text in which nearly every row has a level of its own, in tables of more rows than this, says nothing of new rows.
ID_ROWS = 20

_DAY = 86_400.0
_WAVES = {"year": 365.2425, "week": 7.0, "day": 1.0}  # in days


class DateParts(TransformerMixin, BaseEstimator):
    """Dates as numbers: days since 1970, and sine and cosine of the time of year, of week and of day.

    A part is left out where it hardly varies in training: the year for less than 180 days, the time of day where all
    dates are midnight, the week where all are the same weekday.

    Attributes:
        parts_: Names of the periodic parts of each column.
        feature_names_in_: Names of the columns.

    Example:
        >>> import pandas as pd
        >>> from pyro_sps.estimators.preprocessing import DateParts
        >>> dates = pd.DataFrame({"day": pd.date_range("2024-01-01", periods=400)})
        >>> DateParts().fit(dates).get_feature_names_out().tolist()
        ['day_days', 'day_year_sin', 'day_year_cos', 'day_week_sin', 'day_week_cos']
    """

    def fit(self, X: pd.DataFrame, y: Any = None) -> DateParts:
        """Find out which parts vary."""
        self.feature_names_in_ = np.array([str(name) for name in X.columns], dtype=object)
        self.n_features_in_ = X.shape[1]
        self.parts_ = [self._varying(days) for days in self._days(X)]
        return self

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        """The parts, shape (rows, parts); gaps stay NaN."""
        check_is_fitted(self)
        columns = []
        for days, parts in zip(self._days(X), self.parts_, strict=True):
            columns.append(days)
            for part in parts:
                phase = 2 * np.pi * days / _WAVES[part]
                columns += [np.sin(phase), np.cos(phase)]
        return np.stack(columns, axis=1)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the parts."""
        check_is_fitted(self)
        names = []
        for name, parts in zip(self.feature_names_in_, self.parts_, strict=True):
            names.append(f"{name}_days")
            names += [f"{name}_{part}_{wave}" for part in parts for wave in ("sin", "cos")]
        return np.array(names, dtype=object)

    @staticmethod
    def _days(X: pd.DataFrame) -> list[np.ndarray]:
        """Days since 1970 with fractions, by column."""
        columns = []
        for name in X.columns:
            seconds = X[name].astype("datetime64[s]").to_numpy().astype(np.float64) / _DAY
            columns.append(np.where(X[name].isna().to_numpy(), np.nan, seconds))
        return columns

    @staticmethod
    def _varying(days: np.ndarray) -> list[str]:
        days = days[np.isfinite(days)]
        parts = []
        if days.size:
            if np.ptp(days) >= 180:
                parts.append("year")
            if np.unique(np.floor(days) % 7).size > 1:
                parts.append("week")
            if np.unique(days % 1).size > 1:
                parts.append("day")
        return parts


def default_preprocessing(frame: pd.DataFrame, kinds: Mapping[str, str]) -> tuple[ColumnTransformer, list[str]]:
    """The transformer of a table, not yet fitted, and the columns that it leaves out.

    - numbers: gaps are filled with the median and have an indicator; mean 0, standard deviation 1
    - skewed numbers: scaled by quartiles, then made more symmetric (Yeo and Johnson 2000)
    - text: a column for each of the 20 most frequent levels, one for the others; a gap is a level
    - dates: `DateParts`
    - text in which nearly every row differs (names, ids): left out

    Args:
        frame: The training table.
        kinds: What its columns hold.

    Example:
        >>> import pandas as pd
        >>> from pyro_sps.estimators.preprocessing import default_preprocessing
        >>> table = pd.DataFrame({"size": [1.0, None, 3.0], "colour": ["red", "blue", "red"]})
        >>> transformer, left_out = default_preprocessing(table, {"size": "number", "colour": "text"})
        >>> transformer.fit(table).get_feature_names_out().tolist()[:3], left_out
        (['numbers__size', 'text__colour_blue', 'text__colour_red'], [])
    """
    ids = [name for name, kind in kinds.items() if kind == TEXT and _is_id(frame[name])]
    of = {kind: [n for n, k in kinds.items() if k == kind and n not in ids] for kind in (NUMBER, TEXT, DATE)}
    skewed = [name for name in of[NUMBER] if _is_skewed(frame[name])]
    plain = [name for name in of[NUMBER] if name not in skewed]
    gaps = [name for name in of[NUMBER] if frame[name].isna().any()]
    steps: dict[str, tuple[Any, Sequence[str]]] = {
        "numbers": (Pipeline([("gaps", _imputer()), ("scale", StandardScaler())]), plain),
        "skewed": (
            Pipeline([("gaps", _imputer()), ("scale", RobustScaler()), ("symmetric", PowerTransformer())]),
            skewed,
        ),
        "dates": (
            Pipeline([("parts", DateParts()), ("gaps", _imputer()), ("scale", StandardScaler())]),
            of[DATE],
        ),
        "text": (
            OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=MAX_LEVELS + 1, sparse_output=False),
            of[TEXT],
        ),
        "missing": (MissingIndicator(features="all"), gaps),
    }
    used = [(name, step, list(columns)) for name, (step, columns) in steps.items() if columns]
    return ColumnTransformer(used, remainder="drop", verbose_feature_names_out=True), ids


def _imputer() -> SimpleImputer:
    return SimpleImputer(strategy="median", keep_empty_features=True)


def _is_id(column: pd.Series) -> bool:
    values = column.dropna()
    return len(values) > ID_ROWS and values.nunique() > 0.9 * len(values)


def _is_skewed(column: pd.Series) -> bool:
    values = column.dropna().to_numpy()
    if values.size < 8 or np.unique(values[:1000]).size < 5:
        return False
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    spread = max(high - low, 1e-12 * max(abs(low), abs(high), 1e-300))
    scaled = np.clip((values - middle) / spread, -1e6, 1e6)
    deviation = scaled - scaled.mean()
    return bool(abs(np.mean(deviation**3)) > SKEWED * max(np.mean(deviation**2), 1e-300) ** 1.5)


def describe(preprocessing: Any, frame: pd.DataFrame, left_out: Sequence[str]) -> list[tuple[str, str]]:
    """What is done to each column of a table, in words: (name, what)."""
    words: dict[str, str] = dict.fromkeys(left_out, "left out: nearly every row has a text of its own")
    if not isinstance(preprocessing, ColumnTransformer):
        return [(name, words.get(name, f"transformed by {type(preprocessing).__name__}")) for name in frame.columns]
    for what, step, columns in preprocessing.transformers_:
        for index, name in enumerate(columns if what in _WORDS else ()):
            gaps = int(frame[name].isna().sum())
            filled = f", {gaps:,} gaps: median{'' if what == 'dates' else ', and a column that marks them'}"
            filled = filled if gaps and what != "text" else ""
            words[name] = _WORDS[what](step, index, frame[name]) + filled
    return [(str(name), words.get(name, "left out")) for name in frame.columns]


def _number_words(step: Any, index: int, column: pd.Series) -> str:
    low, high = column.min(), column.max()
    return "constant, says nothing" if low == high else f"number, {low:g} to {high:g}"


def _text_words(step: Any, index: int, column: pd.Series) -> str:
    levels = column.nunique(dropna=False)
    rare = f", the rarest {levels - MAX_LEVELS} in one" if levels > MAX_LEVELS + 1 else ""
    gaps = ", gaps one of them" if column.isna().any() else ""
    return f"text, {levels} levels{rare}{gaps}"


def _date_words(step: Any, index: int, column: pd.Series) -> str:
    waves = "".join(f", time of {part}" for part in step.named_steps["parts"].parts_[index])
    return f"date, {column.min():%Y-%m-%d} to {column.max():%Y-%m-%d}: days{waves}"


_WORDS: dict[str, Any] = {
    "numbers": _number_words,
    "skewed": lambda *args: _number_words(*args) + ", skewed",
    "dates": _date_words,
    "text": _text_words,
}
