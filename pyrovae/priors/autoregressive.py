"""Autoregressive prior of discrete codes."""

from typing import Any, ClassVar

import pyro.distributions as dist
import pyro.nn
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.common.checks import at_least, widths
from pyrovae.priors.prior import Prior


class Autoregressive(Prior):
    """p(z) = prod_d p(z_d | z_1, ..., z_(d-1)) of whole numbers z_d from 0 to C - 1, by one masked network.

    Scoring takes one pass; sampling takes one pass per code.

    Source: Germain, Gregor, Murray and Larochelle, "MADE: masked autoencoder for distribution estimation", 2015; van
    den Oord, Vinyals and Kavukcuoglu, "Neural discrete representation learning", 2017, for its use as a prior.

    Args:
        num_codes: D, number of codes.
        num_categories: C, number of categories of each code.
        hidden: widths of the hidden layers.
    """

    def __init__(self, num_codes: int, num_categories: int, *, hidden: tuple[int, ...] = (64, 64)) -> None:
        super().__init__()
        self.num_codes = at_least("num_codes", num_codes, 1)
        self.num_categories = at_least("num_categories", num_categories, 2)
        self.hidden = widths("hidden", hidden, empty=False)
        size = self.num_codes * self.num_categories
        self.network = pyro.nn.AutoRegressiveNN(
            size,
            [max(width, size) for width in self.hidden],
            param_dims=[self.num_categories],
            permutation=torch.arange(size),
        )

    def logits(self, codes: Tensor) -> Tensor:
        """Return the logits of every code given those before it, ``[..., D, C]``, for codes ``[..., D]``."""
        hot = F.one_hot(codes.long(), self.num_categories).to(next(self.network.parameters()).dtype)
        logits = self.network(hot.flatten(-2))  # of every category, given the categories before it
        starts = logits[..., :: self.num_categories]  # before a code's first category stand the earlier codes only
        return starts.movedim(-2, -1)

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the distribution of the codes, event shape ``[D]``."""
        return Codes(self)


class Codes(dist.TorchDistribution):
    """Distribution of codes, each given those before it.

    Args:
        prior: prior that has the network.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, prior: Autoregressive, batch_shape: Any = (), validate_args: bool | None = None) -> None:
        self.prior = prior
        super().__init__(torch.Size(batch_shape), torch.Size([prior.num_codes]), validate_args=validate_args)

    @property
    def support(self) -> Constraint:
        """Whole numbers below the number of categories."""
        return constraints.independent(constraints.integer_interval(0, self.prior.num_categories - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Codes":
        """Return the same distribution for a larger batch."""
        return Codes(self.prior, batch_shape, validate_args=self._validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, code after code."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            codes = torch.zeros(shape, device=next(self.prior.parameters()).device)
            for d in range(self.prior.num_codes):
                codes[..., d] = dist.Categorical(logits=self.prior.logits(codes)[..., d, :]).sample().to(codes.dtype)
        return codes

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability."""
        if self._validate_args:
            self._validate_sample(value)
        return dist.Categorical(logits=self.prior.logits(value)).log_prob(value).sum(-1)
