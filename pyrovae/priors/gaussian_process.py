"""A Gaussian process over time as the prior of a series' codes."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least, finite, positive, share, shown
from pyrovae.nn.network import positive as above_zero
from pyrovae.nn.network import raw_positive
from pyrovae.priors.prior import Prior


class GaussianProcess(Prior):
    """Smooth codes of a series: z_l(t) ~ GP(0, k), l = 1, ..., L, at the series' times; an observation is a series.

    With the Matern-3/2 kernel, a learned length scale for each l, and a little noise::

        k(t, s) = (1 - w) (1 + a) e^-a + w [t = s],   a = sqrt(3) |t - s| / length

    so that every z_l(t) has variance 1. The latent of an observation is ``[L * T]``: all times of the first code come
    first.

    Source: Fortuin, Baranchuk, Ratsch and Mandt, "GP-VAE: deep probabilistic time series imputation", 2020; Casale et
    al., "Gaussian process prior variational autoencoders", 2018.

    Args:
        times: times of the steps, T numbers; or the number T, for times 0, 1, ..., T - 1.
        num_codes: L, number of codes.
        length: initial value of the length scales, in the unit of the times.
        noise: w, weight of the noise.
    """

    grid: Tensor

    def __init__(
        self, times: Sequence[float] | int, *, num_codes: int = 1, length: float = 2.0, noise: float = 0.01
    ) -> None:
        super().__init__()
        self.times = _times(times)
        self.num_codes, self.length = at_least("num_codes", num_codes, 1), positive("length", length)
        self.noise = share("noise", noise, ends=False)
        self.latent_dim = self.num_codes * len(self.times)
        self.register_buffer("grid", torch.tensor(self.times), persistent=False)
        self.raw_length = nn.Parameter(torch.full((self.num_codes,), raw_positive(self.length, "length")))

    def covariance(self) -> Tensor:
        """Return the kernel at all pairs of times, ``[L, T, T]``."""
        distance = (self.grid[:, None] - self.grid).abs()
        scaled = math.sqrt(3) * distance / above_zero(self.raw_length)[:, None, None]
        smooth = (1 + scaled) * (-scaled).exp()
        return (1 - self.noise) * smooth + self.noise * torch.eye(len(self.grid)).to(smooth)

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the distribution of the codes, event shape ``[L * T]``."""
        factor = torch.block_diag(*torch.linalg.cholesky(self.covariance()))
        return dist.MultivariateNormal(factor.new_zeros(self.latent_dim), scale_tril=factor)


def _times(times: Any) -> list[float]:
    """Return the times of the steps, of which there is at least one.

    Raises:
        ValueError: when they are neither numbers nor their number.
    """
    if isinstance(times, Integral):
        return [float(t) for t in range(at_least("times", times, 1))]
    if not isinstance(times, Iterable) or isinstance(times, str | bytes):
        raise ValueError(f"times must be numbers, or their number, got {shown(times)}")
    numbers = [finite("each of times", t.item() if isinstance(t, Tensor) else t) for t in times]
    if not numbers:
        raise ValueError("times is empty: give the time of at least one step")
    return numbers
