"""Normalising-flow guides: a Gaussian pushed through invertible steps that are conditioned on the encoder."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor, nn

from pyrovae.common.checks import at_least, widths
from pyrovae.guides.guide import Guide
from pyrovae.nn import Network, positive
from pyrovae.nn.transforms import Autoregressive, gated


class Flow(Guide):
    """A Gaussian pushed through invertible steps; by default these are inverse autoregressive.

    With a context c(x), which comes from the encoder like location and scale::

        z_0 ~ N(loc(x), diag(scale(x)^2))
        z_t = g_t * P z_{t-1} + (1 - g_t) * m_t,   (m_t, g_t) = autoregressive(P z_{t-1}, c(x)),   0 < g_t < 1

    P reverses the latents between steps. The gates g are sigmoids, so that no step explodes. Sampling takes one pass
    per step; scoring an externally supplied z takes one pass per latent.

    For a flow with other steps, write a subclass that makes them in :meth:`make_step`.

    Source: Rezende and Mohamed, "Variational inference with normalizing flows", 2015; Kingma et al., "Improved
    variational inference with inverse autoregressive flow", 2016.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents.
        num_steps: number of steps.
        hidden: widths of the hidden layers of each step's network.
        context_dim: number of features c(x) that the steps take.
        latent: name of the latent site.
        support: support of the latent, to which the flow is mapped: a torch constraint or its name. None is
            the real line.

    Example:
        >>> from pyrovae import nn
        >>> q = Flow(nn.MLP(64, 32), 3, num_steps=4).posterior(torch.zeros(5, 64))
        >>> q.log_prob(q.sample()).shape
        torch.Size([5])
    """

    may_be_linear = False  # whether the network of a step may have no hidden layers

    def __init__(
        self,
        encoder: Network | nn.Module,
        latent_dim: int,
        *,
        num_steps: int = 2,
        hidden: tuple[int, ...] = (64, 64),
        context_dim: int = 32,
        latent: str = "z",
        support: Any = None,
    ) -> None:
        super().__init__(encoder, latent_dim, latent=latent, support=support)
        self.num_steps, self.context_dim = at_least("num_steps", num_steps, 1), at_least("context_dim", context_dim, 1)
        self.hidden = widths("hidden", hidden, empty=self.may_be_linear)
        self.head = nn.Linear(self.num_features, 2 * self.free_dim + self.context_dim)
        self.steps = nn.ModuleList(self.make_step() for _ in range(self.num_steps))
        self.reverse: Tensor
        self.register_buffer("reverse", torch.arange(self.free_dim - 1, -1, -1), persistent=False)

    def make_step(self) -> nn.Module:
        """Return a step: a module whose ``condition(context)`` is a transform of ``[..., free_dim]``."""
        return Autoregressive(self.free_dim, self.context_dim, self.hidden, 2, gated)

    def family(self, params: Tensor) -> dist.TorchDistribution:
        """Return the flow of every row of parameters."""
        loc, raw_scale, context = params.split((self.free_dim, self.free_dim, self.context_dim), dim=-1)
        path: list[Any] = []
        for step in self.steps:
            conditional: Any = step
            path += [transforms.Permute(self.reverse), conditional.condition(context)]
        return dist.TransformedDistribution(dist.Normal(loc, positive(raw_scale)).to_event(1), path)
