"""The data that a study is about: splits of a data set, side by side, in standardised units."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..data.datasets import UCI, load_uci, toy_gp
from ..data.tables import Dataset

#: Share of the training part that is held out to choose settings.
VALIDATION_FRACTION = 0.2
#: Of the toy's fine grid each so-many-th point is predicted, for pictures.
GRID = 4


@dataclass(frozen=True, eq=False)
class Problem:
    """Several splits of one data set, each standardised by its own training part, and the network for it.

    Attributes:
        name: Of the data set.
        widths: Widths of the network's layers.
        x: Training inputs, shape (splits, rows, features).
        y: Training targets, shape (splits, rows, targets).
        x_test: Held-out inputs, shape (splits, held-out rows, features); for the toy, a grid over its range follows.
        y_test: Held-out targets.
    """

    name: str
    widths: tuple[int, ...]
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    x_test: Tensor = field(repr=False)
    y_test: Tensor = field(repr=False)

    @property
    def num_splits(self) -> int:
        """Number of splits."""
        return len(self.x)


def load(name: str, seeds: range, part: str = "test", hidden: tuple[int, ...] = (50, 50)) -> Problem:
    """The splits of a data set with given seeds.

    Args:
        name: `toy` (draws of `toy_gp`, not standardised), or one of `pyro_sps.data.datasets.UCI`.
        seeds: Of the splits: a fifth of the rows is held out.
        part: `test`: train on the training part, hold out the test part. `validation`: never touch the test part,
            and hold out a fifth of the training part instead.
        hidden: Widths of the hidden layers.

    Raises:
        ValueError: If the name or the part is not known.
        DataError: If the data set is not found.
    """
    if part not in ("test", "validation"):
        raise ValueError(f"part must be 'test' or 'validation', got {part!r}")
    if name == "toy":
        toys = [toy_gp(seed=seed + (1000 if part == "validation" else 0)) for seed in seeds]
        splits = [[toy.x, toy.y, np.concatenate([toy.x_test, toy.x_grid[::GRID]]), toy.y_test] for toy in toys]
    elif name in UCI:
        dataset = _dataset(name)
        splits = [_standardised(*_arrays(dataset, seed, part)) for seed in seeds]
    else:
        raise ValueError(f"name must be 'toy' or one of {sorted(UCI)}, got {name!r}")
    x, y, x_test, y_test = (
        torch.as_tensor(np.stack(arrays), dtype=torch.float32) for arrays in zip(*splits, strict=True)
    )
    return Problem(name, (x.shape[-1], *hidden, y.shape[-1]), x, y, x_test, y_test)


@cache
def _dataset(name: str) -> Dataset:
    """Read once a process, since workbooks take seconds."""
    return load_uci(name)


def _arrays(dataset: Dataset, seed: int, part: str) -> tuple[np.ndarray, ...]:
    split = dataset.split(seed=seed, test_fraction=0.2)
    if part == "test":
        return split.x_train, split.y_train, split.x_test, split.y_test
    order = np.random.default_rng([seed, 1]).permutation(len(split.x_train))
    held_out = round(VALIDATION_FRACTION * len(order))
    validation, train = order[:held_out], order[held_out:]
    return split.x_train[train], split.y_train[train], split.x_train[validation], split.y_train[validation]


def _standardised(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> list[np.ndarray]:
    def scaled(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        mean, scale = train.mean(0), train.std(0, ddof=1)
        scale[scale == 0] = 1.0
        return [(part - mean) / scale for part in (train, *others)]

    (x, x_test), (y, y_test) = scaled(x, x_test), scaled(y, y_test)
    return [x, y, x_test, y_test]
