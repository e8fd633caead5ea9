"""Deterministic networks: plain ``nn.Module`` objects, each replaceable by any of the user's own."""

from pyrovae.nn.convolutional import ConvDecoder, ConvEncoder
from pyrovae.nn.mlp import MLP, GatedMLP, SideBySide
from pyrovae.nn.network import Network, Shape, image_shape, positive, raw_positive, size
from pyrovae.nn.observed import Observed
from pyrovae.nn.residual import ResidualDecoder, ResidualEncoder
from pyrovae.nn.sequence import AttentionDecoder, AttentionEncoder, RecurrentDecoder, RecurrentEncoder
from pyrovae.nn.table import Table

__all__ = [
    "MLP",
    "AttentionDecoder",
    "AttentionEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "GatedMLP",
    "Network",
    "Observed",
    "RecurrentDecoder",
    "RecurrentEncoder",
    "ResidualDecoder",
    "ResidualEncoder",
    "Shape",
    "SideBySide",
    "Table",
    "image_shape",
    "positive",
    "raw_positive",
    "size",
]
