"""Guide of a discrete latent, which is one of several categories."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least, positive
from pyrovae.guides.guide import Guide
from pyrovae.nn import Network


class Categorical(Guide):
    """q(z | x) = Categorical(softmax(logits(x))), with z a one-hot vector, fitted in one of four ways.

    - ``"enumerated"``: ``TraceEnum_ELBO`` sums z out, so that neither bound nor gradient has noise.
    - ``"sampled"``: draws without a gradient, for objectives that need none (``objectives.VIMCO``, ``Trace_ELBO``).
    - ``"straight-through"``: draws whose gradient is taken as if they were their probabilities. The bound is that of
      the discrete latent; its gradient is biased.
    - ``"relaxed"``: Gumbel-softmax draws inside the simplex. The bound is for a model whose latent is relaxed as well,
      with ``dist.RelaxedOneHotCategorical`` as its prior; the gradient is unbiased for that bound.

    Source: Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons", 2013;
    Maddison, Mnih and Teh, "The concrete distribution", 2017; Jang, Gu and Poole, "Categorical reparameterization with
    Gumbel-softmax", 2017.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        num_categories: number of categories, the length of z.
        how: one of the four ways above.
        temperature: temperature of the relaxation; the lower it is, the nearer draws are to a vertex of the simplex.
        latent: name of the latent site.

    Example:
        >>> from pyrovae import nn
        >>> guide = Categorical(nn.MLP(64, 32), 10, how="sampled")
        >>> guide.posterior(torch.zeros(5, 64)).sample().sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """

    def __init__(
        self,
        encoder: Network | nn.Module,
        num_categories: int,
        *,
        how: str = "enumerated",
        temperature: float = 0.5,
        latent: str = "z",
    ) -> None:
        super().__init__(encoder, at_least("num_categories", num_categories, 2), latent=latent)
        if not isinstance(how, str) or how not in _FAMILIES:
            raise ValueError(f"how must be one of {', '.join(map(repr, _FAMILIES))}, got {how!r}")
        self.num_categories, self.how, self.temperature = self.latent_dim, how, positive("temperature", temperature)
        self.head = nn.Linear(self.num_features, self.num_categories)

    def family(self, params: Tensor) -> dist.TorchDistribution:
        """Return the distribution of every row of logits."""
        return _FAMILIES[self.how](params, self.temperature)

    def forward(self, *batch: Tensor) -> Tensor:
        """Sample the latent of every observation of the batch; return it, ``[N, num_categories]``."""
        pyro.module("guide", self)
        infer = {"enumerate": "parallel"} if self.how == "enumerated" else {}
        with pyro.plate("data", batch[0].shape[0]):
            z: Tensor = pyro.sample(self.latent, self.posterior(*batch), infer=infer)
        return z


class _Traceable:
    """Draws one-hot vectors without reading the indices; torch's own distribution reads them."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw."""
        owner: Any = self
        with torch.no_grad():
            indices = owner._categorical.sample(torch.Size(sample_shape))[..., None]
            return owner.logits.new_zeros(*indices.shape[:-1], owner.event_shape[0]).scatter(-1, indices, 1.0)


class OneHot(_Traceable, dist.OneHotCategorical):
    """Distribution of one-hot vectors."""


class _StraightThrough(_Traceable, dist.OneHotCategoricalStraightThrough):
    pass


def _discrete(logits: Tensor, temperature: float) -> dist.TorchDistribution:
    return OneHot(logits=logits)


def _straight_through(logits: Tensor, temperature: float) -> dist.TorchDistribution:
    return _StraightThrough(logits=logits)


def _relaxed(logits: Tensor, temperature: float) -> dist.TorchDistribution:
    return dist.RelaxedOneHotCategorical(torch.tensor(temperature).to(logits), logits=logits)


_FAMILIES: dict[str, Any] = {
    "enumerated": _discrete,
    "sampled": _discrete,
    "straight-through": _straight_through,
    "relaxed": _relaxed,
}
