"""Figures: each is drawn on a matplotlib figure of its own."""

from pyrovae.plots.answers import elicited, imputed, latent_map, ranking, traversal
from pyrovae.plots.codes import aggregate, codes, usage
from pyrovae.plots.pictures import grid, pictures, worst
from pyrovae.plots.strategies import comparison, gaps, pareto, reliability, scores, training
from pyrovae.plots.uniformity import calibration, ranks, recovery

__all__ = [
    "aggregate",
    "calibration",
    "codes",
    "comparison",
    "elicited",
    "gaps",
    "grid",
    "imputed",
    "latent_map",
    "pareto",
    "pictures",
    "ranking",
    "ranks",
    "recovery",
    "reliability",
    "scores",
    "training",
    "traversal",
    "usage",
    "worst",
]
