"""Planar flow guide."""

from pyro.distributions import transforms
from torch import nn

from pyrovae.guides.flow import Flow


class Planar(Flow):
    """A Gaussian pushed through planar steps, each a bend along one direction.

    With u, w and b computed from the context, and u constrained so that the step can be inverted::

        z_t = P z_{t-1} + u tanh(w' P z_{t-1} + b)

    The inverse has no closed form, so only the flow's own draws have a density here. ``hidden`` are the widths of the
    network from the context to u, w and b; the other arguments are those of :class:`Flow`.

    Source: Rezende and Mohamed, "Variational inference with normalizing flows", 2015.
    """

    def make_step(self) -> nn.Module:
        """Return a planar step."""
        step: nn.Module = transforms.conditional_planar(self.free_dim, self.context_dim, list(self.hidden))
        return step
