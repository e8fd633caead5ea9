"""Values that were not observed: they do not count in the density, and are imputed by draws."""

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint

from pyrovae.nn.network import check_module


class ObservedOr(Constraint):
    """NaN, for a missing value, or what another constraint allows.

    Args:
        base: the other constraint.
    """

    def __init__(self, base: Constraint) -> None:
        super().__init__()
        self.base, self.is_discrete, self.event_dim = base, base.is_discrete, base.event_dim

    def check(self, value: Tensor) -> Tensor:
        """Return whether every value is missing or allowed."""
        return value.isnan() | self.base.check(value)

    def __repr__(self) -> str:
        return f"{self.base!r} or NaN (missing)"


class PartlyObserved(TorchDistribution):
    """Independent values of which some are missing: ``log_prob`` is 0 there, and draws are those of the base.

    Args:
        base: distribution of every value, without event dimensions.
        mask: which values are observed, broadcasting against the base's batch shape; None: all that are not NaN.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, base: TorchDistribution, mask: Tensor | None = None) -> None:
        if base.event_shape:
            raise ValueError(
                f"a {type(base).__name__} has no density of single columns, so that none of them can be missing: "
                "use a likelihood of independent columns"
            )
        self.base_dist, self.mask_of = base, None if mask is None else mask.bool()
        super().__init__(base.batch_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether the base distribution has ``rsample``."""
        return bool(self.base_dist.has_rsample)

    @property
    def support(self) -> Constraint:
        """The base's support, or NaN; any real number where a mask says what is missing."""
        return constraints.real if self.mask_of is not None else ObservedOr(self.base_dist.support)

    @property
    def mean(self) -> Tensor:
        """Mean of the base distribution."""
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """Variance of the base distribution."""
        return self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PartlyObserved":
        """Return the same distribution for a larger batch."""
        return PartlyObserved(self.base_dist.expand(batch_shape), self.mask_of)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw every value, missing or not."""
        return self.base_dist.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw every value, missing or not, with a gradient."""
        return self.base_dist.rsample(torch.Size(sample_shape))

    def as_observed(self, drawn: Tensor, data: Tensor) -> Tensor:
        """Return the draws, set to NaN where the data are missing."""
        return torch.where(data.isnan(), data, drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of observed values, and 0 for missing ones."""
        observed = ~value.isnan() if self.mask_of is None else self.mask_of
        inside = inner(self.base_dist.support).to(value)
        log_density = self.base_dist.log_prob(torch.where(observed, value, inside))
        return torch.where(observed, log_density, torch.zeros_like(log_density))


def inner(support: Any) -> Tensor:
    """Return a number inside a univariate constraint (or one for each column), to put where a value is missing."""
    if isinstance(support, constraints.cat):
        return torch.cat([inner(c).expand(n) for c, n in zip(support.cseq, support.lengths, strict=True)])
    if support.is_discrete or support is constraints.boolean:
        return torch.tensor(float(getattr(support, "lower_bound", 0)))
    free: Tensor = biject_to(support)(torch.zeros(()))
    return free


class Missing(nn.Module):
    """Any likelihood of independent columns, for data in which NaN marks a missing value.

    Missing values do not count in log p(x | z), so that bounds are those of the observed part, which is right if values
    are missing at random. The encoder has to take NaN: see :class:`pyrovae.nn.Observed`.

    Source: Mattei and Frellsen, "MIWAE: deep generative modelling and imputation of incomplete data sets", 2019.

    Args:
        likelihood: likelihood of complete data.

    Example:
        >>> from pyrovae import likelihoods
        >>> x = torch.tensor([[0.0, torch.nan]])
        >>> Missing(likelihoods.Gaussian(fixed=1.0))(torch.zeros(1, 2)).log_prob(x)
        tensor([-0.9189])
    """

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        check_module("likelihood", likelihood)
        self.likelihood = likelihood

    @property
    def takes_exposure(self) -> bool:
        """Whether the likelihood takes an exposure."""
        return bool(getattr(self.likelihood, "takes_exposure", False))

    def forward(self, features: Tensor, *, exposure: Tensor | None = None) -> TorchDistribution:
        """Return the distribution of x, in which NaN marks a missing value."""
        offsets = {} if exposure is None else {"exposure": exposure}
        base: Any = self.likelihood(features, **offsets)
        if not isinstance(base, torch.distributions.Independent):
            raise ValueError(
                f"a {type(base).__name__} has no density of single columns, so that none of them can be missing: "
                "use a likelihood of independent columns, Independent(..., 1)"
            )
        return PartlyObserved(base.base_dist).to_event(base.reinterpreted_batch_ndims)

    def features(self, shape: Any) -> Any:
        """Return the shape of the features that a decoder has to return for data of this shape."""
        likelihood: Any = self.likelihood
        return likelihood.features(shape)
