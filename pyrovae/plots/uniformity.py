"""Figures of ranks beside their simultaneous bands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from pyrovae.plots.axes import MOST_NAMED, figure_and_axes

if TYPE_CHECKING:
    from pyrovae.diagnostics.calibration.ranks import Ranks


def ranks(found: Ranks, level: float = 0.95) -> Figure:
    """Draw how far the distribution function of every quantity's ranks is from uniform, and the simultaneous band.

    A quantity that leaves its band, of level ``level`` each, is named; the others are grey where there are many.

    Args:
        found: of :func:`pyrovae.pit`, or of any part of :func:`pyrovae.sbc`.
        level: of the band.
    """
    figure, axes = figure_and_axes(1, height=3.6, wider=1.2)
    _rank_curves(axes[0], found, level)
    return figure


def calibration(everything: Ranks, density: Ranks | None, distance: Ranks, level: float = 0.95) -> Figure:
    """Draw simulation-based calibration: ranks against their band, and the coverage of credible regions.

    Args:
        everything: ranks of all quantities.
        density: ranks of log q(z | x), whose highest-density regions are drawn; None where it is not known.
        distance: ranks of the distance to a point that depends on x (TARP).
        level: of the simultaneous bands.
    """
    figure, axes = figure_and_axes(2, height=3.6, wider=1.2)
    _rank_curves(axes[0], everything, level)
    points, low, high = distance.band(level)
    axes[1].fill_between(points, low, high, color="0.88", linewidth=0, label=f"{level:.0%} band")
    axes[1].plot([0, 1], [0, 1], color="0.6", linewidth=1)
    regions = {"balls around a reference point (TARP)": distance}
    if density is not None:
        regions["regions of highest q(z | x)"] = density.reversed()
    for name, one in regions.items():
        axes[1].plot(points, one.ecdf()[1][0], linewidth=1.5, label=name)
    axes[1].set_xlabel("stated probability of a credible region")
    axes[1].set_ylabel("share of simulations inside")
    axes[1].legend(fontsize="small")
    return figure


def _rank_curves(axis: Any, found: Ranks, level: float) -> None:
    points, low, high = found.band(level)
    axis.fill_between(points, low - points, high - points, color="0.88", linewidth=0, label=f"{level:.0%} band")
    curves = found.ecdf()[1] - points
    outside = (found.pvalue < 1 - level).numpy()
    few = len(found.names) <= MOST_NAMED
    named = 0
    for name, curve, out in zip(found.names, curves, outside, strict=True):
        shown = (few or out) and named < MOST_NAMED
        colour = f"C{named % 10}" if shown else "0.6"
        style = {"color": colour, "linewidth": 1.5 if out else 1, "linestyle": "-" if out or not few else "--"}
        axis.plot(points, curve, label=name + (" (outside)" if out else "") if shown else None, **style)
        named += shown
    if len(found.names) > named:
        axis.plot([], [], color="0.6", linewidth=1, label=f"{len(found.names) - named} more")
    axis.axhline(0, color="0.6", linewidth=1)
    axis.set_xlabel("rank, as a share of the draws")
    axis.set_ylabel("share of ranks at or below, minus uniform")
    axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1))
