"""Rules that pick which weights are stochastic.

A scheme is any callable `(topology, generator) -> masks`, where `masks` maps names of weight tensors
to Boolean tensors, True where the weight is stochastic. A dictionary of masks works wherever a scheme does.

**Connections.** What joins two units through a tensor is one connection: an entry of a matrix, a whole kernel of a
convolution, all gates of a recurrent cell, all positions of a channel behind a flattening.

**Blocks.** `Light` and `Heavy` fix connections of a square block of each weight matrix (of each pair of groups, if it
joins several). Let m be the smaller width of the
two layers that it joins. The block couples m units of the one with m of the other: those with the lowest indices in
both layers for the first, third, ... matrix, those with the highest for the second, fourth, ...; they are ranked
0 ... m - 1 from that end. So a layer gets its patterns from opposite ends on its two sides, and few of its units stay
fully connected. A path from the inputs to the outputs beside the hidden layers is left stochastic: no fixed weight of
it would break a symmetry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..base.process import silenced, warn_user
from ..network.topology import Masks, Topology

Scheme = Callable[..., Mapping[str, Tensor]]


class SymmetryWarning(UserWarning):
    """A mask that was meant to break symmetries leaves some.

    Example:
        >>> import pyro_sps as sps, warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always", sps.SymmetryWarning)
        ...     masks = sps.Light()(sps.Topology.of(sps.mlp([1, 5, 1])))
        >>> print(caught[0].message)  # doctest: +ELLIPSIS
        the light scheme leaves 5 of the 5 units of layer 1 fully connected, so that they can be relabelled: ...
    """


@dataclass(frozen=True)
class Unmasked:
    """Everything is stochastic: the vanilla mean-field baseline.

    Example:
        >>> import pyro_sps as sps
        >>> masks = sps.Unmasked()(sps.Topology.of(sps.mlp([3, 4, 1])))
        >>> all(mask.all() for mask in masks.values())
        True
    """

    def __call__(self, topology: Topology, generator: Generator | None = None) -> Masks:
        """Masks that fix nothing."""
        return topology.check_masks({})


@dataclass(frozen=True)
class Light:
    """Fix one connection a unit: the diagonal of each matrix's block but its last entry (`pyro_sps.masks.schemes`).

    With m the smaller width of a matrix, m - 1 of its entries are fixed: the connection of the units of rank i in both
    layers, i = 0 ... m - 2. Source: arXiv 2405.17666.

    Warns:
        SymmetryWarning: If a hidden layer keeps more than one fully connected unit.

    Example:
        >>> import pyro_sps as sps
        >>> masks = sps.Light()(sps.Topology.of(sps.mlp([2, 3, 2], bias=False)))
        >>> masks["0.weight"]
        tensor([[False,  True],
                [ True,  True],
                [ True,  True]])
    """

    def __call__(self, topology: Topology, generator: Generator | None = None) -> Masks:
        """Masks of the light scheme; the generator is not used."""
        masks = _blocks(topology, lambda block: block.fill_diagonal_(True)[-1:, -1:].fill_(False))
        _warn_of_fully_connected(topology, masks, "light")
        return masks


@dataclass(frozen=True)
class Heavy:
    """Fix a triangle of connections: each unit of a block has a different number of them (`pyro_sps.masks.schemes`).

    With m the smaller width of a matrix, m (m - 1) / 2 of its entries are fixed: the unit of rank j
    loses its connections from the units of rank 0 ... j - 1 of the layer before. Source: arXiv 2405.17666.

    Warns:
        SymmetryWarning: If a hidden layer keeps more than one fully connected unit.

    Example:
        >>> import pyro_sps as sps
        >>> masks = sps.Heavy()(sps.Topology.of(sps.mlp([2, 3, 2], bias=False)))
        >>> masks["0.weight"]
        tensor([[ True,  True],
                [False,  True],
                [ True,  True]])
    """

    def __call__(self, topology: Topology, generator: Generator | None = None) -> Masks:
        """Masks of the heavy scheme; the generator is not used."""
        masks = _blocks(topology, lambda block: block.fill_(True).tril_(-1))
        _warn_of_fully_connected(topology, masks, "heavy")
        return masks


@dataclass(frozen=True)
class Random:
    """As many fixed entries in each tensor as another scheme has, at random places: the control.

    Args:
        like: The scheme (or function, or dict of masks) whose numbers of fixed entries are taken (default: heavy),
            or a fraction between 0 and 1 of each weight matrix.

    Raises:
        ValueError: If a fraction is not between 0 and 1.

    Example:
        >>> import pyro_sps as sps, torch
        >>> topology = sps.Topology.of(sps.mlp([8, 50, 50, 2]))
        >>> masks = sps.Random(like=sps.Light())(topology, torch.Generator().manual_seed(0))
        >>> int((~masks["2.weight"]).sum())
        49
    """

    like: Scheme | Mapping[str, Tensor] | float = Heavy()

    def __post_init__(self) -> None:
        if isinstance(self.like, int | float) and (isinstance(self.like, bool) or not 0 <= self.like <= 1):
            raise ValueError(f"like must be a scheme or a fraction in [0, 1], got {self.like!r}")

    def __call__(self, topology: Topology, generator: Generator | None = None) -> Masks:
        """Masks with randomly placed fixed entries; `generator` decides where."""
        masks = {}
        for tensor, fixed in zip(topology.tensors, self._counts(topology, generator), strict=True):
            order = torch.randperm(tensor.numel, generator=generator)
            mask = torch.ones(tensor.numel, dtype=torch.bool)
            mask[order[:fixed]] = False
            masks[tensor.name] = mask.reshape(tensor.shape)
        return masks

    def _counts(self, topology: Topology, generator: Generator | None) -> list[int]:
        if isinstance(self.like, int | float):
            return [round(self.like * tensor.numel) if tensor.is_matrix else 0 for tensor in topology.tensors]
        with silenced(SymmetryWarning):  # what the other scheme leaves is not this one's concern
            masks = make_masks(self.like, topology, generator=generator)
        return [int((~masks[tensor.name]).sum()) for tensor in topology.tensors]


def make_masks(
    scheme: Scheme | Mapping[str, Tensor],
    topology: Topology,
    values: object = None,
    generator: Generator | None = None,
) -> Masks:
    """Masks of a scheme, of a user's function or of a dictionary, checked against the topology.

    Args:
        scheme: What picks the masks. A scheme with an attribute `uses_values = True` (`pyro_sps.Rigid`)
            is also told what the fixed weights will be set to.
        topology: The network's topology.
        values: The fixed values that go with the masks.
        generator: Source of randomness, on the CPU.

    Raises:
        TypeError: If `scheme` is neither callable nor a mapping.
        ValueError: If the masks do not fit the topology.

    Example:
        >>> import pyro_sps as sps
        >>> from pyro_sps.masks.schemes import make_masks
        >>> topology = sps.Topology.of(sps.mlp([2, 3, 2], bias=False))
        >>> sorted(make_masks(sps.Heavy(), topology)) == sorted(make_masks({}, topology))
        True
    """
    if isinstance(scheme, type):
        raise TypeError(f"scheme must be an instance, got the class {scheme.__name__}; write {scheme.__name__}()")
    if isinstance(scheme, Mapping):
        return topology.check_masks(scheme)
    if not callable(scheme):
        raise TypeError(f"scheme must be a scheme, a function or a dict of masks, got {type(scheme).__name__}")
    if getattr(scheme, "uses_values", False):
        return topology.check_masks(scheme(topology, generator, values=values))
    return topology.check_masks(scheme(topology, generator))


def _blocks(topology: Topology, mark: Callable[[Tensor], object]) -> Masks:
    """Masks from a rule that marks the fixed entries of a (m, m) block, indexed [rank out, rank in]."""
    masks = topology.check_masks({})
    hidden = set(topology.hidden)
    joints = [joint for joint in topology.joints if not hidden or hidden & set(joint.groups)]
    order = {name: position for position, name in enumerate(dict.fromkeys(joint.tensor for joint in joints))}
    for joint in joints:
        widths = [topology.groups[index].size for index in joint.groups]
        size = min(widths)
        block = torch.zeros(size, size, dtype=torch.bool)
        mark(block)
        connected = torch.zeros(widths, dtype=torch.bool)
        if order[joint.tensor] % 2 == 0:  # odd l: ranks count from the top of both layers
            connected[:size, :size] = block
        else:  # even l: from the bottom
            connected[-size:, -size:] = block.flip(0, 1)
        masks[joint.tensor] &= ~topology.entries_of(joint, connected)
    return masks


def _warn_of_fully_connected(topology: Topology, masks: Masks, scheme: str) -> None:
    counts = topology.fully_connected(masks)
    for index in topology.hidden:
        group = topology.groups[index]
        if counts[group.name] > 1:
            neighbours = " and ".join(f"{other.size} ({other.name})" for other in topology.neighbours(index))
            warn_user(
                f"the {scheme} scheme leaves {counts[group.name]} of the {group.size} units of {group.name} fully "
                f"connected, so that they can be relabelled: its neighbours have widths {neighbours}. "
                "sps.Rigid() breaks these symmetries.",
                SymmetryWarning,
            )


def fixed_count(masks: Mapping[str, Tensor]) -> int:
    """Number of fixed entries of a set of masks.

    Example:
        >>> import pyro_sps as sps
        >>> sps.fixed_count(sps.Heavy()(sps.Topology.of(sps.mlp([8, 50, 50, 2]))))
        1254
    """
    return sum(int((~mask).sum()) for mask in masks.values())
