"""What a checkpoint holds of a run, and setting a run to it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.files import LoadError
from ..data.arrays import Standardizer
from ..masks.values import MAP
from ..model.bnn import BNN
from .checkpoint import Checkpoint
from .loop import Replica, Run
from .validation import Validation

SCALING = tuple(Standardizer.__dataclass_fields__)


def tensors_of(run: Run, watcher: Validation | None) -> dict[str, Tensor]:
    """The numbers of a checkpoint."""
    tensors = {name: getattr(run.state, name) for name in ("params", "first", "second")}
    tensors["losses"] = run.losses  # those to come too, so that the file does not grow
    if run.average_steps:
        tensors |= {"average": run.average, "averaged": torch.tensor(run.averaged)}
    tensors["failed"] = torch.tensor([run.failed.get(index, -1) for index in range(len(run.members))])
    for index, member in enumerate(run.members):
        for name in SCALING if index == 0 or not run.shared else ():
            tensors[f"standardizer.{index}.{name}"] = getattr(member.standardizer, name)
        if has_map_values(member.bnn):
            tensors |= {f"constant.{index}.{weight.name}": weight.fixed for weight in member.bnn.weights}
    if watcher is None:
        return tensors
    tensors["best_lpp"] = torch.tensor(watcher.best_lpp, dtype=torch.float64)
    tensors["waited"] = torch.tensor(watcher.waited)
    if watcher.best is not None:
        tensors["best"] = watcher.best
    for name in watcher.history[0][0] if watcher.history[0] else ():
        history = [[check[name] for check in own] for own in watcher.history]
        tensors[f"validation.{name}"] = torch.tensor(history, dtype=torch.float64)
    return tensors


def has_map_values(bnn: BNN) -> bool:
    """Whether the constants of a model are MAP values, each replica's own."""
    return isinstance(bnn.values, MAP) and bnn.num_fixed > 0


def scaling_of(found: Checkpoint, like: Standardizer, index: int) -> Standardizer:
    """The standardisation of a replica; `like` has its shapes."""
    parts = {name: getattr(like, name) for name in SCALING}
    take = found.numbers.take
    return Standardizer(
        **{name: take(f"standardizer.{index}.{name}", v.dtype, v.shape).to(v) for name, v in parts.items()}
    )


def constants_of(member: Replica, found: Checkpoint, index: int) -> dict[str, Tensor]:
    """The MAP values of a replica's fixed weights."""
    return {
        weight.name: found.numbers.take(f"constant.{index}.{weight.name}", weight.fixed.dtype, weight.fixed.shape)
        for weight in member.bnn.weights
    }


def restore(found: Checkpoint, run: Run, watcher: Validation | None) -> None:
    """Set a run to where its checkpoint was."""
    take, params, count = found.numbers.take, run.state.params, len(run.members)
    if not 0 <= found.done <= run.num_steps:
        raise LoadError(f"the checkpoint in {found.directory} is damaged: {found.done} steps of {run.num_steps} done")
    for name in ("params", "first", "second"):
        getattr(run.state, name).copy_(take(name, params.dtype, params.shape))
    if (run.state.second < 0).any():
        raise LoadError(f"the checkpoint in {found.directory} is damaged: it has squares that are negative")
    run.done, run.stopped, run.before = found.done, found.stopped, found.before
    if run.average_steps:
        run.averaged = int(take("averaged", torch.int64, ()).item())
        if not 0 <= run.averaged <= min(run.done, run.average_steps):
            raise LoadError(f"the checkpoint in {found.directory} is damaged: its means are of {run.averaged} steps")
        run.average.copy_(take("average", params.dtype, run.average.shape))
    run.losses.copy_(take("losses", params.dtype, run.losses.shape, finite=False))
    if run.losses[run.done :].any():
        raise LoadError(
            f"the checkpoint in {found.directory} is damaged: it has losses of more than {found.done} steps"
        )
    failed = take("failed", torch.int64, (count,)).tolist()
    run.failed = {index: step for index, step in enumerate(failed) if step >= 0}
    if watcher is not None:
        watcher.best_lpp = take("best_lpp", torch.float64, (count,), finite=False).tolist()
        watcher.waited = take("waited", torch.int64, (count,)).tolist()
        if "best" in found.numbers.left:
            watcher.best = take("best", params.dtype, params.shape).to(params).clone()
        # One check more at each end there has been: the fit may have been given more steps.
        steps = found.numbers.left.get("validation.step", torch.empty(count, 0))
        shape = (count, steps.shape[-1] if steps.dim() else -1)
        if not run.done // watcher.every <= shape[1] <= run.done:
            raise LoadError(f"the checkpoint in {found.directory} is damaged: it has {shape[1]} checks")
        history = {
            name: take(f"validation.{name}", torch.float64, shape, finite=False).tolist()
            for name in list(found.numbers.names("validation."))
        }
        for index, own in enumerate(watcher.history):
            rows = zip(*(values[index] for values in history.values()), strict=True)
            own += [{n: int(v) if n == "step" else v for n, v in zip(history, row, strict=True)} for row in rows]
    if found.numbers.left:
        raise LoadError(
            f"the checkpoint in {found.directory} is damaged: it has the unknown {[*found.numbers.left][:9]}"
        )
