"""Figures of calibration: ranks with their simultaneous bands, and the recovery of simulated latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from pyrovae.plots.axes import MOST_NAMED, figure_and_axes

if TYPE_CHECKING:
    from pyrovae.diagnostics.calibration.ranks import Ranks
    from pyrovae.diagnostics.calibration.recovery import Recovery


def ranks(found: Ranks, level: float = 0.95) -> Figure:
    """Draw how far the distribution function of every quantity's ranks is from uniform, and the simultaneous band.

    Each quantity has a band of level ``level``. A quantity that leaves its band is named; the others are grey where
    there are many.

    Args:
        found: ranks from :func:`pyrovae.pit`, or from any part of :func:`pyrovae.sbc`.
        level: level of the band.
    """
    figure, axes = figure_and_axes(1, height=3.6, wider=1.2)
    _rank_curves(axes[0], found, level)
    return figure


def calibration(everything: Ranks, density: Ranks | None, distance: Ranks, level: float = 0.95) -> Figure:
    """Draw simulation-based calibration: ranks against their band, and the coverage of credible regions.

    Args:
        everything: ranks of all quantities.
        density: ranks of log q(z | x), from which the highest-density regions are drawn; None where log q(z | x) is
            not known.
        distance: ranks of the distance to a point that depends on x (TARP).
        level: level of the simultaneous bands.
    """
    figure, axes = figure_and_axes(2, height=3.6, wider=1.2)
    _rank_curves(axes[0], everything, level)
    points, low, high = distance.band(level)
    axes[1].fill_between(points, low, high, color="0.88", linewidth=0, label=f"{level:.0%} band")
    axes[1].plot([0, 1], [0, 1], color="0.6", linewidth=1)
    regions = {"balls around a reference point (TARP)": distance}
    if density is not None:
        regions["regions of highest q(z | x)"] = density.reversed()
    for name, results in regions.items():
        axes[1].plot(points, results.ecdf()[1][0], linewidth=1.5, label=name)
    axes[1].set_xlabel("stated probability of a credible region")
    axes[1].set_ylabel("share of simulations inside")
    axes[1].legend(fontsize="small")
    return figure


def _rank_curves(axis: Any, results: Ranks, level: float) -> None:
    points, low, high = results.band(level)
    axis.fill_between(points, low - points, high - points, color="0.88", linewidth=0, label=f"{level:.0%} band")
    curves = results.ecdf()[1] - points
    outside = (results.pvalue < 1 - level).numpy()
    few = len(results.names) <= MOST_NAMED
    num_named = 0
    for name, curve, out in zip(results.names, curves, outside, strict=True):
        is_named = (few or out) and num_named < MOST_NAMED
        colour = f"C{num_named % 10}" if is_named else "0.6"
        style = {"color": colour, "linewidth": 1.5 if out else 1, "linestyle": "-" if out or not few else "--"}
        axis.plot(points, curve, label=name + (" (outside)" if out else "") if is_named else None, **style)
        num_named += is_named
    if len(results.names) > num_named:
        axis.plot([], [], color="0.6", linewidth=1, label=f"{len(results.names) - num_named} more")
    axis.axhline(0, color="0.6", linewidth=1)
    axis.set_xlabel("rank, as a share of the draws")
    axis.set_ylabel("share of ranks at or below, minus uniform")
    axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1))


def recovery(result: Recovery, most: int = 6) -> Figure:
    """Draw the guide's means against the true latents, and z-scores against contraction, one colour per latent.

    Args:
        result: result of :func:`pyrovae.recovery`.
        most: largest number of latents, the first ones.
    """
    figure, axes = figure_and_axes(2, height=3.6, wider=1.2)
    latents = list(enumerate(result.names))[:most]
    for d, name in latents:
        style = {"s": 8, "alpha": 0.5, "linewidths": 0, "color": f"C{d}"}
        axes[0].scatter(result.truth[:, d], result.mean[:, d], **style)
        axes[1].scatter(result.contraction[:, d], result.zscore[:, d], label=name, **style)
    ends = [float(result.truth[:, : len(latents)].min()), float(result.truth[:, : len(latents)].max())]
    axes[0].plot(ends, ends, color="0.6", linewidth=1)
    axes[0].set_xlabel("true latent")
    axes[0].set_ylabel("mean of q(z | x)")
    for height in (-2, 0, 2):
        axes[1].axhline(height, color="0.6", linewidth=1, linestyle="-" if height == 0 else ":")
    axes[1].set_xlim(min(0.0, float(result.contraction[:, : len(latents)].min())), 1.02)
    axes[1].set_xlabel("contraction, 1 - posterior variance / prior variance")
    axes[1].set_ylabel("z-score, (mean - truth) / sd")
    axes[1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1), markerscale=2)
    return figure
