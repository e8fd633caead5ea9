"""Neural spline flow guides: monotonic rational-quadratic splines, in coupling or autoregressive steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from pyrovae.common.checks import positive
from pyrovae.guides.flow import Flow
from pyrovae.nn import Network
from pyrovae.nn.spline import Coupling, check_bins, spline
from pyrovae.nn.transforms import Autoregressive


class SplineCoupling(Flow):
    """A Gaussian pushed through rational-quadratic splines of one half of the latents, given the other half.

    ::

        z_t = (first, spline(second; network(first, c(x)))),   (first, second) = P z_{t-1}

    Sampling and scoring both take one pass per step. The splines are the identity outside [-bound, bound], so that no
    step explodes. Location and scale come first, and so they are those of the data.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents; with a single latent the splines depend on the context only.
        num_steps: number of steps.
        hidden: widths of the hidden layers of each step's network.
        context_dim: number of features c(x) that the steps take.
        num_bins: number of bins of a spline.
        bound: half the length of the interval on which the splines bend.
        latent: name of the latent site.
        support: support of the latent, to which the flow is mapped: a torch constraint or its name. None is
            the real line.

    Example:
        >>> import torch
        >>> from pyrovae import nn
        >>> q = SplineCoupling(nn.MLP(64, 32), 3).posterior(torch.zeros(5, 64))
        >>> q.log_prob(q.sample()).shape
        torch.Size([5])
    """

    step: Callable[..., nn.Module] = Coupling
    may_be_linear = True

    def __init__(
        self,
        encoder: Network | nn.Module,
        latent_dim: int,
        *,
        num_steps: int = 2,
        hidden: tuple[int, ...] = (64, 64),
        context_dim: int = 32,
        num_bins: int = 8,
        bound: float = 5.0,
        latent: str = "z",
        support: Any = None,
    ) -> None:
        self.num_bins, self.bound = check_bins(num_bins), positive("bound", bound)
        super().__init__(
            encoder,
            latent_dim,
            num_steps=num_steps,
            hidden=hidden,
            context_dim=context_dim,
            latent=latent,
            support=support,
        )

    def make_step(self) -> nn.Module:
        """Return a step of splines."""
        univariate = partial(spline, bound=self.bound)
        return type(self).step(self.free_dim, self.context_dim, self.hidden, 3 * self.num_bins - 1, univariate)


class SplineAutoregressive(SplineCoupling):
    """A Gaussian pushed through rational-quadratic splines of every latent, given those before it.

    ::

        z_t = spline(P z_{t-1}; autoregressive(P z_{t-1}, c(x)))

    Sampling takes one pass per step; scoring an externally supplied z takes one pass per latent. The arguments are
    those of :class:`SplineCoupling`.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019.
    """

    step = Autoregressive
    may_be_linear = False
