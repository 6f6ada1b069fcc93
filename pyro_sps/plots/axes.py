"""What all figures need: new axes, colours that keep their order in grey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def new_axes(count: int = 1, width: float = 5.0, height: float = 3.8) -> list[Axes]:
    """Axes side by side in a new figure, each of this size in inches."""
    # Figures of the object interface belong to no window, so they need no display and are freed like any object.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    return list(figure.subplots(1, count, squeeze=False)[0])


def shades(count: int) -> list[Any]:
    """Colours from dark to bright, so that they are told apart in grey as well."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, max(2, count)))[:count])


def value_colours() -> Any:
    """A map of values to colours from dark to bright, in order in grey as well; missing values are lighter still."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.8, 256))).with_extremes(bad="0.95")
