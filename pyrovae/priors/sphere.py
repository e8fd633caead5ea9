"""Uniform prior on the sphere, and the distribution of a guide there."""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.common.checks import at_least
from pyrovae.priors.prior import Prior


def log_area(size: int) -> float:
    """Return the logarithm of the area of the unit sphere in ``size`` dimensions."""
    return math.log(2) + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)


class UnitSphere(Constraint):
    """Vectors of length 1."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Return whether every vector has length 1, up to rounding."""
        return (value.norm(dim=-1) - 1).abs() < 1e-4

    def __repr__(self) -> str:
        return "UnitSphere()"


unit_sphere = UnitSphere()


class SphereUniform(dist.TorchDistribution):
    """Uniform distribution on the unit sphere.

    Args:
        pole: any vector on the sphere, ``[D]``.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    support = unit_sphere

    def __init__(self, pole: Tensor, batch_shape: Any = (), validate_args: bool | None = None) -> None:
        self.pole = pole
        super().__init__(torch.Size(batch_shape), pole.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The centre of the sphere."""
        return torch.zeros_like(self.pole).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of every coordinate, 1 / D."""
        return torch.full_like(self.mean, 1 / self.pole.shape[-1])

    def expand(self, batch_shape: Any, _instance: Any = None) -> "SphereUniform":
        """Return the same distribution for a larger batch."""
        return SphereUniform(self.pole, batch_shape, validate_args=self._validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return F.normalize(torch.randn(shape, dtype=self.pole.dtype, device=self.pole.device), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the logarithm of the sphere's area."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_area(self.pole.shape[-1]))


class PowerSpherical(dist.TorchDistribution):
    """Density proportional to (1 + loc' z)^concentration on the unit sphere, reparametrised.

    Source: De Cao and Aziz, "The power spherical distribution", 2020.

    Args:
        loc: unit vectors, ``[..., D]``, D at least 2.
        concentration: positive, ``[...]``; 0 would be uniform.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"loc": unit_sphere, "concentration": constraints.positive}
    support = unit_sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.concentration = loc, concentration
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def _depth(self) -> dist.Beta:
        """Return the distribution of (1 - loc' z) / 2: how far below ``loc`` a draw lies, as a share of the sphere."""
        half = 0.5 * (self.event_shape[0] - 1)
        return dist.Beta(torch.full_like(self.concentration, half), half + self.concentration, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean vector, inside the ball."""
        return self.loc * (self.concentration / (self.event_shape[0] - 1 + self.concentration))[..., None]

    @property
    def variance(self) -> Tensor:
        """Variance of every coordinate, from that of the height along ``loc`` and of the coordinates across it."""
        size, depth = self.event_shape[0], self._depth()
        along = 4 * depth.variance
        across = 4 * (depth.mean - depth.mean.square() - depth.variance) / (size - 1)
        return across[..., None] + (along - across)[..., None] * self.loc.square()

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PowerSpherical":
        """Return the same distribution for a larger batch."""
        shape = torch.Size(batch_shape)
        return PowerSpherical(
            self.loc.expand(shape + self.event_shape),
            self.concentration.expand(shape),
            validate_args=self._validate_args,
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw: a height along the first axis, a direction across it, then a reflection of that axis to ``loc``.

        One reflection brings the axis to ``loc``, another to ``-loc``. The one between vectors that are far apart is
        used: between vectors that are close, a reflection turns rounding errors into directions.
        """
        depth = self._depth().rsample(torch.Size(sample_shape))[..., None]
        shape = self._extended_shape(torch.Size(sample_shape))
        across = F.normalize(
            torch.randn((*shape[:-1], shape[-1] - 1), dtype=self.loc.dtype, device=self.loc.device), dim=-1
        )
        width = 2 * (depth * (1 - depth)).clamp(min=torch.finfo(depth.dtype).tiny).sqrt()
        z = torch.cat([1 - 2 * depth, width * across], dim=-1)
        axis = F.one_hot(torch.zeros((), dtype=torch.int64, device=z.device), shape[-1]).to(z.dtype)
        sign = torch.where(self.loc[..., :1] > 0, -1.0, 1.0).to(z.dtype)
        normal = F.normalize(axis - sign * self.loc, dim=-1)
        return sign * (z - 2 * (z * normal).sum(-1, keepdim=True) * normal)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density with respect to the sphere's area."""
        if self._validate_args:
            self._validate_sample(value)
        size, k = self.event_shape[0], self.concentration
        beta = 0.5 * (size - 1)
        alpha = k.double() + beta  # differences of gamma functions cancel in single precision
        constant = torch.lgamma(alpha + beta) - torch.lgamma(alpha) - 2 * beta * math.log(2) - beta * math.log(math.pi)
        return constant.to(k.dtype) + k * self._log_height(value)

    def _log_height(self, value: Tensor) -> Tensor:
        """Return log((1 + loc' z) / 2), without cancellation.

        The number is both 1 - |z - loc|^2 / 4 and |z + loc|^2 / 4; the one that does not cancel is used. Exactly on the
        far side the density is 0; a floor keeps its logarithm finite.
        """
        near, far = (0.25 * (value + sign * self.loc).square().sum(-1) for sign in (-1, 1))
        least = torch.finfo(far.dtype).tiny
        return torch.where(near < 0.5, (-near.clamp(max=0.5)).log1p(), far.clamp(min=least).log())


class UniformSphere(Prior):
    """z uniform on the unit sphere in ``latent_dim`` dimensions; guide: :class:`~pyrovae.guides.Spherical`.

    Source: Davidson, Falorsi, De Cao, Kipf and Tomczak, "Hyperspherical variational auto-encoders", 2018.

    Args:
        latent_dim: number of coordinates, one more than the dimension of the sphere; at least 2.
    """

    pole: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = at_least("latent_dim", latent_dim, 2)
        pole = torch.zeros(self.latent_dim)
        pole[0] = 1.0
        self.register_buffer("pole", pole, persistent=False)

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the uniform distribution."""
        return SphereUniform(self.pole)
