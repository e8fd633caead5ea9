"""Masked autoregressive flow guide."""

from torch import nn

from pyrovae.guides.flow import Flow
from pyrovae.nn.transforms import Autoregressive, affine


class MaskedAutoregressive(Flow):
    """A Gaussian pushed through the inverses of autoregressive steps: each latent depends on those before it.

    ::

        P z_{t-1} = exp(s_t) * z_t + m_t,   (m_t, s_t) = autoregressive(z_t, c(x)),   -3 < s_t < 3

    Scoring any z takes one pass per step; sampling takes one pass per latent and step, so that the family suits few
    latents. The arguments are those of :class:`Flow`.

    Source: Papamakarios, Pavlakou and Murray, "Masked autoregressive flow for density estimation", 2017.
    """

    def make_step(self) -> nn.Module:
        """Return an autoregressive step, in the inverse direction."""
        return Autoregressive(self.free_dim, self.context_dim, self.hidden, 2, affine, reverse=True)
