"""Sums of products: linear layers, convolutions, attention, recurrent cells.

An index that is summed over ties what is on both sides of it. On one side there may be a parameter, whose
indices have no meaning but by what they meet, or two tensors that the network computes, as in attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ..codes import Codes, Ints, first_along, mix, pair
from ..elements import LINEAR, SCALE, SIGN, Value
from ..memory import address_of
from ..recorder import Call, Recorder, handles, rows_code
from .functions import two
from .together import doubt_rows, for_product


@handles("mm", "bmm", "mv", "dot")
def product(recorder: Recorder, call: Call) -> None:
    """A product of matrices, or of batches of them."""
    first, second = (argument for argument in call.args.values() if isinstance(argument, Tensor))
    value = contract(recorder, call, first, second)
    if value is not None:
        recorder.write(call.out, value.map(lambda array: array.reshape(tuple(call.out.shape))))


@handles("addmm", "baddbmm", "addmv")
def sum_and_product(recorder: Recorder, call: Call) -> None:
    """A product of matrices and what is added to it."""
    bias, first, second, beta, _ = call.args.values()
    value = contract(recorder, call, first, second)
    if value is None:
        if call.known(bias) is None:
            return
        shape = tuple(call.out.shape)
        only = recorder.operand(bias, call).map(lambda array: np.broadcast_to(array, shape))
        return recorder.write(call.out, recorder.as_value(only))
    value = value.map(lambda array: array.reshape(tuple(call.out.shape)))
    if beta != 0:
        value = two(recorder, "add", value, recorder.operand(bias, call), call.out)
    recorder.write(call.out, value)


def contract(recorder: Recorder, call: Call, first: Tensor, second: Tensor) -> Value | None:
    """What is known of (b, l, i) @ (b, i, o); None if it is zero."""
    if any(call.known(t) is None and not bool(t.any()) for t in (first, second)):
        return None
    left, right = recorder.operand(first, call), recorder.operand(second, call)
    if len(left.shape) == 1:
        left = left.map(lambda array: array[None])
    if len(right.shape) == 1:
        right = right.map(lambda array: array[:, None])
    if len(left.shape) == 2:
        left = left.map(lambda array: array[None])
    if len(right.shape) == 2:
        right = right.map(lambda array: array[None])
    # Of the two, a parameter is `right`, and its index that is summed over in the middle.
    turned = left.weight is not None and right.weight is None
    if turned:
        left, right = (value.map(lambda array: array.swapaxes(1, 2)) for value in (right, left))
    if right.weight is not None and left.weight is not None:
        left = replace(recorder.as_value(left), weight=None)
    result = _contracted(recorder, left, right)
    return result.map(lambda array: array.swapaxes(1, 2)) if turned else result


def _contracted(recorder: Recorder, left: Value, right: Value) -> Value:
    atoms = recorder.atoms
    left, right = _aligned(recorder, left, 1), for_product(recorder, left, _aligned(recorder, right, 2))
    outside_left, inside_left = _split(left, summed=2, other=1)
    outside_right, inside_right = _split(right, summed=1, other=2)
    label_left, row = _label(left.place.swapaxes(1, 2)), rows_code(left.place)
    label_right, column = _label(right.place), rows_code(right.place.swapaxes(1, 2))
    label = pair(label_left, label_right)
    own = right.weight is not None
    several = own and sum(size > 1 for size in recorder.weights[str(right.weight)].shape) > 2
    differ = [any((token != token[:1]).any() for token in side) for side in (inside_left, inside_right)]
    if several and differ == [True, False]:
        atoms.doubt()  # units of each batch are taken to be those of all
    if own:
        _unmet(recorder, inside_left, inside_right, label)
        doubt_rows(recorder, [token for token in inside_left if differ[1] or len(np.unique(token)) < token.shape[1]])
    loose = own and left.shape[0] > 1 and atoms.are_loose(inside_left)
    inside, label = atoms.combine(inside_left, inside_right, label)
    blocks: list[Ints] = []
    if not own or (len(left.shape) == 3 and left.shape[0] > 1):
        for extra in inside[1:]:
            atoms.give_up(extra.ravel())
        if len(inside) > 1:
            inside, label = atoms.settle(inside, label)
        if len(label) > 1 and inside:
            label = atoms.of_sets(inside, [*outside_left, *outside_right], label)
        for token in inside:
            block = atoms.blocks(token, label)
            if block is not None:
                blocks.append(block)
    shape = (left.shape[0], left.shape[1], right.shape[2])
    place = pair(np.broadcast_to(row[:, :, None], shape), np.broadcast_to(column[:, None, :], shape))
    tokens = [np.broadcast_to(block[:, None, None], shape) for block in blocks]
    for more, axis in ((outside_left, 2), (outside_right, 1)):
        for token in more:
            wide = np.broadcast_to(np.expand_dims(token, axis), shape)
            kept, place = atoms.combine(tokens, [wide], place)
            tokens = list(kept)
    if loose and blocks:
        atoms.note_sums(tokens)
    if own:
        characters = _through_weight(recorder, left, right, inside_right, outside_right, shape)
    else:
        characters = _between(recorder, left, right, shape)
    return Value(tuple(tokens), place, characters)


def _aligned(recorder: Recorder, value: Value, axis: int) -> Value:
    """A value whose tokens depend on the index that is summed over or on the other one (`axis`), not on both."""
    if value.weight is not None:
        return value
    tokens, place, summed = [], value.place, 3 - axis
    for token in value.tokens:
        place = recorder.atoms.with_slots(token, place)
    for token in map(recorder.atoms.units.find, value.tokens):
        along = (token == first_along(token, summed)).all()
        if not along and not (token == first_along(token, axis)).all():
            first = np.broadcast_to(first_along(token, axis), token.shape)
            some = (first >= 0) & (token >= 0)
            how = "pinned"
            if ((first >= 0) == (token >= 0)).all():
                how = recorder.atoms.relate(first[some], token[some], value.place[some])
            if how != "equal":
                recorder.atoms.give_up(token.ravel())
            token = np.where(token >= 0, recorder.atoms.units.find(token), -1) if how == "equal" else token
            if how == "equal":
                token = np.broadcast_to(first_along(token, axis), token.shape)
        tokens.append(token)
    settled, place = recorder.atoms.settle(tokens, place)
    return replace(value, tokens=settled, place=place)


def _split(value: Value, summed: int, other: int) -> tuple[list[Ints], list[Ints]]:
    """Tokens that do not depend on the summed index, (b, other), and those that do, (b, summed)."""
    outside: list[Ints] = []
    inside: list[Ints] = []
    unclear: list[Ints] = []
    for token in value.tokens:
        if not (token == first_along(token, summed)).all():
            inside.append(token)
        elif not (token == token.flat[0]).all():
            outside.append(token)
        else:
            unclear.append(token)
    if value.weight is None:  # one unit, which may have several slots
        inside += unclear
    else:  # axes of one index; that of the inputs was made first
        for token in sorted(unclear, key=lambda token: int(token.flat[0])):
            (outside if inside else inside).append(token)
    return (
        [first_along(token, summed).squeeze(summed) for token in outside],
        [first_along(token, other).squeeze(other) for token in inside],
    )


def _label(place: Codes) -> Codes:
    """For each index of the middle axis a code of the places along the last; nothing if it tells no index apart."""
    code = rows_code(place)
    return np.where((code == code[:, :1]).all(axis=1, keepdims=True), np.uint64(0), code)


def _unmet(recorder: Recorder, met: list[Ints], own: list[Ints], label: Codes) -> None:
    """Indices of a parameter that meet pinned numbers: those that meet the same are the same."""
    partner = np.zeros(label.shape, dtype=bool)
    for token in met:
        partner |= token >= 0
    for token in own:
        free = (token >= 0) & ~partner
        if not free.any():
            continue
        meet_pinned(recorder, token[free], label[free], alone=token.shape[1] == 1)


def meet_pinned(recorder: Recorder, own: Ints, label: Codes, alone: bool) -> None:
    """Indices of a parameter meet numbers that have an identity."""
    if len(np.unique(label)) < len(np.unique(own)) and not alone:
        recorder.atoms.distinguish(own, pair(label, recorder.atoms.event()))
        return
    recorder.atoms.pin(own)
    own, index = np.unique(own, return_index=True)
    key = int(pair(label[index], np.arange(len(index))).sum(dtype=np.uint64)) ^ len(own)
    if key in recorder.inputs:
        recorder.atoms.units.merge(recorder.inputs[key], own)
    else:
        recorder.inputs[key] = own


def _through_weight(
    recorder: Recorder, left: Value, right: Value, inside: list[Ints], outside: list[Ints], shape: tuple[int, ...]
) -> tuple[Ints, Ints]:
    """Signs and scales behind a parameter: those that its outputs have."""
    name, atoms = right.weight, recorder.atoms
    assert name is not None
    for tokens, role in ((inside, -1), (outside, 1)):
        for token in tokens:
            recorder.role(name, recorder.axis_of(name, int(token[token >= 0][0])), role)
    single = len(inside) == len(outside) == 1 and recorder.weights[name].is_followed
    result = []
    for kind in (SIGN, SCALE):
        own = left.characters[kind]
        if single and not (
            (own == own[:, :, :1]).all() and (own >= 0).all() and own.shape[2] > 1 and len(np.unique(own)) > 1
        ):
            read = atoms.equate_along(kind, own, axis=1)
            atoms.equate(kind, read.ravel(), np.broadcast_to(inside[0], read.shape).ravel())
            result.append(np.broadcast_to(outside[0][:, None, :], shape))
            continue
        # The index that is summed over has no sign, or there are too many: what was there must be 1.
        atoms.lose(kind, own.ravel())
        for token in (*inside, *outside):
            atoms.lose(kind, token.ravel())
        result.append(np.full(shape, -1))
    return result[0], result[1]


def _between(recorder: Recorder, left: Value, right: Value, shape: tuple[int, ...]) -> tuple[Ints, Ints]:
    """Signs and scales of a product of two tensors that the network computes."""
    atoms = recorder.atoms
    left, right = recorder.as_value(left), recorder.as_value(right)
    result = []
    for kind in (SIGN, SCALE):
        a, b = left.characters[kind], right.characters[kind]  # (b, l, i) and (b, i, o)
        rest: list[Ints] = []
        inside: list[Ints] = []
        for array, summed, other in ((a, 2, 1), (b, 1, 2)):
            if (array < 0).all():
                continue
            if (array == first_along(array, summed)).all():
                rest.append(np.broadcast_to(first_along(array, summed), shape))
            else:
                inside.append(atoms.equate_along(kind, array, axis=other))
        if len(inside) == 2 and kind == SIGN:
            atoms.equate(kind, inside[0].ravel(), inside[1].ravel())
        elif len(inside) == 2:
            atoms.undo(inside[0], inside[1])
        else:
            for array in inside:  # it is summed over, and nothing on the other side undoes it
                atoms.lose(kind, array.ravel())
        if len(rest) == 2:
            for array in rest:
                atoms.lose(kind, array.ravel())
        result.append(rest[0] if len(rest) == 1 else np.full(shape, -1))
    return result[0], result[1]


@handles("convolution")
def convolution(recorder: Recorder, call: Call) -> None:
    """Convolutions of one to three dimensions, transposed or not, with groups."""
    groups, transposed = call["groups"], call["transposed"]
    if call.known(call["input"]) is None and not bool(call["input"].any()):
        raise recorder.unsupported("it convolves zeros")
    if not recorder.is_parameter(call["weight"]):
        return _by_computed_kernel(recorder, call)
    weight = recorder.convolution(call["weight"], transposed, groups)
    atoms, name = recorder.atoms, recorder.parameters[address_of(call["weight"])][0]
    inputs, outputs = (0, 1) if transposed else (1, 0)
    recorder.role(name, inputs, -1)
    recorder.role(name, outputs, 1)
    read, made = (weight.axes[axis] for axis in (inputs, outputs))
    assert read is not None
    assert made is not None
    read, made = read.reshape(groups, -1), made.reshape(groups, -1)
    value = _channels_last(recorder, call)
    _, inside = _split(value, summed=2, other=1)
    label = _label(value.place.swapaxes(1, 2))
    _unmet(recorder, inside, [read.reshape(1, -1)], label)
    met, _ = atoms.combine(inside, [read.reshape(1, -1)], label)
    channel = read.reshape(1, -1)
    if met:  # of a channel that is pinned, nothing is named there
        channel = np.where(met[0] >= 0, met[0], channel)
    if groups > 1:
        for one in (read.ravel(), made.ravel(), value.characters[SCALE].ravel()):
            atoms.lose(LINEAR, one)
        _grouped(recorder, channel.reshape(groups, -1), label.reshape(groups, -1), made)
    for kind in (SIGN, SCALE):
        along = atoms.equate_along(kind, value.characters[kind], axis=1)
        atoms.equate(kind, along.ravel(), read.ravel())
    _write_channels(recorder, call, [made.ravel()], (made.ravel(), made.ravel()))


def _channels_last(recorder: Recorder, call: Call) -> Value:
    """The input of a convolution, (1, rows × positions, channels); what tells positions apart is pinned."""
    value = recorder.as_value(recorder.operand(call["input"], call))
    value = value.map(lambda array: np.moveaxis(array, 1, -1).reshape(1, -1, array.shape[1]))
    value = _aligned(recorder, value, 1)
    for token in _split(value, summed=2, other=1)[0]:
        recorder.atoms.give_up(token.ravel())
    return value


def _write_channels(recorder: Recorder, call: Call, tokens: list[Ints], characters: tuple[Ints, Ints]) -> None:
    """What comes out of a convolution, whose channels have these tokens, signs and scales at every position."""
    shape = tuple(call.out.shape)
    column = (-1, *(1,) * (len(shape) - 2))
    wide = [np.broadcast_to(token.reshape(column), shape) for token in tokens]
    position = mix(np.arange(shape[0] * int(np.prod(shape[2:])))).reshape(shape[0], 1, *shape[2:])
    settled, place = recorder.atoms.settle(wide, np.broadcast_to(position, shape))
    signs, scales = (np.broadcast_to(own.reshape(column), shape) for own in characters)
    result = Value(settled, place, (signs, scales))
    if call["bias"] is not None:
        bias = recorder.operand(call["bias"], call).map(lambda array: array.reshape(column))
        result = two(recorder, "add", result, bias, call.out)
    recorder.write(call.out, result)


def _by_computed_kernel(recorder: Recorder, call: Call) -> None:
    """A convolution with a kernel that the network computes, such as one of `weight_norm`: products, and sums of them.

    Each of its positions is a matrix of inputs by outputs; all of them meet the channels of the same numbers.
    """
    if call["groups"] > 1:
        raise recorder.unsupported("a convolution in groups with a kernel that is computed is not known")
    atoms = recorder.atoms
    kernel = recorder.as_value(recorder.operand(call["weight"], call))
    if not call["transposed"]:
        kernel = kernel.map(lambda array: array.swapaxes(0, 1))
    inputs, outputs = kernel.shape[:2]
    kernel = replace(kernel.map(lambda array: array.reshape(inputs, outputs, -1)), weight=None)
    kernel = in_order(recorder, kernel, [2]).map(lambda array: array.reshape(1, inputs, -1))
    products = _contracted(recorder, _channels_last(recorder, call), kernel)
    channels = []
    for token in products.tokens:
        token = token.reshape(-1, outputs, products.shape[2] // outputs)
        own = token[:1, :, :1]
        if (token == own).all():
            channels.append(own.ravel())
        else:  # sets of channels that differ from position to position
            atoms.give_up(token.ravel())
    characters = []
    for kind in (SIGN, SCALE):
        by_position = products.characters[kind].reshape(-1, outputs, products.shape[2] // outputs)
        every = np.moveaxis(by_position, 1, 0).reshape(outputs, -1)
        characters.append(atoms.equate_along(kind, every, axis=1))
    _write_channels(recorder, call, channels, (characters[0], characters[1]))


def _grouped(recorder: Recorder, channel: Ints, label: Codes, made: Ints) -> None:
    """Inputs and outputs of a group move with it; a unit can have several slots among the inputs."""
    told = recorder.atoms.pinned(channel).any(axis=1)
    for groups, pinned in ((told, True), (~told, False)):
        if groups.any():
            _groups_alike(recorder, channel[groups], label[groups], made[groups], pinned)


def _groups_alike(recorder: Recorder, channel: Ints, label: Codes, made: Ints, pinned: bool) -> None:
    """Groups that all read something pinned, or none of them."""
    atoms = recorder.atoms
    if channel.shape[1] == 1 and not pinned:  # depthwise: the group is its channel
        owner = np.broadcast_to(channel, made.shape)
        atoms.relate(owner.ravel(), made.ravel(), np.broadcast_to(label, made.shape).ravel())
        return
    block = atoms.new(len(made), signed=False)[:, None]
    if pinned:
        atoms.pin(block.ravel())
    for member, place in ((channel, label), (made, np.zeros(made.shape, dtype=np.uint64))):
        owner = np.broadcast_to(block, member.shape)
        atoms.relate(owner.ravel(), member.ravel(), place.ravel())
    if pinned and made.shape[1] == 1:
        atoms.pin(made.ravel())


def in_order(recorder: Recorder, value: Value, axes: Sequence[int], surely: bool = True) -> Value:
    """A value of which the order along some axes matters, or may matter: units along them are told apart."""
    for token in value.tokens:
        if any(not (token == first_along(token, axis)).all() for axis in axes):
            (recorder.atoms.pin if surely else recorder.atoms.give_up)(token.ravel())
    tokens, place = recorder.atoms.settle(value.tokens, value.place)
    return replace(value, tokens=tokens, place=place)


def along(value: Value, axes: tuple[int, ...]) -> tuple[Value, Callable[[Any], Any]]:
    """The axes as one, at the end; and how to put an array without them back."""
    rest = [axis for axis in range(len(value.shape)) if axis not in axes]
    shape = [value.shape[axis] for axis in rest]
    moved = value.map(lambda array: array.transpose(*rest, *axes).reshape(int(np.prod(shape)), -1))
    return moved, lambda array: array.reshape((*shape, *array.shape[1:]))
