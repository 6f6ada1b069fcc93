"""One optimisation step as one program: the fast path.

`make_step` is its only entry. It takes an objective (a pure function of parameters, noise and data), differentiates
it, adds an optimiser, maps the whole over replicas and records the tensor operations once, so that no Python of Pyro's
or ours runs in a step. The recording is compiled with `torch.compile` where that is asked for and possible.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from ..base.process import silenced
from ..base.recording import record
from ..base.terminal import note
from ..model.density import Params, pyro_session
from .distributed import ALONE, Processes
from .optimizers import ADAM, Optimizer, State
from .replay import Replay, held_of, is_replayed

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
            program, mode, reason = _program(step, 3, (*tensors, scalars, *arguments), compile, announce)
            return Step(_runner(program, replicas, data_dims), mode, reason)
        shares = parts.of(arguments, data_dims)
        example = (tensors[0], tensors[2], *next(shares)[1])
        program, mode, reason = _program(gradients, 0, example, compile, announce)
        example = (*tensors, scalars, torch.zeros_like(tensors[0]), tensors[0].new_zeros(replicas))
        change, _, _ = _program(update, 3, example, compile)

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


def _program(
    function: Callable[..., Any], changes: int, example: tuple[Any, ...], compile: bool, announce: str = ""
) -> tuple[Callable[..., Any], str, str]:
    """A function of tensors, of which it changes the first few, as fast as it could be made; how, and why so."""
    replays = compile and is_replayed(example)
    if replays:
        example = held_of(example, changes)
    recorded, reason = _record(function, example, changes)
    if recorded is None:
        return _in_session(function), "traced", reason
    if compile:
        compiled, reason = _compile(recorded, example, changes, announce)
        if compiled is not None:
            program = _on_same_threads(compiled, recorded)
            return Replay(program, changes) if replays else program, "compiled", ""
    return _by_torchscript(recorded, example, changes), "recorded", reason


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


def _on_same_threads(compiled: Callable[..., Any], recorded: Callable[..., Any]) -> Callable[..., Any]:
    """Inductor's code is made for a number of threads; with another one its recording takes over."""
    threads = torch.get_num_threads()
    return lambda *args: (compiled if torch.get_num_threads() == threads else recorded)(*args)


