"""Mixture of Gaussians as a prior, learned with the model."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.nn.network import positive
from pyrovae.priors.prior import Prior


class MixtureOfGaussians(Prior):
    """z ~ sum_c pi_c N(mu_c, diag(s_c^2)), with all of pi, mu and s learned.

    Args:
        latent_dim: number of latents.
        num_components: number of Gaussians; their means start as draws from N(0, 1), their scales at 1.
    """

    def __init__(self, latent_dim: int, *, num_components: int = 10) -> None:
        super().__init__()
        self.latent_dim = latent_dim = at_least("latent_dim", latent_dim, 1)
        self.num_components = num_components = at_least("num_components", num_components, 1)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.raw_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the mixture."""
        components = dist.Normal(self.loc, positive(self.raw_scale)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)
