"""Likelihoods of pictures: bits, and intensities in [0, 1]."""

import math

import pyro.distributions as dist
import torch
import torch.nn.functional as F
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
        return Continuous(logits=features)


class Continuous(dist.ContinuousBernoulli):
    """Continuous Bernoulli distribution whose normaliser is that of its logits L, however large they are.

    p(x) = C e^(L x) / (1 + e^L), 1 / C = tanh(L / 2) / L.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density."""
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - F.softplus(self.logits) + self._log_normaliser()

    def _log_normaliser(self) -> Tensor:
        """Return log C, by its series where L is small."""
        size = self.logits.abs()
        small = size < 0.1
        safe = torch.where(small, torch.ones_like(size), size)
        series = math.log(2) + size.square() / 12 - 7 * size.pow(4) / 1440
        return torch.where(small, series, safe.log() - (0.5 * safe).tanh().log())

    @property
    def mean(self) -> Tensor:
        """Mean, 1 / (1 - e^-L) - 1 / L."""
        small = self.logits.abs() < 0.1
        safe = torch.where(small, torch.ones_like(self.logits), self.logits)
        series = 0.5 + self.logits / 12 - self.logits.pow(3) / 720
        return torch.where(small, series, -1 / torch.expm1(-safe) - 1 / safe)
