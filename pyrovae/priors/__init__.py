"""Priors over the latents: any distribution, or a module that returns one."""

from pyrovae.priors.laplace import Laplace
from pyrovae.priors.mixture_of_gaussians import MixtureOfGaussians
from pyrovae.priors.prior import Fixed, Prior, as_prior
from pyrovae.priors.standard_normal import StandardNormal

__all__ = ["Fixed", "Laplace", "MixtureOfGaussians", "Prior", "StandardNormal", "as_prior"]
