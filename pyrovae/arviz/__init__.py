"""Draws, posteriors and densities handed to ArviZ: the only importer of it."""

from pyrovae.arviz.chains import hmc
from pyrovae.arviz.draws import to_arviz
from pyrovae.arviz.elpd import elpd
from pyrovae.arviz.shared import globals_to_arviz

__all__ = ["elpd", "globals_to_arviz", "hmc", "to_arviz"]
