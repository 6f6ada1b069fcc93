"""Which units a network has, and which of its weight tensors join them.

A `Topology` is the narrow waist of the library: schemes, values and certificates read nothing else
of a network. Everything that knows about layer types lives in `pyro_sps.network.layers`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .inputs import Inputs, random_inputs
from .mixtures import Mixture
from .structure import Places, Structure
from .units import Joint, UnitGroup, WeightTensor

Masks = dict[str, Tensor]

SUPPORTED = (
    "nn.Linear, convolutions, recurrent cells, attention, norms, pooling, embeddings, elementwise functions, sums and "
    "products of hidden values, reshaping and concatenation, as modules, functions or methods; not: values that decide "
    "which way a network goes, Fourier transforms, linear algebra of hidden values"
)


class UnsupportedLayerError(ValueError):
    """A network contains something that `Topology.of` cannot read.

    Example:
        >>> from torch import nn
        >>> from pyro_sps import Topology, UnsupportedLayerError
        >>> try:
        ...     Topology.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Bilinear(4, 4, 1)))
        ... except UnsupportedLayerError as error:
        ...     print(str(error).split(". ")[0][:40])
        the shape of the network's inputs cannot
    """


@dataclass(frozen=True)
class Topology:
    """Unit groups and the weight tensors between them.

    Attributes:
        groups: Unit groups in order of computation; inputs first.
        tensors: Weight tensors in order of computation.
        structure: Signs, scales and blocks beyond what the groups say; None if there are none.
        outputs: Number of outputs of a row, if it is not that of the last layer's units.
        inputs: What the network was called with when it was read: for each input its shape, what it holds and its name,
            if it has one; nothing for a fully connected network.
        activations: Size of the largest tensor that it computes from a row, if that is not the size of a group.
        mixtures: Sets of units that any invertible linear map may mix, such as the dimensions inside an attention head.
            Of networks that are not fully connected.
        uncounted: Names of single numbers that multiply several units, such as the gain of a residual branch. Each has
            a sign and a scale that nothing here counts: they change with those of all that it multiplies.
        unfollowed: Where in the network units were told apart for want of a rule that says how they hang together:
            symmetries of these may be there that nothing here counts.

    Example:
        >>> from pyro_sps import Topology, mlp
        >>> print(Topology.of(mlp([8, 50, 2])))
        input (8, pinned) - layer 1 (50, odd) - output (2, pinned)
          0.weight  50 x 8  input -> layer 1
          0.bias    50      layer 1
          2.weight  2 x 50  layer 1 -> output
          2.bias    2       output
    """

    groups: tuple[UnitGroup, ...]
    tensors: tuple[WeightTensor, ...]
    structure: Structure | None = None
    outputs: int | None = None
    inputs: Inputs = ()
    activations: int | None = None
    mixtures: tuple[Mixture, ...] = ()
    uncounted: tuple[str, ...] = ()
    unfollowed: tuple[str, ...] = ()

    @staticmethod
    def of(net: nn.Module, example: Any = None, deterministic: Sequence[Any] = ()) -> Topology:
        """Trace a network.

        Args:
            net: The network. It is read, not changed; its parameters may be on the meta device.
            example: Inputs that it can be run with, two rows are enough: a tensor, or a tuple or dictionary of several.
                Their values do not matter. Fully connected networks need none; of others some are tried if it is None.
            deterministic: Parts without a posterior, as in `BNN`. In submodules of nothing else operations need not be
                known: what enters or leaves those that are not has an identity, so that symmetries through it are not
                counted. A warning tells of it where weights with a posterior are concerned.

        Raises:
            UnsupportedLayerError: If the network has a layer that is not supported.

        Example:
            >>> from torch import nn
            >>> from pyro_sps import Topology
            >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
            >>> [group.size for group in Topology.of(net).groups]
            [3, 4, 1]
        """
        from .trace import trace

        return trace(net, example, deterministic)[0]

    @property
    def num_outputs(self) -> int:
        """Number of outputs of a row."""
        return self.outputs or self.groups[self.matrices[-1].groups[0]].size

    @property
    def width(self) -> int:
        """Size of the largest tensor that the network computes from a row."""
        return self.activations or max(group.size for group in self.groups)

    @property
    def first(self) -> np.ndarray[Any, Any]:
        """Number of each group's first unit where all are numbered through, and at the end the number of units."""
        return np.cumsum([0] + [group.size for group in self.groups])

    def places(self, tensor: WeightTensor) -> tuple[Places, ...]:
        """Which unit each index of a tensor's axes belongs to."""
        if tensor.places:
            return tensor.places
        places = []
        for axis, group in enumerate(tensor.groups):
            unit = self.first[group] + np.arange(self.groups[group].size)
            places.append(Places((axis,), unit, np.zeros_like(unit), unit, -1 if axis else 1))
        return tuple(places)

    def random_inputs(self, generator: torch.Generator, rows: int = 16) -> Any:
        """Random inputs of the network in float64: a tensor, or a tuple or dictionary of several.

        Args:
            generator: Source of randomness, on the CPU.
            rows: Number of rows of a fully connected network; others get as many as they were traced with.
        """
        if not self.inputs:
            features = self.groups[self.matrices[0].groups[1]].size
            return torch.randn(rows, features, dtype=torch.float64, generator=generator)
        return random_inputs(self.inputs, generator, self.vocabulary)

    @property
    def vocabulary(self) -> int:
        """Number of rows of the smallest table that the network looks something up in; 2 if there is none."""
        return min((group.size for group in self.groups if group.name.startswith("tokens")), default=2)

    def sides(self, tensor: WeightTensor) -> tuple[tuple[int, ...], ...]:
        """The groups on each side of a tensor, outputs first: one side for a bias, two for a matrix."""
        if not tensor.places:
            return tuple((group,) for group in tensor.groups)
        places = tensor.places if tensor.is_matrix else tensor.places[:1]
        return tuple(
            tuple(np.unique(np.searchsorted(self.first, place.unit.ravel(), side="right") - 1).tolist())
            for place in places
        )

    @property
    def matrices(self) -> tuple[WeightTensor, ...]:
        """The tensors that join two groups, in order of computation (l = 1 ... L)."""
        return tuple(tensor for tensor in self.tensors if tensor.is_matrix)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Indices of the exchangeable groups."""
        return tuple(i for i, group in enumerate(self.groups) if not group.pinned)

    @property
    def num_weights(self) -> int:
        """Number of entries of all weight tensors."""
        return sum(tensor.numel for tensor in self.tensors)

    def __contains__(self, name: object) -> bool:
        """Whether there is a weight tensor of this name."""
        return any(tensor.name == name for tensor in self.tensors)

    def __getitem__(self, name: str) -> WeightTensor:
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(f"no weight tensor {name!r}; there are {[t.name for t in self.tensors]}")

    def check_masks(self, masks: Mapping[str, Tensor]) -> Masks:
        """Complete and check a set of stochastic masks.

        Args:
            masks: Boolean tensors by name of the weight tensor, True where the weight is stochastic.
                Tensors that are not named are stochastic everywhere.

        Returns:
            A mask for every weight tensor, in the order of `tensors`.

        Raises:
            ValueError: If a name, a dtype or a shape is wrong.
        """
        if not isinstance(masks, Mapping):
            raise TypeError(f"masks must map tensor names to Boolean tensors, got {type(masks).__name__}")
        names = [tensor.name for tensor in self.tensors]
        if unknown := sorted(set(masks) - set(names)):
            raise ValueError(f"masks name {unknown}, which the network does not have; it has {names}")
        checked = {}
        for tensor in self.tensors:
            mask = masks.get(tensor.name)
            if mask is None:
                mask = torch.ones(tensor.shape, dtype=torch.bool)
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != tensor.shape:
                found = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
                raise ValueError(
                    f"masks[{tensor.name!r}] must be a torch.bool tensor of shape {tensor.shape}, got {found}"
                )
            checked[tensor.name] = mask
        return checked

    def fully_connected(self, masks: Mapping[str, Tensor]) -> dict[str, int]:
        """Count the units without any fixed connection in each hidden group.

        The paper asks for at most one of them in each hidden layer (arXiv 2405.17666).
        That is necessary but not sufficient for breaking all permutations: see `pyro_sps.certify`.
        In a chain of layers with widths D the light scheme leaves max(0, D_l - m_l - m_(l+1) + 2) of them, where m_l is
        the smaller width of the tensor before the layer and m_(l+1) of that behind it, and the heavy scheme at least 1.

        Args:
            masks: Stochastic masks by tensor name. Biases are not connections and do not count.

        Returns:
            Number of fully connected units by name of the hidden group.
        """
        masks = self.check_masks(masks)
        free = np.ones(self.first[-1], dtype=bool)
        for tensor in self.matrices:
            fixed = (~masks[tensor.name]).cpu().numpy()
            for place in self.places(tensor):
                others = tuple(axis for axis in range(fixed.ndim) if axis not in place.axes)
                free[place.unit[fixed.any(axis=others)]] = False
        return {
            self.groups[index].name: int(free[self.first[index] : self.first[index + 1]].sum()) for index in self.hidden
        }

    def neighbours(self, group: int) -> tuple[UnitGroup, ...]:
        """The groups on the other side of the tensors that join `group`, in order of computation."""
        return tuple(
            self.groups[joint.groups[1 - axis]]
            for joint in self.joints
            for axis in (0, 1)
            if joint.groups[axis] == group
        )

    @cached_property
    def joints(self) -> tuple[Joint, ...]:
        """Which groups the matrices join, in order of computation; for most of them one pair."""
        joints = []
        for tensor in self.matrices:
            to, origin = self.sides(tensor)
            # Units that are told by one axis both meet where that has the same index.
            grouped = bool(tensor.places) and not set(tensor.places[0].axes).isdisjoint(tensor.places[1].axes)
            joints += [Joint(tensor.name, (a, b), grouped) for a in to for b in origin]
        return tuple(joints)

    def entries_of(self, joint: Joint, connected: Tensor) -> Tensor:
        """The entries of a tensor that belong to some connections.

        Args:
            joint: The tensor, and a group on either side of it.
            connected: Which connections: a Boolean matrix, units of the one group by units of the other.

        Returns:
            A Boolean tensor of the tensor's shape.
        """
        tensor = self[joint.tensor]
        to, origin = self.places(tensor)
        index = []
        for place, group in zip((to, origin), joint.groups, strict=True):
            unit = place.along(len(tensor.shape), place.unit) - self.first[group]
            index.append(
                (np.clip(unit, 0, self.groups[group].size - 1), (unit >= 0) & (unit < self.groups[group].size))
            )
        (rows, here), (columns, there) = index
        chosen = connected.numpy()[rows, columns] & here & there
        return torch.from_numpy(np.broadcast_to(chosen, tensor.shape).copy())

    def verify(self, net: nn.Module, seed: int = 0, example: Any = None, deterministic: Sequence[Any] = ()) -> Any:
        """Check on numbers that what this claims to be symmetries of a network are symmetries.

        Random weights and inputs are drawn in float64, and relabellings, sign flips and rescalings are
        applied to the weights: generators of each class one by one, and random products of all. The outputs must
        stay the same to rounding.

        Args:
            net: The network that the topology is of.
            seed: Seeds weights, inputs and symmetries.
            example: As in `Topology.of`.
            deterministic: As in `Topology.of`.

        Returns:
            A `pyro_sps.symmetry.verify.NetworkVerification`: what was tried, and whether all of it was right.

        Raises:
            ValueError: If the network has another topology.

        Example:
            >>> from torch import nn
            >>> from pyro_sps import Topology
            >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
            >>> example = torch.zeros(2, 1, 8, 8)
            >>> Topology.of(net, example).verify(net, example=example).ok
            True
        """
        from ..symmetry.verify import verify_network

        return verify_network(self, net, seed, example, deterministic)

    def __str__(self) -> str:
        words = [group.activation for group in self.groups]
        if self.structure is not None:  # what the weights before the units see is not all that there is
            known = {"linear": "signs and scales", "odd": "signs", "homogeneous": "scales", "generic": "no signs"}
            words = [known[word] for word in words]
        said = [
            f"{group.name} ({group.size}, {'pinned' if group.pinned else word})"
            for group, word in zip(self.groups, words, strict=True)
        ]
        groups = " - ".join(said)
        if len(groups) > 120:
            groups = textwrap.fill(groups.replace(" ", "\0").replace("\0-\0", " - "), 120).replace("\0", " ")
        rows = [
            (
                tensor.name,
                " x ".join(map(str, tensor.shape)),
                " -> ".join(
                    " + ".join(self.groups[index].name for index in side) for side in reversed(self.sides(tensor))
                ),
            )
            for tensor in self.tensors
        ]
        widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        lines = [f"  {name:{widths[0]}}  {shape:{widths[1]}}  {joins}" for name, shape, joins in rows]
        return "\n".join([groups, *lines])
