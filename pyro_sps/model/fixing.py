"""What of a network is fixed, and at what: scheme, values and deterministic parts put together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..base.process import silenced
from ..masks.schemes import Scheme, SymmetryWarning, make_masks
from ..masks.values import FixedValues, Point, Values, make_values
from ..network.select import parameters_of
from ..network.topology import Topology


@dataclass(frozen=True)
class Fixing:
    """Masks and constants of a network.

    Attributes:
        masks: Stochastic masks by tensor name.
        values: What the rule for the values gave, for what the scheme fixed.
        constants: Constants by tensor name, in full shapes; where `values` has a learned scale, its pattern.
        deterministic: Names of the tensors without a posterior.
        points: Names of the tensors whose fixed entries are parameters.
        masked: Names of the tensors of which the scheme fixed entries.
    """

    masks: Mapping[str, Tensor]
    values: FixedValues
    constants: Mapping[str, Tensor]
    deterministic: tuple[str, ...]
    points: tuple[str, ...]
    masked: tuple[str, ...]

    @property
    def learns_scale(self) -> bool:
        """Whether the constants have a learned scale."""
        return self.values.learn and bool(self.masked)


def fix_weights(
    net: nn.Module,
    topology: Topology,
    scheme: Scheme | Mapping[str, Tensor],
    values: Values,
    deterministic: Sequence[Any] | Mapping[Any, Any],
    dtype: torch.dtype,
    generator: Generator,
) -> Fixing:
    """Decide what is fixed, and at what; the arguments are those of `pyro_sps.BNN`.

    Args:
        net: The network.
        topology: Its topology.
        scheme: What picks the masks.
        values: What the fixed weights are set to.
        deterministic: Parts of the network without a posterior.
        dtype: Of constants that are not scaled.
        generator: Source of randomness, on the CPU.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If masks, values or parts do not fit the network.
    """
    with silenced(SymmetryWarning):  # the certificate says more than the scheme's own count
        masks = make_masks(scheme, topology, values, generator)
    parts = _deterministic_tensors(net, deterministic, topology)
    masks |= {name: torch.ones_like(masks[name]) for name in parts}  # of which scheme and values know nothing
    fixed = make_values(values, topology, masks, generator)
    masked = tuple(name for name, mask in masks.items() if not mask.all())
    constants = fixed.pattern if fixed.learn and masked else fixed.tensors(dtype)
    masks |= {name: torch.zeros_like(masks[name]) for name in parts}
    points = [name for name, rule in parts.items() if isinstance(rule, Point)]
    if isinstance(values, Point):
        points = [name for name, mask in masks.items() if not mask.all()]
    constants |= _own_weights(net, {*parts, *points})
    return Fixing(masks, fixed, constants, tuple(parts), tuple(points), masked)


def check_rules(deterministic: Any) -> None:
    """Raise `TypeError` unless parts of a network are given as a list or a dictionary."""
    if isinstance(deterministic, str | type):
        what = f"a list or dict of names and types of submodules; write [{deterministic!r}]"
        raise TypeError(f"deterministic must be {what}")


def _deterministic_tensors(net: nn.Module, asked: Any, topology: Topology) -> dict[str, Point | None]:
    """Names of the tensors without a posterior, each with what becomes of it."""
    rules = asked if isinstance(asked, Mapping) else dict.fromkeys(asked)
    for part, rule in rules.items():
        if rule is not None and not isinstance(rule, Point):
            raise ValueError(f"deterministic[{part!r}] must be None (as it is in net) or sps.Point(), got {rule!r}")
    found = parameters_of("deterministic", net, list(rules))
    chosen = {name: rules[part] for part, names in found.items() for name in names}
    if len(chosen) == len(topology.tensors):
        raise ValueError("deterministic names all weights of the network, so that nothing is left to infer")
    return {tensor.name: chosen[tensor.name] for tensor in topology.tensors if tensor.name in chosen}


def _own_weights(net: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Weights that some tensors of a network have."""
    parameters = dict(net.named_parameters())
    if missing := [name for name in names if parameters[name].is_meta]:
        raise ValueError(
            f"{sorted(missing)} keep or start from the weights of net, which are on the meta device and have no "
            "values; make net on a real device"
        )
    return {name: parameters[name].detach().cpu() for name in names}
