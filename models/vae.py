"""The variational autoencoder's generative program."""

from typing import Any

import pyro
from torch import Tensor, nn

from pyrovae.likelihoods import Likelihood
from pyrovae.models.parts import check_decoder, check_latents, only_exposure, optional_size
from pyrovae.nn import Network
from pyrovae.priors import as_prior


class VAE(nn.Module):
    """Deep latent Gaussian model, with any prior and any likelihood.

    For every observation::

        z ~ p(z)
        x ~ p(x | decoder(z))

    Guides: any guide of one latent.

    Source: Kingma and Welling, "Auto-encoding variational Bayes", 2014; Rezende, Mohamed and Wierstra, 2014.

    Args:
        prior: a distribution of z with batch shape ``()``, or a module that returns one.
        decoder: network from ``[..., latent_dim]`` to the likelihood's features.
        likelihood: turns those features into the distribution of x.
        num_data: number of observations in the whole data set. It is needed for a prior with global latents
            (:class:`~pyrovae.priors.Hierarchical`), because then a batch has to count for all observations; None if
            there are none.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyrovae import likelihoods, nn
        >>> sparse = dist.Laplace(0.0, 1.0).expand([8]).to_event(1)
        >>> model = VAE(prior=sparse, decoder=nn.MLP(8, 64), likelihood=likelihoods.Bernoulli())
    """

    def __init__(
        self,
        *,
        prior: Any,
        decoder: Network | nn.Module,
        likelihood: Likelihood | nn.Module,
        num_data: int | None = None,
    ) -> None:
        super().__init__()
        prior = as_prior(prior)
        check_decoder(decoder, likelihood)
        check_latents(prior, decoder)
        self.num_data = optional_size(num_data)
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood

    def forward(self, x: Tensor, *exposure: Tensor) -> Tensor:
        """Sample z and observe ``x``, ``[N, D]``; return z."""
        pyro.module("model", self)
        given = only_exposure(self, exposure)
        prior = self.prior()
        with pyro.plate("data", self.num_data or x.shape[0], subsample_size=x.shape[0]):
            z: Tensor = pyro.sample("z", prior)
            pyro.sample("x", self.likelihood(self.decoder(z), **given), obs=x)
        return z
