"""Gaussian likelihoods: the scale is fixed, learned for all data, or a feature of the decoder."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.common.checks import positive as above_zero
from pyrovae.likelihoods.likelihood import Likelihood
from pyrovae.nn import positive


class Gaussian(Likelihood):
    """x_d ~ N(features_d, scale_d^2), with a scale learned for all data (one, or one per column), or a fixed one.

    Args:
        num_scales: 1 for a scale shared by all columns, or the number of columns for one each.
        fixed: the scale, if it is not to be learned.
    """

    def __init__(self, *, num_scales: int = 1, fixed: float | None = None) -> None:
        super().__init__()
        self.num_scales = at_least("num_scales", num_scales, 1)
        self.fixed = None if fixed is None else above_zero("fixed", fixed)
        if fixed is not None and self.num_scales != 1:
            raise ValueError(f"a fixed scale is one for all columns, got num_scales={num_scales} beside it")
        self.raw_scale = None if fixed is not None else nn.Parameter(torch.zeros(self.num_scales))

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the noise, ``[num_scales]``."""
        return torch.tensor([self.fixed]) if self.raw_scale is None else positive(self.raw_scale)

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every column."""
        return dist.Normal(features, self.scale.to(features))


class HeteroscedasticGaussian(Likelihood):
    """x_d ~ N(loc_d, scale_d^2), with location and scale from the decoder, for every column of every observation.

    The density has no upper bound where the decoder fits a value exactly, so the scale has a smallest value.

    Source: Takahashi et al., "Student-t variational autoencoder for robust density estimation", 2018, for the problems
    of a free scale.

    Args:
        least_scale: smallest scale of every column, above 0.
    """

    num_params = 2

    def __init__(self, *, least_scale: float = 0.01) -> None:
        super().__init__()
        self.least_scale = above_zero("least_scale", least_scale)

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every column."""
        loc, raw_scale = self.params(features)
        return dist.Normal(loc, self.least_scale + positive(raw_scale))
