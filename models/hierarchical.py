"""The generative program of several latent layers."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import flag, shown
from pyrovae.likelihoods import Likelihood
from pyrovae.models.parts import check_decoder, only_exposure, optional_size
from pyrovae.nn import Network, positive
from pyrovae.nn.network import check_columns, num_features
from pyrovae.priors import as_prior
from pyrovae.priors.prior import num_latents


class HierarchicalVAE(nn.Module):
    """A VAE with any number of latent layers, one on top of the other.

    For every observation::

        zL ~ p(zL)
        z_l ~ N(loc_l(z_{l+1}), diag(scale_l(z_{l+1})^2)),   l = L - 1, ..., 1
        x ~ p(x | decoder(z1))

    With ``skip``, every layer and the data depend on all layers above::

        z_l ~ N(loc_l(z_{l+1}, ..., zL), ...),   x ~ p(x | decoder(z1, ..., zL))

    Guides: :class:`~pyrovae.guides.Hierarchical` (bottom-up), :class:`~pyrovae.guides.Ladder` (top-down). For
    the rate of each layer see :func:`pyrovae.rates`.

    Source: Rezende, Mohamed and Wierstra, "Stochastic backpropagation and approximate inference in deep generative
    models", 2014; Sonderby et al., "Ladder variational autoencoders", 2016; Maaloe et al., "BIVA", 2019, for the skips.

    Args:
        prior: prior of the topmost layer: a distribution with batch shape ``()``, or a module that returns one.
        transitions: networks from each layer to the one below, from the top downwards; each has an attribute
            ``out_features``, and half of its features are locations, half scales.
        decoder: network from the lowest layer to the likelihood's features.
        likelihood: turns those features into the distribution of x.
        skip: whether each network takes all the layers above, side by side, the nearest one first.
        num_data: number of observations in the whole data set. It is needed for a prior with global latents, because
            then a batch has to count for all observations.

    Attributes:
        latent_dims: sizes of the layers, from the lowest; the topmost is the prior's.
    """

    def __init__(
        self,
        *,
        prior: Any,
        transitions: Sequence[Network | nn.Module],
        decoder: Network | nn.Module,
        likelihood: Likelihood | nn.Module,
        skip: bool = False,
        num_data: int | None = None,
    ) -> None:
        super().__init__()
        prior = as_prior(prior)
        if not isinstance(transitions, Sequence | nn.ModuleList):
            raise ValueError(f"transitions must be a sequence of networks, got {shown(transitions)}")
        widths = [num_features(f"transitions[{i}]", network) for i, network in enumerate(transitions)]
        if any(width % 2 for width in widths):
            raise ValueError(f"transitions must have an even number of out_features, got {widths}")
        check_decoder(decoder, likelihood)
        self.skip, self.num_data = flag("skip", skip), optional_size(num_data)
        top = num_latents(prior)
        if top is None:
            shape = prior().event_shape
            if len(shape) != 1:
                raise ValueError(f"prior must be one of vectors, with one event dimension, got {len(shape)} of them")
            top = int(shape[0])
        self.latent_dims = (*(width // 2 for width in reversed(widths)), top)
        names = [f"transitions[{i}]" for i in range(len(widths))] + ["decoder"]
        for i, (name, network) in enumerate(zip(names, [*transitions, decoder], strict=True), 1):
            above = self.latent_dims[-i:] if skip else self.latent_dims[-i:][:1]
            check_columns(name, network, sum(above), "the latents above")
        self.prior = prior
        self.transitions = nn.ModuleList(transitions)
        self.decoder = decoder
        self.likelihood = likelihood

    def conditional(self, layer: int, above: Sequence[Tensor]) -> dist.TorchDistribution:
        """Return p(z_layer | ``above``); ``above`` has the layers above, the nearest first; layers count from 1."""
        network = self.transitions[len(self.transitions) - layer]
        loc, raw_scale = network(self._input(above)).chunk(2, dim=-1)
        return dist.Normal(loc, positive(raw_scale)).to_event(1)

    def _input(self, above: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(above), dim=-1) if self.skip else above[0]

    def forward(self, x: Tensor, *exposure: Tensor) -> Tensor:
        """Sample every layer and observe ``x``, ``[N, D]``; return z1."""
        pyro.module("model", self)
        given = only_exposure(self, exposure)
        layers = len(self.latent_dims)
        prior = self.prior()
        with pyro.plate("data", self.num_data or x.shape[0], subsample_size=x.shape[0]):
            above: list[Tensor] = [pyro.sample(f"z{layers}", prior)]
            for layer in range(layers - 1, 0, -1):
                above.insert(0, pyro.sample(f"z{layer}", self.conditional(layer, above)))
            pyro.sample("x", self.likelihood(self.decoder(self._input(above)), **given), obs=x)
        return above[0]
