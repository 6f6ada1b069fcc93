"""Functions of single numbers, and of two numbers at the same places."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codes import Ints, pair
from ..elements import LINEAR, SCALE, SIGN, Value
from ..ledger import constant
from ..recorder import Call, Recorder, handles
from .together import doubt_rows, for_pair

# What a function does to a sign: it passes it on, it forgets it, or it needs to know it. Scales are passed on or not.
ODD, EVEN, NEITHER = "odd", "even", "neither"

_ODD = "tanh erf sin sinh asin asinh atan atanh tan softshrink hardshrink reciprocal sign sgn erfinv"
_EVEN = "cos cosh square"
_NEITHER = (
    "gelu silu elu softplus sigmoid log_sigmoid_forward hardsigmoid hardswish mish exp exp2 expm1 log log2 log10 log1p "
    "sqrt rsqrt threshold celu selu floor ceil round trunc erfc logit special_expit "
    "bitwise_not logical_not isnan isinf isfinite nan_to_num lgamma digamma frac i0 bessel_i0 special_i0e bessel_i0e "
    "special_i1 special_i1e special_erfcx erfcx special_ndtri special_log_ndtr signbit"
)
_CLASSES: dict[str, tuple[str, bool]] = {
    "neg": (ODD, True),
    "relu": (NEITHER, True),
    "leaky_relu": (NEITHER, True),
    "abs": (EVEN, True),
    **{name: (ODD, False) for name in _ODD.split()},
    **{name: (EVEN, False) for name in _EVEN.split()},
    **{name: (NEITHER, False) for name in _NEITHER.split()},
}


def apply(recorder: Recorder, value: Value, parity: str, homogeneous: bool) -> Value:
    """A function of single numbers."""
    value = recorder.as_value(value)
    if parity == NEITHER:
        recorder.atoms.lose(SIGN, value.characters[SIGN].ravel())
    if parity != ODD or not homogeneous:
        recorder.atoms.forget_sums(value.tokens)
    if not homogeneous:
        recorder.atoms.lose(SCALE, value.characters[SCALE].ravel())
        value = value.without(SCALE)
    elif parity != ODD:
        recorder.atoms.lose(LINEAR, value.characters[SCALE].ravel())
    return replace(value if parity == ODD else value.without(SIGN), weight=None)


@handles(*_CLASSES)
def function(recorder: Recorder, call: Call) -> None:
    """A function of single numbers."""
    argument = next(iter(call.args.values()))
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    recorder.write(out, apply(recorder, recorder.operand(argument, call), *_CLASSES[call.name]))


@handles("rrelu_with_noise")
def rrelu(recorder: Recorder, call: Call) -> None:
    """`nn.RReLU`, which cannot be mapped over sets of weights."""
    raise recorder.unsupported("use nn.LeakyReLU((lower + upper) / 2), which nn.RReLU is in evaluation mode")


@handles("hardtanh", "clamp", "clamp_min", "clamp_max")
def clamp(recorder: Recorder, call: Call) -> None:
    """Clamping is odd where its ends are opposite, and homogeneous where they are zero or nothing."""
    low, high = call.args.get("min_val", call.args.get("min")), call.args.get("max_val", call.args.get("max"))
    low, high = (_number(end, call) for end in (low, high))
    if any(isinstance(end, Tensor) for end in (low, high)):
        value = recorder.operand(call["self"], call)
        for name, end in (("maximum", low), ("minimum", high)):
            if end is not None:
                end = recorder.operand(end, call) if isinstance(end, Tensor) else constant(torch.tensor(end))
                value = two(recorder, name, value, end, call.out)
        return recorder.write(call.out, value)
    odd = low is not None and high is not None and low == -high
    homogeneous = all(end is None or end == 0 for end in (low, high))
    value = recorder.operand(call["self"], call)
    recorder.write(call.out, apply(recorder, value, ODD if odd else NEITHER, homogeneous))


def _number(argument: Any, call: Call) -> Any:
    """A constant of no dimension as a number; everything else as it is."""
    single = isinstance(argument, Tensor) and argument.dim() == 0 and call.known(argument) is None
    return argument.item() if single else argument


@handles("pow")
def power(recorder: Recorder, call: Call) -> None:
    """A power: odd or even by its exponent."""
    exponent = call["exponent"]
    if isinstance(exponent, Tensor) or isinstance(call["self"], int | float):
        return binary(recorder, call)
    whole = float(exponent).is_integer()
    parity = NEITHER if not whole else EVEN if exponent % 2 == 0 else ODD
    recorder.write(call.out, apply(recorder, recorder.operand(call["self"], call), parity, exponent == 1))


@handles("masked_fill", "tril", "triu")
def masked(recorder: Recorder, call: Call) -> None:
    """Some numbers are replaced by a constant, wherever it is that a constant mask says."""
    value = recorder.as_value(recorder.operand(call["self"], call))
    if "mask" in call.args:
        fill = call["value"]
        if isinstance(fill, Tensor) and call.known(fill) is not None:
            raise recorder.unsupported("masked_fill with a computed value is not known; use torch.where")
        if float(fill) != 0:
            value = apply(recorder, value, NEITHER, False)
        mask = recorder.operand(call["mask"], call)
        if mask.tokens:
            value = apply(recorder, value, NEITHER, False)
        return recorder.write(call.out, join(recorder, value, mask, call.out, linear=True))
    mask = getattr(np, call.name)(np.ones(value.shape[-2:]), call["diagonal"]).astype(np.uint64)
    recorder.write(call.out, replace(value, place=pair(value.place, np.broadcast_to(mask, value.shape))))


_COMPARISONS = "eq ne lt le gt ge logical_and logical_or bitwise_and bitwise_or"


@handles(
    "add", "sub", "rsub", "mul", "div", "maximum", "minimum", "_prelu_kernel", "atan2", "fmod", "remainder", "hypot"
)
@handles(*_COMPARISONS.split())
def binary(recorder: Recorder, call: Call) -> None:
    """A function of two numbers at the same places."""
    first, second, *_ = call.args.values()
    name = call.name
    numbers = [x for x in (_number(first, call), _number(second, call)) if not isinstance(x, Tensor)]
    if numbers:
        tensor = first if call.known(first) is not None else second
        value = recorder.operand(tensor, call)
        if name in ("add", "sub", "rsub"):
            flags = (ODD, True) if numbers[0] == 0 else (NEITHER, False)
        elif name == "mul" or (name == "div" and tensor is first and call.args.get("rounding_mode") is None):
            flags = (ODD, True)
        else:
            flags = (ODD, False) if name == "div" and call.args.get("rounding_mode") is None else (NEITHER, False)
        return recorder.write(call.out, apply(recorder, value, *flags))
    values = [call.known(first), call.known(second)]
    zero = [value is None and not bool(tensor.any()) for value, tensor in zip(values, (first, second), strict=True)]
    if any(zero) and name == "mul":  # a constant: zeros
        if recorder.value(call.out) is not None:
            recorder.write(call.out, constant(call.out))
        return
    if any(zero) and name in ("add", "sub"):
        index = 0 if zero[1] else 1
        kept = recorder.as_value(_expanded(recorder.operand((first, second)[index], call), call.out))
        return recorder.write(call.out, kept)
    recorder.write(
        call.out, two(recorder, name, recorder.operand(first, call), recorder.operand(second, call), call.out)
    )


def two(recorder: Recorder, name: str, first: Value, second: Value, out: Tensor) -> Value:
    """The result of an operation on two values, such as `mul`."""
    if any(own.weight is not None and len(own.tokens) > 1 for own in (first, second)):
        first, second = (recorder.gathered(_expanded(own, out)) for own in (first, second))
        first = for_pair(recorder, first, second)
        second = for_pair(recorder, second, first)
    if name == "mul" and first.weight is not None and second.weight is None:
        first, second = second, first
    if name == "mul" and second.weight is not None and first.weight is None and len(second.tokens) < 2:
        if math.prod(recorder.weights[second.weight].shape) > 1:
            return _scaled(recorder, first, second, out)
        for token in second.tokens:  # none of a parameter without dimensions
            recorder.atoms.pin(token.ravel())
            if all(len(np.unique(own)) == 1 for own in first.characters):  # what it multiplies has one sign, or none
                return _scaled(recorder, first, second, out)
            for kind in (SIGN, SCALE):  # one number for all units
                recorder.atoms.lose(kind, token.ravel())
        recorder.uncounted.append(second.weight)
        second = Value.pinned(second.place)
    if name == "div" and second.weight is not None and math.prod(recorder.weights[second.weight].shape) == 1:
        recorder.uncounted.append(second.weight)
    first, second = recorder.as_value(_expanded(first, out)), recorder.as_value(_expanded(second, out))
    atoms = recorder.atoms
    if name not in ("add", "sub", "rsub"):
        for own, other in ((first, second), (second, first)):
            if name not in ("mul", "div") or other.tokens:  # else one number for all units
                atoms.lose(LINEAR, own.characters[SCALE].ravel())
    characters: list[Ints] = []
    for kind in (SIGN, SCALE):
        a, b = first.characters[kind].ravel(), second.characters[kind].ravel()
        if name in ("add", "sub", "rsub") or (name in ("maximum", "minimum") and kind == SCALE):
            atoms.equate(kind, a, b)
            result = np.where(b >= 0, a, -1)
        elif name in ("mul", "div") and kind == SIGN:
            both = (a >= 0) & (b >= 0)
            atoms.characters[kind].merge(a[both], b[both])  # two equal signs make none
            result = np.where(both, -1, np.maximum(a, b))
        elif name in ("mul", "div"):
            both = (a >= 0) & (b >= 0)
            atoms.lose(kind, np.where(both | (name == "div"), b, -1))
            atoms.lose(kind, np.where(both, a, -1))
            result = np.where(both, -1, a if name == "div" else np.maximum(a, b))
        else:
            keep = name == "_prelu_kernel" and kind == SCALE
            atoms.lose(kind, b)
            if not keep:
                atoms.lose(kind, a)
            result = a if keep else np.full(a.shape, -1)
        characters.append(result.reshape(tuple(out.shape)))
    value = join(recorder, first, second, out)
    tokens = first.tokens + second.tokens
    if 0 < len(value.tokens) < len(tokens) and not (first.tokens and second.tokens):
        doubt_rows(recorder, tokens)
    return replace(value, characters=(characters[0], characters[1]))


_NOT_YET = -2  # what numbers of a parameter multiply that nothing has read


def _scaled(recorder: Recorder, value: Value, weight: Value, out: Tensor) -> Value:
    """Units times a parameter: what comes out has the sign that the parameter gives it."""
    name = weight.weight
    assert name is not None
    value, weight = _expanded(value, out), _expanded(weight, out)
    own = weight.tokens[0].ravel()
    known = recorder.weights[name]
    axis = recorder.axis_of(name, int(own[own >= 0][0]))
    recorder.role(name, axis, 1)
    first = known.axes[axis]
    assert first is not None
    first = first.ravel()
    gates = []
    for kind in (SIGN, SCALE):
        before = value.characters[kind].ravel()
        gate = np.full(len(recorder.atoms.array), _NOT_YET)
        gate[own[::-1]] = before[::-1]
        recorder.atoms.equate(kind, gate[own], before)
        now = gate[first]
        if axis in known.gates:
            old = known.gates[axis][kind]
            both = (old != _NOT_YET) & (now != _NOT_YET)
            recorder.atoms.equate(kind, old[both], now[both])
            now = np.where(now == _NOT_YET, old, now)
        gates.append(now)
    known.gates[axis] = (gates[0], gates[1])
    for one in (own, value.characters[SCALE].ravel()):
        recorder.atoms.lose(LINEAR, one)
    result = join(recorder, value, replace(weight, weight=None), out)
    own = own.reshape(tuple(out.shape))
    return replace(result, characters=(own, own))


@handles("where")
def where(recorder: Recorder, call: Call) -> None:
    """A choice between two values."""
    values = [
        _expanded(apply(recorder, recorder.operand(t, call), NEITHER, False), call.out)
        for t in call.args.values()
        if isinstance(t, Tensor)
    ]
    result = values[0]
    for value in values[1:]:
        result = join(recorder, result, value, call.out)
    recorder.write(call.out, result)


def join(recorder: Recorder, first: Value, second: Value, out: Tensor, linear: bool = False) -> Value:
    """Tokens and places of a function of two numbers at the same places."""
    first, second = _expanded(first, out), _expanded(second, out)
    place = pair(first.place, second.place)
    tokens, place = recorder.atoms.combine(first.tokens, second.tokens, place)
    none = np.full(place.shape, -1)
    return Value(tokens, place, first.characters if linear else (none, none))


def _expanded(value: Value, out: Tensor) -> Value:
    shape = tuple(out.shape)
    return value if value.shape == shape else value.map(lambda array: np.broadcast_to(array, shape))


@handles("glu")
def glu(recorder: Recorder, call: Call) -> None:
    """One half of the units times the sigmoid of the other."""
    value = recorder.as_value(recorder.operand(call["self"], call))
    dim = call["dim"] % len(value.shape)
    half = value.shape[dim] // 2
    first = value.map(lambda array: array.take(range(half), axis=dim))
    second = value.map(lambda array: array.take(range(half, 2 * half), axis=dim))
    recorder.write(call.out, two(recorder, "mul", first, apply(recorder, second, NEITHER, False), call.out))


@handles("_weight_norm_interface", "_weight_norm")
def weight_norm(recorder: Recorder, call: Call) -> None:
    """A parameter of which each slice is divided by its norm, times another.

    What a slice is multiplied by changes nothing, nor does a sign that both change. Those of layers before and behind
    are not followed.
    """
    first, second = (recorder.operand(call[name], call) for name in ("v", "g"))
    direction, length = (_slices(recorder, value, call["dim"]) for value in (first, second))
    if direction is not None and length is not None:
        recorder.atoms.equate(SIGN, direction, length)
        recorder.atoms.lose(SCALE, length)
        recorder.atoms.lose(LINEAR, direction)
        first, second = (replace(value, weight=None) for value in (first, second))
    else:
        first, second = (apply(recorder, value, NEITHER, False) for value in (first, second))
    outs = [call.out] if isinstance(call.out, Tensor) else list(call.out)
    recorder.write(outs[0], join(recorder, first, second, outs[0]))
    if len(outs) > 1:
        recorder.write(outs[1], recorder.as_value(second))


def _slices(recorder: Recorder, value: Value, dim: int) -> Ints | None:
    """Atoms of a parameter along an axis, whose signs and scales are all that it keeps; None if it is none."""
    if value.weight is None or dim < 0:
        return None
    known = recorder.weights[value.weight]
    own = known.axes[dim]
    if own is None or known.over or tuple(value.shape) != known.shape:
        return None
    recorder.role(value.weight, dim, 1)
    for axis, atoms in enumerate(known.axes):
        if atoms is not None and axis != dim:
            for kind in (SIGN, SCALE):
                recorder.atoms.lose(kind, atoms.ravel())
    return own.ravel()
