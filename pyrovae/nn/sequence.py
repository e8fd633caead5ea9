"""Recurrent and attention networks for sequences: steps by features, as a flat vector."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.nn.network import Network, Shape, as_shape, sequence_shape, size


class RecurrentEncoder(Network):
    """Gated recurrent units over a sequence, read in both directions: ``[..., T * F]`` to ``[..., out]``.

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014.

    Args:
        in_shape: (steps, features) of the sequence.
        out_shape: features that the network returns, flat.
        width: width of the units' state.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, *, width: int = 64) -> None:
        super().__init__()
        self.in_shape, self.out_shape = sequence_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        self.in_features, self.out_features = size(self.in_shape), size(self.out_shape)
        self.width = width = at_least("width", width, 1)
        self.recurrent = nn.GRU(self.in_shape[1], width, batch_first=True, bidirectional=True)
        self.last = nn.Linear(2 * width, self.out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., T * F]`` to ``[..., out]``."""
        _, state = self.recurrent(features.reshape(-1, *self.in_shape))
        out: Tensor = self.last(torch.cat([state[0], state[1]], dim=-1))
        return out.reshape(*features.shape[:-1], self.out_features)


class RecurrentDecoder(Network):
    """Gated recurrent units that see the latents at every step: ``[..., in]`` to ``[..., T * F]``.

    Args:
        in_shape: features that the network takes, flat.
        out_shape: (steps, features) of the sequence.
        width: width of the units' state.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, *, width: int = 64) -> None:
        super().__init__()
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), sequence_shape(out_shape, "out_shape")
        self.in_features, self.out_features = size(self.in_shape), size(self.out_shape)
        self.width = width = at_least("width", width, 1)
        self.first = nn.Linear(self.in_features, width)
        self.recurrent = nn.GRU(self.in_features, width, batch_first=True)
        self.last = nn.Linear(width, self.out_shape[1])

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., T * F]``."""
        z = features.reshape(-1, self.in_features)
        states, _ = self.recurrent(z[:, None].expand(-1, self.out_shape[0], -1), self.first(z).tanh()[None])
        out: Tensor = self.last(states)
        return out.reshape(*features.shape[:-1], self.out_features)


class Attention(nn.Module):
    """A block of self-attention and one of a perceptron; each is added to its input, which is normalised first.

    Source: Vaswani et al., "Attention is all you need", 2017.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joint, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences ``[B, T, width]`` to the same shape."""
        parts = self.joint(self.before(x)).chunk(3, dim=-1)
        query, key, value = (p.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in parts)
        attention = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attention.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.between(x))


def _checked(width: int, num_heads: int, num_layers: int) -> tuple[int, int, int]:
    """Return the three as ints.

    Raises:
        ValueError: when one is below 1, or the width is not a multiple of the number of heads.
    """
    if at_least("width", width, 1) % at_least("num_heads", num_heads, 1):
        raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}")
    return int(width), int(num_heads), at_least("num_layers", num_layers, 1)


def _blocks(width: int, num_heads: int, num_layers: int) -> nn.Sequential:
    return nn.Sequential(*(Attention(width, num_heads) for _ in range(num_layers)), nn.LayerNorm(width))


class AttentionEncoder(Network):
    """Self-attention over a sequence, averaged over its steps: ``[..., T * F]`` to ``[..., out]``.

    Args:
        in_shape: (steps, features) of the sequence.
        out_shape: features that the network returns, flat.
        width: width of each step's representation.
        num_heads: number of heads of the attention.
        num_layers: number of blocks.
    """

    def __init__(
        self, in_shape: Shape, out_shape: Shape, *, width: int = 64, num_heads: int = 4, num_layers: int = 2
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = sequence_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        self.in_features, self.out_features = size(self.in_shape), size(self.out_shape)
        width, num_heads, num_layers = _checked(width, num_heads, num_layers)
        self.width, self.num_heads, self.num_layers = width, num_heads, num_layers
        self.first = nn.Linear(self.in_shape[1], width)
        self.positions = nn.Parameter(0.1 * torch.randn(self.in_shape[0], width))
        self.blocks = _blocks(width, num_heads, num_layers)
        self.last = nn.Linear(width, self.out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., T * F]`` to ``[..., out]``."""
        steps = self.first(features.reshape(-1, *self.in_shape)) + self.positions
        out: Tensor = self.last(self.blocks(steps).mean(1))
        return out.reshape(*features.shape[:-1], self.out_features)


class AttentionDecoder(Network):
    """The latents and a position at every step, with self-attention between steps: ``[..., in]`` to ``[..., T * F]``.

    Args:
        in_shape: features that the network takes, flat.
        out_shape: (steps, features) of the sequence.
        width: width of each step's representation.
        num_heads: number of heads of the attention.
        num_layers: number of blocks.
    """

    def __init__(
        self, in_shape: Shape, out_shape: Shape, *, width: int = 64, num_heads: int = 4, num_layers: int = 2
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), sequence_shape(out_shape, "out_shape")
        self.in_features, self.out_features = size(self.in_shape), size(self.out_shape)
        width, num_heads, num_layers = _checked(width, num_heads, num_layers)
        self.width, self.num_heads, self.num_layers = width, num_heads, num_layers
        self.first = nn.Linear(self.in_features, width)
        self.positions = nn.Parameter(torch.randn(self.out_shape[0], width))
        self.blocks = _blocks(width, num_heads, num_layers)
        self.last = nn.Linear(width, self.out_shape[1])

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., T * F]``."""
        steps = self.first(features.reshape(-1, 1, self.in_features)) + self.positions
        out: Tensor = self.last(self.blocks(steps))
        return out.reshape(*features.shape[:-1], self.out_features)
