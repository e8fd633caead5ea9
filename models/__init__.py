"""Generative programs p(x, z): one explicit Pyro program a file."""

from pyrovae.models.hierarchical import HierarchicalVAE
from pyrovae.models.linear_gaussian import LinearGaussian
from pyrovae.models.vae import VAE

__all__ = ["VAE", "HierarchicalVAE", "LinearGaussian"]
