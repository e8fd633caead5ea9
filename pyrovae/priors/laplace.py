"""Laplace prior, for sparse codes."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.common.checks import at_least, positive
from pyrovae.priors.prior import Prior


class Laplace(Prior):
    """z_d ~ Laplace(0, scale), independently: most latents near zero, a few far away.

    Args:
        latent_dim: number of latents.
        scale: scale of every latent; its standard deviation is sqrt(2) times as large.
    """

    loc: Tensor

    def __init__(self, latent_dim: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.latent_dim, self.scale = at_least("latent_dim", latent_dim, 1), positive("scale", scale)
        self.register_buffer("loc", torch.zeros(self.latent_dim), persistent=False)

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return dist.Laplace(self.loc, self.scale).to_event(1)
