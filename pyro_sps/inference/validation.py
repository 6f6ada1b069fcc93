"""Scores on held-out data while a fit runs, and when to stop."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..data.names import in_order, require_same_rows, row_names
from ..model.checks import are_stacked, check_inputs, check_observed
from ..model.guides import AutoSPSNormal
from ..posterior.outputs import Member
from ..posterior.predict import Prediction
from .loop import Replica, with_params
from .optimizers import State
from .step import Layout


class Validation:
    """Tracks scores on held-out data and decides about stopping."""

    def __init__(
        self,
        data: list[tuple[Tensor, Tensor]],
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
        for index, (member, (x, y)) in enumerate(zip(self.members, self.data, strict=True)):
            guide = guide_with(self.guide, member, params["loc"][index], params["rho"][index])
            bnn = with_params(member.bnn, {name: value[index] for name, value in params.items()})
            one = Member(bnn, guide, member.standardizer, missing="ignore")  # `validation_data` has refused gaps
            prediction = Prediction.of([one], x, 200, 0)
            scores = {"step": step, "lpp": prediction.lpp(y)}
            if bnn.likelihood.event_dim:
                scores["rmse"] = prediction.rmse(y)
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


def validation_data(
    members: list[Replica], validation: tuple[Any, Any] | None, may_stack: bool, missing: str
) -> list[tuple[Tensor, Tensor]]:
    """Validation inputs and targets of each replica, checked; none if there are none.

    Args:
        members: The replicas.
        validation: What the user gave: a pair of inputs and targets.
        may_stack: Whether there may be data of its own for each replica.
        missing: What gaps in the targets are.

    Raises:
        ValueError: If it is no pair or does not fit the network.
    """
    if validation is None:
        return []
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise ValueError("validation must be a pair (x, y)")
    x, y = validation
    first = members[0].bnn
    stacked = may_stack and are_stacked(x, len(members), first)
    checks = []
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
