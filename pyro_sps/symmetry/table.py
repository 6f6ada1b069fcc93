"""What each scheme leaves, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..base.process import silenced
from ..masks.rigid import Rigid
from ..masks.schemes import Heavy, Light, Scheme, SymmetryWarning, Unmasked, make_masks
from ..masks.values import Constant
from ..network.build import mlp
from ..network.topology import Topology
from .certificate import certify


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
