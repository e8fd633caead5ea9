"""Likelihoods: what the decoder's features say about a datum."""

from pyrovae.likelihoods.bernoulli import Bernoulli, ContinuousBernoulli
from pyrovae.likelihoods.gaussian import Gaussian
from pyrovae.likelihoods.likelihood import Likelihood

__all__ = ["Bernoulli", "ContinuousBernoulli", "Gaussian", "Likelihood"]
