"""Fits and posteriors: the ELBO, weights of a unit, weights of twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..data.arrays import make_generator, to_numpy
from ..network.topology import Topology
from ..posterior.fit import Fit
from ..posterior.samples import Samples
from .axes import new_axes, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A fit, fits, NUTS samples, or a topology and draws of all weight tensors, (draws,) or (chains, draws) + their shapes.
Source = Any


def plot_elbo(fits: Fit | Sequence[Fit] | Mapping[str, Fit], ax: Axes | None = None) -> Axes:
    """Draw the ELBO during the optimisation: single-step estimates thin, their running mean bold.

    The axis shows the range of the second half of the steps, and half of it more below: at the start the ELBO is so
    far down that nothing else could be seen.

    Args:
        fits: A fit, several (replicas), or fits by name.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no fit.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.plots import plot_elbo
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=50, progress=False)
        >>> plot_elbo(fit).get_ylabel()
        'ELBO / nats'
    """
    if isinstance(fits, Mapping):
        named: dict[str, Any] = dict(fits)
    elif isinstance(fits, Sequence):
        named = {f"replica {index}": one for index, one in enumerate(fits)}
    else:
        named = {"ELBO": fits}
    if not named:
        raise ValueError("fits must hold at least one fit, got none")
    own = ax is None
    ax = new_axes()[0] if ax is None else ax
    lows, highs = [], []
    styles = ("-", "--", "-.", ":")
    for index, (colour, (name, fit)) in enumerate(zip(shades(len(named)), named.items(), strict=True)):
        steps = np.flatnonzero(np.isfinite(fit.losses))
        elbo = -fit.losses[steps]
        window = max(1, len(elbo) // 50)
        total = np.concatenate([[0.0], np.cumsum(elbo)])
        smooth = (total[window:] - total[:-window]) / window
        centre = steps[(window - 1) // 2 :][: len(smooth)]
        ax.plot(steps, elbo, color=colour, linewidth=0.4, alpha=0.25)
        ax.plot(centre, smooth, styles[index % 4], color=colour, linewidth=1.6, label=name)
        late = elbo[len(elbo) // 2 :]
        lows.append(min(smooth[len(smooth) // 2 :].min(), np.quantile(late, 0.01)))
        highs.append(np.quantile(late, 0.99))
    reach = max(highs) - min(lows) or 1.0
    ax.set(xlabel="step", ylabel="ELBO / nats", ylim=(min(lows) - 0.5 * reach, max(highs) + 0.1 * reach))
    ax.margins(x=0.01)
    if own and len(named) > 1:
        ax.legend(fontsize="small", frameon=False, loc="lower right")
    return ax


def plot_unit(
    sources: Mapping[str, Source],
    layer: str = "layer 1",
    unit: int = 0,
    *,
    num_samples: int = 1000,
    most: int = 12,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the posteriors of one unit's weights (its bias, those that lead to it and away from it) side by side.

    Stochastic weights are violins with a bar at the median, fixed weights are crosses.

    Args:
        sources: What to compare, by name: fits, what `sample` returned, or pairs of a topology and draws of all
            weight tensors by name, of shape (draws,) or (chains, draws) + the tensor's shape. All are of networks
            with the same layer.
        layer: Name of the unit's group.
        unit: Its index.
        num_samples: Number of draws from a fit.
        most: Largest number of weights drawn.
        seed: Seeds the draws from fits.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If there is nothing to compare or no such unit.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.plots import plot_unit
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> bnn = sps.BNN(sps.mlp([1, 5, 5, 1]), sps.Heavy(), sps.Zero())
        >>> fit = sps.fit(bnn, x, x**2, num_steps=5, progress=False)
        >>> plot_unit({"heavy": fit}).get_title()
        'unit 0 of layer 1: 7 weights'
    """
    if not sources:
        raise ValueError("sources must hold at least one fit, got none")
    named = {name: _unit_weights(*_draws(source, num_samples, seed), layer, unit) for name, source in sources.items()}
    labels = list(next(iter(named.values())))
    shown = labels[:most]
    own = ax is None
    ax = new_axes(1, 2.0 + 0.35 * len(shown) * max(2, len(named)))[0] if ax is None else ax
    width = 0.8 / len(named)
    for index, (colour, (name, weights)) in enumerate(zip(shades(len(named)), named.items(), strict=True)):
        position = np.arange(len(shown)) + (index - (len(named) - 1) / 2) * width
        fixed = np.array([_is_fixed(weights[label]) for label in shown])
        free = [weights[label].reshape(-1) for label, one in zip(shown, fixed, strict=True) if not one]
        if free:
            violins: Any = ax.violinplot(free, position[~fixed], widths=0.9 * width, showextrema=False)
            for body in violins["bodies"]:
                body.set(facecolor=colour, alpha=0.5, edgecolor=colour, linewidth=0.5)
            middle = [np.median(draws) for draws in free]
            half = 0.3 * width
            ax.hlines(middle, position[~fixed] - half, position[~fixed] + half, color=colour, linewidth=2.5)
        if fixed.any():
            constant = [np.median(weights[label]) for label, one in zip(shown, fixed, strict=True) if one]
            ax.plot(position[fixed], constant, "X", color=colour, markeredgecolor="black", markersize=7)
        ax.fill_between([], [], [], color=colour, label=name)  # for the legend
    ax.axhline(0, color="0.7", linewidth=0.6, zorder=0)
    ax.set_xticks(np.arange(len(shown) - 1) + 0.5, minor=True)
    ax.grid(axis="x", which="minor", color="0.9")
    ax.tick_params(axis="x", which="minor", length=0)
    ax.set_xticks(range(len(shown)), shown, rotation=30, ha="right", fontsize="small")
    ax.set(ylabel="weight (cross: fixed)", xlim=(-0.6, len(shown) - 0.4))
    count = f"{len(labels)} weights" if len(shown) == len(labels) else f"{len(shown)} of {len(labels)} weights"
    ax.set_title(f"unit {unit} of {layer}: {count}", fontsize="medium")
    if own:
        ax.legend(fontsize="small", frameon=False)
    return ax


