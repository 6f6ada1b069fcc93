"""Going on from a fit: what of it another one takes over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..data.arrays import Standardizer
from ..model.bnn import BNN
from ..model.density import Params, Problem
from ..model.hierarchy import Hierarchical
from ..posterior.fit import Fit, Fits, OptimizerState
from .checkpoint import marks_of
from .loop import Replica, Run
from .settings import FitSettings


def fits_of(start: Fit | Fits | None) -> tuple[Fit, ...]:
    """The fits that the replicas start from; none where they start anew."""
    return () if start is None else (start,) if isinstance(start, Fit) else tuple(start)


def check_start(bnn: Any, asked: FitSettings) -> None:
    """Refuse a start that is none for this model, and options that it leaves without effect.

    Args:
        bnn: The model.
        asked: What was asked for.

    Raises:
        TypeError: If it is no fit, or not as many as there are replicas.
        ValueError: If it is of other masks, or comes with another start.
    """
    start, expected = asked.start, Fit if asked.replicas is None else Fits
    if start is None or not isinstance(bnn, BNN):
        return
    if not isinstance(start, expected) or len(fits_of(start)) != (asked.replicas or 1):
        wanted = "a Fit" if asked.replicas is None else f"the Fits of {asked.replicas} replicas"
        given = f"Fits of {len(start)}" if isinstance(start, Fits) else type(start).__name__
        raise TypeError(f"start must be {wanted}, got {given}")
    for name in ("init", "init_scale", "map_steps"):
        if getattr(asked, name) != getattr(FitSettings, name):
            raise ValueError(f"{name} has no effect with start=, from whose means and scales the fit goes on")
    masks = bnn.masks
    for fit in fits_of(start):
        own = fit.bnn.masks
        same = own.keys() == masks.keys() and all(own[n].shape == mask.shape for n, mask in masks.items())
        if not same or not all(torch.equal(own[name].to(mask.device), mask) for name, mask in masks.items()):
            raise ValueError(
                "start must be a fit of a network with the same weights and masks: use its own model, start.bnn, or "
                "one made with the same scheme and seed"
            )


def units_of(bnn: BNN, asked: FitSettings, index: int) -> Standardizer | None:
    """The units that a replica's model has been in so far; None where the data says them.

    Args:
        bnn: The model.
        asked: What was asked for.
        index: Of the replica.

    Raises:
        ValueError: If there are two that differ, or none were asked for.
    """
    known = [fit.standardizer for fit in fits_of(asked.start)[index : index + 1]]
    known += [] if bnn.units is None else [bnn.units]
    if len(known) > 1 and not _same_units(*known):
        raise ValueError(
            "start and bnn must be in the same units: they come from fits to data standardised differently"
        )
    if known and not asked.standardize and not _same_units(known[0], Standardizer.identity(bnn.like)):
        raise ValueError("standardize=False has no effect here: a fit goes on in the units of the one before")
    return known[0] if known else None


def _same_units(one: Standardizer, other: Standardizer) -> bool:
    pairs = ((getattr(one, name), getattr(other, name)) for name in Standardizer.__dataclass_fields__)
    return all(bool((a.cpu() == b.cpu()).all()) for a, b in pairs)


def with_units(bnn: Any, asked: FitSettings) -> FitSettings:
    """What was asked for, with `standardize` as it is where model or start are in units already."""
    if not isinstance(bnn, BNN) or (units := units_of(bnn, asked, 0)) is None:
        return asked
    return replace(asked, standardize=not _same_units(units, Standardizer.identity(bnn.like)))


def constants_of_start(bnn: BNN, start: Fit | Fits | None) -> list[Mapping[str, Tensor]]:
    """The constants of each replica that come from the start: those that the model still looks for, or the same.

    Replicas have MAP values of their own, of which the model that was given can only have the first's.
    """
    fits = fits_of(start)
    if not fits or bnn.learns_scale or bnn.points:
        return []
    first, own = fits[0].bnn.fixed, bnn.fixed
    if not bnn.awaits_map and not all(torch.equal(first[name].to(value), value) for name, value in own.items()):
        return []
    return [fit.bnn.fixed for fit in fits]


def params_of_start(fit: Fit, problem: Problem, own: Params, like: Tensor) -> Params:
    """Unconstrained parameters of a replica: the fit's guide, and what the model has learned of its own.

    Args:
        fit: The fit.
        problem: The layout of the model.
        own: Its own parameters as they are without a start; those that the fit does not have stay.
        like: A tensor whose device and dtype the result follows.

    Raises:
        ValueError: If the model has other sample sites.
    """
    layouts = [[(site.name, tuple(site.shape)) for site in sites] for sites in (problem.sites, fit.guide.sites)]
    if layouts[0] != layouts[1]:
        names = [sorted(name for name, _ in layout) for layout in layouts]
        raise ValueError(f"start must be a fit of the same sample sites: bnn has {names[0]}, start {names[1]}")
    known = dict(fit.bnn.named_parameters())
    learned = {}
    for name, value in own.items():
        found = known.get(f"{name}_unconstrained", known.get(name))
        learned[name] = value if found is None or found.shape != value.shape else found.detach().to(value)
    parts = {"loc": fit.guide.loc, "rho": fit.guide.scale_unconstrained}
    return {**{name: value.detach().to(like) for name, value in parts.items()}, **learned}


def continue_optimiser(run: Run, members: list[Replica], asked: FitSettings) -> None:
    """Set the optimiser of a run to where it was at the end of its start, if model and optimiser are the same.

    Args:
        run: The run, at its start.
        members: The replicas.
        asked: What was asked for, and with it what they start from, if anything.
    """
    states = [
        fit.optimizer if _same_optimizer(fit, member.rows, asked) and _same_model(member.bnn, fit.bnn) else None
        for member, fit in zip(members, fits_of(asked.start), strict=False)
    ]
    if not states or any(not _fits(state, run) for state in states):
        return
    for index, state in enumerate(states):
        assert state is not None
        run.before = state.steps
        for name in ("first", "second"):
            getattr(run.state, name)[index] = getattr(state, name).to(run.state.params)


def _fits(state: OptimizerState | None, run: Run) -> bool:
    return state is not None and state.first.shape == run.state.first.shape[1:]


def _same_optimizer(fit: Fit, rows: int, asked: FitSettings) -> bool:
    same = {name: fit.settings.get(name, getattr(FitSettings, name)) for name in ("optimizer", "kl_weight")}
    if asked.optimizer == "adam":
        return same["optimizer"] == "adam"
    # Its precisions are those of a row: with other rows they would no more be those of the scales.
    return same == {"optimizer": "ivon", "kl_weight": asked.kl_weight} and fit.num_data == rows


def _same_model(one: BNN, other: BNN) -> bool:
    marks = [marks_of(bnn) for bnn in (one, other)]
    for own in marks:
        del own["constants"]  # of which a learned c is part
    constants = zip(one.weights, other.weights, strict=True)
    return (
        marks[0] == marks[1]
        and one.learns_scale == other.learns_scale
        and one.points == other.points
        and all(torch.equal(a.fixed, b.fixed.to(a.fixed)) for a, b in constants if a.name not in one.points)
        and _same_prior(one.prior, other.prior)
    )


def _same_prior(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same_prior(value, other[name]) for name, value in one.items())
    if isinstance(one, Distribution) and type(one) is type(other):
        values = ((getattr(one, name), getattr(other, name)) for name in one.arg_constraints if name in one.__dict__)
        return all(torch.equal(a, b.to(a)) if isinstance(a, Tensor) else a == b for a, b in values)
    return isinstance(one, Hierarchical) or one is other  # whose options `marks_of` has
