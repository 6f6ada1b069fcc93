"""Bayesian neural networks for tables, by scikit-learn's contract: `BNNRegressor` and `BNNClassifier`.

This is the only wing that needs scikit-learn, and it is imported when one of its names is used.
"""

from __future__ import annotations

from importlib import metadata

from ..base.lazy import exports


def _require_sklearn(least: tuple[int, int] = (1, 6)) -> None:
    """Raise `ImportError` that says what to install, where scikit-learn is missing or too old."""
    try:
        found = metadata.version("scikit-learn")
    except metadata.PackageNotFoundError:
        found = ""
    if not found or tuple(int(part) for part in found.split(".")[:2]) < least:
        what = f"scikit-learn {found} is too old" if found else "scikit-learn is not installed"
        raise ImportError(
            f"the estimators of pyro_sps need scikit-learn {least[0]}.{least[1]} or newer: {what}; "
            "run `pip install 'pyro-sps[sklearn]'`"
        )


_require_sklearn()

__getattr__, __all__ = exports(
    __name__,
    {
        "regressor": ["BNNRegressor"],
        "classifier": ["BNNClassifier"],
        "prediction": ["TablePrediction"],
    },
)
