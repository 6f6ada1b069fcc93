"""A function of tensors as a program: recorded, and compiled or called by TorchScript.

No Python of Pyro's or ours runs in a program. What cannot be recorded runs as it is, and says why.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from ..base.process import interrupts_deferred, logged_less, silenced
from ..base.recording import record
from ..base.terminal import note
from ..model.density import pyro_session
from .replay import Replay, held_of, is_replayed

# TorchScript takes 0.1 s to make of a recording, and saves 0.5 to 1.5 ms in a call.
FEW_CALLS = 100


def program_of(
    function: Callable[..., Any],
    changes: int,
    example: tuple[Any, ...],
    compile: bool,
    announce: str = "",
    calls: float = math.inf,
) -> tuple[Callable[..., Any], str, str]:
    """A function of tensors, of which it changes the first few, as fast as it could be made; how, and why so.

    Of so few calls that it takes longer to make than it saves, nothing is made of a recording for TorchScript.
    """
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
    _quicken_tanh(recorded, example)
    return recorded if calls < FEW_CALLS else _by_torchscript(recorded, example, changes), "recorded", reason


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
            # A function of its own, for recording cannot read bound methods.
            recorded = record(lambda *args: step(*args), *changed, *example[changes:])
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
        script = fx.GraphModule(recorded, copy.deepcopy(recorded.graph))  # on the same constants
        for node, one in zip(script.graph.find_nodes(op="placeholder"), example, strict=True):
            if not isinstance(one, Tensor):  # such as no noise, which nothing reads and TorchScript does not take
                script.graph.erase_node(node)
        script.recompile()
        with torch.no_grad():
            traced = torch.jit.freeze(torch.jit.trace(script.eval(), tuple(tensors), check_trace=False))
    except Exception:
        return recorded
    return lambda *args: traced(*(args[place] for place in given))


def _quicken_tanh(recorded: fx.GraphModule, example: tuple[Any, ...]) -> None:
    """Make tanh on a CPU 2 σ(2x) - 1, which is right to three ulp of 1 and takes a fourth of the time."""
    if any(one.device.type != "cpu" for one in example if isinstance(one, Tensor)):
        return
    aten, graph = torch.ops.aten, recorded.graph
    for node in graph.find_nodes(op="call_function", target=aten.tanh.default):
        with graph.inserting_before(node):
            value = graph.call_function(aten.mul.Scalar, (node.args[0], 2.0))
            value = graph.call_function(aten.sigmoid.default, (value,))
            value = graph.call_function(aten.mul.Scalar, (value, 2.0))
            node.replace_all_uses_with(graph.call_function(aten.sub.Scalar, (value, 1.0)))
        graph.erase_node(node)
    recorded.recompile()


def _by_inductor(recorded: fx.GraphModule, example: tuple[Any, ...], changes: int) -> Callable[..., Any]:
    # An interrupt waits: torch that was half-way in loading its compiler does not compile in this process again.
    # On accelerators inductor warns of ways to convolve that it then does not choose, and of hundreds of powers whose
    # range it does not know.
    with logged_less("torch._inductor"), logged_less("torch.utils._sympy"), interrupts_deferred() as interrupted:
        compiled = _compiled(recorded, example, changes)
    if interrupted():
        raise KeyboardInterrupt
    return compiled


def _compiled(recorded: fx.GraphModule, example: tuple[Any, ...], changes: int) -> Callable[..., Any]:
    try:
        with _kept_on_disk():
            return _compiled_here(recorded, example, changes)
    except Exception:  # such as of torch 2.6, which takes nothing from there but for dynamo
        return _compiled_here(recorded, example, changes)


def _compiled_here(recorded: fx.GraphModule, example: tuple[Any, ...], changes: int) -> Callable[..., Any]:
    from torch._inductor import compile as inductor_compile

    arguments = [*(tensor.clone() for tensor in example[:changes]), *example[changes:]]
    with torch.no_grad():
        shorter = {torch.ops.aten.tanh.default: _rational_tanh}
        fast = record(recorded, *arguments, decompositions=shorter)
        # Inductor without dynamo, whose guards cost more than the step of a small network takes: the recording
        # has no Python left to guard, and all its arguments keep their shapes.
        compiled: Callable[..., Any] = inductor_compile(fast, arguments, options=_inductor_options())
        compiled(*arguments)
    return compiled


def _kept_on_disk() -> AbstractContextManager[Any]:
    """Where inductor finds on its disk what it compiled in other processes, in a fourth of the time.

    It keeps and looks for graphs of known shapes only, which dynamo tells of, or this does.
    """
    try:
        from torch._guards import TracingContext, tracing
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
        return tracing(TracingContext(mode))
    except (ImportError, TypeError):  # in a torch that does it otherwise, which then compiles each time
        return nullcontext()


def _inductor_options() -> dict[str, Any]:
    """Fused multiply-adds on CPUs, as NumPyro's compiler has them; not every version of torch has the option.

    The number of threads, for which code is made, is what inductor takes anyhow, but some versions look for code on
    the disk by its options alone.
    """
    import torch._inductor.config as config

    name = "enable_floating_point_contract_flag"
    fused = {f"cpp.{name}": "fast"} if hasattr(config.cpp, name) else {}
    return {"cpp.threads": torch.get_num_threads(), **fused}


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
        program, mode, reason = program_of(function, 0, example, compile, announce)
        return Program(_without_gradients(program), mode, reason)


def _without_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Tensor) -> Any:
        with torch.no_grad():
            return function(*args)

    return run
