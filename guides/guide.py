"""What an amortised guide of one latent site is: an encoder, a family, and one sample statement."""

from abc import abstractmethod
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint

from pyrovae.nn import Network


class Guide(nn.Module):
    """q(z | x), with the parameters of its family read off an encoder.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents in the site's own (constrained) space.
        latent: name of the latent site.
        support: of the latent, a constraint of torch or its name ("positive", "unit_interval", "simplex", ...): the
            family lives on the unconstrained space and is mapped there; None is the real line.
    """

    def __init__(
        self,
        encoder: Network | nn.Module,
        latent_dim: int,
        *,
        latent: str = "z",
        support: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(getattr(encoder, "out_features", None), int):
            raise ValueError(
                f"the encoder, a {type(encoder).__name__}, does not say how many features it returns: give it an "
                "attribute out_features"
            )
        self.encoder, self.latent_dim, self.latent, self.support = encoder, latent_dim, latent, support
        self.num_features = int(encoder.out_features)  # type: ignore[arg-type]
        self.to_support = None if support is None else biject_to(_constraint(support))
        self.free_dim = latent_dim if self.to_support is None else self.to_support.inverse_shape((latent_dim,))[-1]

    @abstractmethod
    def unconstrained(self, features: Tensor) -> dist.TorchDistribution:
        """Return the family's member for features ``[N, F]``: batch shape ``[N]``, event shape ``[free_dim]``."""

    def posterior(self, *batch: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) of a batch: batch shape ``[N]``, event shape ``[latent_dim]``."""
        member = self.unconstrained(self.encoder(*batch))
        return member if self.to_support is None else dist.TransformedDistribution(member, [self.to_support])

    def forward(self, *batch: Tensor) -> Tensor:
        """Sample the latent of every datum of the batch; return it, ``[N, latent_dim]``."""
        pyro.module("guide", self)
        with pyro.plate("data", batch[0].shape[0]):
            z: Tensor = pyro.sample(self.latent, self.posterior(*batch))
        return z


def _constraint(support: Any) -> Constraint:
    named = isinstance(support, str) and support in constraints.__all__
    found = getattr(constraints, support) if named else support
    if not isinstance(found, Constraint):
        raise ValueError(f"support must be a constraint of torch.distributions or the name of one, got {support!r}")
    return found
