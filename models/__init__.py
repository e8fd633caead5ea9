"""Generative programs p(x, z): one explicit Pyro program per file."""

from pyrovae.models.bayesian import BayesianVAE
from pyrovae.models.conditional import ConditionalVAE
from pyrovae.models.gaussian_mixture import GaussianMixtureVAE
from pyrovae.models.hierarchical import HierarchicalVAE
from pyrovae.models.linear_gaussian import LinearGaussian
from pyrovae.models.missing_not_at_random import MissingNotAtRandom, SelfMasking
from pyrovae.models.semi_supervised import SemiSupervisedVAE
from pyrovae.models.vae import VAE

__all__ = [
    "VAE",
    "BayesianVAE",
    "ConditionalVAE",
    "GaussianMixtureVAE",
    "HierarchicalVAE",
    "LinearGaussian",
    "MissingNotAtRandom",
    "SelfMasking",
    "SemiSupervisedVAE",
]
