"""Likelihood of tables whose columns are of several types."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.common.checks import at_least, flag, not_a_class, shown
from pyrovae.likelihoods.likelihood import Likelihood
from pyrovae.likelihoods.missing import Missing, PartlyObserved


class Columns(dist.TorchDistribution):
    """Independent distributions side by side.

    Args:
        parts: distributions, each with batch shape ``[..., D_i]``.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, parts: Sequence[dist.TorchDistribution]) -> None:
        self.parts = list(parts)
        self.sizes = [int(part.batch_shape[-1]) for part in parts]
        super().__init__((*parts[0].batch_shape[:-1], sum(self.sizes)), validate_args=False)

    @property
    def support(self) -> Constraint:
        """The support of every part in its columns."""
        return constraints.cat([part.support for part in self.parts], dim=-1, lengths=self.sizes)

    @property
    def mean(self) -> Tensor:
        """Means of all columns."""
        return torch.cat([part.mean for part in self.parts], dim=-1)

    @property
    def variance(self) -> Tensor:
        """Variances of all columns."""
        return torch.cat([part.variance for part in self.parts], dim=-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Columns":
        """Return the same distribution for a larger batch."""
        return Columns([part.expand((*batch_shape[:-1], n)) for part, n in zip(self.parts, self.sizes, strict=True)])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw every column."""
        draws = [part.sample(torch.Size(sample_shape)) for part in self.parts]
        common = torch.stack([d.new_zeros(()) for d in draws if d.is_floating_point()] or [draws[0].new_zeros(())])
        return torch.cat([d.to(common.dtype) for d in draws], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of every column."""
        values = value.split(self.sizes, dim=-1)
        return torch.cat([part.log_prob(v) for part, v in zip(self.parts, values, strict=True)], dim=-1)


class Mixed(Likelihood):
    """Columns of several types: every likelihood has its number of columns, side by side.

    Args:
        parts: pairs of a likelihood and its number of columns, in the order of the columns.
        missing: whether NaN marks a missing value, which does not count, as with :class:`Missing` around it.

    Example:
        >>> from pyrovae import likelihoods
        >>> table = Mixed([(likelihoods.Gaussian(), 3), (likelihoods.Categorical(4), 1), (likelihoods.Poisson(), 2)])
        >>> table.features(6)
        9
    """

    def __init__(self, parts: Sequence[tuple[Likelihood, int]], *, missing: bool = False) -> None:
        super().__init__()
        self.missing = flag("missing", missing)
        if not isinstance(parts, Sequence) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in parts):
            raise ValueError(f"parts must be pairs of a likelihood and its number of columns, got {shown(parts)}")
        if not parts:
            raise ValueError("parts is empty: give at least one pair of a likelihood and its number of columns")
        for likelihood, _ in parts:
            not_a_class("each likelihood in parts", likelihood)
            if not isinstance(likelihood, Likelihood | Missing):
                raise ValueError(f"each of parts must have a likelihood, such as Poisson(), got {shown(likelihood)}")
        self.sizes = tuple(at_least("each number of columns in parts", size, 1) for _, size in parts)
        self.likelihoods = nn.ModuleList([likelihood for likelihood, _ in parts])
        self.takes_exposure = any(getattr(likelihood, "takes_exposure", False) for likelihood, _ in parts)
        self.widths: list[Any] = [part.features(n) for (part, _), n in zip(parts, self.sizes, strict=True)]

    @property
    def parts(self) -> list[tuple[Any, int]]:
        """The likelihoods, each with its number of columns."""
        return list(zip(self.likelihoods, self.sizes, strict=True))

    def features(self, shape: Any) -> Any:
        """Return the number of features that a decoder has to return for rows of ``shape`` columns."""
        if shape != sum(self.sizes):
            raise ValueError(f"the parts have {sum(self.sizes)} columns together, the data have {shape}")
        return sum(self.widths)

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every column."""
        return Columns([part.columns(piece) for part, piece in self._pieces(features)])

    def exposed(self, features: Tensor, exposure: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every column; the parts that take an exposure are given it, ``[..., 1]``."""
        return Columns(
            [
                part.exposed(piece, exposure) if part.takes_exposure else part.columns(piece)
                for part, piece in self._pieces(features)
            ]
        )

    def _pieces(self, features: Tensor) -> list[tuple[Any, Tensor]]:
        """Return the parts, each with its features."""
        if features.shape[-1] != sum(self.widths):
            raise ValueError(
                f"the parts take {self.widths} features, {sum(self.widths)} in all, got {features.shape[-1]}"
            )
        return list(zip(self.likelihoods, features.split(self.widths, dim=-1), strict=True))

    def forward(
        self, features: Tensor, mask: Tensor | None = None, *, exposure: Tensor | None = None
    ) -> dist.TorchDistribution:
        """Return the distribution of x, batch shape ``[...]`` and event shape ``[D]``."""
        if self.missing and mask is None:
            return PartlyObserved(self.with_exposure(features, exposure)).to_event(1)
        return super().forward(features, mask, exposure=exposure)
