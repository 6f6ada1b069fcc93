"""Functions of sets of numbers in whatever order: sums, means, maxima, norms, softmax, pooling.

What they are taken over stays together: a set of units becomes a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ..codes import Codes, Ints, mix, pair
from ..elements import LINEAR, SCALE, SIGN, Value
from ..ledger import constant
from ..recorder import Call, Recorder, handles
from .functions import join, two
from .moves import move
from .products import along, in_order


def _flat(recorder: Recorder, value: Value, axes: Sequence[int]) -> tuple[Value, Any]:
    """A value with some axes as one, at the end, and whose tokens are units."""
    moved, restore = along(recorder.as_value(value), tuple(axes))
    place = moved.place
    for token in moved.tokens:
        place = recorder.atoms.with_slots(token, place)
    tokens = tuple(recorder.atoms.units.find(token) for token in moved.tokens)
    return replace(moved, tokens=tokens, place=place, weight=None), restore


def _over(recorder: Recorder, value: Value) -> tuple[tuple[Ints, ...], Codes]:
    """Tokens and codes of a function of each row of (sets, numbers)."""
    atoms = recorder.atoms
    inside = [token for token in value.tokens if not (token == token[:, :1]).all()]
    outside = [token[:, 0] for token in value.tokens if (token == token[:, :1]).all()]
    place = value.place
    if len(inside) > 1:
        for token in inside:
            atoms.give_up(token.ravel())
        inside = []
        _, place = atoms.settle(value.tokens, place)
    if inside:
        place = atoms.of_sets(inside, outside, place)
    code: Codes = mix(place).sum(axis=1, dtype=np.uint64)
    blocks = []
    for token in inside:
        block = atoms.blocks(token, place)
        if block is not None:
            blocks.append(block)
    return atoms.combine(blocks, outside, code)


def reduced(recorder: Recorder, value: Value, axes: Sequence[int], sign: str, scale: bool) -> tuple[Value, Any]:
    """A function of the numbers along some axes.

    Args:
        recorder: The recorder.
        value: The value.
        axes: Its axes.
        sign: `odd`, `even` or `neither`: what the function does to the sign of all.
        scale: Whether a scale of all is passed on.

    Returns:
        The value, of one axis (the rest), and how to give it its shape.
    """
    flat, restore = _flat(recorder, value, axes)
    if sign == "odd" and scale and len(sums := recorder.atoms.units.find(recorder.atoms.sums)):
        varying = [token for token in flat.tokens if not (token == token[:, :1]).all()]
        if any(np.isin(token, sums).any() for token in varying):
            recorder.atoms.doubt()  # a sum of sums: what is told apart is the sum that each number was in
    tokens, place = _over(recorder, flat)
    if sign != "odd":
        recorder.atoms.lose(LINEAR, flat.characters[SCALE].ravel())
    characters = []
    for kind, passes, forgets in ((SIGN, sign == "odd", sign == "even"), (SCALE, scale, False)):
        if passes:
            characters.append(recorder.atoms.equate_along(kind, flat.characters[kind], axis=1))
            continue
        if not forgets:
            recorder.atoms.lose(kind, flat.characters[kind].ravel())
        elif not (flat.characters[kind] == flat.characters[kind][:, :1]).all():
            pass  # each number forgets its own
        characters.append(np.full(place.shape, -1))
    return Value(tokens, place, (characters[0], characters[1])), restore


_REDUCTIONS = {
    "sum": ("odd", True),
    "mean": ("odd", True),
    "amax": ("neither", True),
    "amin": ("neither", True),
    "max": ("neither", True),
    "min": ("neither", True),
    "var": ("neither", False),
    "std": ("neither", False),
    "var_mean": ("neither", False),
    "std_mean": ("neither", False),
    "linalg_vector_norm": ("even", False),
    "norm": ("even", False),
    "logsumexp": ("neither", False),
    "prod": ("neither", False),
    "argmax": ("neither", False),
    "argmin": ("neither", False),
    "any": ("neither", False),
    "all": ("neither", False),
}


@handles(*_REDUCTIONS)
def reduction(recorder: Recorder, call: Call) -> None:
    """A sum, a mean, a maximum ... over some axes."""
    if isinstance(call.args.get("other"), Tensor):  # torch.max(a, b)
        raise recorder.unsupported(f"{call.name} of two tensors is not known; use torch.maximum or torch.minimum")
    value = recorder.operand(call["self"], call)
    dims = call.args.get("dim")
    if dims is None or dims == []:
        dims = range(len(value.shape))
    dims = [dims] if isinstance(dims, int) else dims
    axes = [dim % len(value.shape) for dim in dims] if value.shape else []
    result, _ = reduced(recorder, value, axes, *_REDUCTIONS[call.name])
    outs = [call.out] if isinstance(call.out, Tensor) else list(call.out)
    for out in outs:
        recorder.write(out, result.map(lambda array, out=out: array.reshape(tuple(out.shape))))
    if call.name.startswith("arg") or (len(outs) == 2 and call.name in ("max", "min")):
        _say_which(recorder, value, axes, outs[-1])


def _say_which(recorder: Recorder, value: Value, axes: Sequence[int], indices: Tensor) -> None:
    """Note that indices along axes say which unit it was."""
    flat, _ = _flat(recorder, value, axes)
    moving = [token.ravel() for token in flat.tokens if not (token == token[:, :1]).all()]
    if moving:
        recorder.says_which(indices, np.concatenate(moving))


@handles("sort")
def sort(recorder: Recorder, call: Call) -> None:
    """Numbers of a set in order: whichever units they are of, each is a function of all of them."""
    value = recorder.as_value(recorder.operand(call["self"], call))
    axis = call["dim"] % max(len(value.shape), 1)
    result, restore = reduced(recorder, value, [axis], "neither", True)
    wide = result.map(lambda array: np.broadcast_to(np.expand_dims(restore(array), axis), value.shape))
    rank = np.arange(value.shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(value.shape))])
    wide = replace(wide, place=pair(wide.place, np.broadcast_to(rank, value.shape)))
    for out in call.out:
        recorder.write(out, wide)
    _say_which(recorder, value, [axis], call.out[1])


@handles("gather")
def gather(recorder: Recorder, call: Call) -> None:
    """Numbers picked along an axis; where places are computed, a function of all numbers along it and of the place."""
    if call.known(call["index"]) is None:
        return move(recorder, call)
    shape = tuple(call.out.shape)
    axis = call["dim"] % max(len(shape), 1)
    value = in_order(recorder, recorder.as_value(recorder.operand(call["self"], call)), [axis], surely=False)
    result, restore = reduced(recorder, value, [axis], "odd", True)
    rest = tuple(slice(size) for other, size in enumerate(shape) if other != axis)
    wide = result.map(lambda array: np.broadcast_to(np.expand_dims(restore(array)[rest], axis), shape))
    index = recorder.as_value(recorder.operand(call["index"], call))
    for kind in (SIGN, SCALE):
        recorder.atoms.lose(kind, index.characters[kind].ravel())
    recorder.write(call.out, replace(join(recorder, wide, index, call.out), characters=wide.characters))


def _normalised(recorder: Recorder, value: Value, axes: Sequence[int], sign: bool) -> Value:
    """Each number as a function of itself and of the set that it is in; scales are lost, since norms add a constant.

    Args:
        recorder: The recorder.
        value: The value.
        axes: The axes of the sets.
        sign: Whether the function is odd, where all of a set change their signs.
    """
    shape = value.shape
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    flat, _ = _flat(recorder, value, axes)
    _, code = _over(recorder, flat)
    wide = flat.place.shape
    place = pair(flat.place, np.broadcast_to(code[:, None], wide))
    recorder.atoms.lose(SCALE, flat.characters[SCALE].ravel())
    recorder.atoms.forget_sums(flat.tokens)
    none = np.full(wide, -1)
    signs = none
    if sign:
        signs = np.broadcast_to(recorder.atoms.equate_along(SIGN, flat.characters[SIGN], axis=1)[:, None], wide)
    else:
        recorder.atoms.lose(SIGN, flat.characters[SIGN].ravel())
    result = Value(*recorder.atoms.settle(flat.tokens, place), (signs, none))
    order = np.argsort([*rest, *axes])
    return result.map(lambda array: array.reshape([shape[axis] for axis in (*rest, *axes)]).transpose(*order))


@handles("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
def softmax(recorder: Recorder, call: Call) -> None:
    """Softmax and what else gives each number of a set a value that depends on all of them."""
    value = recorder.as_value(recorder.operand(call["self"], call))
    axis = call["dim"] % max(len(value.shape), 1)
    if "softmax" not in call.name:
        value = in_order(recorder, value, [axis])
    result = _normalised(recorder, value, [axis], sign=call.name == "cumsum")
    if "softmax" not in call.name:
        shape = [-1 if i == axis else 1 for i in range(len(value.shape))]
        result = replace(
            result, place=pair(result.place, np.broadcast_to(np.arange(value.shape[axis]).reshape(shape), value.shape))
        )
    for out in [call.out] if isinstance(call.out, Tensor) else call.out:
        recorder.write(out, result)


def _affine(recorder: Recorder, value: Value, call: Call, out: Tensor, shape: Sequence[int]) -> Value:
    """What a norm multiplies by and adds."""
    for name, operation in (("weight", "mul"), ("bias", "add")):
        tensor = call.args.get(name)
        if tensor is not None:
            operand = recorder.operand(tensor, call).map(lambda array: array.reshape(shape))
            value = two(recorder, operation, value, operand, out)
    return value


@handles("native_layer_norm")
def layer_norm(recorder: Recorder, call: Call) -> None:
    """Layer norm: the mean ties the signs of all that it is taken over."""
    value, out = recorder.operand(call["input"], call), call.out[0]
    count = len(call["normalized_shape"])
    value = _normalised(recorder, value, range(len(value.shape) - count, len(value.shape)), sign=True)
    recorder.write(out, _affine(recorder, value, call, out, call["normalized_shape"]))


@handles("native_group_norm")
def group_norm(recorder: Recorder, call: Call) -> None:
    """Group norm: units of a group stay together."""
    value, out, groups = recorder.operand(call["input"], call), call.out[0], call["group"]
    shape = tuple(out.shape)
    split = value.map(lambda array: array.reshape(shape[0], groups, shape[1] // groups, *shape[2:]))
    value = _normalised(recorder, split, range(2, len(shape) + 1), sign=True).map(lambda array: array.reshape(shape))
    recorder.write(out, _affine(recorder, value, call, out, (shape[1], *(1,) * (len(shape) - 2))))


@handles(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "_batch_norm_no_update",
)
def batch_norm(recorder: Recorder, call: Call) -> None:
    """Batch norm: with its running statistics, which are constants, or (instance norm) with those of the input."""
    value, out = recorder.operand(call["input"], call), call.out[0]
    shape = tuple(out.shape)
    column = (shape[1], *(1,) * (len(shape) - 2))
    if call.args.get("training", "no_training" not in call.name):
        value = _normalised(recorder, value, [0, *range(2, len(shape))], sign=True)
    else:
        mean, variance = (call[name] for name in ("running_mean", "running_var"))
        if any(call.known(tensor) is not None for tensor in (mean, variance)):
            raise recorder.unsupported("its running statistics are computed by the network")
        value = recorder.as_value(value)
        moved = np.broadcast_to((mean != 0).cpu().numpy().reshape(column), shape)
        for kind in (SIGN, SCALE):
            recorder.atoms.lose(kind, value.characters[kind][moved])
        for statistic in (mean, variance):
            number = constant(statistic).map(lambda array: array.reshape(column))
            value = two(recorder, "mul", value, number, out)
    recorder.write(out, _affine(recorder, value, call, out, column))


@handles(
    *(f"{kind}_pool{d}d" for kind in ("avg", "_adaptive_avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)),
    *(f"max_pool{d}d_with_indices" for d in (1, 2, 3)),
    *(f"fractional_max_pool{d}d" for d in (2, 3)),
    *(f"upsample_{kind}" for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d", "_bilinear2d_aa")),
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "col2im",
    "grid_sampler_2d",
    "grid_sampler_3d",
)
def pooling(recorder: Recorder, call: Call) -> None:
    """A function of positions near each other, channel by channel."""
    argument = next(value for value in call.args.values() if isinstance(value, Tensor))
    if sum(isinstance(a, Tensor) and call.known(a) is not None for a in call.args.values()) > 1:
        raise recorder.unsupported(f"{call.name} with a computed grid is not known")
    value = recorder.as_value(recorder.operand(argument, call))
    outs = [call.out] if isinstance(call.out, Tensor) else list(call.out)
    spatial = len(outs[0].shape) - 2 if "2d" not in call.name else 2
    spatial = 3 if "3d" in call.name else 1 if "1d" in call.name else spatial
    if call.name == "col2im":
        raise recorder.unsupported("nn.Fold is not known")
    axes = range(len(value.shape) - spatial, len(value.shape))
    value = in_order(recorder, value, axes)
    flat, restore = along(value, tuple(axes))
    count = flat.place.shape[1]
    code = (mix(flat.place) * (mix(np.arange(count)) | np.uint64(1))).sum(axis=1, dtype=np.uint64)
    if "max" in call.name:
        recorder.atoms.lose(SIGN, flat.characters[SIGN].ravel())
        recorder.atoms.lose(LINEAR, flat.characters[SCALE].ravel())
    signs, scales = (recorder.atoms.equate_along(kind, flat.characters[kind], axis=1) for kind in (SIGN, SCALE))
    none = np.full(len(code), -1)
    small = Value(tuple(t[:, 0] for t in flat.tokens), code, (none if "max" in call.name else signs, scales)).map(
        restore
    )
    for out in outs:
        shape = tuple(out.shape)
        where = mix(np.arange(int(np.prod(shape[len(shape) - spatial :])))).reshape(shape[len(shape) - spatial :])
        wide = small.map(
            lambda array, shape=shape: np.broadcast_to(array.reshape(*array.shape, *(1,) * spatial), shape)
        )
        recorder.write(out, replace(wide, place=pair(wide.place, np.broadcast_to(where, shape))))
