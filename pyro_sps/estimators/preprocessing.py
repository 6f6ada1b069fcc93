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

from ..data.encoding import Encoder, date_numbers, days_of
from ..data.frames import DATE, NUMBER, TEXT

#: Text with more levels than this keeps the most frequent ones; the others share a column. In a table of so many rows
#: for each it keeps more of them, up to the last number.
MAX_LEVELS, ROWS_A_LEVEL, MOST_LEVELS = 20, 200, 100

#: Numbers whose skewness is beyond this, or that have values so many times the distance of the quartiles away from
#: the median, are scaled robustly and made more symmetric.
SKEWED, HUGE = 3.0, 50.0

#: Text in which nearly every row has a level of its own, in tables of more rows than this, says nothing of new rows.
ID_ROWS = 20


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
        self.parts_ = [_varying(days_of(X[name])) for name in X.columns]
        return self

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        """The parts, shape (rows, parts); gaps stay NaN."""
        check_is_fitted(self)
        return np.hstack([date_numbers(X[name], parts) for name, parts in zip(X.columns, self.parts_, strict=True)])

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the parts."""
        check_is_fitted(self)
        names = []
        for name, parts in zip(self.feature_names_in_, self.parts_, strict=True):
            names.append(f"{name}_days")
            names += [f"{name}_{part}_{wave}" for part in parts for wave in ("sin", "cos")]
        return np.array(names, dtype=object)


def _varying(days: np.ndarray) -> list[str]:
    """The periods in which dates differ."""
    days = days[np.isfinite(days)]
    if not days.size:
        return []
    differ = {
        "year": np.ptp(days) >= 180,
        "week": np.unique(np.floor(days) % 7).size > 1,
        "day": np.unique(days % 1).size > 1,
    }
    return [part for part, varies in differ.items() if varies]


class OffSpike:
    """Fits a transformer without the value that most rows of a column have, where its quartiles are the same.

    A gain that is zero in nine rows of ten would have the scale zero, and the power that makes it most normal would
    tell zeros from others and nothing else. The transformers leave NaN out when they are fitted.
    """

    def fit(self, X: Any, y: Any = None) -> Any:
        """Fit to all other values of such columns."""
        return super().fit(_without_spikes(X), y)  # type: ignore[misc]

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and transform all values."""
        return self.fit(X, y).transform(X)


class SpikedScaler(OffSpike, RobustScaler):
    """`sklearn.preprocessing.RobustScaler`, fitted `OffSpike`."""


class SpikedPower(OffSpike, PowerTransformer):
    """`sklearn.preprocessing.PowerTransformer`, fitted `OffSpike`."""


def _without_spikes(x: Any) -> np.ndarray:
    x = np.array(x, dtype=np.float64)
    low, middle, high = np.nanquantile(x, [0.25, 0.5, 0.75], axis=0)
    return np.where((x == middle) & (low == high), np.nan, x)


def default_preprocessing(frame: pd.DataFrame, kinds: Mapping[str, str]) -> tuple[ColumnTransformer, list[str]]:
    """The transformer of a table, not yet fitted, and the columns that it leaves out.

    - numbers: gaps are filled with the median and have an indicator; mean 0, standard deviation 1
    - skewed numbers: scaled by quartiles, then made more symmetric (Yeo and Johnson 2000); where most rows have one
      value, such as zero, as the others ask for
    - text: a column for each of the 20 most frequent levels (of tables of more than 4,000 rows: one for 200 rows, up to
      100), one for the others; a gap is a level
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
    levels = min(MOST_LEVELS, max(MAX_LEVELS, len(frame) // ROWS_A_LEVEL))
    steps: dict[str, tuple[Any, Sequence[str]]] = {
        "numbers": (Pipeline([("gaps", _imputer()), ("scale", StandardScaler())]), plain),
        "skewed": (
            Pipeline(
                [
                    ("gaps", _imputer()),
                    ("scale", SpikedScaler()),
                    ("symmetric", SpikedPower(standardize=False)),
                    ("rescale", StandardScaler()),
                ]
            ),
            skewed,
        ),
        "dates": (
            Pipeline([("parts", DateParts()), ("gaps", _imputer()), ("scale", StandardScaler())]),
            of[DATE],
        ),
        "text": (
            OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=levels + 1, sparse_output=False),
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
    # Of a column that is zero nearly everywhere, too.
    spread = max(high - low, 1e-12 * np.abs(values).max(), 1e-300)
    scaled = np.clip((values - middle) / spread, -1e6, 1e6)
    if np.abs(scaled).max() > HUGE:
        return True
    deviation = scaled - scaled.mean()
    return bool(abs(np.mean(deviation**3)) > SKEWED * max(np.mean(deviation**2), 1e-300) ** 1.5)


def encoder_of(transformer: ColumnTransformer, kinds: Mapping[str, str], left_out: Sequence[str]) -> Encoder:
    """What a fitted transformer of `default_preprocessing` does, as plain data.

    Args:
        transformer: The transformer.
        kinds: What the columns of its table hold.
        left_out: Those that it leaves out.
    """
    blocks: dict[str, dict[str, Any]] = {}
    for what, step, columns in transformer.transformers_:
        block: dict[str, Any] = {"columns": list(columns)}
        if what in ("numbers", "skewed", "dates"):
            steps = step.named_steps
            fill, scale = steps["gaps"].statistics_, steps["scale"]
            centre = scale.center_ if what == "skewed" else scale.mean_
            block |= {"fill": np.nan_to_num(fill), "centre": centre, "scale": scale.scale_}
            if what == "skewed":
                last = steps["rescale"]
                block |= {"power": steps["symmetric"].lambdas_, "new_centre": last.mean_, "new_scale": last.scale_}
            if what == "dates":
                block["parts"] = [list(parts) for parts in steps["parts"].parts_]
        elif what == "text":
            rare = getattr(step, "infrequent_categories_", [None] * len(columns))
            others = [[_level(value) for value in own] if own is not None else [] for own in rare]
            every = [[_level(value) for value in own] for own in step.categories_]
            block["levels"] = [[v for v in own if v not in few] for own, few in zip(every, others, strict=True)]
            block["others"] = others
        elif what != "missing":
            continue
        blocks[what] = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in block.items()}
    return Encoder(dict(kinds), blocks, list(left_out))


def _level(value: Any) -> str | None:
    return value if isinstance(value, str) else None
