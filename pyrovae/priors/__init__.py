"""Priors over the latents: any distribution, or a module that returns one."""

from pyrovae.priors.autoregressive import Autoregressive
from pyrovae.priors.conditional import ConditionalNormal
from pyrovae.priors.flow import NormalizingFlow
from pyrovae.priors.gaussian_process import GaussianProcess
from pyrovae.priors.hierarchical import Hierarchical
from pyrovae.priors.interchange import from_preliz, to_preliz
from pyrovae.priors.laplace import Laplace
from pyrovae.priors.mixture_of_gaussians import MixtureOfGaussians
from pyrovae.priors.parametric import Parametric
from pyrovae.priors.prior import Fixed, Prior, as_prior
from pyrovae.priors.sparse import Horseshoe, SpikeAndSlab, StudentT
from pyrovae.priors.sphere import UniformSphere
from pyrovae.priors.standard_normal import StandardNormal
from pyrovae.priors.vamp import VampPrior

__all__ = [
    "Autoregressive",
    "ConditionalNormal",
    "Fixed",
    "GaussianProcess",
    "Hierarchical",
    "Horseshoe",
    "Laplace",
    "MixtureOfGaussians",
    "NormalizingFlow",
    "Parametric",
    "Prior",
    "SpikeAndSlab",
    "StandardNormal",
    "StudentT",
    "UniformSphere",
    "VampPrior",
    "as_prior",
    "from_preliz",
    "to_preliz",
]
