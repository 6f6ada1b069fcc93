"""Which symmetries of a network a set of masks and fixed values leaves: an exact certificate.

A (signed) permutation of hidden units survives if it maps every fixed weight onto a fixed weight of the same value
(times the signs of its two units); the survivors are the automorphisms of a coloured graph, of which
`pyro_sps.symmetry.automorphisms` finds the exact order and generators.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..base.checks import is_number
from ..base.process import warn_user
from ..masks.schemes import SymmetryWarning
from ..masks.values import FixedValues
from ..network.run import NetworkFunction
from ..network.topology import Topology
from ..network.units import WeightTensor
from .fixed_entries import fixed_entries
from .moves import Move
from .report import SymmetryClass, SymmetryReport


def certify(
    topology: Topology,
    masks: Mapping[str, Tensor],
    values: FixedValues | Mapping[str, Tensor] | None = None,
    time_limit: float | None = None,
    ordered: Sequence[str] = (),
    verify: nn.Module | NetworkFunction | None = None,
) -> SymmetryReport:
    """Count exactly which symmetries a set of masks and fixed values leaves.

    A permutation π of the hidden units within their layers, with signs s, survives if for every fixed weight
    w[i, j] the weight at (π(i), π(j)) is fixed too, at s_i s_j w[i, j]. (An independent, identical, zero-mean prior
    makes of every such map a copy of the posterior.) Only units with an odd activation have sign flips. A unit
    with a positively homogeneous activation can be rescaled by a > 0; the scales that keep all fixed weights
    form a torus, whose dimension is reported. A rescaling changes the prior density, so it is a ridge of the
    likelihood and not a copy of a mode.

    Fixed values are compared exactly, in their own precision; 0 and −0 are the same.

    **Ordered biases.** If the biases of a layer are constrained to increase, no permutation of it survives. Of the
    signed ones exactly one other than the identity maps increasing vectors to increasing vectors: all units flip
    their signs and their order is reversed, b ↦ (−b_n, …, −b_1). It survives if the fixed weights allow it, so a
    tanh layer keeps a factor of 2 under ordered biases. Of the rescalings those survive that scale the whole
    layer by one factor.

    Args:
        topology: The network's topology.
        masks: Stochastic masks by tensor name, True where a weight is stochastic; tensors without one are stochastic.
        values: The fixed values: a `FixedValues` (a learned scale counts as one unknown positive number, so that
            only the pattern is compared), a dictionary of tensors in full shapes, or None if all are zero.
            Stochastic entries are not read.
        time_limit: Seconds after which to give up on what is not determined yet; it is None in the report.
        ordered: Names of bias tensors that are constrained to be increasing.
        verify: The network, to try what is claimed on numbers, as `Topology.verify` does, with and without the masks:
            `SymmetryReport.verification`. For networks of unusual operations. Default: nothing is tried.

    Raises:
        ValueError: If the masks or values do not fit the topology, or a fixed value is not finite; if `verify` is a
            network of another topology.

    Warns:
        UserWarning: If something that is claimed is not true of the numbers of `verify`.

    Example:
        >>> import pyro_sps as sps
        >>> topology = sps.Topology.of(sps.mlp([8, 50, 50, 2]))
        >>> print(sps.certify(topology, sps.Heavy()(topology)))
        8-50-50-2 network, 1,254 of 3,102 weights fixed
        symmetries           before                   left              proved by
        permutations         50!^2 = 10^128.97        1                 refinement
        signed permutations  2^100 50!^2 = 10^159.07  2^100 = 10^30.10  refinement and decomposition
        not rigid
        signed permutations, for example: flip the sign of unit 0 of layer 1
    """
    deadline = _deadline(time_limit)
    masks = topology.check_masks(masks)
    constants = _constants(topology, masks, values)
    network = fixed_entries(topology, masks, constants, _check_ordered(topology, masks, ordered))
    notes = list(network.notes())
    permutations = network.discrete(signed=False, deadline=deadline)
    signed = network.discrete(signed=True, deadline=deadline) if network.flippable.any() else None
    scalings = network.scalings() if (network.scale >= 0).any() else None
    for one in (permutations, signed):
        if one is not None and one.after is None:
            notes.append(f"{one.name} were not determined within {time_limit:g} s")
    uncounted = tuple(name for name in topology.uncounted if masks[name].any() or not _is_set(constants[name]))
    if uncounted:
        notes.append(
            f"{', '.join(uncounted)}: one number for several units each, whose sign and scale can change with those of "
            "what it multiplies, which is not counted; fixed at another value than zero it cannot"
        )
    if topology.unfollowed:
        places = ", ".join(topology.unfollowed[:3])
        more = f" and {len(topology.unfollowed) - 3} more places" if len(topology.unfollowed) > 3 else ""
        notes.append(
            f"{places}{more}: how units hang together there is not followed in full; what is counted is there, but "
            "there may be more"
        )
    fixed = sum(int((~mask).sum()) for mask in masks.values())
    maps = _linear_maps(topology, masks, constants)
    report = SymmetryReport(
        topology, fixed, permutations, signed, scalings, tuple(notes), tuple(ordered), maps, uncounted
    )
    return report if verify is None else _verified(report, verify, masks, constants)


def moves_left(
    topology: Topology, masks: Mapping[str, Tensor], values: FixedValues | Mapping[str, Tensor] | None, signed: bool
) -> tuple[int, tuple[Move, ...]]:
    """The order of the group of (signed) permutations that masks leave, and moves that generate it.

    A search for masks asks this often; `certify` also says what there was without masks, which can take far longer.

    Args:
        topology: The network's topology.
        masks: Stochastic masks by tensor name.
        values: The fixed values, as in `certify`.
        signed: Whether signs may flip too.
    """
    masks = topology.check_masks(masks)
    group, _, moves = fixed_entries(topology, masks, _constants(topology, masks, values), ()).left(signed)
    return group.order, moves


def _verified(report: SymmetryReport, *how: Any) -> SymmetryReport:
    from .verify import verified

    return verified(report, *how)


def _linear_maps(
    topology: Topology, masks: Mapping[str, Tensor], constants: Mapping[str, Tensor | None]
) -> SymmetryClass | None:
    """The dimension of GL(n) of each set of units that linear maps may mix, and of what is left of it."""
    if not topology.mixtures:
        return None
    before = sum(mixture.size**2 for mixture in topology.mixtures)
    left = [mixture.dimension(masks, constants) for mixture in topology.mixtures]
    exact = all(own for _, own in left)
    how = "rank of what fixed weights ask" if exact else "a lower bound, from entries that may differ from zero"
    return SymmetryClass("linear maps", before, sum(number for number, _ in left), how)


def _is_set(constant: Tensor | None) -> bool:
    """Whether a constant is another than zero."""
    return constant is not None and bool((constant != 0).all())


def _deadline(time_limit: float | None) -> float | None:
    if time_limit is None:
        return None
    if not is_number(time_limit) or not time_limit >= 0:
        raise ValueError(f"time_limit must be None or a number of seconds >= 0, got {time_limit!r}")
    return time.monotonic() + time_limit


def _check_ordered(topology: Topology, masks: Mapping[str, Tensor], ordered: Sequence[str]) -> tuple[WeightTensor, ...]:
    if isinstance(ordered, str):
        raise TypeError(f"ordered must be a sequence of names, got the string {ordered!r}")
    tensors = []
    for name in ordered:
        if name not in masks:
            raise ValueError(f"ordered names {name!r}, which the network does not have; it has {list(masks)}")
        tensor = topology[name]
        if tensor.is_matrix or tensor.groups[0] not in topology.hidden:
            raise ValueError(f"ordered must name biases of hidden layers, got {name!r}")
        if topology.structure is not None:
            raise ValueError(
                f"ordered names {name!r}: ordered biases are known for networks whose units have one sign each and no "
                "blocks; here sps.Rigid() or sps.InputOffsets() tells units apart"
            )
        if not masks[name].all():
            raise ValueError(f"ordered names {name!r}, of which the masks fix some entries; all must be stochastic")
        tensors.append(tensor)
    return tuple(tensors)


def _constants(
    topology: Topology, masks: Mapping[str, Tensor], values: FixedValues | Mapping[str, Tensor] | None
) -> dict[str, Tensor | None]:
    """Constants by tensor name, None for zeros."""
    if isinstance(values, FixedValues):
        values = values.pattern if values.learn else values.tensors()
    if values is None:
        return dict.fromkeys(masks)
    if not isinstance(values, Mapping):
        raise TypeError(f"values must be FixedValues, a dict of tensors or None, got {type(values).__name__}")
    if unknown := sorted(set(values) - set(masks)):
        raise ValueError(f"values name {unknown}, which the network does not have; it has {list(masks)}")
    constants: dict[str, Tensor | None] = {}
    for tensor in topology.tensors:
        value = values.get(tensor.name)
        if value is None:
            if not masks[tensor.name].all():
                raise ValueError(f"values lack {tensor.name!r}, of which the masks fix some entries")
        elif not isinstance(value, Tensor) or value.shape != tensor.shape or value.is_complex():
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"values[{tensor.name!r}] must be a real tensor of shape {tensor.shape}, got {found}")
        constants[tensor.name] = value
    return constants


def warn_of_symmetries(report: SymmetryReport, scheme: object) -> None:
    """Warn if a scheme that was meant to break symmetries leaves hidden units that can be relabelled.

    Args:
        report: What is left.
        scheme: The scheme that picked the masks.

    Warns:
        SymmetryWarning: If permutations are left, or if it was not determined whether any are.

    Example:
        >>> import pyro_sps as sps, warnings
        >>> from pyro_sps.symmetry.certificate import warn_of_symmetries
        >>> topology = sps.Topology.of(sps.mlp([8, 50, 50, 2]))
        >>> report = sps.certify(topology, sps.Light()(topology))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_symmetries(report, sps.Light())
        >>> print(caught[0].message)  # doctest: +ELLIPSIS
        Light leaves 10^52.78 relabellings of the hidden units: layer 1 (43 of 50 units), layer 2 (43 of 50 units)...
    """
    name = getattr(scheme, "__name__", type(scheme).__name__)
    permutations = report.permutations
    if permutations.is_rigid:
        return
    if permutations.after is None:
        warn_user(
            f"whether {name} leaves relabellings of the hidden units was not determined in time; "
            "bnn.symmetry() takes as long as it needs",
            SymmetryWarning,
        )
        return
    counts = []
    for group, orbit in report.orbits().items():
        shared = Counter(orbit)
        if moved := sum(1 for unit in orbit if shared[unit] > 1):
            counts.append(f"{group} ({moved} of {len(orbit)} units)")
    warn_user(
        f"{name} leaves 10^{permutations.log10_after:.2f} relabellings of the hidden units: {', '.join(counts)}. "
        f"They copy posterior modes. {_remedy(report.topology)}; bnn.symmetry() says what is left.",
        SymmetryWarning,
    )


def _remedy(topology: Topology) -> str:
    """Which scheme would leave no permutation."""
    narrow = [
        topology.groups[index].name
        for index in topology.hidden
        if topology.groups[index].size > 2 ** sum(group.size for group in topology.neighbours(index))
    ]
    if narrow:
        return (
            "scheme=sps.Rigid() with values=sps.Ladder() breaks them "
            f"(zeros cannot: {', '.join(narrow)} has too few neighbours)"
        )
    return "scheme=sps.Rigid() breaks them"
