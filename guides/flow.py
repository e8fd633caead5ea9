"""Inverse autoregressive flow guide."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor, nn

from pyrovae.guides.guide import Guide
from pyrovae.nn import Network, positive


class Flow(Guide):
    """A Gaussian pushed through inverse autoregressive steps.

    Each step is conditioned on the encoder's features h(x)::

        z_0 ~ N(loc(x), diag(scale(x)^2))
        z_t = g_t * P z_{t-1} + (1 - g_t) * m_t,   (m_t, g_t) = autoregressive(P z_{t-1}, h(x)),   0 < g_t < 1

    P reverses the latents between steps. The gates g are sigmoids, so that no step explodes. Sampling takes one pass a
    step; scoring a z that came from elsewhere takes one pass a latent.

    Source: Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents.
        num_steps: number of autoregressive steps.
        hidden: widths of the hidden layers of each step's autoregressive network.
        latent: name of the latent site.
        support: of the latent, a constraint of torch or its name, to which the flow is mapped; None is the real line.

    Example:
        >>> from pyrovae import nn
        >>> q = Flow(nn.MLP(64, 32), 3, num_steps=4).posterior(torch.zeros(5, 64))
        >>> q.log_prob(q.sample()).shape
        torch.Size([5])
    """

    def __init__(
        self,
        encoder: Network | nn.Module,
        latent_dim: int,
        *,
        num_steps: int = 2,
        hidden: tuple[int, ...] = (64, 64),
        latent: str = "z",
        support: Any = None,
    ) -> None:
        super().__init__(encoder, latent_dim, latent=latent, support=support)
        self.num_steps, self.hidden = num_steps, tuple(hidden)
        self.base = nn.Linear(self.num_features, 2 * self.free_dim)
        self.steps = nn.ModuleList(
            transforms.conditional_affine_autoregressive(
                self.free_dim, self.num_features, hidden_dims=list(hidden), stable=True, sigmoid_bias=2.0
            )
            for _ in range(num_steps)
        )
        self.reverse: Tensor
        self.register_buffer("reverse", torch.arange(self.free_dim - 1, -1, -1), persistent=False)

    def unconstrained(self, features: Tensor) -> dist.TorchDistribution:
        """Return the flow of every row of features."""
        loc, raw_scale = self.base(features).chunk(2, dim=-1)
        path: list[Any] = []
        for step in self.steps:
            conditional: Any = step
            path += [transforms.Permute(self.reverse), conditional.condition(features)]
        return dist.TransformedDistribution(dist.Normal(loc, positive(raw_scale)).to_event(1), path)
