"""Gaussian guide with a covariance of low rank plus a diagonal."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.distributions import precise
from pyrovae.guides.guide import Guide
from pyrovae.nn import Network, positive


class LowRank(Guide):
    """q(z | x) = N(loc(x), F(x) F(x)' + diag(s(x)^2)), where F has a few columns.

    Source: Ong, Nott and Smith, "Gaussian variational approximation with a factor covariance structure", 2018.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents.
        rank: number of columns of F.
        latent: name of the latent site.
        support: support of the latent, to which the Gaussian is mapped: a torch constraint or its name. None is
            the real line.

    Example:
        >>> from pyrovae import nn
        >>> LowRank(nn.MLP(64, 32), 5, rank=2).posterior(torch.zeros(7, 64)).covariance_matrix.shape
        torch.Size([7, 5, 5])
    """

    def __init__(
        self,
        encoder: Network | nn.Module,
        latent_dim: int,
        *,
        rank: int = 2,
        latent: str = "z",
        support: Any = None,
    ) -> None:
        super().__init__(encoder, latent_dim, latent=latent, support=support)
        self.rank = at_least("rank", rank, 1)
        self.head = nn.Linear(self.num_features, self.free_dim * (2 + self.rank))
        with torch.no_grad():  # F starts small, but not at zero, where its gradient would be zero
            self.head.weight[2 * self.free_dim :].normal_(std=0.01)
            self.head.bias[2 * self.free_dim :].normal_(std=0.1)

    def family(self, params: Tensor) -> dist.TorchDistribution:
        """Return the Gaussian of every row of parameters."""
        loc, raw_scale, raw = params.split((self.free_dim, self.free_dim, self.free_dim * self.rank), dim=-1)
        factor = raw.unflatten(-1, (self.free_dim, self.rank))
        return precise.LowRankMultivariateNormal(loc, factor, positive(raw_scale).square())
