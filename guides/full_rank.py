"""Gaussian guide with a full covariance matrix."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.guides.guide import Guide
from pyrovae.nn import Network, positive


class FullRank(Guide):
    """q(z | x) = N(loc(x), L(x) L(x)'), with L lower triangular.

    L = diag(s) C, with scales s and a matrix C whose rows have length one, so that C C' is the correlation matrix.
    Scales and correlations are learned separately, which keeps L well conditioned.

    Source: Titsias and Lazaro-Gredilla, "Doubly stochastic variational Bayes for non-conjugate inference", 2014.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents.
        latent: name of the latent site.
        support: support of the latent, to which the Gaussian is mapped: a torch constraint or its name. None is
            the real line.

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
        self.head = nn.Linear(self.num_features, self.free_dim * (1 + self.free_dim))
        with torch.no_grad():  # L starts near the identity
            self.head.weight[self.free_dim :].normal_(std=0.01)
            self.head.bias[self.free_dim :].zero_()

    def family(self, params: Tensor) -> dist.TorchDistribution:
        """Return the Gaussian of every row of parameters."""
        loc, raw = params.split((self.free_dim, self.free_dim**2), dim=-1)
        raw = raw.unflatten(-1, (self.free_dim, self.free_dim))
        rows = raw.tril(-1) + torch.eye(self.free_dim).to(raw)
        correlation = rows / rows.norm(dim=-1, keepdim=True)
        scale = positive(raw.diagonal(dim1=-2, dim2=-1))
        return dist.MultivariateNormal(loc, scale_tril=scale[..., None] * correlation)
