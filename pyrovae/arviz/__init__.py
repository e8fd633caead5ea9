"""Labels for ArviZ; no other folder imports ArviZ."""

from pyrovae.programs.isolation import importing

with importing():
    import arviz  # noqa: F401  first, whichever file of this folder is imported
