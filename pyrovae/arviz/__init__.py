"""Labels for ArviZ: the only importer of it."""

from pyrovae.programs.isolation import importing

with importing():
    import arviz  # noqa: F401  first of all, whichever file of this folder is asked for
