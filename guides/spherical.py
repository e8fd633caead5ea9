"""Guide on the unit sphere."""

import pyro.distributions as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.guides.guide import Guide
from pyrovae.nn import Network, positive
from pyrovae.priors.sphere import PowerSpherical


class Spherical(Guide):
    """q(z | x) = PowerSpherical(loc(x), concentration(x)) on the unit sphere, for the prior ``priors.UniformSphere``.

    Source: De Cao and Aziz, "The power spherical distribution", 2020; Davidson et al., "Hyperspherical variational
    auto-encoders", 2018.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of coordinates, one more than the dimension of the sphere; at least 2.
        latent: name of the latent site.

    Example:
        >>> import torch
        >>> from pyrovae import nn
        >>> z = Spherical(nn.MLP(64, 32), 3).posterior(torch.zeros(5, 64)).sample()
        >>> z.norm(dim=-1).allclose(torch.ones(5))
        True
    """

    def __init__(self, encoder: Network | nn.Module, latent_dim: int, *, latent: str = "z") -> None:
        super().__init__(encoder, at_least("latent_dim", latent_dim, 2), latent=latent)
        self.head = nn.Linear(self.num_features, self.latent_dim + 1)

    def family(self, params: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every row of parameters."""
        direction, raw = params[..., :-1], params[..., -1]
        return PowerSpherical(F.normalize(direction, dim=-1), 10 * positive(raw))
