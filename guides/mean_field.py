"""Factorised Gaussian guide."""

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.guides.guide import Guide
from pyrovae.nn import Network, positive


class MeanField(Guide):
    """q(z | x) = N(loc(x), diag(scale(x)^2)).

    Source: Kingma and Welling, "Auto-encoding variational Bayes", 2014.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents.
        latent: name of the latent site.
        support: support of the latent, to which the Gaussian is mapped: a torch constraint or its name. None is
            the real line.

    Example:
        >>> import torch
        >>> from pyrovae import nn
        >>> guide = MeanField(nn.MLP(64, 32), 3, support="simplex")
        >>> guide.posterior(torch.zeros(5, 64)).sample().sum(-1).allclose(torch.ones(5))
        True
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
        self.head = nn.Linear(self.num_features, 2 * self.free_dim)

    def family(self, params: Tensor) -> dist.TorchDistribution:
        """Return the Gaussian of every row of parameters."""
        loc, raw_scale = params.chunk(2, dim=-1)
        return dist.Normal(loc, positive(raw_scale)).to_event(1)