def _in_session(step: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with pyro_session():
            return step(*args)

    return run


def _record(step: Callable[..., Any], example: tuple[Any, ...], changes: int = 0) -> tuple[fx.GraphModule | None, str]:
    """The tensor operations of one call of `step`, which changes so many arguments; or None and why there are none."""
    changed = [tensor.clone() for tensor in example[:changes]]
    try:
        with pyro_session():
            recorded = record(step, *changed, *example[changes:])
    except Exception as error:  # whatever a user's model does that tracing cannot follow
        return None, f"the model cannot be recorded ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    _fold_constants(recorded)
    return recorded, ""


def _fold_constants(module: fx.GraphModule) -> None:
    """Compute once what depends on no argument: priors, index arithmetic, fixed weights."""
    values: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.detach.default:  # plain autograd leaves it, where it is nothing
            node.replace_all_uses_with(node.args[0])
            continue
        if node.op == "get_attr":
            values[node] = getattr(module, str(node.target))
        elif node.op == "call_function" and all(inner in values for inner in node.all_input_nodes):
            operator: Any = node.target
            takes_one = operator is getitem  # of several results, which is no operation of torch's
            if not takes_one and (torch.Tag.nondeterministic_seeded in operator.tags or operator._schema.is_mutable):
                continue
            arguments: Any = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = operator(*arguments[0], **arguments[1])
    for node, value in values.items():
        users = [user for user in node.users if user not in values]
        if node.op == "call_function" and users and isinstance(value, Tensor):
            name = f"_folded_{node.name}"
            module.register_buffer(name, value)
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            for user in users:
                user.replace_input_with(node, constant)
    module.graph.eliminate_dead_code()
    module.recompile()


# What was compiled in this process, by what it computes: the most recent programs, whose constants stay with them.
_COMPILED: OrderedDict[str, Callable[..., Any]] = OrderedDict()

_KEPT, _KEPT_BYTES = 32, 2**24


def _compile(
    recorded: fx.GraphModule, example: tuple[Any, ...], changes: int, announce: str
) -> tuple[Callable[..., Any] | None, str]:
    """The recorded step compiled, or None and why that failed; the same step is compiled once a process."""
    try:
        key = _key_of(recorded, example)
    except (RuntimeError, TypeError):  # of constants that are no plain numbers
        key = ""
    if key in _COMPILED:
        _COMPILED.move_to_end(key)
        return _COMPILED[key], ""
    if announce:
        note(
            f"{announce}: compiling the step to machine code takes some seconds, the first time in a process, "
            "and saves more where there are many steps; compile=False leaves it out"
        )
    try:
        compiled = _by_inductor(recorded, example, changes)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return None, f"it could not be compiled ({type(error).__name__}: {lines[0][:120]})"
    if key:
        _COMPILED[key] = compiled
        if len(_COMPILED) > _KEPT:
            _COMPILED.popitem(last=False)
    return compiled, ""


def _key_of(recorded: fx.GraphModule, example: tuple[Any, ...]) -> str:
    """A digest of all that compiled code depends on; empty for a program whose constants are too large to be kept."""
    names = dict.fromkeys(str(node.target) for node in recorded.graph.nodes if node.op == "get_attr")
    constants = [getattr(recorded, name) for name in names]
    if not all(isinstance(one, Tensor) for one in constants) or sum(one.nbytes for one in constants) > _KEPT_BYTES:
        return ""
    told = [recorded.code, torch.get_num_threads(), torch.__version__]
    for one in (*example, *constants):
        told.append((one.shape, one.stride(), one.dtype, one.device) if isinstance(one, Tensor) else one)
    digest = hashlib.sha256(repr(told).encode())
    for one in constants:
        # A copy, for the stride of a single number may be anything.
        own = one.detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(own.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _by_torchscript(recorded: fx.GraphModule, example: tuple[Any, ...], changes: int) -> Callable[..., Any]:
    """Recorded operations called by TorchScript, half the time of Python for tiny tensors, where there is one."""
    given = [place for place, one in enumerate(example) if isinstance(one, Tensor)]
    tensors = [example[place].clone() if place < changes else example[place] for place in given]
    try:
        with torch.no_grad():
            quick = _with_quick_tanh(recorded, example)
            for node, one in zip(quick.graph.find_nodes(op="placeholder"), example, strict=True):
                if not isinstance(one, Tensor):  # such as no noise, which TorchScript does not take
                    quick.graph.erase_node(node)
            quick.recompile()
            script = torch.jit.freeze(torch.jit.trace(quick.eval(), tuple(tensors), check_trace=False))
    except Exception:
        return recorded
    return lambda *args: script(*(args[place] for place in given))


def _with_quick_tanh(recorded: fx.GraphModule, example: tuple[Any, ...]) -> fx.GraphModule:
    """Tanh on a CPU as 2 σ(2x) - 1, which is right to three ulp of 1 and takes a fourth of the time."""
    quick = fx.GraphModule(recorded, copy.deepcopy(recorded.graph))
    if all(one.device.type == "cpu" for one in example if isinstance(one, Tensor)):
        aten, graph = torch.ops.aten, quick.graph
        for node in graph.find_nodes(op="call_function", target=aten.tanh.default):
            with graph.inserting_before(node):
                value = graph.call_function(aten.mul.Scalar, (node.args[0], 2.0))
                value = graph.call_function(aten.sigmoid.default, (value,))
                value = graph.call_function(aten.mul.Scalar, (value, 2.0))
                node.replace_all_uses_with(graph.call_function(aten.sub.Scalar, (value, 1.0)))
            graph.erase_node(node)
    return quick


def _by_inductor(recorded: fx.GraphModule, example: tuple[Any, ...], changes: int) -> Callable[..., Any]:
    from torch._inductor import compile as inductor_compile

    copies = [tensor.clone() for tensor in example[:changes]]
    with torch.no_grad():
        shorter = {torch.ops.aten.tanh.default: _rational_tanh}
        fast = record(recorded, *copies, *example[changes:], decompositions=shorter)
        # Inductor without dynamo, whose guards cost more than the step of a small network takes: the recording
        # has no Python left to guard, and all its arguments keep their shapes.
        compiled: Callable[..., Any] = inductor_compile(
            fast, [*copies, *example[changes:]], options=_inductor_options()
        )
        compiled(*copies, *example[changes:])
    return compiled


def _inductor_options() -> dict[str, Any]:
    """Fused multiply-adds on CPUs, as NumPyro's compiler has them; not every version of torch has the option."""
    import torch._inductor.config as config

    name = "enable_floating_point_contract_flag"
    return {f"cpp.{name}": "fast"} if hasattr(config.cpp, name) else {}


# x P(x²) / Q(x²), fitted to tanh on |x| ≤ 8 by least squares with Lawson's weights; 3 ulp of float32 everywhere.
_TANH_P = (0.99999999, 0.13444499, 0.0035715987, 2.1894649e-05, 1.5230345e-08)

_TANH_Q = (1.0, 0.46777826, 0.026164447, 0.00034112922, 8.5224294e-07)


def _rational_tanh(x: Tensor) -> Tensor:
    """Tanh of float32 on a CPU by a few fused multiply-adds: a third of the energy network's step goes into tanh."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    x = x.clamp(-8.0, 8.0)  # beyond which it is 1 to rounding
    square = x * x
    upper, lower = (square * c[-1] + c[-2] for c in (_TANH_P, _TANH_Q))
    for p, q in zip(_TANH_P[-3::-1], _TANH_Q[-3::-1], strict=True):
        upper, lower = upper * square + p, lower * square + q
    return x * upper / lower


@dataclass(frozen=True)
class Program:
    """A pure function of tensors, as fast as it could be made.

    Attributes:
        run: The function.
        mode: As of a `Step`.
        reason: Likewise.
    """

    run: Callable[..., Any]
    mode: str
    reason: str = ""


def make_program(
    function: Callable[..., Any], example: tuple[Tensor, ...], compile: bool, announce: str = ""
) -> Program:
    """Record a pure function of tensors, and compile it if that is asked for.

    Args:
        function: The function; it may run Pyro models.
        example: Arguments; later ones must have the same shapes and strides.
        compile: Whether to compile.
        announce: As of `make_step`.
    """
    with silenced():
        program, mode, reason = _program(function, 0, example, compile, announce)
        return Program(_without_gradients(program), mode, reason)


def _without_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Tensor) -> Any:
        with torch.no_grad():
            return function(*args)

    return run
