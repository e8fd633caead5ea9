"""A prior that depends on covariates."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.nn.network import Network, num_features, positive
from pyrovae.priors.prior import Prior


class ConditionalNormal(Prior):
    """z | c ~ N(loc(c), diag(scale(c)^2)), both learned.

    Source: Sohn, Lee and Yan, "Learning structured output representation using deep conditional generative models",
    2015.

    Args:
        network: network from the covariates to features, half of them locations; it has an attribute ``out_features``.
    """

    def __init__(self, network: Network | nn.Module) -> None:
        super().__init__()
        width = num_features("network", network)
        if width % 2:
            raise ValueError(f"network must have an even number of out_features, got {width}")
        self.network, self.latent_dim = network, width // 2

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every observation's latent, batch shape ``[N]``."""
        loc, raw_scale = self.network(*covariates).chunk(2, dim=-1)
        return dist.Normal(loc, positive(raw_scale)).to_event(1)
