"""A VAE that clusters the data."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.likelihoods import Likelihood
from pyrovae.models.parts import check_decoder, only_exposure
from pyrovae.nn import Network, positive
from pyrovae.nn.network import SHIFT, check_columns
from pyrovae.programs.isolation import importing


class GaussianMixtureVAE(nn.Module):
    """Every observation belongs to a cluster, and its code comes from that cluster's Gaussian.

    For every observation::

        y ~ Categorical(pi)
        z ~ N(loc_y, diag(scale_y^2))
        x ~ p(x | decoder(z))

    with pi, loc and scale learned. Guide: :class:`~pyrovae.guides.Clustered`; objective: ``TraceEnum_ELBO``, which
    sums y out. If y is summed out of the model itself, the model is a :class:`~pyrovae.models.VAE` with the prior
    :class:`~pyrovae.priors.MixtureOfGaussians`.

    From a random start, clusters easily merge and never separate again. Jiang et al. first fit a VAE without clusters,
    and then start from a Gaussian mixture of its codes: :meth:`start_at`.

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
        self.num_clusters = num_clusters = at_least("num_clusters", num_clusters, 2)
        self.latent_dim = latent_dim = at_least("latent_dim", latent_dim, 1)
        check_decoder(decoder, likelihood)
        check_columns("decoder", decoder, latent_dim, "the latents")
        self.decoder = decoder
        self.likelihood = likelihood
        self.logits = nn.Parameter(torch.zeros(num_clusters))
        self.loc = nn.Parameter(torch.randn(num_clusters, latent_dim))
        self.raw_scale = nn.Parameter(torch.zeros(num_clusters, latent_dim))

    def cluster_logits(self, z: Tensor) -> Tensor:
        """Return log p(y, z) of every cluster y, ``[..., C]``, at codes z, ``[..., latent_dim]``."""
        density = dist.Normal(self.loc, positive(self.raw_scale)).to_event(1).log_prob(z.unsqueeze(-2))
        return self.logits.log_softmax(-1) + density

    def start_at(self, codes: Tensor, *, seed: int = 0) -> None:
        """Start the clusters at those of a Gaussian mixture that scikit-learn fits to codes.

        Args:
            codes: codes of the data, ``[N, latent_dim]``: draws of the fitted guide of a VAE with the same decoder,
                several per observation (the guide's means would be too close together).
            seed: seed of the mixture's own start.
        """
        if codes.dim() != 2 or codes.shape[1] != self.latent_dim:
            raise ValueError(f"codes [N, {self.latent_dim}] were expected, got {tuple(codes.shape)}")
        with importing():
            from sklearn import mixture
        clusters = mixture.GaussianMixture(self.num_clusters, covariance_type="diag", n_init=20, random_state=seed)
        clusters.fit(codes.detach().cpu().double().numpy())
        with torch.no_grad():
            self.logits.copy_(torch.from_numpy(clusters.weights_).log())
            self.loc.copy_(torch.from_numpy(clusters.means_))
            scale = torch.from_numpy(clusters.covariances_).sqrt().clamp(min=1e-2)
            self.raw_scale.copy_(scale + (-torch.expm1(-scale)).log() - SHIFT)

    def forward(self, x: Tensor, *exposure: Tensor) -> Tensor:
        """Sample y and z, and observe ``x``, ``[N, D]``; return z."""
        pyro.module("model", self)
        given = only_exposure(self, exposure)
        with pyro.plate("data", x.shape[0]):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.logits))
            z: Tensor = pyro.sample("z", dist.Normal(y @ self.loc, y @ positive(self.raw_scale)).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z), **given), obs=x)
        return z
