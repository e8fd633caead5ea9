"""Fitting a pair: stochastic variational inference that can be interrupted, resumed, saved and loaded."""

from pyrovae.training.callbacks import Saved, Step, Validated
from pyrovae.training.ending import Ending
from pyrovae.training.errors import FitError, FitInterrupted
from pyrovae.training.fit import fit
from pyrovae.training.result import Fit, load

__all__ = ["Ending", "Fit", "FitError", "FitInterrupted", "Saved", "Step", "Validated", "fit", "load"]
