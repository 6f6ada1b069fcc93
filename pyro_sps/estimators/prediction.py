"""Predictions for the rows of a table, in its own units and labels."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..posterior.outputs import Member, quantiles
from ..posterior.predict import Prediction


@dataclass(frozen=True)
class TablePrediction(Prediction):
    """The posterior predictive distribution for the rows of a table: a `Prediction` that knows labels and the table.

    Targets, given to `lpp`, `accuracy`, `rmse` and so on, are what the table has: numbers in their units, or labels.

    Attributes:
        extrapolates: Which rows are far outside the training table: by more than a standard deviation of a column
            beyond its range, or with a level that it did not have; shape (rows,).
        classes: Labels of the classes, in the order of the columns of `mean`; None for numbers.

    Example:
        >>> import numpy as np, pyro_sps as sps
        >>> x = np.linspace(-1, 1, 30)[:, None]
        >>> model = sps.BNNClassifier(hidden=(5,), method="fit", num_steps=20, random_state=0)
        >>> prediction = model.fit(x, np.where(x[:, 0] > 0, "yes", "no")).prediction([[0.5], [0.7]])
        >>> prediction.classes.tolist(), prediction.extrapolates.tolist()
        (['no', 'yes'], [False, False])
        >>> accuracy, lpp = prediction.accuracy(["yes", "yes"]), prediction.lpp(["yes", "yes"])
    """

    extrapolates: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool), repr=False)
    classes: np.ndarray | None = None

    def quantiles(self, levels: Sequence[float]) -> Tensor:
        """Quantiles of the posterior predictive, noise included, from its draws.

        Args:
            levels: Numbers in (0, 1).

        Returns:
            Shape (levels, rows, targets).

        Raises:
            ValueError: If a level is not in (0, 1) or the targets are labels.
        """
        if not len(levels) or not all(0 < level < 1 for level in levels):
            raise ValueError(f"quantiles must be numbers in (0, 1), got {levels!r}")
        self._require_vectors("quantiles")
        at = self.x.new_tensor(list(levels))
        return torch.cat([quantiles(draws, at) for _, draws in self.draws_by_rows()], dim=1)

    def check_targets(self, y: Any = None) -> Tensor:
        """Targets as a tensor; labels as the numbers of their classes.

        Raises:
            ValueError: If they do not fit the rows, or a label is none of `classes`.
        """
        if self.classes is None:
            y = np.asarray(y, dtype=np.float64)
            return super().check_targets(y.reshape(len(y), -1))
        return super().check_targets(codes_of(np.asarray(y), self.classes))


def codes_of(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The number of each label's class.

    Args:
        labels: Shape (rows,).
        classes: All labels there are, in ascending order.

    Raises:
        ValueError: If there are others.
    """
    if labels.ndim != 1:
        raise ValueError(f"y must have shape (rows,), got {labels.shape}")
    number = {label: index for index, label in enumerate(classes.tolist())}
    if unknown := sorted({str(label) for label in labels.tolist() if label not in number}):
        raise ValueError(f"y holds labels that training did not have: {unknown[:5]}; it had {classes[:20].tolist()}")
    return np.array([number[label] for label in labels.tolist()], dtype=np.int64)


def in_double(member: Member) -> Member:
    """A fitted network in double precision, in which predictions of a row do not depend on its neighbours."""
    if member.bnn.like.device.type == "mps" or member.bnn.like.dtype == torch.float64:
        return member
    bnn = member.bnn.copy().double()
    guide = None if member.guide is None else copy.deepcopy(member.guide).double()
    sites = None if member.sites is None else {name: value.double() for name, value in member.sites.items()}
    return dataclasses.replace(member, bnn=bnn, guide=guide, standardizer=member.standardizer.to(bnn.like), sites=sites)
