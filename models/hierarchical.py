"""The generative program of several latent layers."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.likelihoods import Likelihood
from pyrovae.nn import Network, positive
from pyrovae.priors import as_prior


class HierarchicalVAE(nn.Module):
    """Latents upon latents, any number of layers of them.

    For every datum::

        zL ~ p(zL)
        z_l ~ N(loc_l(z_{l+1}), diag(scale_l(z_{l+1})^2)),   l = L - 1, ..., 1
        x ~ p(x | decoder(z1))

    Guides: :class:`~pyrovae.guides.Hierarchical` (bottom-up), :class:`~pyrovae.guides.Ladder` (top-down).

    Source: Rezende, Mohamed and Wierstra, "Stochastic backpropagation and approximate inference in deep generative
    models", 2014; Sonderby et al., "Ladder variational autoencoders", 2016.

    Args:
        prior: of the topmost layer: a distribution with batch shape ``()``, or a module that returns one.
        transitions: networks from each layer to the one below, downwards from the top; each has an attribute
            ``out_features``, and half of its features are locations, half scales.
        decoder: network from the lowest layer to the likelihood's features.
        likelihood: turns those features into the distribution of x.

    Attributes:
        latent_dims: sizes of the layers that are known, from the lowest; the topmost is the prior's.
    """

    def __init__(
        self,
        *,
        prior: Any,
        transitions: Sequence[Network | nn.Module],
        decoder: Network | nn.Module,
        likelihood: Likelihood | nn.Module,
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.transitions = nn.ModuleList(transitions)
        self.decoder = decoder
        self.likelihood = likelihood
        widths: list[Any] = [getattr(network, "out_features", None) for network in transitions]
        if not all(isinstance(width, int) and width % 2 == 0 for width in widths):
            raise ValueError(f"transitions must have an even number of out_features, got {widths}")
        top = self.prior().event_shape[-1]
        self.latent_dims = (*(width // 2 for width in reversed(widths)), top)

    def conditional(self, layer: int, above: Tensor) -> dist.TorchDistribution:
        """Return p(z_layer | z_{layer+1}); layers count from 1, the lowest."""
        loc, raw_scale = self.transitions[len(self.transitions) - layer](above).chunk(2, dim=-1)
        return dist.Normal(loc, positive(raw_scale)).to_event(1)

    def forward(self, x: Tensor) -> Tensor:
        """Sample every layer and observe ``x``, ``[N, D]``; return z1."""
        pyro.module("model", self)
        layers = len(self.latent_dims)
        with pyro.plate("data", x.shape[0]):
            z: Tensor = pyro.sample(f"z{layers}", self.prior())
            for layer in range(layers - 1, 0, -1):
                z = pyro.sample(f"z{layer}", self.conditional(layer, z))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)
        return z
