"""Masked autoregressive flow guide."""

from typing import Any

from pyro.distributions import transforms
from torch import Tensor, nn

from pyrovae.guides.flow import Flow


class MaskedAutoregressive(Flow):
    """A Gaussian pushed through the inverses of autoregressive steps: each latent is given those before it.

    ::

        z_t = exp(s_t) * P z_{t-1} + m_t,   (m_t, s_t) = autoregressive(z_t, c(x)),   -5 <= s_t <= 3

    Scoring a z takes one pass a step, whatever it came from; sampling takes one pass a latent and step, so that it is
    the family for few latents. The arguments are those of :class:`Flow`.

    Source: Papamakarios, Pavlakou and Murray, "Masked autoregressive flow for density estimation", 2017.
    """

    def make_step(self) -> nn.Module:
        """Return an autoregressive step, to be sampled against its direction."""
        forwards = transforms.conditional_affine_autoregressive(
            self.free_dim,
            self.context_dim,
            hidden_dims=list(self.hidden),
            log_scale_min_clip=-3.0,
            log_scale_max_clip=5.0,
        )
        return Inverse(forwards)


class Inverse(nn.Module):
    """A conditional transform the other way round."""

    def __init__(self, forwards: Any) -> None:
        super().__init__()
        self.forwards = forwards

    def condition(self, context: Tensor) -> Any:
        """Return the inverse of the transform that this context makes."""
        return self.forwards.condition(context).inv
