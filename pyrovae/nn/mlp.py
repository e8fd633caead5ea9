"""Multilayer perceptrons, plain and gated."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.common.checks import not_negative, widths
from pyrovae.nn.network import Network, Shape, as_shape, check_layer, num_features, size


class MLP(Network):
    """Fully connected layers: ``[..., in] -> [..., out]``; several tensors (data, covariates) are taken side by side.

    Args:
        in_shape: features of all tensors together: their number or a picture's shape, which is taken flat.
        out_shape: features that the network returns, flat.
        hidden: widths of the hidden layers.
        activation: class of the activation between layers.
        normalisation: class of a normalisation of hidden layers, such as ``torch.nn.LayerNorm``; none by default. The
            last layer has neither normalisation nor dropout, so that nothing rescales the parameters of the latents.
        dropout: share of hidden units left out in training, below 1.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: tuple[int, ...] = (128, 128),
        activation: type[nn.Module] = nn.ReLU,
        normalisation: type[nn.Module] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        self.in_features, self.out_features = size(self.in_shape), size(self.out_shape)
        self.hidden, self.dropout = widths("hidden", hidden), not_negative("dropout", dropout)
        if self.dropout >= 1:
            raise ValueError(f"dropout must be below 1, got {dropout!r}")
        check_layer("activation", activation)
        if normalisation is not None:
            check_layer("normalisation", normalisation, *self.hidden[:1] or (1,))
        self.activation, self.normalisation = activation, normalisation
        layers: list[nn.Module] = []
        for before, after in pairwise([self.in_features, *self.hidden]):
            layers += [nn.Linear(before, after)]
            layers += [] if normalisation is None else [normalisation(after)]
            layers += [activation()]
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
        self.layers = nn.Sequential(*layers, nn.Linear([self.in_features, *self.hidden][-1], self.out_features))

    def forward(self, *features: Tensor) -> Tensor:
        """Map ``[..., in]``, of one tensor or of several side by side, to ``[..., out]``."""
        out: Tensor = self.layers(side_by_side(features))
        return out


class GatedMLP(Network):
    """Fully connected layers, each multiplied by a gate of its own: h = (A x + a) * sigmoid(B x + b).

    Source: Dauphin, Fan, Auli and Grangier, "Language modeling with gated convolutional networks", 2017; used for VAEs
    by Tomczak and Welling, "VAE with a VampPrior", 2018.

    Args:
        in_shape: features of all tensors together.
        out_shape: features that the network returns, flat.
        hidden: widths of the hidden layers.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, *, hidden: tuple[int, ...] = (128, 128)) -> None:
        super().__init__()
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        self.in_features, self.out_features = size(self.in_shape), size(self.out_shape)
        self.hidden = widths("hidden", hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise([self.in_features, *self.hidden]):
            layers += [nn.Linear(before, 2 * after), nn.GLU()]
        self.layers = nn.Sequential(*layers, nn.Linear([self.in_features, *self.hidden][-1], self.out_features))

    def forward(self, *features: Tensor) -> Tensor:
        """Map ``[..., in]``, of one tensor or of several side by side, to ``[..., out]``."""
        out: Tensor = self.layers(side_by_side(features))
        return out


def side_by_side(features: tuple[Tensor, ...]) -> Tensor:
    """Concatenate tensors ``[..., F_i]`` whose leading dimensions broadcast, in the dtype of the first."""
    if len(features) == 1:
        return features[0]
    shape = torch.broadcast_shapes(*(f.shape[:-1] for f in features))
    return torch.cat([f.to(features[0].dtype).expand(*shape, f.shape[-1]) for f in features], dim=-1)


class SideBySide(Network):
    """Gives a network of one tensor several of them side by side: a picture's decoder from latents and covariates.

    Args:
        network: network of all their columns together.
    """

    def __init__(self, network: Network | nn.Module) -> None:
        super().__init__()
        self.out_features = num_features("network", network)
        self.in_features: Any = getattr(network, "in_features", None)
        self.network = network

    def forward(self, *features: Tensor) -> Tensor:
        """Map tensors ``[..., F_i]`` to the network's features."""
        out: Tensor = self.network(side_by_side(features))
        return out
