"""Operations that copy numbers elsewhere: concatenation, selection, padding, look-up in a table."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codes import first_along, mix, pair
from ..elements import LINEAR, SCALE, SIGN, Value
from ..memory import leaves
from ..recorder import COPIES, Call, Recorder, handles


@handles(
    *[
        *COPIES,
        "repeat",
        "repeat_interleave",
        "roll",
        "flip",
        "rot90",
        "take",
        "index",
        "index_select",
        "im2col",
    ],
    *["pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"],
    *(f"{how}_pad{d}d" for how in ("reflection", "replication") for d in (1, 2, 3)),
    *(f"{how}{d}d" for how in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3)),
    *(f"{how}_copy" for how in ("diagonal", "select", "view", "unfold")),
)
def move(recorder: Recorder, call: Call) -> None:
    """Numbers move or are copied: what is done to their places is done to what is known of them."""
    argument = next(iter(call.args.values()))
    for tensor in leaves([value for value in call.args.values() if value is not argument]):
        if call.known(tensor) is not None:
            raise recorder.unsupported(f"{call.name} at places that the network computes is not known")
    value = recorder.operand(argument, call)
    if call.name in COPIES and value.weight is not None and value.tokens:
        return recorder.copy(call.out, value)
    value = recorder.as_value(value)
    # Zero stays for what is not a copy, such as the edges of unfolded images.
    places = torch.arange(1, argument.numel() + 1, dtype=torch.float64).reshape(argument.shape)
    moved = places.clone() if call.name in COPIES else _again(call, places)
    index = moved.to(torch.int64).numpy() - 1
    flat = value.map(lambda array: array.ravel()[np.maximum(index, 0)])
    if (index < 0).any():
        flat = replace(flat, place=np.where(index < 0, np.uint64(0), flat.place))
    recorder.write(call.out, flat)


def _again(call: Call, places: Tensor) -> Any:
    """The same operation on numbers that say where they were."""
    function = getattr(torch.ops.aten, call.name)
    overload = {"index": "Tensor", "roll": "default", "upsample_nearest1d": "default"}.get(call.name)
    function = function if overload is None else getattr(function, overload)
    names = iter(call.args)
    next(names)
    return function(places, **{name: call[name] for name in names})


@handles("cat", "stack")
def cat(recorder: Recorder, call: Call) -> None:
    """Tensors one behind another, or side by side."""
    tensors = [t for t in call["tensors"] if call.name == "stack" or tuple(t.shape) != (0,)]
    dim = call["dim"] % len(call.out.shape)
    parts = []
    for number, tensor in enumerate(tensors):
        value = recorder.as_value(recorder.operand(tensor, call))
        if call.name == "stack":
            value = value.map(lambda array: np.expand_dims(array, dim))
        parts.append(replace(value, place=pair(value.place, number), weight=None))
    most = max(parts, key=lambda part: len(part.tokens))
    for number, tensor in enumerate(tensors):
        if most.tokens and call.known(tensor) is None:
            parts[number] = _beside(tensor, parts[number], most, dim)
    ordered = [recorder.atoms.in_step(part.tokens, most.tokens) for part in parts]
    none = [np.full(part.shape, -1) for part in parts]
    tokens = tuple(
        np.concatenate([empty if own is None else own for own, empty in zip(each, none, strict=True)], axis=dim)
        for each in zip_longest(*ordered)
    )
    characters = tuple(np.concatenate([part.characters[kind] for part in parts], axis=dim) for kind in (SIGN, SCALE))
    place = np.concatenate([part.place for part in parts], axis=dim)
    recorder.write(call.out, Value(tokens, place, (characters[0], characters[1])))


def _beside(tensor: Tensor, value: Value, other: Value, dim: int) -> Value:
    """One number, repeated, beside units: it is the same for each of them, as padding is.

    Args:
        tensor: The constant.
        value: What is known of it.
        other: What is known of what it lies beside.
        dim: The axis along which they lie.
    """
    if tensor.is_meta or not tensor.numel() or not (tensor == tensor.flatten()[0]).all():
        return value
    if not all((token == first_along(token, dim)).all() for token in other.tokens):
        return value  # it is further units
    tokens, signs, scales = other.tokens, *other.characters
    wide = [np.broadcast_to(first_along(array, dim), value.shape) for array in (*tokens, signs, scales)]
    kept = [
        own if tensor.flatten()[0] == 0 and (array == first_along(array, dim)).all() else empty
        for own, array, empty in zip(wide[-2:], (signs, scales), value.characters, strict=True)
    ]
    return replace(value, tokens=tuple(wide[:-2]), characters=(kept[0], kept[1]))


@handles("constant_pad_nd")
def pad(recorder: Recorder, call: Call) -> None:
    """Padding by a constant: the same for every unit."""
    value = recorder.as_value(recorder.operand(call["self"], call))
    padding, fill = call["pad"], call["value"]
    if fill != 0:
        for kind in (SIGN, SCALE):
            recorder.atoms.lose(kind, value.characters[kind].ravel())
            value = value.without(kind)
    index: list[Any] = [np.arange(size) for size in value.shape]
    outside = np.zeros(tuple(call.out.shape), dtype=bool)
    further = outside.copy()  # beside units, where what is put there belongs to none
    for number in range(len(padding) // 2):
        axis = len(value.shape) - 1 - number
        where = np.arange(call.out.shape[axis]) - padding[2 * number]
        size = value.shape[axis]
        away = (where < 0) | (where >= size)
        there = away.reshape([-1 if i == axis else 1 for i in range(len(value.shape))])
        outside |= there
        index[axis] = np.clip(where, 0, size - 1)
        if any((token != first_along(token, axis)).any() for token in value.tokens):
            further |= there
    grid = np.ix_(*index)
    moved = value.map(lambda array: array[grid])
    moved = replace(moved, place=np.where(outside, np.uint64(1), pair(moved.place, 2)))
    if further.any():
        if fill == 0:  # it has any sign, which is not noted: what it is added to loses its own
            recorder.atoms.doubt()
        signs, scales = (np.where(further, -1, own) for own in moved.characters)
        tokens = tuple(np.where(further, -1, token) for token in moved.tokens)
        moved = replace(moved, tokens=tokens, characters=(signs, scales))
    recorder.write(call.out, moved)


@handles("copy", "fill", "zero")
def copy(recorder: Recorder, call: Call) -> None:
    """Numbers are written over others."""
    source = call.args.get("src")
    shape = tuple(call.out.shape)
    if isinstance(source, Tensor):
        value = recorder.as_value(recorder.operand(source, call)).map(lambda array: np.broadcast_to(array, shape))
    else:
        value = Value.pinned(np.full(shape, mix(hash(call.args.get("value", 0)) & 0xFFFF)))
    recorder.write(call.out, value, fresh=False)


@handles("embedding")
def embedding(recorder: Recorder, call: Call) -> None:
    """Rows of a table, by numbers that have an identity."""
    indices, table = call["indices"], call["weight"]
    place = recorder.operand(indices, call)
    if place.tokens:
        raise recorder.unsupported("it looks up what its units say")
    value = recorder.operand(table, call)
    if value.weight is None:
        raise recorder.unsupported("it looks up rows of a table that the network computes")
    _look_up(
        recorder, value, pair(place.place, mix(np.arange(indices.numel())).reshape(tuple(indices.shape))), call.out
    )


@handles("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(recorder: Recorder, call: Call) -> None:
    """Sums, means or maxima of rows of a table."""
    value, out = recorder.operand(call["weight"], call), call.out[0]
    if value.weight is None:
        raise recorder.unsupported("it looks up rows of a table that the network computes")
    _look_up(recorder, value, mix(np.arange(out.shape[0])), out)
    if call["mode"] == 2:
        for kind in (SIGN, LINEAR):
            recorder.atoms.lose(kind, recorder.weights[value.weight].axes[1])  # type: ignore[arg-type]


@handles("_pack_padded_sequence", "_pad_packed_sequence")
def packed(recorder: Recorder, call: Call) -> None:
    """Packed sequences: which rows a step has depends on the lengths."""
    raise recorder.unsupported(
        "packed sequences are not known; run on padded ones, and take the last state by a mask that comes as a second "
        "input, such as (states * is_last[..., None]).sum(1)"
    )


@handles("vdot")
def spectral_norm(recorder: Recorder, call: Call) -> None:
    """Products of a parameter with vectors, of which `spectral_norm` makes a scale of the whole parameter."""
    raise recorder.unsupported(
        "a scale that depends on the whole weight is not known; take it off, for instance by "
        "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
    )


def _look_up(recorder: Recorder, table: Value, place: Any, out: Tensor) -> None:
    assert table.weight is not None
    weight = recorder.weights[table.weight]
    as_stored = table.shape == weight.shape and not weight.over
    if not as_stored or any((t != first_along(t, 1 - axis)).any() for axis, t in enumerate(table.tokens)):
        raise recorder.unsupported(
            f"it looks up rows of a view of {table.weight!r}, or of what has been read in another way before; make the "
            "table a parameter by itself, of shape (rows, width)"
        )
    rows, columns = weight.axes
    assert rows is not None
    assert columns is not None
    recorder.atoms.pin(rows)
    weight.looked_up.add(0)
    recorder.role(table.weight, 1, 1)
    for kind in (SIGN, SCALE):
        recorder.atoms.lose(kind, rows)
    shape = tuple(out.shape)
    own = np.broadcast_to(columns, shape)
    recorder.write(out, Value(*recorder.atoms.settle([own], np.broadcast_to(place[..., None], shape)), (own, own)))
