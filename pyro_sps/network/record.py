"""From any network to its topology, by running it once, and to a pure function of its weights, by mapping over them."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from ..base.process import process_lock, warn_user
from . import layers as layers  # registers their rules
from .assemble import assemble
from .dropping import Dropping, set_training
from .inputs import Inputs, are_several, arguments, inputs_of, named_parts, unpack
from .layers.recurrent import make_stepwise
from .liveness import Dataflow
from .recorder import Recorder
from .select import parameters_of, submodules_of
from .topology import Topology, UnsupportedLayerError

# Positions of an image, and lengths of a sequence, that are tried where no example is given.
_SIDES, _LENGTHS = (32, 28, 64, 16, 8, 96, 224), (6, 8, 16, 32, 64)


class NoExampleError(UnsupportedLayerError):
    """No inputs are known that the network can be run with."""


def record(net: nn.Module, example: Any = None, deterministic: Sequence[Any] = ()) -> Topology:
    """The topology of a network, from one run of it.

    Args:
        net: The network, in evaluation mode or not; it is read as in evaluation mode.
        example: Inputs to run it with; None to try some.
        deterministic: Submodules without a posterior, as in `BNN`, in which operations need not be known: what enters
            or leaves those that are not has an identity.

    Raises:
        UnsupportedLayerError: If something in it cannot be followed, or if no example fits.
    """
    weightless = skeleton(net)
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    if example is not None:
        inputs_of(example)  # which says what is wrong with it
    fixed = {name for names in parameters_of("deterministic", weightless, deterministic).values() for name in names}
    examples = [example] if example is not None else list(_examples(net, like.dtype))
    failures = []
    for inputs in examples:
        try:
            return _recorded(weightless, inputs, like.dtype, fixed)
        except UnsupportedLayerError:
            raise
        except Exception as error:
            if example is not None:
                raise ValueError(f"net cannot be run with the example that was given: {error}") from error
            failures.append(f"{_shapes(inputs)}: {str(error).splitlines()[0][:100]}")
    tried = f" Tried: {'; '.join(failures[:3])}" if failures else ""
    raise NoExampleError(
        "the shape of the network's inputs cannot be told from its layers. Give an example of two rows: "
        "sps.BNN(net, example=torch.randn(2, ...)) or Topology.of(net, example=...); of several inputs a tuple, or a "
        f"dictionary by the names of forward's arguments.{tried}"
    )


def skeleton(net: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode, without the numbers of its parameters."""
    weightless: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in net.parameters()
    }
    result = copy.deepcopy(net, weightless).eval()
    make_stepwise(result)
    return result


