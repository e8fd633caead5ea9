"""Gaussian guide with a full covariance matrix."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.guides.guide import Guide
from pyrovae.nn import Network, positive


class FullRank(Guide):
    """q(z | x) = N(loc(x), L(x) L(x)'), with L lower triangular.

    L = diag(s) C, with scales s and a C whose rows have length one, so that C C' is the correlation; scales and
    correlations are learned apart, which keeps L well conditioned.

    Source: Titsias and Lazaro-Gredilla, "Doubly stochastic variational Bayes for non-conjugate inference", 2014.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents.
        latent: name of the latent site.
        support: of the latent, a constraint of torch or its name, to which the Gaussian is mapped; None: the real line.

    Example:
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
        support: Any = None,
    ) -> None:
        super().__init__(encoder, latent_dim, latent=latent, support=support)
        self.loc = nn.Linear(self.num_features, self.free_dim)
        self.raw_tril = nn.Linear(self.num_features, self.free_dim**2)
        nn.init.normal_(self.raw_tril.weight, std=0.01)  # L starts near the identity
        nn.init.zeros_(self.raw_tril.bias)

    def unconstrained(self, features: Tensor) -> dist.TorchDistribution:
        """Return the Gaussian of every row of features."""
        raw = self.raw_tril(features).unflatten(-1, (self.free_dim, self.free_dim))
        rows = raw.tril(-1) + torch.eye(self.free_dim).to(raw)
        correlation = rows / rows.norm(dim=-1, keepdim=True)
        scale = positive(raw.diagonal(dim1=-2, dim2=-1))
        return dist.MultivariateNormal(self.loc(features), scale_tril=scale[..., None] * correlation)
