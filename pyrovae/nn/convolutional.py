"""Convolutional encoder and decoder for pictures of any size."""

from itertools import pairwise

from torch import Tensor, nn

from pyrovae.common.checks import widths
from pyrovae.nn.network import Network, Shape, as_shape, check_layer, image_shape, size


def halved(length: int, times: int) -> int:
    """Return a length halved ``times`` times, rounding up."""
    for _ in range(times):
        length = (length + 1) // 2
    return length


class ConvEncoder(Network):
    """Strided convolutions and one linear layer: a picture as a flat vector ``[..., C * H * W]`` to ``[..., out]``.

    Every convolution halves rows and columns, rounding up.

    Args:
        in_shape: (channels, rows, columns) of the picture, any size.
        out_shape: features that the network returns, flat.
        channels: numbers of channels of the convolutions.
        activation: class of the activation after each convolution.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: tuple[int, ...] = (32, 64),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        check_layer("activation", activation)
        self.in_shape, self.out_shape = image_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        self.channels, self.activation = widths("channels", channels), activation
        self.in_features, self.out_features = size(self.in_shape), size(self.out_shape)
        channels, (depth, rows, columns) = self.channels, self.in_shape
        layers: list[nn.Module] = []
        for before, after in pairwise([depth, *channels]):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), activation()]
        flat = [depth, *channels][-1] * halved(rows, len(channels)) * halved(columns, len(channels))
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, self.out_features))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., C * H * W]`` to ``[..., out]``."""
        pictures = features.reshape(-1, *self.in_shape)
        out: Tensor = self.layers(pictures)
        return out.reshape(*features.shape[:-1], self.out_features)


class ConvDecoder(Network):
    """One linear layer, then upsampling and convolutions: ``[..., in]`` to a picture as ``[..., C * H * W]``.

    Each block doubles rows and columns and crops them to the sizes that the encoder passed through.

    Args:
        in_shape: features that the network takes, flat.
        out_shape: (channels, rows, columns) of the picture, any size.
        channels: numbers of channels of the convolutions; the last is next to the picture.
        activation: class of the activation before each convolution.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: tuple[int, ...] = (64, 32),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        check_layer("activation", activation)
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), image_shape(out_shape, "out_shape")
        self.channels, self.activation = widths("channels", channels), activation
        self.in_features, self.out_features = size(self.in_shape), size(self.out_shape)
        channels, (depth, rows, columns) = self.channels, self.out_shape
        sizes = [(halved(rows, k), halved(columns, k)) for k in range(len(channels), -1, -1)]
        self.start = (channels[0] if channels else depth, *sizes[0])
        layers: list[nn.Module] = [nn.Linear(self.in_features, size(self.start)), nn.Unflatten(-1, self.start)]
        for (before, after), target in zip(pairwise([*channels, depth]), sizes[1:], strict=True):
            layers += [activation(), nn.Upsample(size=target), nn.Conv2d(before, after, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., C * H * W]``."""
        out: Tensor = self.layers(features.reshape(-1, self.in_features))
        return out.reshape(*features.shape[:-1], self.out_features)
