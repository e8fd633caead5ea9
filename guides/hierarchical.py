"""Guide of several latent layers, from the data upwards."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.common.checks import shown, site_name
from pyrovae.guides.guide import Guide, check_guide
from pyrovae.nn.network import check_columns


class Hierarchical(nn.Module):
    """q(z1, ..., zL | x) = q(z1 | x) q(z2 | z1) ... q(zL | z(L-1)), bottom-up.

    Each layer is a guide of its own, in any family, whose encoder takes the layer below.

    Source: Rezende, Mohamed and Wierstra, "Stochastic backpropagation and approximate inference in deep generative
    models", 2014.

    Args:
        layers: guides with one latent each, from the one that takes the data to the topmost; they sample ``z1``,
            ``z2``, ... unless ``latents`` says otherwise.
        latents: names of the latent sites, in the same order.

    Example:
        >>> import torch
        >>> from pyrovae import guides, nn
        >>> q = Hierarchical([guides.MeanField(nn.MLP(64, 32), 8), guides.Flow(nn.MLP(8, 16), 3)])
        >>> [tuple(z.shape) for z in q(torch.zeros(5, 64))]
        [(5, 8), (5, 3)]
    """

    def __init__(self, layers: Sequence[Guide], *, latents: Sequence[str] | None = None) -> None:
        super().__init__()
        if not isinstance(layers, Sequence | nn.ModuleList) or not layers:
            raise ValueError(f"layers must be a sequence of guides, at least one, got {shown(layers)}")
        for i, layer in enumerate(layers):
            check_guide(f"layers[{i}]", layer)
        for i, (below, layer) in enumerate(pairwise(layers), 1):
            check_columns(f"the encoder of layers[{i}]", layer.encoder, below.latent_dim, "the latents below")
        if latents is not None and (not isinstance(latents, Sequence) or isinstance(latents, str)):
            raise ValueError(f"latents must be a sequence of names, got {shown(latents)}")
        names = [f"z{i + 1}" for i in range(len(layers))] if latents is None else latents
        self.latents = tuple(site_name("each of latents", name) for name in names)
        if len(self.latents) != len(layers) or len(set(self.latents)) != len(layers):
            raise ValueError(f"{len(layers)} layers need as many names of latents, all different, got {self.latents}")
        self.layers = nn.ModuleList(layers)

    def forward(self, *batch: Tensor) -> list[Tensor]:
        """Sample every layer's latent for every observation of the batch; return them, from the lowest."""
        pyro.module("guide", self)
        below: tuple[Tensor, ...] = batch
        draws = []
        with pyro.plate("data", batch[0].shape[0]):
            for name, layer in zip(self.latents, self.layers, strict=True):
                z = pyro.sample(name, _posterior(layer, below))
                draws.append(z)
                below = (z,)
        return draws


def _posterior(layer: Any, below: tuple[Tensor, ...]) -> dist.TorchDistribution:
    posterior: dist.TorchDistribution = layer.posterior(*below)
    return posterior
