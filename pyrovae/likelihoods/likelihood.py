"""What a likelihood is: an object that turns a decoder's features into the distribution of one datum."""

from abc import abstractmethod

from pyro.distributions import TorchDistribution
from torch import Tensor, nn


class Likelihood(nn.Module):
    """Returns p(x | z) from decoder features ``[..., D]``, with one event dimension."""

    @abstractmethod
    def forward(self, features: Tensor) -> TorchDistribution:
        """Return the distribution of x, batch shape ``[...]`` and event shape ``[D]``."""
