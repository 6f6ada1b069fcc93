"""A check on numbers of what a topology claims of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base.process import process_lock, warn_user
from ..network.run import NetworkFunction
from ..network.topology import Topology
from ..network.trace import trace
from .certificate import certify
from .report import SymmetryReport, Verification, check_moves, largest_change


@dataclass(frozen=True)
class NetworkVerification:
    """What was tried on a network, and whether its outputs stayed the same.

    Attributes:
        moves: Number of generators that were applied one by one, by class of symmetry.
        products: Number of random products of all of them that were applied, rescalings included.
        max_deviation: Largest change of an output, relative to the largest output.
        ok: Whether all changes were rounding errors.

    Example:
        >>> import pyro_sps as sps
        >>> net = sps.mlp([3, 5, 2])
        >>> sps.Topology.of(net).verify(net).ok
        True
    """

    moves: Mapping[str, int]
    products: int
    max_deviation: float
    ok: bool


def verify_network(
    topology: Topology,
    net: nn.Module,
    seed: int = 0,
    example: Any = None,
    deterministic: Sequence[Any] = (),
    most: int = 64,
    products: int = 8,
) -> NetworkVerification:
    """Apply symmetries that a topology claims to random weights of its network; see `Topology.verify`.

    Args:
        topology: The topology.
        net: The network.
        seed: Seeds weights, inputs and symmetries.
        example: As in `Topology.of`.
        deterministic: As in `Topology.of`.
        most: Largest number of generators of each class, spread evenly over all.
        products: Number of random products.
    """
    return verify_function(topology, _function_of(topology, net, example, deterministic), seed, most, products)


def _function_of(
    topology: Topology, net: nn.Module, example: Any, deterministic: Sequence[Any] = ()
) -> NetworkFunction:
    own, function = trace(net, example, deterministic)
    if own != topology:
        raise ValueError(f"net has another topology:\n{own}\nand not\n{topology}")
    return function


def verify_function(
    topology: Topology, function: NetworkFunction, seed: int = 0, most: int = 64, products: int = 8
) -> NetworkVerification:
    """As `verify_network`, of a network as a function of its weights."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    weights = random_weights(topology, generator)
    inputs = [topology.random_inputs(generator) for _ in range(4)]  # in a few rows a rectifier may be off

    def outputs(own: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([run(function, own, x) for x in inputs])

    report = certify(topology, {})
    expected = outputs(weights)
    if not expected.isfinite().any():
        raise ValueError("the network's outputs at random weights and inputs are not finite: nothing can be verified")
    largest = max(float(expected[expected.isfinite()].abs().max()), 1e-300)
    deviation, counts, every = 0.0, {}, []
    for one in report.classes:
        count = len(one.generators)
        chosen = (
            [one.generators[i] for i in np.unique(np.linspace(0, count - 1, most).round().astype(int))] if count else []
        )
        counts[one.name] = len(chosen)
        every += chosen
        for move in chosen:
            moved = outputs(move.apply(topology, weights))
            deviation = max(deviation, largest_change(moved, expected) / largest)
    for _ in range(products if every else 0):
        moved_weights: Mapping[str, Tensor] = weights
        for index in rng.integers(len(every), size=min(len(every), 20)):
            moved_weights = every[index].apply(topology, moved_weights)
        deviation = max(deviation, largest_change(outputs(moved_weights), expected) / largest)
    if topology.mixtures:
        counts["linear maps"] = len(topology.mixtures)
        moved_weights = weights
        for mixture in topology.mixtures:
            near = torch.eye(mixture.size, dtype=torch.float64)
            noise = torch.randn(near.shape, dtype=torch.float64, generator=generator)
            moved_weights = mixture.apply(moved_weights, near + 0.5 * noise / math.sqrt(mixture.size))
        deviation = max(deviation, largest_change(outputs(moved_weights), expected) / largest)
    return NetworkVerification(counts, products if every else 0, deviation, deviation < 1e-9)


def verified(
    report: SymmetryReport,
    net: nn.Module | NetworkFunction,
    masks: Mapping[str, Tensor],
    constants: Mapping[str, Tensor | None],
) -> SymmetryReport:
    """A certificate with what was tried on numbers: of what is claimed of the network, and of what is left of it.

    Args:
        report: The certificate.
        net: The network, or the network as a function of its weights.
        masks: Stochastic masks by tensor name.
        constants: Constants by tensor name, None for zeros.

    Returns:
        The same with `verification`, and a note if something claimed is not true.

    Raises:
        ValueError: If the network has another topology.

    Warns:
        UserWarning: If something claimed is not true.
    """
    topology, function = report.topology, net
    if isinstance(net, nn.Module):
        drawn = topology.random_inputs(torch.Generator().manual_seed(0))
        function = _function_of(topology, net, drawn if topology.inputs else None)
    whole = verify_function(topology, function)
    fixed = {t.name: torch.zeros(t.shape) if (own := constants[t.name]) is None else own for t in topology.tensors}
    generator = torch.Generator().manual_seed(1)
    moves = report.some_moves(32)
    left = check_moves(topology, lambda own, x: run(function, own, x), masks, fixed, moves, generator, report.ordered)
    tried = Verification(
        sum(whole.moves.values()) + whole.products + left.checked,
        max(whole.max_deviation, left.max_deviation),
        whole.ok and left.ok,
    )
    notes = report.notes
    if not tried.ok:
        note = "what is claimed is not true of the network's numbers: do not rely on this certificate, and report it"
        warn_user(note)
        notes = (*notes, note)
    return replace(report, verification=tried, notes=notes)


def random_weights(topology: Topology, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights in float64 with which no layer saturates."""
    return {
        tensor.name: torch.randn(tensor.shape, dtype=torch.float64, generator=generator) / math.sqrt(tensor.fan_in)
        for tensor in topology.tensors
    }


def run(function: NetworkFunction, weights: Mapping[str, Tensor], x: Any) -> Tensor:
    """Outputs in float64, of tensors too that the network makes itself."""
    with process_lock():
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.no_grad():
                return function(weights, x)
        finally:
            torch.set_default_dtype(dtype)
