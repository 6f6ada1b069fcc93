"""Masks, symmetries and networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..data.arrays import to_numpy
from ..masks.values import FixedValues
from ..network.topology import Topology
from ..network.units import WeightTensor
from ..symmetry.report import SymmetryReport
from .axes import new_axes, shades, value_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_masks(
    topology: Topology,
    masks: Mapping[str, Tensor],
    orbits: Mapping[str, Sequence[int]] | None = None,
    axes: Sequence[Axes] | None = None,
    fixed: FixedValues | Mapping[str, Tensor] | None = None,
) -> list[Axes]:
    """Draw the masks of a network's weight matrices: fixed entries dark or in colour, stochastic ones light.

    Args:
        topology: The network's topology.
        masks: Stochastic masks by tensor name, True where a weight is stochastic.
        orbits: Units that can still take each other's place, by group, as `SymmetryReport.orbits` gives them: such
            units get a square in the colour of their orbit beside the matrix.
        axes: Where to draw, one for each weight matrix; default: a new figure.
        fixed: The fixed values; if any is not zero, fixed entries are coloured by value, with a colour bar.

    Returns:
        The axes, one for each weight matrix.

    Raises:
        ValueError: If the masks do not fit the topology or the number of axes is wrong.

    Example:
        >>> import pyro_sps as sps
        >>> from pyro_sps.plots import plot_masks
        >>> topology = sps.Topology.of(sps.mlp([3, 5, 5, 2]))
        >>> len(plot_masks(topology, sps.Heavy()(topology)))
        3
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    masks = topology.check_masks(masks)
    if axes is None:
        axes = new_axes(len(topology.matrices), 3.6)
    if len(axes) != len(topology.matrices):
        raise ValueError(f"axes must be one for each of {len(topology.matrices)} weight matrices, got {len(axes)}")
    values = _tensors(fixed)
    shown = [values[name].detach()[~mask].abs() for name, mask in masks.items() if name in values and not mask.all()]
    largest = max((float(value.max()) for value in shown), default=0.0)
    image: Any = None
    for ax, tensor in zip(axes, topology.matrices, strict=True):
        mask = masks[tensor.name].cpu()
        rows, columns = (topology.groups[index] for index in tensor.groups)
        plain = not tensor.places and mask.dim() == 2
        mask = mask.reshape(len(mask), -1)
        options: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
        if largest > 0:
            cells = np.ma.array(to_numpy(values[tensor.name]).reshape(mask.shape), mask=mask.numpy())
            image = ax.imshow(cells, cmap=value_colours(), vmin=-largest, vmax=largest, **options)
        else:
            ax.imshow((~mask).numpy(), cmap="Greys", vmin=0, vmax=1.25, **options)
        ax.set(
            title=f"{tensor.name}: {int((~mask).sum()):,} of {mask.numel():,} fixed",
            xlabel=f"unit of {columns.name}" if plain else f"index of the other axes ({_side(topology, tensor, 1)})",
            ylabel=f"unit of {rows.name}" if plain else f"index of axis 0 ({_side(topology, tensor, 0)})",
        )
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # units are counted
        for group, vertical in ((rows, True), (columns, False)) if plain else ():
            _mark_orbits(ax, (orbits or {}).get(group.name, ()), vertical)
    if image is not None:
        axes[-1].figure.colorbar(image, ax=list(axes), label="fixed value (light: stochastic)")
    return list(axes)


