"""Likelihoods of pictures: bits, and intensities in [0, 1]."""

from typing import Any

import pyro.distributions as dist
import torch
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
    """Continuous Bernoulli distribution with logits L of any size.

    p(x) = L e^(L x) / (e^L - 1). In the distance t from the end where the density is highest, this is an exponential
    distribution of rate s = |L|, cut off at t = 1. In this form nothing cancels where s is large; near s = 0 series are
    used. Draws, moments, entropy and distribution functions are computed in double precision.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, log s - log(1 - e^-s) - s t."""
        if self._validate_args:
            self._validate_sample(value)
        return _log_density(self.logits, torch.where(self.logits > 0, 1 - value, value), value - 0.5)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw quantiles of a uniform variable; where it is 0, half of its spacing takes its place."""
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        return self.icdf(u.double().clamp(min=0.25 * torch.finfo(self.logits.dtype).eps))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def _falling(self) -> Tensor:
        """Return the logits of 1 - x where they are positive, so that all are at most 0."""
        logits = self.logits.double()
        return torch.where(logits > 0, -logits, logits)

    def _distance(self) -> Tensor:
        """Return the mean of t."""
        falling = self._falling()
        small, s = _split(falling, 0.1)
        series = 0.5 + falling / 12 - falling.pow(3) / 720 + falling.pow(5) / 30240
        return torch.where(small, series, 1 / s + (-s).exp() / torch.expm1(-s))

    @property
    def mean(self) -> Tensor:
        """Mean, 1 / (1 - e^-L) - 1 / L."""
        distance = self._distance()
        return torch.where(self.logits > 0, 1 - distance, distance).to(self.logits.dtype)

    @property
    def variance(self) -> Tensor:
        """Variance, 1 / L^2 - 1 / (2 sinh(L / 2))^2."""
        falling = self._falling()
        small, s = _split(falling, 0.1)
        series = 1 / 12 - falling.square() / 240 + falling.pow(4) / 6048 - falling.pow(6) / 172800
        variance = torch.where(small, series, s.pow(-2) - (-s).exp() / torch.expm1(-s).square())
        return variance.to(self.logits.dtype)

    def entropy(self) -> Tensor:
        """Return the entropy in nats: minus the log density at the mean, since the log density is linear."""
        distance = self._distance()
        return -_log_density(self._falling(), distance, distance - 0.5).to(self.logits.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(x <= value), (e^(L value) - 1) / (e^L - 1)."""
        if self._validate_args:
            self._validate_sample(value)
        logits, x = self.logits.double(), value.double().clamp(0, 1)
        small, s = _split(self._falling(), 1e-4)
        last = torch.where(logits > 0, -s * (1 - x), torch.zeros_like(x))
        series = x + logits * x * (x - 1) / 2 + logits.square() * x * (x - 1) * (2 * x - 1) / 12
        return torch.where(small, series, last.exp() * torch.expm1(-s * x) / torch.expm1(-s)).to(self.logits.dtype)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile of probabilities."""
        falling, u = self._falling(), value.double()
        up = self.logits > 0
        distance = _quantile(falling, torch.where(up, 1 - u, u))
        return torch.where(up, 1 - distance, distance).to(self.logits.dtype)


def _split(falling: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Return which rates are below ``least``, and the rates, with 1 in place of the small ones."""
    small = falling > -least
    return small, torch.where(small, torch.ones_like(falling), -falling)


def _log_density(logits: Tensor, distance: Tensor, offset: Tensor) -> Tensor:
    """Return the log density at ``distance`` from the high end, ``offset`` from the middle (signed as the logits)."""
    small, s = _split(-logits.abs(), 0.1)
    squared = logits.square()
    series = logits * offset - squared / 24 + squared.square() / 2880 - squared.pow(3) / 181440
    return torch.where(small, series, s.log() - (-torch.expm1(-s)).log() - s * distance)


def _quantile(falling: Tensor, u: Tensor) -> Tensor:
    """Return t with F(t) = (1 - e^(-s t)) / (1 - e^-s) = u, for logits -s of at most 0."""
    small, s = _split(falling, 1e-4)
    series = u + falling * u * (1 - u) / 2 + falling.square() * u * (1 - u) * (1 - 2 * u) / 6
    return torch.where(small, series, -torch.logaddexp((-u).log1p(), u.log() - s) / s)
