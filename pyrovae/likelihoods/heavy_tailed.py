"""Likelihoods of real, positive and bounded columns that are not Gaussian."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.common.checks import positive as above_zero
from pyrovae.distributions import precise
from pyrovae.likelihoods.likelihood import Likelihood
from pyrovae.nn import positive


class StudentT(Likelihood):
    """x_d ~ Student-t(df, features_d, scale_d), with a learned scale: outliers cost little.

    Source: Takahashi et al., "Student-t variational autoencoder for robust density estimation", 2018.

    Args:
        df: degrees of freedom; the variance is finite above 2.
        num_scales: 1 for a scale shared by all columns, or the number of columns for one each.
    """

    def __init__(self, *, df: float = 4.0, num_scales: int = 1) -> None:
        super().__init__()
        self.df, self.num_scales = above_zero("df", df), at_least("num_scales", num_scales, 1)
        self.raw_scale = nn.Parameter(torch.zeros(self.num_scales))

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every column."""
        return precise.StudentT(self.df, features, positive(self.raw_scale))


class LogNormal(Likelihood):
    """log x_d ~ N(features_d, scale_d^2), for positive columns, with a learned scale.

    Args:
        num_scales: 1 for a scale shared by all columns, or the number of columns for one each.
    """

    def __init__(self, *, num_scales: int = 1) -> None:
        super().__init__()
        self.num_scales = at_least("num_scales", num_scales, 1)
        self.raw_scale = nn.Parameter(torch.zeros(self.num_scales))

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every column."""
        return dist.LogNormal(features, positive(self.raw_scale))


class Beta(Likelihood):
    """x_d ~ Beta(m c, (1 - m) c), with mean m = sigmoid(features_d) and a learned concentration c, for x in (0, 1).

    At 0 and at 1 the density is zero or infinite; for closed intervals use :class:`ContinuousBernoulli`. Features count
    as 87 at most in single precision and as 708 at most in double precision, because a larger one gives a concentration
    that the precision cannot represent. Draws nearer to 0 or 1 than the precision allows are the nearest number that it
    can represent.

    Args:
        num_concentrations: 1 for a concentration shared by all columns, or the number of columns for one each.
    """

    def __init__(self, *, num_concentrations: int = 1) -> None:
        super().__init__()
        self.num_concentrations = at_least("num_concentrations", num_concentrations, 1)
        self.raw_concentration = nn.Parameter(torch.full((self.num_concentrations,), 2.0))

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every column."""
        concentration, least = positive(self.raw_concentration), torch.finfo(features.dtype).tiny
        low, high = (((sign * features).sigmoid() * concentration).clamp(min=least) for sign in (1, -1))
        return precise.Beta(low, high)
