"""Fitting a pair: stochastic variational inference that can be interrupted, resumed, saved and loaded."""

from pyrovae.training.fit import FitError, FitInterrupted, fit
from pyrovae.training.result import Fit, load

__all__ = ["Fit", "FitError", "FitInterrupted", "fit", "load"]
