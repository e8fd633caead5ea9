"""Base class of priors: a module that returns the distribution of the latents, to train, evaluate and sample."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.common.checks import not_a_class, shown
from pyrovae.priors.tensors import map_tensors


class Prior(nn.Module):
    """Returns p(z), or p(z | c) from covariates c.

    The latent's own dimensions are event dimensions: without covariates the batch shape is ``()``, which the data plate
    expands.
    """

    @abstractmethod
    def forward(self, *covariates: Tensor) -> TorchDistribution:
        """Return the distribution of one observation's latent."""


class Fixed(Prior):
    """Any distribution, as it is: ``Fixed(dist.Laplace(0.0, 1.0).expand([8]).to_event(1))``.

    Its tensors move with the module between devices and dtypes; they are not trained.

    Args:
        distribution: distribution with batch shape ``()``; the latent's dimensions are declared with ``.to_event``.

    Raises:
        ValueError: when the distribution has batch dimensions left.
    """

    def __init__(self, distribution: TorchDistribution) -> None:
        super().__init__()
        not_a_class("distribution", distribution)
        if not isinstance(distribution, Distribution):
            raise ValueError(f"distribution must be a distribution of torch or Pyro, got {shown(distribution)}")
        if distribution.batch_shape:
            raise ValueError(
                f"the prior has batch shape {tuple(distribution.batch_shape)}: declare the latent's dimensions as "
                f"events with .to_event({len(distribution.batch_shape)})"
            )
        self.distribution = distribution

    def forward(self, *covariates: Tensor) -> TorchDistribution:
        """Return the distribution."""
        return self.distribution

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fixed":
        super()._apply(fn, recurse)
        self.distribution = map_tensors(self.distribution, fn)
        return self


def as_prior(prior: Any) -> nn.Module:
    """Return ``prior`` as a module: a distribution becomes :class:`Fixed`, a module stays itself.

    Raises:
        ValueError: when it is neither.
    """
    not_a_class("prior", prior)
    if isinstance(prior, Distribution):
        return Fixed(prior)
    if isinstance(prior, nn.Module):
        return prior
    raise ValueError(f"a prior is a distribution or a module that returns one, got {shown(prior)}")


def num_latents(prior: nn.Module) -> int | None:
    """Return the number of latents of a prior, if it says so: its ``latent_dim``, or the length of its events."""
    if isinstance(prior, Fixed):
        shape = prior.distribution.event_shape
        return int(shape[0]) if len(shape) == 1 else None
    latent_dim = getattr(prior, "latent_dim", None)
    return latent_dim if isinstance(latent_dim, int) else None
