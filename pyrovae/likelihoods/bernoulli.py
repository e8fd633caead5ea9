"""Likelihoods of pictures: bits, and intensities in [0, 1]."""

import pyro.distributions as dist
from torch import Tensor

from pyrovae.likelihoods.likelihood import Likelihood


class Bernoulli(Likelihood):
    """x_d ~ Bernoulli(sigmoid(features_d)), for bits: grey levels are binarised first (``data.Static``)."""

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every bit."""
        return dist.Bernoulli(logits=features)


class ContinuousBernoulli(Likelihood):
    """x_d ~ ContinuousBernoulli(sigmoid(features_d)), a density for data in [0, 1].

    Source: Loaiza-Ganem and Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders", 2019.
    """

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every intensity."""
        return dist.ContinuousBernoulli(logits=features)
