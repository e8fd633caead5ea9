"""Figures, drawn on matplotlib objects of their own."""

from pyrovae.plots.figures import calibration, comparison, gaps, pictures, ranks, reliability, training, worst

__all__ = ["calibration", "comparison", "gaps", "pictures", "ranks", "reliability", "training", "worst"]
