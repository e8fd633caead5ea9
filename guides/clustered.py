"""Guide of a code and the cluster that it lies in: q(z | x) p(y | z)."""

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.common.checks import not_a_class, site_name
from pyrovae.guides.categorical import OneHot
from pyrovae.guides.guide import Guide, check_guide


class Clustered(nn.Module):
    """q(y, z | x) = q(z | x) p(y | z), with any guide of one latent for z, and the model's own posterior of y given z.

    Given the code of an observation, its cluster has a posterior in closed form, so that nothing is lost by the second
    factor. y is marked to be summed out: ``TraceEnum_ELBO`` does so, other objectives sample it.

    Source: Jiang, Zheng, Tan, Tang and Zhou, "Variational deep embedding", 2017.

    Args:
        latent: guide of z.
        model: model of the pair, with ``cluster_logits(z)``, such as :class:`~pyrovae.models.GaussianMixtureVAE`.
        name: name of the latent site of the cluster.

    Example:
        >>> from pyrovae import guides, likelihoods, models, nn
        >>> model = models.GaussianMixtureVAE(
        ...     num_clusters=10, latent_dim=3, decoder=nn.MLP(3, 64), likelihood=likelihoods.Bernoulli())
        >>> q = Clustered(guides.MeanField(nn.MLP(64, 32), 3), model)
        >>> q.probabilities(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """

    model: Any

    def __init__(self, latent: Guide, model: Any, *, name: str = "y") -> None:
        super().__init__()
        check_guide("latent", latent)
        not_a_class("model", model)
        if not callable(getattr(model, "cluster_logits", None)):
            raise ValueError(f"the model, a {type(model).__name__}, has no method cluster_logits(z)")
        size = getattr(model, "latent_dim", None)
        if isinstance(size, int) and size != latent.latent_dim:
            raise ValueError(f"latent must have as many latents as the model, {size}, got {latent.latent_dim}")
        self.latent, self.name = latent, site_name("name", name)
        self.__dict__["model"] = model  # not a submodule: its parameters are the model's

    def probabilities(self, *batch: Tensor, num_draws: int = 100) -> Tensor:
        """Return q(y | x) of every cluster, ``[N, C]``, averaged over draws of z."""
        with torch.no_grad():
            z = self.latent.posterior(*batch).sample((num_draws,))
            probabilities: Tensor = self.model.cluster_logits(z).softmax(-1).mean(0)
        return probabilities

    def forward(self, *batch: Tensor) -> Tensor:
        """Sample z and y of every observation of the batch; return y, one-hot, ``[N, C]``."""
        pyro.module("guide", self)
        with pyro.plate("data", batch[0].shape[0]):
            z = pyro.sample(self.latent.latent, self.latent.posterior(*batch))
            clusters = OneHot(logits=self.model.cluster_logits(z))
            y: Tensor = pyro.sample(self.name, clusters, infer={"enumerate": "parallel"})
        return y
