"""Figures. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .topology import Topology
from .values import FixedValues

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .report import SymmetryReport


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
        axes = _new_axes(len(topology.matrices))
    if len(axes) != len(topology.matrices):
        raise ValueError(f"axes must be one for each of {len(topology.matrices)} weight matrices, got {len(axes)}")
    values = fixed.tensors() if isinstance(fixed, FixedValues) else dict(fixed or {})
    shown = [values[name].detach()[~mask].abs() for name, mask in masks.items() if name in values and not mask.all()]
    largest = max((float(value.max()) for value in shown), default=0.0)
    image: Any = None
    for ax, tensor in zip(axes, topology.matrices, strict=True):
        mask = masks[tensor.name].cpu()
        rows, columns = (topology.groups[index] for index in tensor.groups)
        options: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
        if largest > 0:
            cells = np.ma.array(values[tensor.name].detach().cpu().double().numpy(), mask=mask.numpy())
            image = ax.imshow(cells, cmap=_value_colours(), vmin=-largest, vmax=largest, **options)
        else:
            ax.imshow((~mask).numpy(), cmap="Greys", vmin=0, vmax=1.25, **options)
        ax.set(
            title=f"{tensor.name}: {int((~mask).sum()):,} of {mask.numel():,} fixed",
            xlabel=f"unit of {columns.name}",
            ylabel=f"unit of {rows.name}",
        )
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))  # units are counted
        for group, vertical in ((rows, True), (columns, False)):
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


def _value_colours() -> Any:
    """Colours from dark to bright, so that they are in order in grey as well; stochastic entries are lighter still."""
    import matplotlib
    import numpy as np
    from matplotlib.colors import ListedColormap

    colours = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.8, 256)))
    return colours.with_extremes(bad="0.95")


def _new_axes(count: int) -> Sequence[Axes]:
    # Figures of the object interface belong to no window, so they need no display and are freed like any object.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.6 * count, 3.8), layout="constrained")
    return list(figure.subplots(1, count, squeeze=False)[0])


def _mark_orbits(ax: Axes, labels: Sequence[int], vertical: bool) -> None:
    import matplotlib
    import numpy as np

    shared = [label for label in dict.fromkeys(labels) if list(labels).count(label) > 1]
    colours: Any = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.9, max(1, len(shared))))
    ax.tick_params(axis="y" if vertical else "x", pad=10 if shared else 3)
    for colour, label in zip(colours, shared, strict=False):
        units = np.flatnonzero(np.asarray(labels) == label)
        outside = np.full(len(units), -0.025)
        x, y = (outside, units) if vertical else (units, outside)
        transform = ax.get_yaxis_transform() if vertical else ax.get_xaxis_transform()
        ax.scatter(x, y, s=9, marker="s", color=colour, transform=transform, clip_on=False)
