"""Likelihoods: objects that turn a decoder's features into the distribution of one observation."""

from pyrovae.likelihoods.bernoulli import Bernoulli, ContinuousBernoulli
from pyrovae.likelihoods.categories import Categorical, Ordinal
from pyrovae.likelihoods.counts import Multinomial, NegativeBinomial, Poisson, ZeroInflated
from pyrovae.likelihoods.gaussian import Gaussian, HeteroscedasticGaussian
from pyrovae.likelihoods.heavy_tailed import Beta, LogNormal, StudentT
from pyrovae.likelihoods.likelihood import Likelihood
from pyrovae.likelihoods.logistic import DiscretisedLogistic
from pyrovae.likelihoods.missing import Missing
from pyrovae.likelihoods.mixed import Mixed

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretisedLogistic",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "LogNormal",
    "Missing",
    "Mixed",
    "Multinomial",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "StudentT",
    "ZeroInflated",
]
