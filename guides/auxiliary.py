"""Auxiliary-variable guide: a continuous mixture, with a bound in place of the integral over a."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least, widths
from pyrovae.guides.draw import Draw
from pyrovae.guides.guide import Guide
from pyrovae.nn import MLP, Network, positive


class Auxiliary(Guide):
    """q(z | x), the marginal of q(z | a, x) over an auxiliary variable a.

    For every observation, with features h(x)::

        a ~ q(a | x) = N(loc_a(x), diag(scale_a(x)^2))
        z ~ q(z | a, x) = N(loc(a, h), diag(scale(a, h)^2))

    q(z | x) itself has no closed form. A reverse network r(a | z, x) takes the place of q(a | z, x): the density of a
    draw is q(a | x) q(z | a, x) / r(a | z, x). With this density E[p(x, z) / density] is still p(x), so that bounds
    stay bounds and evidence stays unbiased. An externally supplied z cannot be scored.

    Source: Maaloe, Sonderby, Sonderby and Winther, "Auxiliary deep generative models", 2016; Ranganath, Tran and Blei,
    "Hierarchical variational models", 2016.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents.
        auxiliary_dim: number of auxiliary variables.
        context_dim: number of features h that the conditionals take beside a or z.
        hidden: widths of the hidden layers of q(z | a, x) and r(a | z, x).
        latent: name of the latent site.
        support: support of the latent, to which z is mapped: a torch constraint or its name. None is
            the real line.

    Example:
        >>> from pyrovae import nn
        >>> Auxiliary(nn.MLP(64, 32), 3).posterior(torch.zeros(5, 64)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        encoder: Network | nn.Module,
        latent_dim: int,
        *,
        auxiliary_dim: int = 2,
        context_dim: int = 16,
        hidden: tuple[int, ...] = (64,),
        latent: str = "z",
        support: Any = None,
    ) -> None:
        super().__init__(encoder, latent_dim, latent=latent, support=support)
        self.auxiliary_dim = auxiliary_dim = at_least("auxiliary_dim", auxiliary_dim, 1)
        self.context_dim = context_dim = at_least("context_dim", context_dim, 1)
        self.hidden = widths("hidden", hidden)
        self.head = nn.Linear(self.num_features, 2 * auxiliary_dim + context_dim)
        self.forwards = MLP(auxiliary_dim + context_dim, 2 * self.free_dim, hidden=self.hidden)
        self.backwards = MLP(self.free_dim + context_dim, 2 * auxiliary_dim, hidden=self.hidden)

    def family(self, params: Tensor) -> dist.TorchDistribution:
        """Draw z with its auxiliary variable; return z with the density of the draw."""
        own, context = params.split((2 * self.auxiliary_dim, self.context_dim), dim=-1)
        q_a = _gaussian(own)
        a = q_a.rsample()
        q_z = _gaussian(self.forwards(torch.cat([a, context], dim=-1)))
        z = q_z.rsample()
        r_a = _gaussian(self.backwards(torch.cat([z, context], dim=-1)))
        return Draw(z, q_a.log_prob(a) + q_z.log_prob(z) - r_a.log_prob(a))


def _gaussian(params: Tensor) -> dist.TorchDistribution:
    loc, raw_scale = params.chunk(2, dim=-1)
    return dist.Normal(loc, positive(raw_scale)).to_event(1)
