"""A prior learned as a normalising flow."""

from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor, nn

from pyrovae.common.checks import at_least, positive, widths
from pyrovae.nn.network import positive as scale_of
from pyrovae.nn.spline import Coupling, check_bins, spline
from pyrovae.priors.prior import Prior


class NormalizingFlow(Prior):
    """z = loc + scale T_S(... T_1(u)), u ~ N(0, I), with T_s couplings of halves by rational-quadratic splines.

    Sampling and scoring both take one pass.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019; as a prior, Chen et al., "Variational
    lossy autoencoder", 2017.

    Args:
        latent_dim: number of latents, at least 2.
        num_steps: S, number of steps.
        hidden: widths of the hidden layers of each step's network.
        num_bins: number of bins of a spline.
        bound: half the length of the interval on which the splines bend.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        num_steps: int = 4,
        hidden: tuple[int, ...] = (64, 64),
        num_bins: int = 8,
        bound: float = 5.0,
    ) -> None:
        super().__init__()
        self.latent_dim, self.num_steps = at_least("latent_dim", latent_dim, 2), at_least("num_steps", num_steps, 1)
        self.hidden, self.num_bins = widths("hidden", hidden), check_bins(num_bins)
        self.bound = positive("bound", bound)
        univariate = partial(spline, bound=self.bound)
        self.steps = nn.ModuleList(
            Coupling(self.latent_dim, 0, self.hidden, 3 * self.num_bins - 1, univariate) for _ in range(self.num_steps)
        )
        self.reverse: Tensor
        self.register_buffer("reverse", torch.arange(latent_dim - 1, -1, -1), persistent=False)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the flow."""
        path: list[Any] = []
        for step in self.steps:
            conditional: Any = step
            path += [conditional.condition(self.loc.new_zeros(0)), transforms.Permute(self.reverse)]
        path.append(transforms.AffineTransform(self.loc, scale_of(self.raw_scale), event_dim=1))
        base = dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1)
        return dist.TransformedDistribution(base, path)