def plot_twins(
    source: Source,
    layer: str = "layer 1",
    units: tuple[int, int] = (0, 1),
    *,
    num_samples: int = 1000,
    most: int = 3,
    seed: int = 0,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw the weights of one unit against the same weights of another: twin modes are mirrored at the diagonal.

    If two units can be exchanged, so can the axes: each mode has a mirror image, and a sampler that visits both has
    half of its draws on either side. If the symmetry is broken, a mode has none.

    Args:
        source: A fit, fits (one colour each), what `sample` returned (one colour a chain), or a topology and draws
            of all weight tensors by name, of shape (draws,) or (chains, draws) + the tensor's shape.
        layer: Name of the units' group.
        units: The two units.
        num_samples: Number of draws from each fit.
        most: Largest number of pairs of weights.
        seed: Seeds the draws from fits.
        axes: Where to draw, one for each pair of weights; default: a new figure.

    Returns:
        The axes. The titles say which share of the draws lies above the diagonal.

    Raises:
        ValueError: If there are no such units or too many axes.

    Example:
        >>> import torch, pyro_sps as sps
        >>> from pyro_sps.plots import plot_twins
        >>> topology = sps.Topology.of(sps.mlp([1, 2, 1], bias=False))
        >>> draws = {"0.weight": torch.randn(500, 2, 1), "2.weight": torch.randn(500, 1, 2)}
        >>> axes = plot_twins((topology, draws))
        >>> axes[0].get_xlabel()
        '0.weight[0, 0]'
    """
    topology, weights = _draws(source, num_samples, seed)
    first, second = (_unit_weights(topology, weights, layer, unit) for unit in units)
    pairs = list(zip(first.items(), second.items(), strict=True))
    own = axes is None
    axes = new_axes(min(most, len(pairs)), 3.4, 3.6) if axes is None else axes
    if len(axes) > len(pairs):
        raise ValueError(f"axes must be at most one for each of {len(pairs)} weights of a unit, got {len(axes)}")
    for ax, ((label, one), (other_label, other)) in zip(axes, pairs, strict=False):
        low, high = min(one.min(), other.min()), max(one.max(), other.max())
        margin = 0.05 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        ax.plot(limits, limits, "--", color="0.4", linewidth=1.0, zorder=0)
        thin = max(1, one.shape[1] * len(one) // 4000)
        for chain, colour in enumerate(shades(len(one))):
            points = one[chain, ::thin], other[chain, ::thin]
            ax.plot(*points, "o", color=colour, markersize=2.5, alpha=0.5, markeredgewidth=0, label=f"chain {chain}")
        above = np.mean((other > one) + 0.5 * (other == one))
        ax.set_title(f"{100 * above:.0f} % above the diagonal", fontsize="medium")
        ax.set(xlabel=label, ylabel=other_label, xlim=limits, ylim=limits)
        ax.set_aspect("equal")
    if own and 1 < len(next(iter(first.values()))) <= 6:
        axes[-1].legend(fontsize="small", markerscale=2.0)
    return list(axes)


def _draws(source: Source, num_samples: int, seed: int) -> tuple[Topology, dict[str, np.ndarray]]:
    """A topology and draws of all weight tensors, shape (chains, draws) + the tensor's."""
    if isinstance(source, Samples):
        source = (source.bnn.topology, source.weights())
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Topology):
        topology, weights = source
        return topology, {t.name: _with_chains(weights[t.name], t.shape) for t in topology.tensors}
    fits: Sequence[Fit] = source if isinstance(source, Sequence) else [source]
    topology = fits[0].bnn.topology
    drawn = []
    for index, fit in enumerate(fits):
        generator = make_generator(fit.bnn.like.device, seed, index)
        drawn.append(fit.bnn.assemble(fit.guide.draws(num_samples, generator)))
    return topology, {
        t.name: np.stack([np.broadcast_to(to_numpy(one[t.name]), (num_samples, *t.shape)) for one in drawn])
        for t in topology.tensors
    }


def _with_chains(draws: Tensor | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = to_numpy(draws)
    if values.ndim not in (len(shape) + 1, len(shape) + 2) or values.shape[-len(shape) :] != shape:
        raise ValueError(f"draws must have shape (draws,) or (chains, draws) + {shape}, got {values.shape}")
    return values if values.ndim == len(shape) + 2 else values[None]


def _unit_weights(topology: Topology, weights: Mapping[str, np.ndarray], layer: str, unit: int) -> dict[str, Any]:
    """Draws of a unit's weights by label, each (chains, draws): biases and weights that lead to it, then those away."""
    groups = [group.name for group in topology.groups]
    if layer not in groups:
        raise ValueError(f"layer must be one of {groups}, got {layer!r}")
    index = groups.index(layer)
    if not 0 <= unit < topology.groups[index].size:
        raise ValueError(f"{layer} has the units 0 ... {topology.groups[index].size - 1}, got {unit!r}")
    found = {}
    for axis in (0, 1):
        for tensor in topology.tensors:
            if axis < len(tensor.groups) and tensor.groups[axis] == index:
                for place in np.ndindex(*tensor.shape):
                    if place[axis] == unit:
                        label = f"{tensor.name}[{', '.join(map(str, place))}]"
                        found[label] = weights[tensor.name][(..., *place)]
    return found


def _is_fixed(draws: np.ndarray) -> bool:
    return bool((draws == draws[:, :1]).all())