def plot_symmetry(
    report: SymmetryReport,
    masks: Mapping[str, Tensor],
    values: FixedValues | Mapping[str, Tensor] | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw masks and fixed values with the units that can still be exchanged marked, and what is left as a title.

    Args:
        report: What is left, of a certificate of these masks.
        masks: Stochastic masks by tensor name.
        values: The fixed values; None for zeros.
        axes: Where to draw, one for each weight matrix; default: a new figure, `axes[0].figure`.

    Returns:
        The axes, one for each weight matrix.

    Raises:
        ValueError: If the masks do not fit the report's topology or the number of axes is wrong.

    Example:
        >>> import pyro_sps as sps
        >>> from pyro_sps.plots import plot_symmetry
        >>> topology = sps.Topology.of(sps.mlp([3, 5, 5, 2]))
        >>> masks = sps.Light()(topology)
        >>> axes = plot_symmetry(sps.certify(topology, masks), masks)
        >>> axes[0].figure.get_suptitle()
        '6 permutations, 6,144 signed permutations left'
    """
    drawn = plot_masks(report.topology, masks, report.orbits(), axes, values)
    left = ", ".join(f"{one.text(after=True)} {one.name}" for one in report.classes)
    if (figure := drawn[0].get_figure(root=True)) is not None:
        figure.suptitle(f"{left} left", fontsize="medium")
    return drawn


def plot_network(
    topology: Topology,
    masks: Mapping[str, Tensor] | None = None,
    fixed: FixedValues | Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a small network as a graph: a column of units a layer, an edge a weight.

    Fixed weights are dashed, stochastic ones solid; units with a fixed bias are squares. With `weights` every edge
    has its value as colour and width, and every unit the colour of its bias; without, stochastic edges are grey and
    only non-zero constants are coloured.

    Args:
        topology: The network's topology.
        masks: Stochastic masks by tensor name; None if nothing is fixed.
        fixed: The fixed values; None for zeros. Not read where `weights` are given.
        weights: Values of all tensors in full shapes, such as posterior means.
        ax: Where to draw; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If a layer has more than 24 units, or the masks do not fit.

    Example:
        >>> import pyro_sps as sps
        >>> from pyro_sps.plots import plot_network
        >>> bnn = sps.BNN(sps.mlp([1, 3, 1]), scheme=sps.Rigid(), values=sps.Ladder())
        >>> plot_network(bnn.topology, bnn.masks, bnn.fixed).get_title()
        '1-3-1 network, 2 of 10 weights fixed'
    """
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    masks = topology.check_masks(masks or {})
    sizes = [group.size for group in topology.groups]
    if any(tensor.places or len(tensor.shape) > 2 for tensor in topology.tensors):
        raise ValueError("plot_network draws fully connected networks; plot_masks draws the weights of any network")
    if max(sizes) > 24:
        raise ValueError(f"plot_network draws layers of up to 24 units, got {max(sizes)}; plot_masks draws wide ones")
    values = _tensors(fixed if weights is None else weights)
    known = {name: to_numpy(value) for name, value in values.items()}
    if weights is None:  # nothing is known of stochastic entries
        known = {name: np.where(to_numpy(masks[name]), np.nan, value) for name, value in known.items()}
    largest = max((float(np.nanmax(np.abs(v), initial=0.0)) for v in known.values()), default=0.0)
    norm, colours = Normalize(-(largest or 1.0), largest or 1.0), value_colours().with_extremes(bad="0.75")
    if ax is None:
        ax = new_axes(1, 1.6 + 1.5 * len(sizes), max(2.2, 1.2 + 0.45 * max(sizes)))[0]
    place = [
        np.stack([np.full(size, float(column)), (size - 1) / 2 - np.arange(size)], 1)
        for column, size in enumerate(sizes)
    ]
    for tensor in topology.matrices:
        mask = to_numpy(masks[tensor.name]).astype(bool)
        value = known.get(tensor.name, np.where(mask, np.nan, 0.0))
        to, origin = (place[index] for index in tensor.groups)
        for free, style in ((True, "solid"), (False, (0, (3, 2)))):
            rows, columns = np.nonzero(mask == free)
            if not len(rows):
                continue
            shown = value[rows, columns]
            width = np.where(np.isfinite(shown), 0.8 + 2.4 * np.abs(shown) / (largest or 1.0), 0.8)
            lines = np.stack([origin[columns], to[rows]], 1)
            colour = colours(norm(np.ma.masked_invalid(shown)))
            ax.add_collection(LineCollection(list(lines), colors=colour, linewidths=width, linestyles=[style]))
    for index, group in enumerate(topology.groups):
        biases = [t for t in topology.tensors if t.groups == (index,)]
        bias = known.get(biases[0].name) if biases else None
        constant = ~to_numpy(masks[biases[0].name]).astype(bool) if biases else np.zeros(group.size, dtype=bool)
        face = np.ones((group.size, 4)) if bias is None else colours(norm(np.ma.masked_invalid(bias)))
        if bias is not None:
            face[~np.isfinite(bias)] = 1.0
        for marker, these in (("o", ~constant), ("s", constant)):
            if these.any():
                x, y = place[index][these].T
                ax.scatter(x, y, s=190, c=face[these], marker=marker, edgecolors="black", zorder=3)
        for unit, (x, y) in enumerate(place[index]):
            dark = face[unit, :3].mean() < 0.45
            ax.text(x, y, str(unit), ha="center", va="center", fontsize=7, color="w" if dark else "k", zorder=4)
        ax.text(index, -max(sizes) / 2 - 0.3, group.name, ha="center", va="top", fontsize="small")
    num_fixed = sum(int((~mask).sum()) for mask in masks.values())
    ax.set_title(
        f"{'-'.join(map(str, sizes))} network, {num_fixed:,} of {topology.num_weights:,} weights fixed",
        fontsize="medium",
    )
    ax.set(xlim=(-0.5, len(sizes) - 0.5), ylim=(-max(sizes) / 2 - 0.9, max(sizes) / 2 + 0.1))
    ax.set_axis_off()
    if largest > 0:
        label = "value of the fixed weight" if weights is None else "value of the weight"
        ax.figure.colorbar(ScalarMappable(norm, colours), ax=ax, label=f"{label} (dashed: fixed)")
    return ax


def _side(topology: Topology, tensor: WeightTensor, side: int) -> str:
    """The groups of units along one side of a tensor."""
    first = min(place.axes[0] for place in tensor.places) if tensor.places else 0
    turned = bool(tensor.places) and tensor.places[0].axes[0] != first  # inputs come first
    return " + ".join(topology.groups[index].name for index in topology.sides(tensor)[side != turned])


def _tensors(values: FixedValues | Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    return values.tensors() if isinstance(values, FixedValues) else dict(values or {})


def _mark_orbits(ax: Axes, labels: Sequence[int], vertical: bool) -> None:
    import numpy as np

    shared = [label for label in dict.fromkeys(labels) if list(labels).count(label) > 1]
    ax.tick_params(axis="y" if vertical else "x", pad=10 if shared else 3)
    for colour, label in zip(shades(len(shared)), shared, strict=True):
        units = np.flatnonzero(np.asarray(labels) == label)
        outside = np.full(len(units), -0.025)
        x, y = (outside, units) if vertical else (units, outside)
        transform = ax.get_yaxis_transform() if vertical else ax.get_xaxis_transform()
        ax.scatter(x, y, s=9, marker="s", color=colour, transform=transform, clip_on=False)
