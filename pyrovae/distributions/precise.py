"""Distributions whose densities would be lost in single precision: what cancels is computed in double precision.

A log density of a few nats is often a difference of terms of a million. In single precision, which keeps seven digits,
that difference is rounding error. Here densities and entropies are computed in double precision and returned in the
dtype of the parameters, with gradients of the same dtype. What remains is the rounding of the parameters and of the
value themselves: a relative error of 6e-8 of each.
"""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.internals.torch import standard_gamma


class InDouble:
    """Computes the log density and the entropy of a distribution in double precision; put it first among the bases.

    Attributes:
        kind: the distribution.
        parameters: names of its parameters.
    """

    kind: ClassVar[type]
    parameters: ClassVar[tuple[str, ...]]
    _validate_args: bool
    _validate_sample: Any

    def doubled(self) -> Any:
        """Return the distribution with parameters in double precision."""
        return self.kind(**{name: getattr(self, name).double() for name in self.parameters}, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, in the dtype of the parameters."""
        if self._validate_args:
            self._validate_sample(value)
        return self._single(self.doubled().log_prob(value.double()))

    def entropy(self) -> Tensor:
        """Return the entropy in nats, in the dtype of the parameters."""
        return self._single(self.doubled().entropy())

    def _single(self, value: Tensor) -> Tensor:
        return value.to(getattr(self, self.parameters[0]).dtype)


class Poisson(InDouble, dist.Poisson):
    """Poisson distribution, for counts of any size: x log(rate) - rate - log x! is a small difference of large terms.

    The rounding of the rate remains: about 6e-8 (x - rate), 2e-4 nats for a rate of 1e7.
    """

    kind, parameters = dist.Poisson, ("rate",)


class NegativeBinomial(InDouble, dist.NegativeBinomial):
    """Negative binomial distribution of any dispersion; with almost no dispersion it is a Poisson distribution.

    The rounding of the logits l remains: about 6e-8 |l| (x - mean) / (1 + mean / r).
    """

    kind, parameters = dist.NegativeBinomial, ("total_count", "logits")


class Beta(InDouble, dist.Beta):
    """Beta distribution of any concentrations, from almost zero to large.

    A draw is G_a / (G_a + G_b) with gamma variables that underflow where a and b are small. Their logarithms do not:
    log G_a = log G_{a+1} + log(u) / a with a uniform u. Draws are inside (0, 1): one that would be 0 or 1 becomes the
    nearest number inside.
    """

    kind, parameters = dist.Beta, ("concentration1", "concentration0")

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws."""
        shape = self._extended_shape(torch.Size(sample_shape))
        high, low = (_log_gamma(c.double().expand(shape)) for c in (self.concentration1, self.concentration0))
        number = torch.finfo(self.concentration1.dtype)
        return self._single((high - low).sigmoid()).clamp(number.tiny, 1 - number.eps / 2)


class LowRankMultivariateNormal(InDouble, dist.LowRankMultivariateNormal):
    """Gaussian distribution with covariance F F' + D, whose factors may be large compared with D.

    The quadratic form is a difference of two terms that are |F|^2 / D times as large (Woodbury's identity).
    """

    kind, parameters = dist.LowRankMultivariateNormal, ("loc", "cov_factor", "cov_diag")

    def doubled(self) -> Any:
        """Return the distribution with parameters in double precision; a covariance that is repeated is stored once."""
        factor, diagonal = self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag
        return self.kind(self.loc.double(), factor.double(), diagonal.double(), validate_args=False)


class StudentT(InDouble, dist.StudentT):
    """Student's t distribution of any degrees of freedom; with many of them it is a Gaussian distribution.

    With y = (x - loc) / scale and r(df) = log Gamma((df + 1) / 2) - log Gamma(df / 2)::

        log p(x) = r(df) - log(pi df) / 2 - log scale - (df + 1) / 2 log(1 + y^2 / df)
    """

    kind, parameters = dist.StudentT, ("df", "loc", "scale")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, in the dtype of the parameters."""
        if self._validate_args:
            self._validate_sample(value)
        df, loc, scale = self.df.double(), self.loc.double(), self.scale.double()
        bend = (df + 1) / 2 * ((value.double() - loc) / scale).square().div(df).log1p()
        return self._single(gamma_ratio(df) - 0.5 * (math.pi * df).log() - scale.log() - bend)

    def entropy(self) -> Tensor:
        """Return the entropy in nats: log(pi df) / 2 + log scale - r(df) + (df + 1) r'(df)."""
        df = self.df.double()
        constant = 0.5 * (math.pi * df).log() + self.scale.double().log()
        return self._single(constant - gamma_ratio(df) + (df + 1) * gamma_slope(df))


def _log_gamma(concentration: Tensor) -> Tensor:
    """Draw the logarithm of a gamma variable of rate 1."""
    u = torch.rand_like(concentration).clamp(min=torch.finfo(concentration.dtype).tiny)
    return standard_gamma(concentration + 1).log() + u.log() / concentration


MANY = 100.0  # degrees of freedom from which on the series below are accurate to 1e-15


def _few_and_many(df: Tensor) -> tuple[Tensor, Tensor]:
    few = df < MANY
    return torch.where(few, df, 1.0), torch.where(few, MANY, df)


def gamma_ratio(df: Tensor) -> Tensor:
    """Return log Gamma((df + 1) / 2) - log Gamma(df / 2), by its series where both are large."""
    few, many = _few_and_many(df)
    series = 0.5 * (many / 2).log() - 1 / (4 * many) + 1 / (24 * many.pow(3)) - 1 / (20 * many.pow(5))
    return torch.where(df < MANY, torch.lgamma((few + 1) / 2) - torch.lgamma(few / 2), series)


def gamma_slope(df: Tensor) -> Tensor:
    """Return the derivative of :func:`gamma_ratio`."""
    few, many = _few_and_many(df)
    series = 1 / (2 * many) + 1 / (4 * many.square()) - 1 / (8 * many.pow(4)) + 1 / (4 * many.pow(6))
    return torch.where(df < MANY, 0.5 * (torch.digamma((few + 1) / 2) - torch.digamma(few / 2)), series)
