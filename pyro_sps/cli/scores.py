"""Scores of predictions, and tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..base.text import columns_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..posterior.predict import Prediction


def scores_of(
    prediction: Prediction,
    interval: tuple[Tensor, Tensor],
    level: float,
    y: np.ndarray,
    target_scale: np.ndarray,
    names: Sequence[str],
) -> dict[str, Any]:
    """RMSE, LPP and coverage of each target and on average, in original and in standardised units."""
    import numpy as np

    from ..data.arrays import to_numpy

    lower, upper = map(to_numpy, interval)
    rmse = np.sqrt(np.square(to_numpy(prediction.mean) - y).mean(0))
    rows = {
        "rmse": rmse,
        "lpp": to_numpy(prediction.log_prob(y)).mean(0),
        "coverage": ((y >= lower) & (y <= upper)).mean(0),
    }
    if prediction.members[0].bnn.likelihood.real_valued:
        rows["rmse_standardized"] = rmse / target_scale
        rows["lpp_standardized"] = rows["lpp"] + np.log(target_scale)
    targets = {name: {score: float(value[index]) for score, value in rows.items()} for index, name in enumerate(names)}
    return {**{score: float(value.mean()) for score, value in rows.items()}, "level": level, "targets": targets}


def table_of(scores: Mapping[str, Any], title: str) -> str:
    """Scores as a table for a reader; `title` is above the targets."""
    heads = {
        "rmse": "RMSE",
        "rmse_standardized": "RMSE (std.)",
        "lpp": "LPP",
        "lpp_standardized": "LPP (std.)",
        "coverage": f"in {scores['level']:.0%} interval",
    }
    heads = {score: head for score, head in heads.items() if score in scores}
    rows = [(title, *heads.values())]
    every = dict(scores["targets"])
    if len(every) > 1:
        every["average"] = scores
    for name, row in every.items():
        rows.append((name, *(f"{row[score]:.1%}" if score == "coverage" else f"{row[score]:.4g}" for score in heads)))
    return columns_of(rows)


def class_scores_of(prediction: Prediction, y: np.ndarray) -> dict[str, Any]:
    """Accuracy and LPP of predictions of labels."""
    return {"accuracy": prediction.accuracy(y), "lpp": prediction.lpp(y)}


def comparison(rows: Mapping[str, Mapping[str, float]], title: str) -> str:
    """Scores of a network and of simple models as a table, and a warning if one of these is better."""
    heads = {"rmse": "RMSE", "accuracy": "accuracy", "lpp": "LPP"}
    own = next(iter(rows.values()))
    scores = [score for score in heads if score in own]
    lines = [(title, *(heads[score] for score in scores))]
    for name, row in rows.items():
        lines.append((name, *(f"{row[s]:.1%}" if s == "accuracy" else f"{row[s]:.4g}" for s in scores)))
    text = columns_of(lines)
    better = [name for name, row in rows.items() if row["lpp"] > own["lpp"]]
    if better:
        text += f"\nbetter than this network by LPP: {', '.join(better)}"
    return text
