"""Figures: each function takes axes to draw on, or makes a figure of its own, and returns them.

matplotlib is imported when a figure is drawn. New figures are of matplotlib's object interface: they belong to no
window, `ax.get_figure().savefig(...)` writes them. A legend is drawn in new figures only.
"""

from .classes import plot_confusion, plot_reliability
from .networks import plot_masks, plot_network, plot_symmetry
from .posteriors import plot_elbo, plot_twins, plot_unit
from .predictions import plot_bands, plot_calibration, plot_pit, plot_predicted

__all__ = [
    "plot_bands",
    "plot_calibration",
    "plot_confusion",
    "plot_elbo",
    "plot_masks",
    "plot_network",
    "plot_pit",
    "plot_predicted",
    "plot_reliability",
    "plot_symmetry",
    "plot_twins",
    "plot_unit",
]
