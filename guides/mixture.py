"""Mixture-of-Gaussians guide."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.guides.guide import Guide
from pyrovae.nn import Network, positive


class GaussianMixture(dist.MixtureSameFamily):
    """A mixture of Gaussians with diagonal covariances, whose draws have a gradient for its weights as well.

    With F_d the distribution function of z_d given the latents before it, F_d(z_d | z_1, ..., z_{d-1}) stays constant
    while the parameters change: that gives dz_d, latent by latent. The gradient of an expectation is unbiased.

    Source: Graves, "Stochastic backpropagation through mixture density distributions", 2016; Figurnov, Mohamed and
    Mnih, "Implicit reparameterization gradients", 2018.

    Args:
        logits: logits of the weights, ``[N, K]``.
        locs: means, ``[N, K, D]``.
        scales: standard deviations, ``[N, K, D]``.
    """

    has_rsample = True

    def __init__(self, logits: Tensor, locs: Tensor, scales: Tensor) -> None:
        super().__init__(dist.Categorical(logits=logits), dist.Normal(locs, scales).to_event(1))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GaussianMixture":
        """Return the same mixture for a larger batch."""
        normal, shape = self.component_distribution.base_dist, torch.Size(batch_shape)
        logits = self.mixture_distribution.logits
        parts = (normal.loc, normal.scale)
        return GaussianMixture(
            logits.expand(shape + logits.shape[-1:]), *(part.expand(shape + part.shape[-2:]) for part in parts)
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, ``[..., N, D]``."""
        with torch.no_grad():
            draws = self.sample(torch.Size(sample_shape))
        if not torch.is_grad_enabled():
            return draws
        normal = self.component_distribution.base_dist
        logits = self.mixture_distribution.logits
        latents = []
        for d in range(draws.shape[-1]):
            marginal = dist.Normal(normal.loc[..., d], normal.scale[..., d])
            value = draws[..., d, None]
            weights = logits.softmax(-1)
            below = (weights * marginal.cdf(value)).sum(-1)
            density = (weights * marginal.log_prob(value).exp()).sum(-1)
            z = value[..., 0] - (below - below.detach()) / density.detach()
            latents.append(z)
            logits = logits + marginal.log_prob(z[..., None])
        return torch.stack(latents, dim=-1)


class Mixture(Guide):
    """q(z | x) = sum_k w_k(x) N(loc_k(x), diag(scale_k(x)^2)), reparametrised, including the weights.

    Source: Graves, "Stochastic backpropagation through mixture density distributions", 2016.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents.
        num_components: number of Gaussians, at least 2.
        latent: name of the latent site.
        support: support of the latent, to which the mixture is mapped: a torch constraint or its name. None is
            the real line.

    Example:
        >>> from pyrovae import nn
        >>> Mixture(nn.MLP(64, 32), 3, num_components=4).posterior(torch.zeros(5, 64)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        encoder: Network | nn.Module,
        latent_dim: int,
        *,
        num_components: int = 4,
        latent: str = "z",
        support: Any = None,
    ) -> None:
        super().__init__(encoder, latent_dim, latent=latent, support=support)
        self.num_components = at_least("num_components", num_components, 2)
        self.head = nn.Linear(self.num_features, self.num_components * (1 + 2 * self.free_dim))
        nn.init.normal_(self.head.bias)  # components start apart

    def family(self, params: Tensor) -> dist.TorchDistribution:
        """Return the mixture of every row of parameters."""
        shape = self.num_components, self.free_dim
        size = self.num_components * self.free_dim
        logits, locs, raw_scales = params.split((self.num_components, size, size), dim=-1)
        return GaussianMixture(logits, locs.unflatten(-1, shape), positive(raw_scales).unflatten(-1, shape))
