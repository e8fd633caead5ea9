"""Priors for sparse and heavy-tailed codes."""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.common.checks import at_least, positive, share
from pyrovae.distributions import precise
from pyrovae.priors.prior import Prior

EULER = 0.5772156649015329  # Euler and Mascheroni's constant


class StudentT(Prior):
    """z_d ~ Student-t(df, 0, scale), independently: tails that fall off as a power.

    Args:
        latent_dim: number of latents.
        df: degrees of freedom; the variance is finite above 2.
        scale: scale of every latent.
    """

    loc: Tensor

    def __init__(self, latent_dim: int, *, df: float = 4.0, scale: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = at_least("latent_dim", latent_dim, 1)
        self.df, self.scale = positive("df", df), positive("scale", scale)
        self.register_buffer("loc", torch.zeros(self.latent_dim), persistent=False)

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return precise.StudentT(self.df, self.loc, self.scale).to_event(1)


class SpikeAndSlab(Prior):
    """z_d ~ (1 - w) N(0, spike^2) + w N(0, slab^2), independently: a latent is near zero, or free.

    The spike has a width, so that the prior has a density and codes have a gradient.

    Source: George and McCulloch, "Variable selection via Gibbs sampling", 1993; Tonolini, Jensen and Murray-Smith,
    "Variational sparse coding", 2019.

    Args:
        latent_dim: number of latents.
        slab_weight: w, share of latents in use.
        spike_scale: standard deviation of latents that are not in use.
        slab_scale: standard deviation of latents in use.
    """

    scales: Tensor

    def __init__(
        self, latent_dim: int, *, slab_weight: float = 0.2, spike_scale: float = 0.05, slab_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.latent_dim = at_least("latent_dim", latent_dim, 1)
        self.slab_weight = share("slab_weight", slab_weight, ends=False)
        self.spike_scale, self.slab_scale = positive("spike_scale", spike_scale), positive("slab_scale", slab_scale)
        scales = torch.tensor([[self.spike_scale, self.slab_scale]] * self.latent_dim)
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        logits = self.scales.new_tensor([math.log(1 - self.slab_weight), math.log(self.slab_weight)])
        which = dist.Categorical(logits=logits.expand(self.latent_dim, 2))
        return dist.MixtureSameFamily(which, dist.Normal(torch.zeros_like(self.scales), self.scales)).to_event(1)


def scaled_exponential_integral(u: Tensor) -> Tensor:
    """Return e^u E1(u) for u > 0, where E1(u) is the integral of e^-t / t from u on; the relative error is below 1e-6.

    Source: Abramowitz and Stegun, "Handbook of mathematical functions", 1964, 5.1.11 (below 1.5) and 5.1.22 (above).
    """
    small, large = u.clamp(max=1.5), u.clamp(min=1.5)
    series, term = -EULER - small.log(), -torch.ones_like(u)
    for k in range(1, 22):
        term = -term * small / k
        series = series + term / k
    fraction = torch.zeros_like(u)
    for k in range(60, 0, -1):
        fraction = k * k / (large + 2 * k + 1 - fraction)
    return torch.where(u < 1.5, series * small.exp(), 1 / (large + 1 - fraction))


class HorseshoeDistribution(dist.TorchDistribution):
    """z = t l e, with l half-Cauchy and e standard normal; its density is that of z alone, with l integrated out.

    With u = z^2 / (2 t^2)::

        p(z) = e^u E1(u) / (t sqrt(2 pi^3))

    which is infinite at 0, though the mass there is not.

    Args:
        scale: t.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, scale: Tensor, validate_args: bool | None = None) -> None:
        self.scale = scale
        super().__init__(scale.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """NaN, because there is none: the tails are those of a Cauchy distribution."""
        return torch.full_like(self.scale, torch.nan)

    @property
    def variance(self) -> Tensor:
        """Infinite, as that of a Cauchy distribution."""
        return torch.full_like(self.scale, torch.inf)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HorseshoeDistribution":
        """Return the same distribution for more latents."""
        return HorseshoeDistribution(self.scale.expand(batch_shape), validate_args=self._validate_args)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw."""
        zero = torch.zeros_like(self.scale)
        local = dist.HalfCauchy(self.scale).rsample(torch.Size(sample_shape))
        return local * dist.Normal(zero, zero + 1).rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density."""
        if self._validate_args:
            self._validate_sample(value)
        number = torch.finfo(value.dtype)
        u = (0.5 * (value / self.scale).square()).clamp(min=number.tiny, max=number.max)
        return scaled_exponential_integral(u).log() - self.scale.log() - 0.5 * math.log(2 * math.pi**3)


class Horseshoe(Prior):
    """z_d ~ N(0, (l_d scale)^2), l_d ~ half-Cauchy(1), with l integrated out: a pole at zero and Cauchy tails.

    Source: Carvalho, Polson and Scott, "The horseshoe estimator for sparse signals", 2010.

    Args:
        latent_dim: number of latents.
        scale: global scale of every latent; the smaller it is, the sparser the codes are.
    """

    scales: Tensor

    def __init__(self, latent_dim: int, *, scale: float = 0.5) -> None:
        super().__init__()
        self.latent_dim, self.scale = at_least("latent_dim", latent_dim, 1), positive("scale", scale)
        self.register_buffer("scales", torch.full((self.latent_dim,), self.scale), persistent=False)

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return HorseshoeDistribution(self.scales).to_event(1)
