"""Householder flow guide: a Gaussian whose covariance is turned by reflections."""

from pyro.distributions import transforms
from torch import nn

from pyrovae.guides.flow import Flow


class Householder(Flow):
    """A diagonal Gaussian turned by reflections, which gives it a full covariance.

    With a vector v computed from the context, for every step::

        z_t = (I - 2 v v' / |v|^2) P z_{t-1}

    ``hidden`` are the widths of the network from the context to v; the other arguments are those of :class:`Flow`.

    Source: Tomczak and Welling, "Improving variational auto-encoders using Householder flow", 2016.
    """

    def make_step(self) -> nn.Module:
        """Return a reflection."""
        step: nn.Module = transforms.conditional_householder(self.free_dim, self.context_dim, list(self.hidden))
        return step
