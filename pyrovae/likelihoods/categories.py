"""Likelihoods of categories: without an order, and with one."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.likelihoods.likelihood import Likelihood
from pyrovae.nn import positive
from pyrovae.nn.network import log_sigmoid


class Categorical(Likelihood):
    """x_d ~ Categorical(softmax(features_d1, ..., features_dC)), a whole number from 0 to C - 1, for tables and tokens.

    Its ``mean`` is NaN, because categories have no mean; ``mode`` and ``probs`` give the prediction.

    Args:
        num_categories: C, number of categories of every column.
    """

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.num_categories = self.num_params = at_least("num_categories", num_categories, 2)

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every category."""
        return dist.Categorical(logits=torch.stack(self.params(features), dim=-1))


class Ordinal(Likelihood):
    """P(x_d <= k) = sigmoid(cut_k - features_d), for grades from 0 to L - 1, with learned cuts for all columns.

    Source: McCullagh, "Regression models for ordinal data", 1980.

    Args:
        num_levels: L, number of grades.
    """

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_levels = at_least("num_levels", num_levels, 2)
        self.first_cut = nn.Parameter(torch.tensor(1.0 - self.num_levels / 2))
        self.raw_steps = nn.Parameter(torch.zeros(self.num_levels - 2))

    @property
    def cuts(self) -> Tensor:
        """Where one grade ends and the next begins, ascending, ``[L - 1]``."""
        return torch.cat([self.first_cut[None], self.first_cut + positive(self.raw_steps).cumsum(0)])

    def columns(self, features: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every grade."""
        return OrderedGrades(features, self.cuts)


class OrderedGrades(dist.OrderedLogistic):
    """Ordered logistic distribution with a mean, as its categories are numbers, and a density accurate far out."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(grade): sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a-b)) at the cuts around it."""
        if self._validate_args:
            self._validate_sample(value)
        predictor, grade = torch.broadcast_tensors(self.predictor, value.long())
        last = self.cutpoints.shape[-1]
        first, final = grade == 0, grade == last
        cuts = self.cutpoints.expand(*grade.shape, last)
        below, above = (cuts.gather(-1, k.clamp(0, last - 1)[..., None])[..., 0] for k in (grade - 1, grade))
        inner = torch.where(first | final, 0.0, (-torch.expm1(torch.where(first | final, -1.0, below - above))).log())
        upper = torch.where(final, 0.0, log_sigmoid(above - predictor))
        return upper + torch.where(first, 0.0, log_sigmoid(predictor - below)) + inner

    @property
    def mean(self) -> Tensor:
        """Expected grade."""
        return (self.probs * torch.arange(self.probs.shape[-1]).to(self.probs)).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Variance of the grade."""
        grades = torch.arange(self.probs.shape[-1]).to(self.probs)
        return (self.probs * (grades - self.mean[..., None]).square()).sum(-1)
