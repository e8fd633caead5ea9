"""Guide of several latent layers, from the top downwards."""

from collections.abc import Sequence
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import not_a_class, shown
from pyrovae.nn import Network, positive
from pyrovae.nn.network import check_columns, num_features


class HasLayers(Protocol):
    """A model of latent layers, each normal given the one above."""

    latent_dims: tuple[int, ...]

    def conditional(self, layer: int, above: Sequence[Tensor]) -> dist.TorchDistribution:
        """Return p(z_layer | the layers above, the nearest first), a normal distribution; layers count from 1."""


class Ladder(nn.Module):
    """q(z1, ..., zL | x) = q(zL | x) prod_l q(z_l | z_{l+1}, x), top-down.

    A deterministic pass upwards gives features h_l of every layer. On the way down, a Gaussian from the data is
    combined with the model's Gaussian given the layer above, each weighted by its precision::

        h_l = network_l(h_{l-1}),   h_0 = x
        q(zL | x) = N(m_L, diag(s_L^2))
        q(z_l | z_{l+1}, x) proportional to N(z_l; m_l, diag(s_l^2)) p(z_l | z_{l+1})

    with m_l and s_l computed from h_l. The guide's parameters thus include the model's own transitions.

    Source: Sonderby, Raiko, Maaloe, Sonderby and Winther, "Ladder variational autoencoders", 2016.

    Args:
        networks: one network per layer, from the lowest upwards; each has an attribute ``out_features``.
        model: model of the pair, such as :class:`~pyrovae.models.HierarchicalVAE`. It has ``latent_dims`` from the
            lowest layer, and ``conditional(layer, above)``.

    Example:
        >>> from pyrovae import guides, likelihoods, models, nn, priors
        >>> model = models.HierarchicalVAE(
        ...     prior=priors.StandardNormal(3), transitions=[nn.MLP(3, 16)], decoder=nn.MLP(8, 64),
        ...     likelihood=likelihoods.Bernoulli())
        >>> q = Ladder([nn.MLP(64, 32), nn.MLP(32, 16)], model)
        >>> [tuple(z.shape) for z in q(torch.zeros(5, 64))]
        [(5, 8), (5, 3)]
    """

    model: Any

    def __init__(self, networks: Sequence[Network | nn.Module], model: HasLayers) -> None:
        super().__init__()
        not_a_class("model", model)
        dims = getattr(model, "latent_dims", None)
        if not isinstance(dims, tuple) or not callable(getattr(model, "conditional", None)):
            raise ValueError(f"the model, a {type(model).__name__}, has no latent_dims and conditional(layer, above)")
        if not isinstance(networks, Sequence | nn.ModuleList):
            raise ValueError(f"networks must be a sequence of networks, one for each layer, got {shown(networks)}")
        widths = [num_features(f"networks[{i}]", network) for i, network in enumerate(networks)]
        if len(networks) != len(dims):
            raise ValueError(f"the model has {len(dims)} latent layers, got {len(networks)} networks: one for each")
        for i, (width, network) in enumerate(zip(widths, networks[1:], strict=False), 1):
            check_columns(f"networks[{i}]", network, width, "the features of the network below")
        self.networks = nn.ModuleList(networks)
        self.__dict__["model"] = model  # not a submodule: its parameters are the model's
        self.heads = nn.ModuleList(nn.Linear(width, 2 * dim) for width, dim in zip(widths, dims, strict=True))

    def top(self, *batch: Tensor) -> dist.TorchDistribution:
        """Return q(zL | x) of a batch: batch shape ``[N]``."""
        return self._from_data(*batch)[-1]

    def _from_data(self, *batch: Tensor) -> list[dist.TorchDistribution]:
        """Return the Gaussian from the data alone for every layer, from the lowest."""
        gaussians = []
        features: tuple[Tensor, ...] = batch
        for network, head in zip(self.networks, self.heads, strict=True):
            features = (network(*features),)
            loc, raw_scale = head(features[0]).chunk(2, dim=-1)
            gaussians.append(dist.Normal(loc, positive(raw_scale)).to_event(1))
        return gaussians

    def forward(self, *batch: Tensor) -> list[Tensor]:
        """Sample every layer's latent for every observation of the batch; return them, from the lowest."""
        pyro.module("guide", self)
        gaussians = self._from_data(*batch)
        draws: list[Tensor] = []
        with pyro.plate("data", batch[0].shape[0]):
            for layer in range(len(gaussians), 0, -1):
                q = gaussians[layer - 1]
                if draws:
                    q = _combined(q, self.model.conditional(layer, draws))
                draws.insert(0, pyro.sample(f"z{layer}", q))
        return draws


def _combined(one: dist.TorchDistribution, other: dist.TorchDistribution) -> dist.TorchDistribution:
    """Return the normal distribution proportional to the product of two."""
    precisions = one.variance.reciprocal(), other.variance.reciprocal()
    variance = (precisions[0] + precisions[1]).reciprocal()
    loc = variance * (precisions[0] * one.mean + precisions[1] * other.mean)
    return dist.Normal(loc, torch.sqrt(variance)).to_event(1)
