"""Residual convolutional encoder and decoder for pictures of any size."""

from itertools import pairwise

from torch import Tensor, nn

from pyrovae.common.checks import at_least, widths
from pyrovae.nn.convolutional import halved
from pyrovae.nn.network import Network, Shape, as_shape, check_layer, image_shape, size


class Residual(nn.Module):
    """x + convolution(activation(convolution(activation(x)))), where the second convolution starts small."""

    def __init__(self, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        self.change = nn.Sequential(activation(), nn.Conv2d(channels, channels, 3, padding=1), activation(), last)
        last.weight.data.mul_(0.1)  # deep stacks start near the identity

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures to pictures of the same size."""
        out: Tensor = x + self.change(x)
        return out


class ResidualEncoder(Network):
    """Strided convolutions with residual blocks between: ``[..., C * H * W]`` to ``[..., out]``.

    Source: He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", 2016.

    Args:
        in_shape: (channels, rows, columns) of the picture, any size.
        out_shape: features that the network returns, flat.
        channels: number of channels of each level; every level halves rows and columns, rounding up.
        num_blocks: number of residual blocks per level.
        activation: class of the activation.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: tuple[int, ...] = (32, 64),
        num_blocks: int = 2,
        activation: type[nn.Module] = nn.ELU,
    ) -> None:
        super().__init__()
        check_layer("activation", activation)
        self.in_shape, self.out_shape = image_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        self.channels, self.num_blocks = widths("channels", channels), at_least("num_blocks", num_blocks, 0)
        self.activation = activation
        self.in_features, self.out_features = size(self.in_shape), size(self.out_shape)
        channels, (depth, rows, columns) = self.channels, self.in_shape
        layers: list[nn.Module] = []
        for before, after in pairwise([depth, *channels]):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1)]
            layers += [Residual(after, activation) for _ in range(self.num_blocks)]
        flat = [depth, *channels][-1] * halved(rows, len(channels)) * halved(columns, len(channels))
        self.layers = nn.Sequential(*layers, activation(), nn.Flatten(), nn.Linear(flat, self.out_features))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., C * H * W]`` to ``[..., out]``."""
        out: Tensor = self.layers(features.reshape(-1, *self.in_shape))
        return out.reshape(*features.shape[:-1], self.out_features)


class ResidualDecoder(Network):
    """One linear layer, then upsampling with residual blocks between: ``[..., in]`` to ``[..., C * H * W]``.

    Args:
        in_shape: features that the network takes, flat.
        out_shape: (channels, rows, columns) of the picture, any size.
        channels: number of channels of each level; the last is next to the picture.
        num_blocks: number of residual blocks per level.
        activation: class of the activation.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: tuple[int, ...] = (64, 32),
        num_blocks: int = 2,
        activation: type[nn.Module] = nn.ELU,
    ) -> None:
        super().__init__()
        check_layer("activation", activation)
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), image_shape(out_shape, "out_shape")
        self.channels, self.num_blocks = widths("channels", channels), at_least("num_blocks", num_blocks, 0)
        self.activation = activation
        self.in_features, self.out_features = size(self.in_shape), size(self.out_shape)
        channels, (depth, rows, columns) = self.channels, self.out_shape
        levels = len(self.channels)
        sizes = [(halved(rows, k), halved(columns, k)) for k in range(levels, -1, -1)]
        start = (self.channels[0] if channels else depth, *sizes[0])
        layers: list[nn.Module] = [nn.Linear(self.in_features, size(start)), nn.Unflatten(-1, start)]
        for (before, after), target in zip(pairwise([*channels, depth]), sizes[1:], strict=True):
            layers += [Residual(before, activation) for _ in range(self.num_blocks)]
            layers += [activation(), nn.Upsample(size=target), nn.Conv2d(before, after, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., C * H * W]``."""
        out: Tensor = self.layers(features.reshape(-1, self.in_features))
        return out.reshape(*features.shape[:-1], self.out_features)
