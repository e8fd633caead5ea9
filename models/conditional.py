"""The conditional variational autoencoder."""

from typing import Any

import pyro
from torch import Tensor, nn

from pyrovae.likelihoods import Likelihood
from pyrovae.models.parts import check_decoder, optional_size, split_exposure
from pyrovae.nn import Network
from pyrovae.priors import as_prior
from pyrovae.priors.prior import num_latents


class ConditionalVAE(nn.Module):
    """A VAE of x given covariates c: a class, a part of a picture, measurements.

    For every observation::

        z ~ p(z | c)
        x ~ p(x | decoder(z, c))

    Data are tuples ``(x, c, ...)``; an exposure comes last. Guides: any guide of one latent whose encoder takes x and c
    (``nn.MLP(64 + 10, 32)``). A prior that depends on c: :class:`~pyrovae.priors.ConditionalNormal`.

    Source: Sohn, Lee and Yan, "Learning structured output representation using deep conditional generative models",
    2015.

    Args:
        prior: a distribution of z with batch shape ``()``, or a module that returns one from the covariates.
        decoder: network from z and the covariates, each as its own tensor, to the likelihood's features.
        likelihood: turns those features into the distribution of x.
        num_data: number of observations in the whole data set. It is needed for a prior with global latents, because
            then a batch has to count for all observations.

    Example:
        >>> from pyrovae import likelihoods, nn, priors
        >>> model = ConditionalVAE(
        ...     prior=priors.ConditionalNormal(nn.MLP(10, 2 * 8)),
        ...     decoder=nn.MLP(8 + 10, 64), likelihood=likelihoods.Bernoulli())
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
        latents, columns = num_latents(prior), getattr(decoder, "in_features", None)
        if isinstance(columns, int) and latents is not None and columns <= latents:
            raise ValueError(f"decoder expects {columns} columns, got {latents} latents and the covariates")
        self.num_data = optional_size(num_data)
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood

    def forward(self, x: Tensor, *covariates: Tensor) -> Tensor:
        """Sample z given the covariates and observe ``x``, ``[N, D]``; return z."""
        if not covariates:
            raise ValueError("a ConditionalVAE needs covariates beside x: pass data as a tuple (x, c)")
        pyro.module("model", self)
        covariates, given = split_exposure(self, covariates)
        prior = self.prior(*covariates)
        with pyro.plate("data", self.num_data or x.shape[0], subsample_size=x.shape[0]):
            z: Tensor = pyro.sample("z", prior)
            pyro.sample("x", self.likelihood(self.decoder(z, *covariates), **given), obs=x)
        return z
