"""Sampling prepared: all that comes before the first step."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..base.process import is_first, warn_user
from ..data.observed import Extras
from ..data.trees import rows_of
from ..masks.values import MAP, Given
from ..model.bnn import BNN
from ..model.density import pyro_session
from ..model.target import Target
from .checkpoint import Checkpoint, Writer, digest_of, marks_of
from .coordinates import Coordinates
from .loop import Replica
from .maximum import map_weights
from .members import members_of, training_tensors
from .sample_settings import SampleSettings
from .settings import FitSettings
from .snapshot import constants_of
from .starts import check_units

#: Of data that is not in memory, rows that stand for all in the warm-up, and bytes of them.
WARMUP_ROWS, WARMUP_BYTES = 20_000, 1 << 28


@dataclass
class SampleJob:
    """Sampling that has been prepared.

    Attributes:
        asked: What was asked for.
        member: Model and data.
        target: The posterior.
        coordinates: The vector that chains move in.
        marks: What tells model and data from others, for checkpoints.
        writer: Where checkpoints go; None for no checkpoints.
        started: When, by `time.monotonic`.
        seconds: Wall time of each part.
    """

    asked: SampleSettings
    member: Replica
    target: Target
    coordinates: Coordinates
    marks: dict[str, Any]
    writer: Writer | None
    started: float
    seconds: dict[str, float] = field(default_factory=dict)

    def note(self, part: str, begun: float) -> None:
        """Add the time since `begun` to a part's."""
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begun


def prepare_sampling(
    bnn: BNN, x: Any, y: Any, asked: SampleSettings, found: Checkpoint | None, extras: Extras
) -> SampleJob:
    """Check everything, find MAP constants where they are asked for, and lay out the problem."""
    started, begun = time.monotonic(), time.perf_counter()
    marks = marks_of(bnn) if asked.checkpoint is not None and isinstance(bnn, BNN) else {}
    if found is not None:
        found.require(marks)
    names = ("standardize", "missing", "seed", "device", "progress")
    shared = FitSettings(**{name: getattr(asked, name) for name in names})
    member = members_of(bnn, x, y, shared, found, extras)[0]
    own = member.bnn
    if own.dropout != "ignore":
        raise ValueError(
            f"sample needs one density, but with BNN(dropout={own.dropout!r}) it changes with every mask: use "
            "dropout='ignore', or fit"
        )
    if own.like.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"bnn must be of dtype float32 or float64 to be sampled, got {own.like.dtype}")
    _check_memory(own, asked)
    check_units(asked.starts, member.standardizer)
    writer = None
    if asked.checkpoint is not None:
        marks |= {"data": digest_of(training_tensors([member]))}
        if found is not None:
            found.require(marks)
        if is_first():  # all of those that torchrun has started sample the same
            writer = Writer.open(asked.checkpoint, asked.checkpoint_every, asked.checkpoint_errors, found is None)
    if own.awaits_map and isinstance(own.values, MAP):
        if found is None:
            batch = min(128, member.rows)
            estimate = map_weights([member], own.values, batch, asked.seed, asked.progress)[0]
            constants = {tensor.name: estimate[tensor.name] for tensor in own.topology.tensors}
        else:
            constants = constants_of(member, found, 0)
        own.hold(Given(constants)(own.topology, own.masks))
    if found is None and (scale := own.constant_scale()) is not None:
        shown = ", ".join(f"{one:.3g}" for one in scale.detach().flatten().tolist())
        warn_user(
            f"the learned c of the fixed values is not sampled: it is held at {shown}. To learn it, sample the "
            "model of a fit, fit.bnn; values without learn=True are held without a word"
        )
    if own.likelihood.latents():
        own.likelihood.sampled = True
    target = _target_of(member, asked)
    job = SampleJob(asked, member, target, Coordinates.of(target, asked.seed), marks, writer, started)
    if writer is not None:
        middle = target.like.new_zeros((1, target.problem.size))
        with torch.no_grad():
            marks["elbo"] = -_energy(target, middle)
        if found is not None:
            found.require_elbo(marks["elbo"], torch.finfo(target.like.dtype).eps)
    job.note("prepare", begun)
    return job


def _target_of(member: Replica, asked: SampleSettings) -> Target:
    """The posterior; of a stream with some rows, drawn at random, that stand for all in the warm-up."""
    if member.stream is None:
        return Target.of(member.bnn, member.x, member.y)
    most = min(WARMUP_ROWS, WARMUP_BYTES // member.stream.row_bytes((member.x, member.y)))
    rows = min(member.rows, max(most, asked.batch_size or 0))
    x, y = rows_of(next(member.stream.batches([asked.seed], rows)), 0)
    return Target.of(member.bnn, x, y, member.rows)


def _energy(target: Target, point: Tensor) -> float:
    with pyro_session():
        return target.energy(point).item()


def _check_memory(bnn: BNN, asked: SampleSettings) -> None:
    """Refuse draws that would not fit into the machine's memory."""
    needed = asked.chains * asked.num_samples * bnn.num_stochastic * bnn.like.element_size()
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return
    if bnn.like.is_cuda:
        there = torch.cuda.get_device_properties(bnn.like.device).total_memory
    if needed > there:
        raise MemoryError(
            f"{asked.chains} chains x {asked.num_samples} draws of {bnn.num_stochastic:,} weights take "
            f"{needed / 2**30:,.1f} GiB, and there are {there / 2**30:,.1f}; lower num_samples and raise thinning"
        )
