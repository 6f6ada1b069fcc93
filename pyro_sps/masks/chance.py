"""Masks that leave no symmetry, by chance: for layers that join only some units with each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..network.topology import Masks, Topology
from .search import fix, joined

# Random masks that are tried, with these shares of fixed connections in turn, and the fewest and most masks looked at
# to free connections again; large networks, of which each takes longer, get fewer.
TRIES, SHARES = 60, (0.5, 0.3, 0.7, 0.15)
FEWEST, MOST, CONNECTIONS = 40, 400, 100_000


def by_chance(topology: Topology, is_rigid: Callable[[Masks], bool], whole: bool) -> Masks | None:
    """A random mask that is rigid, of which connections are freed again as long as it stays so.

    A random graph has no automorphism but one, with a probability that goes to 1 with its size (Erdős and Rényi 1963);
    where few units are joined with few others, some of the masks that are tried have none.

    Args:
        topology: The topology.
        is_rigid: Whether a mask is certified to leave nothing.
        whole: Whether all entries of a connection are fixed, or the first one.

    Returns:
        The mask, or None if none was found. It depends on the topology alone.
    """
    rng = np.random.default_rng(0)
    places = [
        (k, row, column)
        for k, joint in enumerate(topology.joints)
        for row, column in np.argwhere(joined(topology, joint)).tolist()
    ]

    def mask(chosen: list[tuple[int, int, int]]) -> Masks:
        masks = topology.check_masks({})
        for k, row, column in chosen:
            fix(topology, masks, (k, 0, column), row, whole)
        return masks

    for number in range(TRIES):
        fixed = rng.random(len(places)) < SHARES[number % len(SHARES)]
        chosen = [place for place, own in zip(places, fixed, strict=True) if own]
        if is_rigid(mask(chosen)):
            break
    else:
        return None
    left, size = min(MOST, max(FEWEST, CONNECTIONS // len(places))), len(chosen)
    while size > 1 and left > 0:
        size, start = (size + 1) // 2, 0
        rng.shuffle(chosen)
        while start < len(chosen) and left > 0:
            fewer = chosen[:start] + chosen[start + size :]
            left -= 1
            if is_rigid(mask(fewer)):
                chosen = fewer
            else:
                start += size
    return mask(chosen)
