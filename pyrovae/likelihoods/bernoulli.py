"""Bernoulli likelihoods: of bits, and of intensities between 0 and 1."""

import pyro.distributions as dist
from torch import Tensor

from pyrovae.likelihoods.likelihood import Likelihood


class Bernoulli(Likelihood):
    """x_d ~ Bernoulli(sigmoid(features_d)), for data that are 0 or 1."""

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of bits."""
        return dist.Bernoulli(logits=features).to_event(1)


class ContinuousBernoulli(Likelihood):
    """x_d ~ ContinuousBernoulli(sigmoid(features_d)), a density for data in [0, 1].

    Source: Loaiza-Ganem and Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders", 2019.
    """

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of intensities."""
        return dist.ContinuousBernoulli(logits=features).to_event(1)