@contextmanager
def plain_operations() -> Iterator[None]:
    """Modules come apart into operations that are known, not into fused ones of this machine."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def _recorded(net: nn.Module, example: Any, dtype: torch.dtype, fixed: Collection[str]) -> Topology:
    tensors = [tensor.detach().cpu().clone() for _, tensor in named_parts(example)]
    tensors = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
    recorder, out = _followed(net, example, tensors, fixed)
    if recorder.apart_by_axis:  # whether its numbers are units of their own turns out later than where it is read
        again = _followed(net, example, tensors, fixed, recorder.apart_by_axis)
        if not again[0].atoms.given_up:
            recorder, out = again
    if not isinstance(out, Tensor):
        raise UnsupportedLayerError(_several_outputs(out))
    if recorder.value(out) is None:
        raise UnsupportedLayerError(
            "the network must return one tensor that its layers computed, it returns a constant"
        )
    known = recorder.value(out)
    assert known is not None
    made = recorder.atoms.units.root[recorder.pin(known)]
    _tell_of_closed(recorder, fixed)
    return assemble(
        recorder,
        np.flatnonzero(np.isin(recorder.atoms.units.root, made)),
        out.shape[-1] if out.dim() > 1 else 1,
        inputs_of(example),
    )


def _followed(
    net: nn.Module, example: Any, tensors: list[Tensor], fixed: Collection[str], together: Collection[str] = ()
) -> tuple[Recorder, Any]:
    """What a run shows, and what it returns."""
    for calls in (_calls(net, example, tensors), None):  # a network may do something else in each run
        own, given = _with_zeros(net), [tensor.clone() for tensor in tensors]
        recorder = Recorder(own, submodules_of(own, fixed), calls, together)
        _name_layers(own, recorder)
        recorder.give(given)
        try:
            out = _run(own, example, given, recorder)
        except Exception:
            if not recorder.strayed:
                raise
        if not recorder.strayed:
            break
    return recorder, out


def _calls(net: nn.Module, example: Any, tensors: list[Tensor]) -> list[tuple[str, bool]] | None:
    """The operations of a run, and whether its output depends on each; None if it cannot be run."""
    own = _with_zeros(net)
    tensors = [tensor.clone() for tensor in tensors]
    dataflow = Dataflow([*tensors, *own.parameters()])
    try:
        return dataflow.needed(_run(own, example, tensors, dataflow))
    except Exception:  # of which the recorder can say more
        return None


def _run(net: nn.Module, example: Any, tensors: list[Tensor], mode: AbstractContextManager[Any]) -> Any:
    with process_lock(), torch.no_grad(), torch.random.fork_rng(devices=[]), plain_operations(), mode:
        args, kwargs = arguments(dict(zip(example, tensors, strict=True)) if isinstance(example, Mapping) else tensors)
        return net(*args, **kwargs)


def _with_zeros(net: nn.Module) -> nn.Module:
    """A copy of a network with zeros as its weights, on the CPU."""
    net = copy.deepcopy(net)
    originals = list(net.parameters())  # kept, so that no two of them have one id
    zeros: dict[int, nn.Parameter] = {}
    for module in net.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in zeros:  # shared parameters stay shared
                    own = torch.zeros(parameter.shape, dtype=parameter.dtype)
                    zeros[id(parameter)] = nn.Parameter(own, requires_grad=False)
                module._parameters[name] = zeros[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = (
                    buffer.detach().cpu().clone() if not buffer.is_meta else torch.zeros_like(buffer, device="cpu")
                )
    del originals
    return net


def _tell_of_closed(recorder: Recorder, fixed: Collection[str]) -> None:
    """Warn of symmetries of weights with a posterior that an operation may have hidden."""
    root = recorder.atoms.units.root
    axes = [atoms for name, weight in recorder.weights.items() if name not in fixed for atoms in weight.axes]
    stochastic = np.unique(np.concatenate([root[atoms.ravel()] for atoms in axes if atoms is not None] or [root[:0]]))
    if hidden := list(dict.fromkeys(what for what, atoms in recorder.apart if np.isin(root[atoms], stochastic).any())):
        more = f" and {len(hidden) - 3} more" if len(hidden) > 3 else ""
        warn_user(
            f"{'; '.join(hidden[:3])}{more}: no rule says what is symmetric there. Units with a posterior that "
            "enter it are taken to be told apart, so that symmetries through it are neither counted nor broken"
        )


def _several_outputs(out: Any) -> str:
    """What to do about a network that returns something other than a tensor."""
    parts = [(f"[{name!r}]", part) for name, part in named_parts(out) if name is not None]
    found = [f"outputs{where} of shape {tuple(part.shape)}" for where, part in parts if isinstance(part, Tensor)]
    told = f"the network must return one tensor that its layers computed, it returns a {type(out).__name__}"
    if not found:
        return f"{told}: wrap it in a module that returns a tensor"
    picked = next(where for where, part in parts if isinstance(part, Tensor))
    more = ", ..." if len(found) > 6 else ""
    return (
        f"{told} of {', '.join(found[:6])}{more}. One likelihood takes one tensor: wrap it in a module whose forward "
        f"returns self.net(x){picked}, or that puts several side by side, torch.cat(..., -1), where one likelihood is "
        "to take them all"
    )


def _name_layers(net: nn.Module, recorder: Recorder) -> None:
    """Let errors say in which layer something happened."""
    for name, module in net.named_modules():
        module.register_forward_pre_hook(lambda m, args, name=name or "network": recorder.stack.append(name))
        module.register_forward_hook(lambda m, args, out: recorder.stack.pop() and None)


def _shapes(inputs: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for _, tensor in named_parts(inputs))


def _examples(net: nn.Module, dtype: torch.dtype) -> Iterator[Any]:
    """Inputs that a network of these layers could take, likely ones first."""
    first = next((m for m in net.modules() if next(m.parameters(recurse=False), None) is not None), None)
    if first is None:
        return

    def numbers(*shape: int) -> Tensor:
        return torch.zeros(2, *shape, dtype=dtype)

    if isinstance(first, nn.Conv2d | nn.ConvTranspose2d):
        yield from (numbers(first.in_channels, side, side) for side in _SIDES)
    elif isinstance(first, nn.Conv1d | nn.ConvTranspose1d):
        yield from (numbers(first.in_channels, length) for length in _LENGTHS[::-1])
    elif isinstance(first, nn.Conv3d | nn.ConvTranspose3d):
        yield from (numbers(first.in_channels, side, side, side) for side in (8, 16))
    elif isinstance(first, nn.Embedding | nn.EmbeddingBag):
        yield from (torch.zeros(2, length, dtype=torch.int64) for length in _LENGTHS)
    elif isinstance(first, nn.RNNBase):
        yield from (numbers(length, first.input_size) for length in _LENGTHS[:2])
    elif isinstance(first, nn.RNNCellBase):
        yield numbers(first.input_size)
        yield numbers(_LENGTHS[0], first.input_size)
    elif isinstance(first, nn.MultiheadAttention | nn.LayerNorm):
        width = first.embed_dim if isinstance(first, nn.MultiheadAttention) else first.normalized_shape[-1]
        yield from (numbers(length, width) for length in _LENGTHS[:2])
        yield numbers(width)
    elif isinstance(first, nn.Linear):
        yield numbers(first.in_features)
        yield from (numbers(length, first.in_features) for length in _LENGTHS)
    elif isinstance(first, nn.BatchNorm1d):
        yield numbers(first.num_features)
    elif isinstance(first, nn.BatchNorm2d):
        yield from (numbers(first.num_features, side, side) for side in _SIDES)
    else:  # parameters of a module of the user's own, such as positions
        inner = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Embedding | nn.Linear)]
        if inner and inner[0] is not first:
            yield from _examples(inner[0], dtype)


# Convolutions with several kernels at once are grouped ones, at which CPUs are slow: on inputs of this many numbers one
# set of weights after the other is faster (ResNet-20: 1.4 to 1.9 times). LeNet-5 does not care, and small networks are
# two to three times faster together.
_LARGE_INPUT = 1 << 15

# Beside the weights, under a name that no parameter has.
_DRAWS = "draws of dropout"


def _is_large(x: Any) -> bool:
    return sum(part.numel() for _, part in named_parts(x)) >= _LARGE_INPUT


class MappedFunction:
    """A network as a function of its weights: the operations of the network itself, mapped over sets of weights.

    Args:
        net: The network.
        names: Names of the parameters that are weights.
        inputs: What it is called with. Several inputs may also come as one tensor, see `inputs.pack`.
        one_by_one: Whether one set of weights runs after the other, for `torch.func.vmap` cannot map the network.
    """

    def __init__(self, net: nn.Module, names: Sequence[str], inputs: Inputs = (), one_by_one: bool = False) -> None:
        self.skeleton, self.one_by_one = skeleton(net), one_by_one
        self.names, self.inputs = tuple(names), inputs
        self.shapes = {name: self.skeleton.get_parameter(name).dim() for name in self.names}
        self._idle = {name: p for name, p in self.skeleton.named_parameters() if name not in self.shapes}
        self._num_draws: dict[tuple[Any, ...], int] = {}
        self._convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in self.skeleton.modules())
        self._local = threading.local()

    def __call__(self, weights: Mapping[str, Tensor], x: Any, draws: Tensor | None = None) -> Tensor:
        """Outputs of shape B + (rows, ...) for weights of shape B + their own.

        Args:
            weights: The weights by name.
            x: The inputs.
            draws: Standard normal draws of which masks of dropout are made, shape B + (`num_draws` of as many rows,),
                which lets the network run in training mode; None for none.
        """
        if isinstance(x, Tensor) and are_several(self.inputs):
            x = unpack(self.inputs, x)
        name = self.names[0]
        batch = weights[name].shape[: weights[name].dim() - self.shapes[name]]
        own = {key: weights[key] for key in self.names}
        buffers = self._buffers(weights[name])

        if draws is not None:  # with the weights, so that each set of them has its own
            own[_DRAWS] = draws

        def run(one: Mapping[str, Tensor]) -> Tensor:
            weights = {**one, **buffers}
            drop = Dropping(weights.pop(_DRAWS)) if draws is not None else None
            return self._run(weights, x, drop)

        with plain_operations():
            if not batch:
                return run(own)
            flat = {key: value.reshape((-1, *value.shape[len(batch) :])) for key, value in own.items()}
            if batch.numel() == 1:  # without vmap there is less to record
                single = run({key: value[0] for key, value in flat.items()})
                return single.reshape(batch + single.shape)
            slow = self._convolves and _is_large(x) and own[name].device.type == "cpu"
            if slow or self.one_by_one:
                sets = zip(*(value.unbind() for value in flat.values()), strict=True)
                outputs = torch.stack([run(dict(zip(flat, one, strict=True))) for one in sets])
            else:
                outputs = torch.func.vmap(run)(flat)
            return outputs.reshape(batch + outputs.shape[1:])

    def try_out(self, x: Any, dtype: torch.dtype) -> None:
        """Find out whether sets of weights can run at once, which not every operation can.

        Args:
            x: Inputs.
            dtype: Of the weights, and of those inputs that are measured.
        """
        x = tree_map(lambda part: part.to(dtype) if part.is_floating_point() else part, x)
        shapes = {name: self.skeleton.get_parameter(name).shape for name in self.names}
        weights = {name: torch.zeros(shape, dtype=dtype).expand(2, *shape) for name, shape in shapes.items()}
        try:
            with torch.no_grad():
                self(weights, x)
        except Exception:  # whatever it is, on its own the network did run
            self.one_by_one = True

    def run_dropping(self, weights: Mapping[str, Tensor], x: Any, drop: Dropping) -> Tensor:
        """Outputs for one set of weights, with dropout."""
        if isinstance(x, Tensor) and are_several(self.inputs):
            x = unpack(self.inputs, x)
        with plain_operations(), torch.no_grad():
            return self._run({**weights, **self._buffers(weights[self.names[0]])}, x, drop)

    def num_draws(self, x: Tensor, like: Tensor) -> int:
        """How many numbers the masks of dropout take on these inputs, for each set of weights."""
        shape = (*x.shape, x.dtype)
        if shape not in self._num_draws:
            weights = {name: like.new_zeros(self.skeleton.get_parameter(name).shape) for name in self.names}
            needed = Dropping()
            self.run_dropping(weights, x, needed)
            self._num_draws[shape] = needed.used
        return self._num_draws[shape]

    def _run(self, values: Mapping[str, Tensor], x: Any, drop: Dropping | None) -> Tensor:
        args, kwargs = arguments(x)
        net, how = self._net("evaluated" if drop is None else "trained"), nullcontext() if drop is None else drop
        with how:
            result: Tensor = torch.func.functional_call(net, dict(values), args, kwargs, tie_weights=True)
        return result

    def _net(self, mode: str) -> nn.Module:
        """A skeleton for this thread alone, since a call puts the weights into it for a while."""
        if not hasattr(self._local, mode):
            own = copy.deepcopy(self.skeleton)
            if mode == "trained":
                set_training(own)
            setattr(self._local, mode, own)
        net: nn.Module = getattr(self._local, mode)
        return net

    def _buffers(self, like: Tensor) -> dict[str, Tensor]:
        """Constants of the network, where the weights are and of their dtype; zeros for parameters without effect."""
        zero = like.new_zeros(())
        return {name: zero.expand(parameter.shape) for name, parameter in self._idle.items()} | {
            name: value.to(device=like.device, dtype=like.dtype if value.is_floating_point() else value.dtype)
            for name, value in self.skeleton.named_buffers()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.skeleton, self.names, self.inputs, self.one_by_one)
