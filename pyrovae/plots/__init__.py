"""Figures: each is drawn on a matplotlib figure of its own."""

from pyrovae.plots.codes import aggregate, codes, usage
from pyrovae.plots.pictures import pictures, worst
from pyrovae.plots.strategies import comparison, gaps, pareto, reliability, scores, training
from pyrovae.plots.uniformity import calibration, ranks

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
    "scores",
    "training",
    "usage",
    "worst",
]
