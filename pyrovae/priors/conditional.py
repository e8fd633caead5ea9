"""A prior that depends on covariates."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.nn.network import Network, positive
from pyrovae.priors.prior import Prior


class ConditionalNormal(Prior):
    """z | c ~ N(loc(c), diag(scale(c)^2)), both learned.

    Source: Sohn, Lee and Yan, "Learning structured output representation using deep conditional generative models",
    2015.

    Args:
        network: from the covariates to features, half of them locations; it has an attribute ``out_features``.
    """

    def __init__(self, network: Network | nn.Module) -> None:
        super().__init__()
        width = getattr(network, "out_features", None)
        if not isinstance(width, int) or width % 2:
            raise ValueError(f"the network must have an even number of out_features, got {width!r}")
        self.network, self.latent_dim = network, width // 2

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every datum's latent, batch shape ``[N]``."""
        loc, raw_scale = self.network(*covariates).chunk(2, dim=-1)
        return dist.Normal(loc, positive(raw_scale)).to_event(1)
