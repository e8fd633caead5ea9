"""Standard normal prior."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.priors.prior import Prior


class StandardNormal(Prior):
    """z ~ N(0, I).

    Args:
        latent_dim: number of latents.
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = at_least("latent_dim", latent_dim, 1)
        self.register_buffer("loc", torch.zeros(self.latent_dim), persistent=False)

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return N(0, I)."""
        return dist.Normal(self.loc, 1.0).to_event(1)
