"""The replicas of a fit: each one's model and data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..base.checks import require_device
from ..base.process import warn_user
from ..data.arrays import Standardizer, check_resolution, far_off
from ..data.names import column_names, in_order, require_same_rows, row_names
from ..data.observed import NO_EXTRAS, Extras
from ..data.sources import Indexed, Source, Streamed
from ..data.trees import leaves
from ..model.bnn import BNN
from ..model.checks import are_stacked, check_inputs, check_observed, check_resolutions
from ..model.likelihoods import Gaussian
from ..model.links import warn_of_limits
from ..model.streams import moments_of, stream_of
from ..network.inputs import measured
from .checkpoint import Checkpoint
from .distributed import processes_of
from .loop import Replica
from .settings import FitSettings
from .snapshot import SCALING, scaling_of
from .warm_start import units_of


def members_of(
    bnn: BNN, x: Any, y: Any, asked: FitSettings, found: Checkpoint | None = None, extras: Extras = NO_EXTRAS
) -> list[Replica]:
    """A copy of the model and the data for every replica.

    Args:
        bnn: The model.
        x: Inputs, with `replicas` also data of their own for each; or a source, which has targets too.
        y: Targets, likewise.
        asked: What was asked for.
        found: The checkpoint to go on from, whose standardisation is kept; so is that of a start, and of a model
            whose prior is a posterior.
        extras: Weights and error bars of the rows; where replicas have data of their own, of each.

    Raises:
        TypeError: If `bnn` is no BNN.
        ValueError: If it has nothing to infer, the data does not fit it, or there is no such device.
    """
    if not isinstance(bnn, BNN):
        raise TypeError(f"bnn must be a pyro_sps.BNN, got {type(bnn).__name__}")
    if bnn.num_stochastic == 0:
        raise ValueError("bnn has no stochastic weight: every weight is fixed, so that nothing is left to infer")
    # In evaluation mode, in which masks of dropout are only those that a step asks for.
    copies = [bnn.copy().eval() for _ in range(asked.replicas or 1)]
    _check_dropout(copies[0], asked)
    require_device(asked.device)
    for copy in copies if asked.device is not None else ():
        copy.to(asked.device)
    if isinstance(x, Indexed | Streamed):
        return _streamed(copies, x, asked, found)
    like = copies[0].like
    stacked = asked.replicas is not None and are_stacked(x, len(copies), bnn)
    members: list[Replica] = []
    for index, copy in enumerate(copies):
        own_x, own_y = (x[index], y[index]) if stacked else (x, y)
        own_extras = extras.of_replica(index) if stacked else extras
        if index == 0 or stacked:
            names = column_names(own_x), column_names(own_y)
            require_same_rows("x", row_names(own_x), "y", row_names(own_y))
            if members:
                own_x = in_order(f"x[{index}]", own_x, members[0].features)
                own_y = in_order(f"y[{index}]", own_y, members[0].targets)
                names = members[0].features, members[0].targets
            inputs = check_inputs("x", own_x, copy)
            observed = check_observed("y", own_y, copy, len(inputs), own_extras, asked.missing)
            check_resolutions("x", own_x, inputs, copy)
            whole = observed if isinstance(observed, Tensor) else observed.y if observed.measured is None else None
            if copy.likelihood.real_valued and whole is not None:
                check_resolution("y", own_y, whole)
            units = units_of(copy, asked, index)
            if units is None and asked.standardize:
                numbers = measured(copy.topology.inputs)
                units = Standardizer.of(inputs, observed, copy.likelihood.real_valued, numbers)
            scaling = (units or Standardizer.identity(like)).to(like)
            if found is not None:  # another number of threads might round the moments differently
                scaling = scaling_of(found, scaling, index)
            inputs, observed = scaling.inputs(inputs), scaling.targets(observed)
            targets = observed if isinstance(observed, Tensor) else observed.y
            if index == 0:
                if asked.standardize:
                    warn_of_limits(copy.likelihood, copy.function)
                _warn_of_scales(copy, inputs, targets, scaling, asked.standardize, names)
        # All replicas run as one program, whose likelihood is that of the first.
        copy.likelihood.adapt(leaves(members[0].y)[0] if members else targets)
        members.append(Replica(copy, inputs, observed, scaling, *names))
    return members


def _check_dropout(bnn: BNN, asked: FitSettings) -> None:
    """Refuse to divide the rows of a step whose masks of dropout are made for all of them at once."""
    if bnn.dropout == "ignore":
        return
    if asked.accumulate > 1:
        raise ValueError(
            f"accumulate must be 1 with BNN(dropout={bnn.dropout!r}), got {asked.accumulate}: minibatches of a step "
            "would share their masks; use a larger batch_size"
        )
    if processes_of(torch.device(asked.device or bnn.like.device)).count > 1:
        raise ValueError(
            f"BNN(dropout={bnn.dropout!r}) is for one process: those that torchrun has started would share their masks"
        )


def _streamed(copies: list[BNN], source: Source, asked: FitSettings, found: Checkpoint | None) -> list[Replica]:
    """Replicas whose data is read while they run; `x` and `y` are a few rows of it."""
    first = copies[0]
    stream = stream_of(source, first, asked.missing)
    x, y = stream.example()
    likelihood = first.likelihood
    units = units_of(first, asked, 0)
    scaling = (units or Standardizer.identity(first.like)).to(first.like)
    if asked.standardize and found is not None:
        like = Standardizer.of(x, y, likelihood.real_valued, measured(first.topology.inputs)).to(first.like)
        scaling = scaling_of(found, like, 0)
    elif asked.standardize and units is None:
        scaling = moments_of(stream, likelihood.real_valued)
    stream.standardizer = scaling
    x, y = scaling.inputs(x), scaling.targets(y)
    names = source.features, source.targets
    if asked.standardize:
        warn_of_limits(likelihood, first.function)
    _warn_of_scales(first, x, leaves(y)[0], scaling, asked.standardize, names)
    for copy in copies:
        copy.likelihood.adapt(leaves(y)[0])
    return [Replica(copy, x, y, scaling, *names, stream) for copy in copies]


def _warn_of_scales(
    bnn: BNN,
    x: Tensor,
    y: Tensor,
    scaling: Standardizer,
    standardized: bool,
    names: tuple[tuple[str, ...] | None, tuple[str, ...] | None],
) -> None:
    """Warn where the data is far from the scales that priors and starts are made for, in the units of the network."""
    likelihood = bnn.likelihood
    own = measured(bnn.topology.inputs)  # numbers of words and the like have no scale
    numbers = x.new_zeros((len(x), 0)) if not x.is_floating_point() else x if own is None else x[:, own.to(x.device)]
    found = [far_off("x", numbers, names[0])] + ([far_off("y", y, names[1])] if likelihood.real_valued else [])
    if found := [text for text in found if text]:
        then = "transform or clip it, by logarithms for instance" if standardized else "use standardize=True"
        warn_user(f"{'; '.join(found)}: the priors are made for values of about 1, {then}")
    if standardized and isinstance(likelihood, Gaussian) and not likelihood.learn:
        scale = scaling.y_scale.double()
        if ((scale > 3) | (scale < 1 / 3)).any():
            noise = (likelihood.noise_scale.detach().double().cpu() * scale.cpu()).flatten().tolist()
            shown = ", ".join(f"{value:.3g}" for value in noise[:3]) + (", ..." if len(noise) > 3 else "")
            warn_user(
                f"the given noise of {likelihood.initial_scale} counts in units of the standardised targets, and is "
                f"{shown} in those of y: if it was meant in the units of y, use standardize=False or divide it by y's "
                "standard deviation"
            )


def training_tensors(members: list[Replica]) -> Iterator[Tensor]:
    """What all replicas are fitted to, and how it was standardised."""
    if (stream := members[0].stream) is not None:
        yield torch.tensor(stream.num_rows)
    for member in {id(member.x): member for member in members}.values():
        yield from (*leaves(member.x), *leaves(member.y), *(getattr(member.standardizer, name) for name in SCALING))
