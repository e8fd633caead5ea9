"""Multilayer perceptron."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from pyrovae.nn.network import Network, Shape, size


class MLP(Network):
    """Fully connected layers: ``[..., in] -> [..., out]``; several tensors (data, covariates) are taken side by side.

    Args:
        in_shape: features taken, of all tensors together: their number or a picture's shape, which is taken flat.
        out_shape: features returned, flat.
        hidden: widths of the hidden layers.
        activation: class of the activation between layers.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: tuple[int, ...] = (128, 128),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.hidden, self.activation = in_shape, out_shape, tuple(hidden), activation
        self.out_features = size(out_shape)
        widths = [size(in_shape), *hidden, self.out_features]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, *features: Tensor) -> Tensor:
        """Map ``[..., in]``, of one tensor or of several side by side, to ``[..., out]``."""
        out: Tensor = self.layers(features[0] if len(features) == 1 else torch.cat(features, dim=-1))
        return out
