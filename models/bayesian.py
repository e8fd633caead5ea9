"""A VAE whose decoder is uncertain as well."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least, positive
from pyrovae.likelihoods import Likelihood
from pyrovae.models.parts import check_decoder, check_latents, only_exposure
from pyrovae.nn import Network
from pyrovae.priors import as_prior


class BayesianVAE(nn.Module):
    """The decoder's weights are latent variables, shared by all observations.

    ::

        w_j ~ N(0, s^2 / fan_in_j)          weights; biases N(0, s^2)
        z_i ~ p(z)                          for every observation
        x_i ~ p(x | decoder_w(z_i))

    Guide: :class:`~pyrovae.guides.WithGlobals` around any guide of one latent. The weights count once for the whole
    data set, so a batch stands for all ``num_data`` observations. For questions about single observations, fix the
    weights: ``pyrovae.given(model, guide.draw())`` with ``guide.local``.

    Source: Kingma and Welling, "Auto-encoding variational Bayes", 2014, appendix F; Neal, "Bayesian learning for neural
    networks", 1996, for the scale of the weights.

    Args:
        prior: a distribution of z with batch shape ``()``, or a module that returns one.
        decoder: network from ``[..., latent_dim]`` to the likelihood's features; a guide starts at the network's
            own weights.
        likelihood: turns those features into the distribution of x.
        num_data: number of observations in the whole data set that the model is fitted to.
        weight_scale: s, the scale of the weights.
    """

    decoder: nn.Module

    def __init__(
        self,
        *,
        prior: Any,
        decoder: Network | nn.Module,
        likelihood: Likelihood | nn.Module,
        num_data: int,
        weight_scale: float = 1.0,
    ) -> None:
        super().__init__()
        prior = as_prior(prior)
        check_decoder(decoder, likelihood)
        check_latents(prior, decoder)
        self.num_data = at_least("num_data", num_data, 1)
        self.weight_scale = positive("weight_scale", weight_scale)
        self.prior = prior
        self.__dict__["decoder"] = decoder  # not a submodule: its weights are latent, not parameters
        self.first = nn.Module()
        for name, weight in decoder.named_parameters():
            self.first.register_buffer(name.replace(".", "/"), weight.detach().clone())
        self.likelihood = likelihood

    @property
    def start(self) -> dict[str, Tensor]:
        """The decoder's own weights, by latent site."""
        return {f"decoder.{name}".replace("/", "."): weight for name, weight in self.first.named_buffers()}

    def forward(self, x: Tensor, *exposure: Tensor) -> Tensor:
        """Sample the weights and z, and observe ``x``, ``[N, D]``; return z."""
        pyro.module("model", self)
        given = only_exposure(self, exposure)
        weights = {
            name.removeprefix("decoder."): pyro.sample(name, self._weight_prior(weight))
            for name, weight in self.start.items()
        }
        prior = self.prior()
        with pyro.plate("data", self.num_data, subsample_size=x.shape[0]):
            z: Tensor = pyro.sample("z", prior)
            features = torch.func.functional_call(self.decoder, weights, (z,))
            pyro.sample("x", self.likelihood(features, **given), obs=x)
        return z

    def _weight_prior(self, weight: Tensor) -> dist.TorchDistribution:
        fan_in = weight[0].numel() if weight.dim() > 1 else 1
        return dist.Normal(torch.zeros_like(weight), self.weight_scale / fan_in**0.5).to_event(weight.dim())
