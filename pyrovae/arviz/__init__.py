"""Draws, posteriors and densities handed to ArviZ: the only importer of it."""

from pyrovae.state import importing

with importing():
    import arviz  # noqa: F401  first of all, whichever file of this folder is asked for

from pyrovae.arviz.chains import hmc
from pyrovae.arviz.draws import to_arviz
from pyrovae.arviz.elpd import elpd, elpd_comparison
from pyrovae.arviz.ranks import ranks_to_arviz
from pyrovae.arviz.shared import globals_to_arviz

__all__ = ["elpd", "elpd_comparison", "globals_to_arviz", "hmc", "ranks_to_arviz", "to_arviz"]
