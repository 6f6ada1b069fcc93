"""Masks that leave no symmetry, from masks that leave some: what these would change is fixed too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..network.topology import Masks, Topology

# How often what is left is looked at; each time an entry more is fixed for each symmetry that generates the others.
ROUNDS = 20


def completed(topology: Topology, masks: Masks, left: Callable[[Masks], Sequence[Any]]) -> Masks | None:
    """Fix entries that the symmetries which are left would change, until none is left.

    Units of norms, of weights that multiply units one by one, and inputs behind them have signs beside those of layers;
    a mask that ties each layer's units need not tie those.

    Args:
        topology: The topology.
        masks: Masks to start from; they stay as they are.
        left: Moves that generate what masks leave.

    Returns:
        The masks, or None if something is left after some rounds.
    """
    masks = {name: mask.clone() for name, mask in masks.items()}
    generator = torch.Generator().manual_seed(0)
    weights = {t.name: 1 + torch.rand(t.shape, generator=generator, dtype=torch.float64) for t in topology.tensors}
    # Connections before biases and scales, which have more to say of the function. One tensor at a time is moved.
    tensors = sorted(topology.tensors, key=lambda tensor: not tensor.is_matrix)
    alone = [replace(topology, tensors=(tensor,)) for tensor in tensors if len(tensor.places) < 3]
    vertices = [
        set(np.concatenate([place.carrier.ravel() for place in topology.places(tensor)]).tolist())
        for (tensor,) in (one.tensors for one in alone)
    ]
    for _ in range(ROUNDS):
        moves = left(masks)
        if not moves:
            return masks
        for move in moves:
            moved = set(move.vertices(topology))
            for one, own in zip(alone, vertices, strict=True):
                if own.isdisjoint(moved):
                    continue
                name = one.tensors[0].name
                image = move.apply(one, {name: weights[name]})[name]
                changed = ((image != weights[name]) & masks[name]).flatten().nonzero()
                if len(changed):
                    masks[name].view(-1)[changed[0]] = False
                    break
    return None
