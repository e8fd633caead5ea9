"""What a network is here: a map from one vector to another. A picture is a vector that knows its shape."""

import math

import torch
from torch import Tensor, nn

SHIFT = 0.541324854612918  # softplus maps it to 1
LEAST = 1e-5

Shape = int | tuple[int, ...]
"""Features of a vector: their number, or the shape of the picture (channels, rows, columns) that they make up."""


class Network(nn.Module):
    """A deterministic network from features ``[..., in]`` to features ``[..., out]``, one event dimension each.

    Attributes:
        out_features: number of features that it returns.
    """

    out_features: int


def size(shape: Shape) -> int:
    """Return the number of features of a shape."""
    return shape if isinstance(shape, int) else math.prod(shape)


def image_shape(shape: Shape) -> tuple[int, int, int]:
    """Return ``shape`` as (channels, rows, columns).

    Raises:
        ValueError: when it is not the shape of a picture.
    """
    if isinstance(shape, int) or len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a convolutional network needs a shape (channels, rows, columns), got {shape!r}")
    return shape[0], shape[1], shape[2]


def sequence_shape(shape: Shape) -> tuple[int, int]:
    """Return ``shape`` as (steps, features); a number alone is that of steps with one feature each.

    Raises:
        ValueError: when it is not the shape of a sequence.
    """
    if isinstance(shape, int):
        return shape, 1
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"a network of sequences needs a shape (steps, features), got {shape!r}")
    return shape[0], shape[1]


def positive(raw: Tensor) -> Tensor:
    """Map a real number to a scale: ``softplus`` shifted so that 0 becomes 1, and bounded below by 1e-5.

    It grows linearly, so that no network output overflows it.
    """
    return torch.nn.functional.softplus(raw + SHIFT) + LEAST


def raw_positive(scale: float) -> float:
    """Return the real number that :func:`positive` maps to ``scale``, above 1e-5."""
    above = scale - LEAST
    return above + math.log(-math.expm1(-above)) - SHIFT
