"""Radial flow guide."""

from pyro.distributions import transforms
from torch import nn

from pyrovae.guides.flow import Flow


class Radial(Flow):
    """A Gaussian pushed through radial steps, each of which pulls mass towards a point or pushes it away.

    With a centre c, a > 0 and b computed from the context, and b constrained so that the step can be inverted::

        z_t = P z_{t-1} + b (P z_{t-1} - c) / (a + |P z_{t-1} - c|)

    Pyro leaves the inverse out, so only the flow's own draws have a density here. ``hidden`` are the widths of the
    network from the context to c, a and b; the other arguments are those of :class:`Flow`.

    Source: Rezende and Mohamed, "Variational inference with normalizing flows", 2015.
    """

    def make_step(self) -> nn.Module:
        """Return a radial step."""
        step: nn.Module = transforms.conditional_radial(self.free_dim, self.context_dim, list(self.hidden))
        return step
