"""Gaussian likelihood with a learned scale."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.likelihoods.likelihood import Likelihood
from pyrovae.nn.network import positive


class Gaussian(Likelihood):
    """x_d ~ N(features_d, scale_d^2), the scale learned: one for all features, or one each.

    Args:
        num_scales: 1 for a scale shared by all features, or the number of features for one each.
    """

    def __init__(self, *, num_scales: int = 1) -> None:
        super().__init__()
        self.num_scales = num_scales
        self.raw_scale = nn.Parameter(torch.zeros(num_scales))

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the noise, ``[num_scales]``."""
        return positive(self.raw_scale)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of real-valued x."""
        return dist.Normal(features, self.scale).to_event(1)
