"""Likelihoods of counts."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.common.checks import at_least, flag, shown
from pyrovae.distributions import precise
from pyrovae.likelihoods.likelihood import Likelihood, check_likelihood
from pyrovae.nn import positive
from pyrovae.nn.network import log_sigmoid


class Poisson(Likelihood):
    """x_d ~ Poisson(e softplus(features_d)), where e is the observation's exposure, or 1.

    Args:
        exposure: whether the means are proportional to an exposure, the last tensor of a batch.
    """

    def __init__(self, *, exposure: bool = False) -> None:
        super().__init__()
        self.exposure = self.takes_exposure = flag("exposure", exposure)

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every count."""
        return precise.Poisson(positive(features))

    def exposed(self, features: Tensor, exposure: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every count under an exposure ``[..., 1]``."""
        return precise.Poisson(positive(features) * exposure)


class NegativeBinomial(Likelihood):
    """x_d ~ NegativeBinomial with mean m_d = e softplus(features_d) and variance m_d + m_d^2 / r_d, r learned.

    Here e is the observation's exposure, or 1.

    Args:
        num_dispersions: 1 for an r shared by all columns, or the number of columns for one each.
        exposure: whether the means are proportional to an exposure, the last tensor of a batch.
    """

    def __init__(self, *, num_dispersions: int = 1, exposure: bool = False) -> None:
        super().__init__()
        self.num_dispersions = at_least("num_dispersions", num_dispersions, 1)
        self.exposure = self.takes_exposure = flag("exposure", exposure)
        self.raw_dispersion = nn.Parameter(torch.zeros(self.num_dispersions))

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every count."""
        dispersion = positive(self.raw_dispersion)
        return precise.NegativeBinomial(dispersion, logits=positive(features).log() - dispersion.log())

    def exposed(self, features: Tensor, exposure: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every count under an exposure ``[..., 1]``."""
        dispersion = positive(self.raw_dispersion)
        log_mean = positive(features).log() + exposure.log()
        return precise.NegativeBinomial(dispersion, logits=log_mean - dispersion.log())


class ZeroInflated(Likelihood):
    """x_d is 0 with probability sigmoid(g_d), else a draw of another likelihood of counts.

    The features are g, then those of the other likelihood.

    Source: Lambert, "Zero-inflated Poisson regression", 1992.

    Args:
        likelihood: likelihood of counts, with independent columns.
    """

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        check_likelihood("likelihood", likelihood)
        columns = likelihood.columns(torch.zeros(1, likelihood.num_params))
        if columns.event_shape or not columns.support.is_discrete:
            raise ValueError(f"likelihood must be one of counts in independent columns, got {shown(likelihood)}")
        self.likelihood, self.num_params = likelihood, 1 + likelihood.num_params
        self.takes_exposure = likelihood.takes_exposure

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every count."""
        gate, *others = self.params(features)
        counts = self.likelihood.columns(torch.cat(others, dim=-1))
        return Inflated(counts, gate_logits=gate)

    def exposed(self, features: Tensor, exposure: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every count under an exposure ``[..., 1]``."""
        gate, *others = self.params(features)
        counts = self.likelihood.exposed(torch.cat(others, dim=-1), exposure)
        return Inflated(counts, gate_logits=gate)


class Inflated(dist.ZeroInflatedDistribution):
    """Zero with probability g, else a draw of another distribution: nothing cancels, even if g is near 0 or 1."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability."""
        if self._validate_args:
            self._validate_sample(value)
        from_counts = log_sigmoid(-self.gate_logits) + self.base_dist.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(log_sigmoid(self.gate_logits), from_counts), from_counts)

    @property
    def mean(self) -> Tensor:
        """(1 - g) m, with m the mean of the other distribution."""
        return (-self.gate_logits).sigmoid() * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """(1 - g) (v + g m^2), with m and v the mean and variance of the other distribution."""
        spread = self.base_dist.variance + self.gate_logits.sigmoid() * self.base_dist.mean.square()
        return (-self.gate_logits).sigmoid() * spread


class Counts(dist.TorchDistribution):
    """Counts of D categories given their total, whatever total the value has.

    The log probability is a small difference of large terms, which are computed in double precision. The rounding of
    the logits remains: about 6e-8 times the counts' distance from their mean, summed over the categories.

    Args:
        logits: logits of the categories, ``[..., D]``.
        total_count: total of each draw, a number or ``[...]``.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, logits: Tensor, total_count: int | Tensor, validate_args: bool | None = None) -> None:
        self.logits, self.total_count = logits, total_count
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def totals(self) -> Tensor:
        """Totals of the draws, ``[..., 1]``."""
        return torch.as_tensor(self.total_count, device=self.logits.device).expand(self.batch_shape)[..., None]

    @property
    def mean(self) -> Tensor:
        """Mean of draws."""
        return self.totals * self.logits.softmax(-1)

    @property
    def variance(self) -> Tensor:
        """Variance of draws."""
        probs = self.logits.softmax(-1)
        return self.totals * probs * (1 - probs)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Counts":
        """Return the same distribution for a larger batch."""
        total = self.total_count.expand(batch_shape) if isinstance(self.total_count, Tensor) else self.total_count
        return Counts(self.logits.expand(*batch_shape, -1), total, validate_args=self._validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw."""
        shape = self._extended_shape(torch.Size(sample_shape))
        if isinstance(self.total_count, int):
            counts = torch.distributions.Multinomial(self.total_count, logits=self.logits.double())
            return counts.sample(torch.Size(sample_shape)).to(self.logits.dtype)
        totals = self.totals[..., 0].expand(shape[:-1]).double()
        return _halved(totals, self.logits.double().softmax(-1).expand(shape)).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of counts given their sum."""
        if self._validate_args:
            self._validate_sample(value)
        counts, logits = value.double(), self.logits.double()
        orders = (counts.sum(-1) + 1).lgamma() - (counts + 1).lgamma().sum(-1)
        return (orders + (counts * logits.log_softmax(-1)).sum(-1)).to(self.logits.dtype)


def _halved(totals: Tensor, probs: Tensor) -> Tensor:
    """Draw multinomial counts ``[..., D]`` of totals ``[...]``: each total is split in two by a binomial, and so on."""
    size = probs.shape[-1]
    if size == 1:
        return totals[..., None]
    left, right = probs.split([size // 2, size - size // 2], dim=-1)
    mass = left.sum(-1) / (left.sum(-1) + right.sum(-1)).clamp(min=torch.finfo(probs.dtype).tiny)
    with torch.no_grad():
        first = torch.distributions.Binomial(totals, mass.clamp(0, 1), validate_args=False).sample()
    return torch.cat([_halved(first, left), _halved(totals - first, right)], dim=-1)


class Multinomial(Likelihood):
    """x ~ Multinomial(n, softmax(features)), with n each observation's own total: compositions, words of a document.

    The density is that of x given its total. Draws and means have the total of their own observation where that is the
    last tensor of a batch, as ``data.Data(x).with_totals()`` gives it; otherwise they all have ``total_count``.

    Args:
        total_count: total n of draws and of the mean; None takes each observation's own, the last tensor of a batch.
    """

    def __init__(self, *, total_count: int | None = None) -> None:
        super().__init__()
        self.total_count = None if total_count is None else at_least("total_count", total_count, 1)
        self.takes_exposure = total_count is None

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of all counts: the columns depend on each other through their total."""
        return Counts(features, self.total_count or 1)

    def exposed(self, features: Tensor, exposure: Tensor) -> dist.TorchDistribution:
        """Return the distribution of all counts, with the totals ``[..., 1]`` in draws."""
        return Counts(features, exposure[..., 0].expand(features.shape[:-1]))

    def forward(
        self, features: Tensor, mask: Tensor | None = None, *, exposure: Tensor | None = None
    ) -> dist.TorchDistribution:
        """Return the distribution of x; its columns have no densities of their own, so there is no mask."""
        if mask is not None:
            raise ValueError("a Multinomial has no density of single columns, so that none of them can be missing")
        return self.with_exposure(features, exposure)
