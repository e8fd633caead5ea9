"""Gaussian guide with a full covariance matrix."""

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.guides.guide import Guide
from pyrovae.nn import Network, positive


class FullRank(Guide):
    """q(z | x) = N(loc(x), L(x) L(x)'), with L lower triangular and its diagonal positive.

    Source: Titsias and Lazaro-Gredilla, "Doubly stochastic variational Bayes for non-conjugate inference", 2014.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents.
        latent: name of the latent site.
        support: of the latent; on another than the real line the Gaussian is mapped there.

    Example:
        >>> import torch
        >>> from pyrovae import nn
        >>> FullRank(nn.MLP(64, 32), 3).posterior(torch.zeros(5, 64)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    def __init__(
        self,
        encoder: Network | nn.Module,
        latent_dim: int,
        *,
        latent: str = "z",
        support: Any = constraints.real_vector,
    ) -> None:
        super().__init__(encoder, latent_dim, latent=latent, support=support)
        self.loc = nn.Linear(self.num_features, self.free_dim)
        self.raw_tril = nn.Linear(self.num_features, self.free_dim**2)
        nn.init.normal_(self.raw_tril.weight, std=0.01)  # L starts near the identity
        nn.init.zeros_(self.raw_tril.bias)

    def unconstrained(self, features: Tensor) -> dist.TorchDistribution:
        """Return the Gaussian of every row of features."""
        raw = self.raw_tril(features).unflatten(-1, (self.free_dim, self.free_dim))
        scale_tril = raw.tril(-1) + positive(raw.diagonal(dim1=-2, dim2=-1)).diag_embed()
        return dist.MultivariateNormal(self.loc(features), scale_tril=scale_tril)
