"""What a checkpoint holds of chains, and setting chains to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..base.files import LoadError
from .chains import KEPT, ChainRun
from .checkpoint import Checkpoint, environment, plain
from .langevin import Chains, Tuning
from .loop import Replica
from .snapshot import SCALING, has_map_values
from .warmup import LONGEST_WARMUP


def header_of(
    run: ChainRun, settings: Mapping[str, Any], marks: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """What a checkpoint says beside its numbers."""
    return {
        "settings": {name: plain(value) for name, value in settings.items()},
        "marks": dict(marks),
        "done": run.done,
        "stopped": run.stopped,
        "environment": {**environment(run.starts), "steps": run.program.mode},
        "seconds": dict(seconds),
    }


def tensors_of(run: ChainRun, member: Replica) -> dict[str, Tensor]:
    """The numbers of a checkpoint."""
    tensors = {"starts": run.starts, "recent": run.recent, "early": run.early, "late": run.late}
    tensors |= {f"chains.{one.name}": getattr(run.chains, one.name) for one in fields(Chains)}
    tensors |= {f"tuning.{name}": value for name, value in run.tuning.tensors().items()}
    for name in KEPT:
        tensors[name] = getattr(run, name)[:, : run.drawn]
    tensors["numbers"] = torch.tensor([run.warmup, run.most_warmup, run.drawn, run.length, *run.restarted])
    tensors |= {f"standardizer.0.{name}": getattr(member.standardizer, name) for name in SCALING}
    if has_map_values(member.bnn):
        tensors |= {f"constant.0.{weight.name}": weight.fixed for weight in member.bnn.weights}
    return tensors


def restore(found: Checkpoint, run: ChainRun) -> None:
    """Set a run to where its checkpoint was."""
    take, like = found.numbers.take, run.starts
    numbers = take("numbers", torch.int64).tolist()
    most = round(LONGEST_WARMUP * run.warmup)
    if len(numbers) < 4 or not (max(numbers[:2]) <= most and 0 <= numbers[2] <= run.num_samples) or min(numbers) < 0:
        raise LoadError(f"the checkpoint in {found.directory} is damaged: its numbers are {numbers[:9]}")
    run.warmup, run.most_warmup, run.drawn, run.length, *run.restarted = numbers
    if not 0 <= found.done <= run.num_steps:
        raise LoadError(f"the checkpoint in {found.directory} is damaged: {found.done} of {run.num_steps} steps done")
    run.done, run.stopped = found.done, ""
    for name in ("recent", "early", "late"):
        setattr(run, name, take(name, like.dtype, getattr(run, name).shape).to(like))
    state = {
        n: take(f"chains.{n}", like.dtype, v.shape)
        for n, v in zip([one.name for one in fields(Chains)], run.chains.tensors(), strict=True)
    }
    run.chains = Chains(**{name: value.to(like) for name, value in state.items()})
    tuning = {n: take(f"tuning.{n}", like.dtype, v.shape).to(like) for n, v in run.tuning.tensors().items()}
    run.tuning = Tuning(**tuning)
    for name in KEPT:
        whole = getattr(run, name)
        whole[:, : run.drawn] = take(name, like.dtype, (len(whole), run.drawn, *whole.shape[2:]))
