"""A VAE that clusters."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import at_least
from pyrovae.likelihoods import Likelihood
from pyrovae.nn import Network, positive


class GaussianMixtureVAE(nn.Module):
    """Every datum belongs to a cluster, and its code to that cluster's Gaussian.

    For every datum::

        y ~ Categorical(pi)
        z ~ N(loc_y, diag(scale_y^2))
        x ~ p(x | decoder(z))

    with pi, loc and scale learned. Guide: :class:`~pyrovae.guides.ClassConditional`; objective: ``TraceEnum_ELBO``,
    which sums y out. With y summed out of the model itself it is a :class:`~pyrovae.models.VAE` with the prior
    :class:`~pyrovae.priors.MixtureOfGaussians`.

    Source: Jiang, Zheng, Tan, Tang and Zhou, "Variational deep embedding", 2017; Dilokthanakul et al., "Deep
    unsupervised clustering with Gaussian mixture variational autoencoders", 2016.

    Args:
        num_clusters: number of clusters.
        latent_dim: number of latents.
        decoder: network from z to the likelihood's features.
        likelihood: turns those features into the distribution of x.
    """

    def __init__(
        self,
        *,
        num_clusters: int,
        latent_dim: int,
        decoder: Network | nn.Module,
        likelihood: Likelihood | nn.Module,
    ) -> None:
        super().__init__()
        self.num_clusters, self.latent_dim = at_least("num_clusters", num_clusters, 2), latent_dim
        self.decoder = decoder
        self.likelihood = likelihood
        self.logits = nn.Parameter(torch.zeros(num_clusters))
        self.loc = nn.Parameter(torch.randn(num_clusters, latent_dim))
        self.raw_scale = nn.Parameter(torch.zeros(num_clusters, latent_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Sample y and z, and observe ``x``, ``[N, D]``; return z."""
        pyro.module("model", self)
        with pyro.plate("data", x.shape[0]):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.logits))
            z: Tensor = pyro.sample("z", dist.Normal(y @ self.loc, y @ positive(self.raw_scale)).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)
        return z
