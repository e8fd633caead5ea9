"""Figures, drawn on matplotlib objects of their own."""

from pyrovae.plots.figures import comparison, pictures, reliability, training

__all__ = ["comparison", "pictures", "reliability", "training"]
