"""Figures, drawn on matplotlib objects of their own."""

from pyrovae.plots.figures import comparison, gaps, pictures, reliability, training, worst

__all__ = ["comparison", "gaps", "pictures", "reliability", "training", "worst"]
