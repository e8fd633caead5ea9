"""Guide of a code and of the cells that are missing: q(z | x_observed) p(x_missing | z)."""

from typing import Any

import pyro
from torch import Tensor, nn

from pyrovae.common.checks import not_a_class
from pyrovae.guides.guide import Guide, check_guide


class WithMissing(nn.Module):
    """q(z, x_missing | x) = q(z | x) p(x_missing | z), with any guide of one latent for z, whose encoder takes NaN.

    Source: Ipsen, Mattei and Frellsen, "not-MIWAE: deep generative modelling with missing not at random data", 2021.

    Args:
        latent: guide of z.
        model: model of the pair, with ``unseen(x, z)``, such as :class:`~pyrovae.models.MissingNotAtRandom`.

    Example:
        >>> from pyrovae import guides, likelihoods, models, nn, priors
        >>> model = models.MissingNotAtRandom(
        ...     prior=priors.StandardNormal(2), decoder=nn.MLP(2, 5), likelihood=likelihoods.Gaussian(),
        ...     missingness=models.SelfMasking(5))
        >>> q = WithMissing(guides.MeanField(nn.Observed(nn.MLP(10, 16)), 2), model)
    """

    model: Any

    def __init__(self, latent: Guide, model: Any) -> None:
        super().__init__()
        check_guide("latent", latent)
        not_a_class("model", model)
        if not callable(getattr(model, "unseen", None)):
            raise ValueError(f"the model, a {type(model).__name__}, has no method unseen(x, z)")
        self.latent = latent
        self.__dict__["model"] = model  # not a submodule: its parameters are the model's

    def forward(self, x: Tensor) -> Tensor:
        """Sample z and the missing cells of every observation of ``x``, ``[N, D]``; return z."""
        pyro.module("guide", self)
        with pyro.plate("data", x.shape[0]):
            z: Tensor = pyro.sample(self.latent.latent, self.latent.posterior(x))
            pyro.sample("x_missing", self.model.unseen(x, z))
        return z
