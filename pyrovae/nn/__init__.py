"""Deterministic networks: plain ``nn.Module`` objects, each replaceable by any of the user's own."""

from pyrovae.nn.convolutional import ConvDecoder, ConvEncoder
from pyrovae.nn.mlp import MLP
from pyrovae.nn.network import Network, Shape, image_shape, positive, raw_positive, size

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "Network", "Shape", "image_shape", "positive", "raw_positive", "size"]
