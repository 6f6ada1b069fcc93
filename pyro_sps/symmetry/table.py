"""What each scheme leaves, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from ..base.process import silenced
from ..masks.rigid import Rigid
from ..masks.schemes import Heavy, Light, Random, Scheme, SymmetryWarning, Unmasked, make_masks
from ..masks.values import Constant
from ..network.architectures import NETWORKS, example_of
from ..network.build import mlp
from ..network.topology import Topology
from .certificate import certify
from .report import SymmetryClass


def scheme_table(
    widths_list: Sequence[Sequence[int]],
    schemes: Mapping[str, Scheme] | None = None,
    activation: str = "tanh",
    seed: int = 0,
) -> str:
    """What each scheme leaves of the symmetries of fully connected networks, as a Markdown table.

    Args:
        widths_list: Widths of the networks' layers, inputs first.
        schemes: Schemes by the name they have in the table; default: none, light, heavy, rigid and rigid with signs.
        activation: Their activation; see `pyro_sps.mlp`. Columns for sign flips are there if it is odd.
        seed: Seeds the signs of the constants and random schemes.

    Returns:
        One row for each network and scheme. Orders with constants ±c are for one draw of the signs.

    Example:
        >>> import pyro_sps as sps
        >>> from pyro_sps.symmetry import scheme_table
        >>> print(scheme_table([[8, 50, 50, 2]], {"heavy": sps.Heavy(), "rigid": sps.Rigid()}, "relu"))
        | widths | scheme | fixed weights | permutations left |
        | --- | --- | ---: | --- |
        | 8-50-50-2 | heavy | 1,254 | 1 |
        | 8-50-50-2 | rigid | 89 | 1 |
    """
    if schemes is None:
        schemes = {
            "none": Unmasked(),
            "light": Light(),
            "heavy": Heavy(),
            "rigid": Rigid(),
            "rigid, signs": Rigid(signs=True),
        }
    rows: list[list[str]] = []
    odd = False
    for widths in widths_list:
        topology = Topology.of(mlp(tuple(widths), activation, device="meta"))
        odd = any(topology.groups[index].odd for index in topology.hidden)
        for name, scheme in schemes.items():
            generator = torch.Generator().manual_seed(seed)
            try:
                with silenced(SymmetryWarning):
                    masks = make_masks(scheme, topology, Constant(), generator)
            except ValueError:  # equal constants cannot do it
                rows.append(["-".join(map(str, widths)), name, "impossible", *[""] * (3 if odd else 1)])
                continue
            zero = certify(topology, masks)
            row = ["-".join(map(str, widths)), name, f"{zero.num_fixed:,}", zero.permutations.text(after=True)]
            if zero.signed_permutations is not None:
                constant = certify(topology, masks, Constant()(topology, masks, generator)).signed_permutations
                row.append(zero.signed_permutations.text(after=True))
                row.append("" if constant is None or not zero.num_fixed else constant.text(after=True))
            rows.append(row)
    head = ["widths", "scheme", "fixed weights", "permutations left"]
    head += ["with sign flips, zero", "with sign flips, ±c"] if odd else []
    lines = [head, ["---", "---", "---:", *["---"] * (len(head) - 3)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def atlas(names: Sequence[str], seed: int = 0, time_limit: float | None = 60.0) -> Iterator[str]:
    """What schemes leave of the symmetries of well-known networks with zeros, as lines of a Markdown table.

    Args:
        names: Of the networks, keys of `pyro_sps.networks.NETWORKS`.
        seed: Seeds random masks.
        time_limit: Seconds after which a certificate gives up.

    Yields:
        Two lines of a head, then a line for each network and scheme. Orders of groups are logarithms to base 10.

    Example:
        >>> from pyro_sps.symmetry.table import atlas
        >>> lines = list(atlas(["lstm"]))
        >>> len(lines), lines[0].split(" | ")[:3]
        (7, ['| network', 'weights', 'units'])
    """
    schemes: dict[str, Scheme] = {
        "none": Unmasked(),
        "light": Light(),
        "heavy": Heavy(),
        "random as heavy": Random(like=Heavy()),
        "rigid": Rigid(),
    }
    yield (
        "| network | weights | units | scheme | fixed weights | permutations, log10 | with signs, log10 | scalings | "
        "linear maps |"
    )
    yield "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    for name in names:
        topology = Topology.of(NETWORKS[name](), example_of(name))
        units = sum(topology.groups[index].size for index in topology.hidden)
        for label, scheme in schemes.items():
            row = [name, f"{topology.num_weights:,}", f"{units:,}", label]
            try:
                with silenced(SymmetryWarning):
                    masks = make_masks(scheme, topology, None, torch.Generator().manual_seed(seed))
            except ValueError:
                yield "| " + " | ".join([*row, "none found", "", "", "", ""]) + " |"
                continue
            report = certify(topology, masks, time_limit=time_limit)
            orders = [_log(one) for one in (report.permutations, report.signed_permutations)]
            ridges = [_dimension(one) for one in (report.scalings, report.linear_maps)]
            yield "| " + " | ".join([*row, f"{report.num_fixed:,}", *orders, *ridges]) + " |"


def _log(one: SymmetryClass | None) -> str:
    """log10 of an order; of a group that is known not to be there nothing."""
    if one is None:
        return ""
    if one.after is None:
        return "not determined"
    return "0" if one.after == 1 else f"{math.log10(one.after):,.1f}"


def _dimension(one: SymmetryClass | None) -> str:
    if one is None or one.after is None:
        return ""
    return f"{'at least ' if one.how.startswith('a lower bound') else ''}{one.after:,}"
