"""The exact posterior as a guide, for models that have it in closed form."""

from typing import Protocol

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.common.checks import not_a_class, site_name


class HasPosterior(Protocol):
    """A model whose posterior has a closed form."""

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Return p(z | x): batch shape ``[N]``."""


class Exact:
    """q(z | x) = p(z | x), from the model's own closed form; the guide has no parameters of its own.

    Every log weight of the pair then equals log p(x).

    Args:
        model: a model with a method ``posterior(x)`` that returns p(z | x).
        latent: name of the latent site.
    """

    def __init__(self, model: HasPosterior, *, latent: str = "z") -> None:
        not_a_class("model", model)
        if not callable(getattr(model, "posterior", None)):
            raise ValueError(f"the model, a {type(model).__name__}, has no method posterior(x) to take as the guide")
        self.model, self.latent = model, site_name("latent", latent)

    def __call__(self, x: Tensor) -> Tensor:
        """Sample the latent of every observation of ``x``, ``[N, D]``; return it."""
        if isinstance(self.model, nn.Module):
            pyro.module("model", self.model)
        with pyro.plate("data", x.shape[0]):
            z: Tensor = pyro.sample(self.latent, self.model.posterior(x))
        return z
