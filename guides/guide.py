"""Base class of amortised guides of one latent site: an encoder, a family, and one sample statement."""

from abc import abstractmethod
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.common.checks import at_least, not_a_class, shown, site_name
from pyrovae.distributions.supports import bijection, constraint, of_components, of_vectors
from pyrovae.guides.draw import Draw
from pyrovae.nn import Network
from pyrovae.nn.network import num_features


class Guide(nn.Module):
    """q(z | x), a member of a family with parameters lambda(x) = head(encoder(x)).

    For a family of your own, write a subclass that makes ``self.head``, a network from the encoder's features to the
    parameters of one observation, and that turns these parameters into a distribution in :meth:`family`.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents in the site's own (constrained) space.
        latent: name of the latent site.
        support: support of the latent, a torch constraint or its name ("positive", "unit_interval", "simplex", ...).
            The family is defined on the unconstrained space and is mapped to the support; None is the real line. A
            constraint of single numbers applies to every number of the latent.
    """

    head: nn.Module

    def __init__(
        self,
        encoder: Network | nn.Module,
        latent_dim: int,
        *,
        latent: str = "z",
        support: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.latent_dim = num_features("encoder", encoder), at_least("latent_dim", latent_dim, 1)
        self.encoder, self.latent, self.support = encoder, site_name("latent", latent), support
        self.to_support = None if support is None else _onto(support)
        self.free_dim = latent_dim = self.latent_dim
        if self.to_support is not None:
            self.free_dim = self.to_support.inverse_shape((latent_dim,))[-1]
        if self.free_dim < 1:
            raise ValueError(f"support {support!r} leaves nothing free of latent_dim {latent_dim}: take more latents")

    @abstractmethod
    def family(self, params: Tensor) -> dist.TorchDistribution:
        """Return the family's member of every row of ``params``, ``[N, P]``, on the unconstrained space.

        Its batch shape is ``[N]``, its event shape ``[free_dim]``.
        """

    def params(self, *batch: Tensor) -> Tensor:
        """Return the parameters of q(z | x) for every observation, ``[N, P]``, from encoder and head."""
        params: Tensor = self.head(self.encoder(*batch))
        return params

    def member(self, params: Tensor) -> dist.TorchDistribution:
        """Return the family's member of every row of ``params``, in the latent's own space."""
        return transformed(self.family(params), self.to_support)

    def posterior(self, *batch: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) of a batch: batch shape ``[N]``, event shape ``[latent_dim]``."""
        return self.member(self.params(*batch))

    def forward(self, *batch: Tensor) -> Tensor:
        """Sample the latent of every observation of the batch; return it, ``[N, latent_dim]``."""
        pyro.module("guide", self)
        with pyro.plate("data", batch[0].shape[0]):
            z: Tensor = pyro.sample(self.latent, self.posterior(*batch))
        return z


def _onto(support: Any) -> Any:
    """Return a transform from real vectors onto a support.

    Raises:
        ValueError: if there is none.
    """
    try:
        return bijection(of_vectors(of_components(constraint(support))))
    except NotImplementedError:
        raise ValueError(f"support {support!r} is one onto which torch has no map from the real line") from None


def check_guide(name: str, guide: Any) -> None:
    """Check that ``guide`` is a guide of one latent with an encoder, and not a class.

    Raises:
        ValueError: if not; the message says what to write.
    """
    not_a_class(name, guide)
    if not isinstance(guide, Guide):
        raise ValueError(f"{name} must be a guide with an encoder, of one latent, got {shown(guide)}")


def transformed(member: dist.TorchDistribution, to_support: Any) -> dist.TorchDistribution:
    """Map a distribution from the unconstrained space to the latent's own; None: the spaces are the same."""
    if to_support is None:
        return member
    if isinstance(member, Draw):
        z = to_support(member.value)
        log_density = member.log_density - to_support.log_abs_det_jacobian(member.value, z)
        return Draw(z, log_density, to_support.codomain)
    return dist.TransformedDistribution(member, [to_support.with_cache()])  # of draws, for flows without an inverse
