"""One optimisation step as one program: the fast path.

`make_step` is its only entry. It takes an objective (a pure function of parameters, noise and data), differentiates
it, adds an optimiser, maps the whole over replicas and records the tensor operations once, so that no Python of Pyro's
or ours runs in a step. The recording is compiled with `torch.compile` where that is asked for and possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base.process import silenced
from ..model.density import Params
from .distributed import ALONE, Processes
from .optimizers import ADAM, Optimizer, State
from .program import program_of

# (parameters, noise or None, *data) -> scalar loss
Objective = Callable[..., Tensor]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the parameters inside one vector."""

    shapes: Mapping[str, torch.Size]

    @staticmethod
    def of(params: Mapping[str, Tensor]) -> Layout:
        """The layout of a set of tensors."""
        return Layout({name: value.shape for name, value in params.items()})

    def pack(self, params: Mapping[str, Tensor]) -> Tensor:
        """Tensors of shape B + shape as one of B + (p,)."""
        parts = []
        for name, shape in self.shapes.items():
            value = params[name]
            parts.append(value.reshape((*value.shape[: value.dim() - len(shape)], -1)))
        return torch.cat(parts, dim=-1)

    def unpack(self, flat: Tensor) -> Params:
        """Views of B + (p,) with shapes B + shape."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.reshape(flat.shape[:-1] + shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


@dataclass(frozen=True)
class Step:
    """A callable optimisation step.

    Attributes:
        run: `(state, scalars, noise, *data) -> losses` with a row of the optimiser's `scalars`. Changes the state in
            place and returns the losses before the step, shape (replicas,).
        mode: `compiled` (on an accelerator a CUDA graph), `recorded` (the recorded operations one by one) or `traced`
            (the model runs in each step).
        reason: Why it is not compiled although that was asked for; empty otherwise.
    """

    run: Callable[..., Tensor]
    mode: str
    reason: str = ""


def make_step(
    objective: Objective,
    layout: Layout,
    examples: tuple[Any, ...],
    data_dims: tuple[int | None, ...],
    max_grad_norm: float,
    compile: bool,
    group: int | None = None,
    optimizer: Optimizer = ADAM,
    parts: Parts | None = None,
    announce: str = "",
    calls: float = math.inf,
) -> Step:
    """Build the optimisation step of an objective.

    Args:
        objective: Pure function `(params, noise, *data) -> loss`, for one replica; `noise` may be None.
        layout: Of the parameters.
        examples: A state and the arguments `(noise, *data)` of a step, with a leading replica dimension.
        data_dims: For each of `(noise, *data)`, 0 if it has a replica dimension and None if all replicas share it.
        max_grad_norm: Gradients are scaled down to this norm, replica by replica.
        compile: Whether to compile.
        group: Number of replicas that run at once, a divisor of the replicas; default: all. The program is made for a
            group and called for one after the other.
        optimizer: What the gradient is taken at, and what it does.
        parts: How the rows of a step are divided, if they are; the step is then two programs, one of the gradient on a
            part of the rows and one of the update, which is done once.
        announce: What is said to be compiled, on a terminal, where that takes time; empty for nothing.
        calls: How often it will be called, if that is known.

    Returns:
        The step, as fast as it could be made. What cannot be recorded or compiled falls back and says why.
    """
    state, *arguments = examples
    replicas = group or state.params.shape[0]
    max_grad_norm = float(max_grad_norm)  # of which torch takes no large integers
    clips = max_grad_norm <= torch.finfo(state.params.dtype).max  # a larger one, as infinity, means none

    def own_gradients(params: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        differentiate = _grad_and_value if replicas == 1 else torch.func.grad_and_value
        grads, loss = differentiate(objective)(layout.unpack(params), *args)
        return layout.pack(grads), loss

    def gradients(params: Tensor, second: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        params = optimizer.point(params, second)
        if replicas == 1:  # without vmap the recorded program is shorter
            own = (
                argument if dim is None or argument is None else argument[0]
                for argument, dim in zip(args, data_dims, strict=True)
            )
            grads, losses = own_gradients(params[0], *own)
            return grads.unsqueeze(0), losses.reshape(1)
        grads, losses = torch.func.vmap(own_gradients, in_dims=(0, *data_dims))(params, *args)
        return grads, losses

    def update(params: Tensor, first: Tensor, second: Tensor, scalars: Tensor, grads: Tensor, losses: Tensor) -> None:
        norm = grads.norm(dim=-1, keepdim=True)
        finite = losses.isfinite().unsqueeze(-1) & norm.isfinite()
        clipped = grads * (max_grad_norm / norm.clamp(min=max_grad_norm)) if clips else grads
        # A step that is not finite changes nothing: the state stays the last finite one.
        clipped = torch.where(finite, clipped, grads.new_zeros(()))
        optimizer.update(params, first, second, scalars, clipped, finite)

    def step(params: Tensor, first: Tensor, second: Tensor, scalars: Tensor, *args: Any) -> Tensor:
        grads, losses = gradients(params, second, *args)
        update(params, first, second, scalars, grads, losses)
        return losses

    arguments = [_part(one, dim, 0, replicas) for one, dim in zip(arguments, data_dims, strict=True)]
    tensors = tuple(tensor[:replicas] for tensor in (state.params, state.first, state.second))
    scalars = optimizer.scalars([0.0], state.params, 0)[0]
    with silenced():  # under the lock of the process, which neither recording nor compiling shares with other threads
        if parts is None:
            program, mode, reason = program_of(step, 3, (*tensors, scalars, *arguments), compile, announce, calls)
            return Step(_runner(program, replicas, data_dims), mode, reason)
        shares = parts.of(arguments, data_dims)
        example = (tensors[0], tensors[2], *next(shares)[1])
        program, mode, reason = program_of(gradients, 0, example, compile, announce, calls)
        example = (*tensors, scalars, torch.zeros_like(tensors[0]), tensors[0].new_zeros(replicas))
        change, _, _ = program_of(update, 3, example, compile, calls=calls)

    def in_parts(params: Tensor, first: Tensor, second: Tensor, scalars: Tensor, *args: Any) -> Tensor:
        total = torch.zeros_like(params), params.new_zeros(len(params))
        for share, own in parts.of(args, data_dims):
            for sum, value in zip(total, program(params, second, *own), strict=True):
                sum.add_(value, alpha=share)
        grads, losses = parts.processes.total(*total)
        change(params, first, second, scalars, grads, losses)
        return losses

    return Step(_runner(in_parts, replicas, data_dims), mode, reason)


@dataclass(frozen=True)
class Parts:
    """How the rows of a step are divided into parts, whose gradients are added up.

    Attributes:
        rows: Rows of a step, of all processes together.
        count: Number of parts that a process does one after the other.
        tensors: How many of the arguments have rows, those of this process: those that come after the noise.
        processes: Those that share the rows.
    """

    rows: int
    count: int
    tensors: int
    processes: Processes = ALONE

    def of(self, arguments: Sequence[Any], data_dims: Sequence[int | None]) -> Iterator[tuple[float, list[Any]]]:
        """The share of the rows of a step that each part has, and its arguments."""
        noise, *data = arguments[: 1 + self.tensors]
        # The dimension of the rows is the first, but for that of the replicas.
        dims = [int(dim == 0) for dim in data_dims[1 : 1 + self.tensors]]
        for own in zip(*(x.chunk(self.count, dim) for x, dim in zip(data, dims, strict=True)), strict=True):
            yield own[0].shape[dims[0]] / self.rows, [noise, *own, *arguments[1 + self.tensors :]]


def _grad_and_value(objective: Objective) -> Callable[..., tuple[Params, Tensor]]:
    """As `torch.func.grad_and_value`, by plain autograd, whose backward passes are whole operations."""

    def run(params: Params, *args: Any) -> tuple[Params, Tensor]:
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
            loss = objective(leaves, *args)
            grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, grads, strict=True)), loss.detach()

    return run


def _part(argument: Any, dim: int | None, start: int, stop: int) -> Any:
    """An argument's replicas from `start` to `stop`."""
    return argument if dim is None or argument is None else argument[start:stop]


def _runner(step: Callable[..., Tensor], group: int, data_dims: tuple[int | None, ...]) -> Callable[..., Tensor]:
    def run(state: State, scalars: Tensor, *args: Any) -> Tensor:
        tensors = (state.params, state.first, state.second)
        count = state.params.shape[0]
        with torch.no_grad():
            if count == group:
                return step(*tensors, scalars, *args)
            losses = []
            for start in range(0, count, group):
                own = (_part(one, dim, start, start + group) for one, dim in zip(args, data_dims, strict=True))
                losses.append(step(*(tensor[start : start + group] for tensor in tensors), scalars, *own))
            return torch.cat(losses)

    return run
