"""Loading an estimator whose class is not known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .classifier import BNNClassifier
from .files import load_table_model
from .regressor import BNNRegressor


def load_estimator(directory: str | Path) -> Any:
    """Read the `BNNRegressor` or `BNNClassifier` that was saved to a folder; `pyro_sps.load(directory)` comes here.

    Args:
        directory: Where it is.

    Raises:
        LoadError: If there is none, or it is damaged or of another version.

    Example:
        >>> import tempfile, numpy as np, pyro_sps as sps
        >>> x = np.linspace(-1, 1, 20).reshape(-1, 1)
        >>> options = {"hidden": [4], "method": "fit", "num_steps": 5, "replicas": 1, "progress": False}
        >>> model = sps.BNNRegressor(likelihood="gaussian", **options).fit(x, x[:, 0])
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     model.save(directory)
        ...     again = sps.load(directory)
        >>> bool((again.predict(x) == model.predict(x)).all())
        True
    """
    return load_table_model([BNNRegressor, BNNClassifier], directory)
