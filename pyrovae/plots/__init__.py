"""Figures, drawn on matplotlib objects of their own."""

from pyrovae.plots.figures import (
    aggregate,
    calibration,
    codes,
    comparison,
    gaps,
    pareto,
    pictures,
    ranks,
    reliability,
    training,
    usage,
    worst,
)

__all__ = [
    "aggregate",
    "calibration",
    "codes",
    "comparison",
    "gaps",
    "pareto",
    "pictures",
    "ranks",
    "reliability",
    "training",
    "usage",
    "worst",
]
