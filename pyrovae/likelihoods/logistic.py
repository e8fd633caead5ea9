"""Discretised logistic likelihood of grey levels, and its mixture."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.common.checks import at_least
from pyrovae.likelihoods.likelihood import Likelihood
from pyrovae.nn import positive


class Grid(Constraint):
    """Multiples of 1 / (levels - 1) from 0 to 1.

    Args:
        levels: number of levels.
    """

    is_discrete = True

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        """Return whether every value is on the grid, up to rounding."""
        scaled = value * (self.levels - 1)
        return (value >= 0) & (value <= 1) & ((scaled - scaled.round()).abs() < 1e-3)

    def __repr__(self) -> str:
        return f"Grid(levels={self.levels})"


class Discretised(dist.TorchDistribution):
    """Logistic distribution rounded to a grid of levels in [0, 1], where the outermost levels take what lies beyond.

    Args:
        loc: location of the logistic distribution.
        scale: scale of the logistic distribution.
        levels: number of levels.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, levels: int, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> Constraint:
        """The grid."""
        return Grid(self.levels)

    def _survival(self) -> Tensor:
        """Return the probability of being at or above each level but the first, ``[..., levels - 1]``, in double."""
        edges = (torch.arange(1, self.levels, dtype=torch.float64, device=self.loc.device) - 0.5) / (self.levels - 1)
        return ((self.loc[..., None] - edges) / self.scale[..., None]).sigmoid()

    @property
    def mean(self) -> Tensor:
        """Expected level."""
        return (self._survival().sum(-1) / (self.levels - 1)).to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        """Variance of the level; in the mean of its square, P(level >= k) has weight 2 k - 1."""
        survival = self._survival()
        weights = 2 * torch.arange(1, self.levels).to(survival) - 1
        squared = (weights * survival).sum(-1) - survival.sum(-1).square()
        return (squared.clamp(min=0) / (self.levels - 1) ** 2).to(self.loc.dtype)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Discretised":
        """Return the same distribution for a larger batch."""
        return Discretised(
            self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels, self._validate_args
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            least = 0.25 * torch.finfo(self.loc.dtype).eps  # half of the spacing of uniform draws, in place of 0
            u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(min=least)
            draws = self.loc + self.scale * (u.log() - (-u).log1p())
            return (draws * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of a level, by sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a-b)).

        The edges of a level are computed in double precision, so that a narrow distribution between levels is accurate.
        """
        if self._validate_args:
            self._validate_sample(value)
        steps = self.levels - 1
        level = (value.double() * steps).round()
        below, above = ((((level + side) / steps - self.loc) / self.scale).to(self.loc.dtype) for side in (-0.5, 0.5))
        first, last = level == 0, level == steps
        inner = torch.where(first | last, 0.0, (-torch.expm1(-1 / (steps * self.scale))).log())
        return torch.where(last, 0.0, F.logsigmoid(above)) + torch.where(first, 0.0, F.logsigmoid(-below)) + inner


class DiscretisedLogistic(Likelihood):
    """x_d is a mixture of logistic draws, rounded to grey levels in [0, 1] (a byte over 255 has 256 of them).

    Source: Salimans, Karpathy, Chen and Kingma, "PixelCNN++", 2017; Kingma et al., "Improved variational inference with
    inverse autoregressive flow", 2016, for one component.

    Args:
        levels: number of grey levels.
        num_components: number of components of the mixture; 1 is the plain discretised logistic distribution.
    """

    def __init__(self, *, levels: int = 256, num_components: int = 1) -> None:
        super().__init__()
        self.levels, self.num_components = at_least("levels", levels, 2), at_least("num_components", num_components, 1)
        self.num_params = 2 if self.num_components == 1 else 3 * self.num_components

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every grey level."""
        params = torch.stack(self.params(features), dim=-1)
        size = self.num_components
        loc, raw_scale = params[..., :size].sigmoid(), params[..., size : 2 * size]
        components = Discretised(loc, 0.1 * positive(raw_scale), self.levels)
        if size == 1:
            return Discretised(components.loc[..., 0], components.scale[..., 0], self.levels)
        return dist.MixtureSameFamily(dist.Categorical(logits=params[..., 2 * size :]), components)
