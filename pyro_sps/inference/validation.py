"""Scores on held-out data while a fit runs, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.names import in_order, require_same_rows, row_names
from ..data.observed import Observed, shown_of
from ..data.opening import pairs_of
from ..data.trees import leaves
from ..model.checks import are_stacked, check_inputs, check_observed
from ..model.guides import AutoSPSNormal
from ..model.streams import Stream, stream_of
from ..posterior.outputs import Member
from ..posterior.predict import Prediction
from .loop import Replica, with_params
from .optimizers import State
from .step import Layout

# Held-out inputs and targets of a replica: arrays with gaps as NaN, or what reads them.
Check = tuple[Tensor, Tensor] | Stream

# Posterior draws that scores are from.
DRAWS = 200


class Validation:
    """Tracks scores on held-out data and decides about stopping."""

    def __init__(
        self,
        data: list[Check],
        members: list[Replica],
        layout: Layout,
        guide: AutoSPSNormal,
        every: int,
        patience: int | None,
    ) -> None:
        self.data, self.members, self.layout, self.guide = data, members, layout, guide
        self.every, self.patience = every, patience
        self.history: list[list[dict[str, float]]] = [[] for _ in members]
        self.best: Tensor | None = None
        self.best_lpp = [-math.inf] * len(members)
        self.waited = [0] * len(members)

    def __call__(self, step: int, state: State) -> str:
        """Score the state after `step` steps; why to stop, or nothing."""
        params = self.layout.unpack(state.params)
        if self.patience is not None and self.best is None:
            self.best = state.params.clone()
        for index, (member, data) in enumerate(zip(self.members, self.data, strict=True)):
            guide = guide_with(self.guide, member, params["loc"][index], params["rho"][index])
            bnn = with_params(member.bnn, {name: value[index] for name, value in params.items()})
            one = Member(bnn, guide, member.standardizer, missing="ignore")  # `validation_data` has refused gaps
            scores = {"step": step, **scores_of(one, data)}
            self.history[index].append(scores)
            if scores["lpp"] > self.best_lpp[index]:
                self.best_lpp[index], self.waited[index] = scores["lpp"], 0
                if self.best is not None:
                    self.best[index] = state.params[index]
            else:
                self.waited[index] += 1
        if self.patience is not None and min(self.waited) >= self.patience:
            return f"no better validation LPP in {self.patience} checks, after step {step}"
        return ""


def scores_of(member: Member, data: Check) -> dict[str, float]:
    """LPP, and RMSE where targets are numbers, by one pass over the data.

    Args:
        member: The fitted network.
        data: What it is scored on.
    """
    logs, count = 0.0, 0
    squares: Any = 0.0
    counts: Any = 0
    numbers = member.bnn.likelihood.event_dim > 0
    for x, y in data.in_order() if isinstance(data, Stream) else iter([data]):
        shown, bars = shown_of(y)
        prediction = Prediction.of([member], x, DRAWS, 0, bars)
        known = ~shown.isnan() if shown.is_floating_point() else shown >= 0
        logs += prediction.log_prob(shown)[known].sum().item()
        count += int(known.sum())
        if numbers:
            squares = squares + (prediction.mean - shown).double().square().where(known, 0.0).sum(0)
            counts = counts + known.sum(0)
    scores = {"lpp": logs / count if count else math.nan}
    return scores | ({"rmse": (squares / counts).sqrt().mean().item()} if numbers else {})


def tensors_of(checks: Sequence[Check]) -> Iterator[Tensor]:
    """What checkpoints tell validation data by; of data that is read in pieces, its first rows."""
    for data in checks:
        if isinstance(data, Stream):
            yield torch.tensor(data.num_rows)
        yield from leaves(data.example() if isinstance(data, Stream) else data)


def example_of(data: Check) -> tuple[Tensor, Tensor]:
    """Rows of validation data, in the units of the user, with gaps as NaN."""
    if not isinstance(data, Stream):
        return data
    x, y = data.example()
    return x, shown_of(y)[0]


def validation_data(members: list[Replica], validation: Any, may_stack: bool, missing: str) -> list[Check]:
    """Validation inputs and targets of each replica, checked; none if there are none.

    Args:
        members: The replicas.
        validation: What the user gave: a pair of inputs and targets, or a data set of such pairs.
        may_stack: Whether there may be data of its own for each replica.
        missing: What gaps in the targets are.

    Raises:
        ValueError: If it is no pair or does not fit the network.
    """
    if validation is None:
        return []
    first, names = members[0].bnn, (members[0].features, members[0].targets)
    pair = isinstance(validation, tuple | list) and len(validation) == 2
    x: Any = validation[0] if pair else validation
    y: Any = validation[1] if pair else None
    if (source := pairs_of(x, y, *names)) is not None:
        stream = stream_of(source, first, missing)
        _, targets = stream.example()  # which checks that they fit
        if isinstance(targets, Observed) and targets.weights is not None:
            raise ValueError(f"validation rows count once each: leave the weights of {source.name} out")
        return [stream] * len(members)
    if not pair:
        raise ValueError("validation must be a pair (x, y), or a data set of such pairs")
    stacked = may_stack and are_stacked(x, len(members), first)
    checks: list[Check] = []
    for index in range(len(members)):
        own_x, own = (x[index], y[index]) if stacked else (x, y)
        require_same_rows("validation x", row_names(own_x), "validation y", row_names(own))
        inputs = check_inputs("validation x", in_order("validation x", own_x, members[0].features), first)
        own = in_order("validation y", own, members[0].targets)
        targets = check_observed("validation y", own, first, len(inputs), missing=missing)
        checks.append((inputs, targets if isinstance(targets, Tensor) else targets.shown))
    return checks


def guide_with(prototype: AutoSPSNormal, member: Replica, loc: Tensor, rho: Tensor) -> AutoSPSNormal:
    """A guide of the member's model with the given parameters."""
    guide = AutoSPSNormal(member.bnn, init_scale=prototype.init_scale)
    guide.adopt(prototype, loc, rho)
    return guide
