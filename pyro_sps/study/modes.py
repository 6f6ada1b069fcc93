"""Modes of the posterior of a small network: how many there are, and how many of them are copies of one function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..inference.program import make_program
from ..model.target import Target
from ..network.topology import Topology


@dataclass(frozen=True)
class Modes:
    """The modes that a set of draws belongs to.

    Attributes:
        labels: For each draw its mode, 0 for the one with the most draws.
        maxima: The modes' maxima in unconstrained space, shape (modes, n).
        functions: For each mode which function it is: modes with one number are relabellings of each other.
        log_density: Log joint density at the maxima, with respect to unconstrained weights.
    """

    labels: np.ndarray
    maxima: Tensor
    functions: np.ndarray
    log_density: np.ndarray

    def __len__(self) -> int:
        return len(self.maxima)

    @property
    def num_functions(self) -> int:
        """Number of modes up to relabelling and sign flips of units."""
        return len(set(self.functions.tolist()))

    @property
    def effective(self) -> float:
        """Entropy of the draws' distribution over the modes, as the number of equally frequent modes that has it."""
        return effective_number(self.labels)


def effective_number(labels: np.ndarray) -> float:
    """Number of equally frequent labels that would have the entropy of these.

    Example:
        >>> import numpy as np
        >>> from pyro_sps.study.modes import effective_number
        >>> round(effective_number(np.array([3, 3, 5, 5])), 3)
        2.0
    """
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(np.exp(-(share * np.log(share)).sum()))


def find_modes(target: Target, draws: Tensor, num_steps: int = 3000, tolerance: float = 0.05) -> Modes:
    """Cluster draws by the maximum of the posterior density that gradient ascent takes each of them to.

    This is what a mode is, so that neither a number of clusters nor a metric has to be chosen, and it finds modes that
    hold few draws. Maxima nearer to each other than `tolerance` (single linkage) are one, since an ascent ends a little
    before its maximum. A maximum may be shallow: `Modes.effective` counts it by its share of the draws.

    Args:
        target: The posterior.
        draws: Draws in unconstrained space, shape (draws, n).
        num_steps: Steps of the ascent (Adam, with a step size that decays from 0.03 to 1e-4).
        tolerance: Euclidean distance in units of the weights.
    """
    maxima, energy = _climb(target, draws, num_steps)
    labels = _linked(maxima.cpu().numpy(), tolerance)
    first = np.unique(labels, return_index=True)[1]
    with torch.no_grad():
        weights = target.bnn.assemble(target.sites(maxima[first]))
    forms = canonical_form(target.bnn.topology, weights)
    flat = torch.cat([value.flatten(1) for value in forms.values()], dim=1)
    functions = _linked(flat.cpu().numpy(), tolerance)
    return Modes(labels, maxima[first], functions, -energy[first].cpu().numpy())


def _climb(target: Target, draws: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Maxima of the density and their energies, by Adam on all draws at once."""

    def energies(flat: Tensor) -> tuple[Tensor, Tensor]:
        energy = target.energy(flat)
        return energy.sum(), energy

    program = make_program(torch.func.grad(energies, has_aux=True), (draws,), compile=False).run
    place, first, second = draws.clone(), torch.zeros_like(draws), torch.zeros_like(draws)
    with torch.no_grad():
        for step in range(num_steps):
            gradient, _ = program(place)
            first.lerp_(gradient, 0.1)
            second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            rate = 0.03 * (1e-4 / 0.03) ** (step / num_steps)
            scale = rate / (1 - 0.9 ** (step + 1))
            place -= scale * first / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
        return place, program(place)[1]


def _linked(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Labels of single-linkage clusters, the largest first."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(points) == 1:
        return np.zeros(1, dtype=int)
    found = fcluster(linkage(points, "single"), tolerance, "distance")
    names, counts = np.unique(found, return_counts=True)
    rank = np.empty(names.max() + 1, dtype=int)
    rank[names[np.argsort(-counts, kind="stable")]] = np.arange(len(names))
    return rank[found]


def canonical_form(topology: Topology, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The one representative of all relabellings and sign flips of a network's hidden units.

    Layer by layer, each unit gets the sign that makes a fixed generic combination of its incoming weights and bias
    positive (units of odd activations only), and units are sorted by it.

    Args:
        topology: The network's topology: its layers form a chain.
        weights: All weight tensors, shape B + the tensor's, by name.

    Returns:
        Tensors of the same shapes, equal (up to rounding) for weights that are signed permutations of each other.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.study.modes import canonical_form
        >>> topology = sps.Topology.of(sps.mlp([1, 2, 1], bias=False))
        >>> weights = {"0.weight": torch.tensor([[3.0], [-1.0]]), "2.weight": torch.tensor([[5.0, 7.0]])}
        >>> canonical_form(topology, weights)["2.weight"]
        tensor([[-7.,  5.]])
    """
    forms = dict(weights)
    for index in topology.hidden:
        key: Tensor | float = 0.0
        for tensor in topology.tensors:
            if tensor.groups[0] == index:
                value = forms[tensor.name]
                rows = value.reshape((*value.shape[: value.dim() - len(tensor.shape)], tensor.shape[0], -1))
                generic = torch.arange(2, 2 + rows.shape[-1], device=rows.device).to(rows).rsqrt()
                key = key + rows @ generic
        assert isinstance(key, Tensor)
        sign = torch.where(key < 0, -1.0, 1.0).to(key) if topology.groups[index].odd else torch.ones_like(key)
        order = (sign * key).argsort(-1)
        for tensor in topology.tensors:
            for axis, group in enumerate(tensor.groups):
                if group == index:
                    forms[tensor.name] = _arranged(forms[tensor.name], axis - len(tensor.shape), order, sign)
    return forms


def _arranged(value: Tensor, axis: int, order: Tensor, sign: Tensor) -> Tensor:
    """Multiply by signs along an axis (counted from the end), then reorder along it."""
    behind = (1,) * (-axis - 1)
    batch = order.dim() - 1
    middle = (1,) * (value.dim() + axis - batch)
    shape = (*order.shape[:batch], *middle, order.shape[-1], *behind)
    return (value * sign.reshape(shape)).gather(axis, order.reshape(shape).expand_as(value))


def log_order(target: Target) -> float:
    """Natural logarithm of the number of symmetries (signed permutations) that the network's masks leave."""
    report = target.bnn.symmetry()
    kind = report.signed_permutations or report.permutations
    assert kind.after is not None
    return math.log(kind.after)
