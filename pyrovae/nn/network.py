"""Base class of networks: maps from one vector to another. A picture is a vector that knows its shape."""

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least, not_a_class, shown, widths
from pyrovae.common.checks import positive as above_zero

SHIFT = 0.541324854612918  # softplus maps it to 1
LEAST = 1e-5

Shape = int | tuple[int, ...]
"""Features of a vector: their number, or the shape of the picture (channels, rows, columns) that they make up."""


class Network(nn.Module):
    """A deterministic network from features ``[..., in]`` to features ``[..., out]``, one event dimension each.

    Attributes:
        in_features: number of features that it takes, of all tensors together.
        out_features: number of features that it returns.
    """

    in_features: int
    out_features: int


def as_shape(shape: Shape, name: str = "shape") -> Shape:
    """Return ``shape`` as an int, or as a tuple of ints.

    Raises:
        ValueError: when it is neither a whole number of at least 1 nor a sequence of such numbers.
    """
    if isinstance(shape, list | tuple):
        return widths(name, shape, empty=False)
    if not isinstance(shape, Integral):
        raise ValueError(
            f"{name} must be a number of features or a shape, such as 784 or (1, 28, 28), got {shown(shape)}"
        )
    return at_least(name, shape, 1)


def size(shape: Shape, name: str = "shape") -> int:
    """Return the number of features of a shape.

    Raises:
        ValueError: when it is neither a whole number of at least 1 nor a sequence of such numbers.
    """
    features = as_shape(shape, name)
    return features if isinstance(features, int) else math.prod(features)


def image_shape(shape: Shape, name: str = "shape") -> tuple[int, int, int]:
    """Return ``shape`` as (channels, rows, columns).

    Raises:
        ValueError: when it is not the shape of a picture.
    """
    if not isinstance(shape, list | tuple) or len(shape) != 3:
        raise ValueError(
            f"a convolutional network needs a shape (channels, rows, columns), got {shown(shape)} as {name}"
        )
    channels, rows, columns = widths(name, shape)
    return channels, rows, columns


def sequence_shape(shape: Shape, name: str = "shape") -> tuple[int, int]:
    """Return ``shape`` as (steps, features); a single number is the number of steps, with one feature each.

    Raises:
        ValueError: when it is not the shape of a sequence.
    """
    if isinstance(shape, Integral):
        return at_least(name, shape, 1), 1
    if not isinstance(shape, list | tuple) or len(shape) != 2:
        raise ValueError(f"a network of sequences needs a shape (steps, features), got {shown(shape)} as {name}")
    steps, features = widths(name, shape)
    return steps, features


def check_layer(name: str, layer: Any, *arguments: int) -> None:
    """Check that ``layer`` is a class of layers that are made from ``arguments``, or a function that makes one.

    Raises:
        ValueError: if not; the message says what to write.
    """
    if isinstance(layer, nn.Module):
        cls = type(layer).__name__
        raise ValueError(f"{name} must be a class of layers, got an instance of {cls}: write {cls} without brackets")
    try:
        makes_one = isinstance(layer(*arguments), nn.Module)
    except Exception:  # of any kind: a user's own class may take anything
        makes_one = False
    if not makes_one:
        example = "torch.nn.LayerNorm, made from a width" if arguments else "torch.nn.ReLU, made without arguments"
        raise ValueError(f"{name} must be a class of layers, such as {example}, got {shown(layer)}")


def check_module(name: str, module: Any) -> None:
    """Check that ``module`` is a ``torch.nn.Module``, and not a class.

    Raises:
        ValueError: if not; the message says what to write.
    """
    not_a_class(name, module)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{name} must be a torch.nn.Module, got {shown(module)}")


def num_features(name: str, network: Any) -> int:
    """Return the number of features that a network returns.

    Raises:
        ValueError: when it is not a network, or does not say how many.
    """
    check_module(name, network)
    width = getattr(network, "out_features", None)
    if not isinstance(width, Integral) or isinstance(width, bool):
        raise ValueError(
            f"{name}, a {type(network).__name__}, does not say how many features it returns: give it an attribute "
            "out_features"
        )
    return at_least(f"out_features of {name}", width, 1)


def check_columns(name: str, network: Any, num_columns: int, source: str) -> None:
    """Check that a network takes ``num_columns`` columns, if it says how many it takes in ``in_features``.

    Raises:
        ValueError: if not; the message names both widths.
    """
    expected = getattr(network, "in_features", None)
    if isinstance(expected, int) and expected != num_columns:
        raise ValueError(f"{name} expects {expected} columns, got {num_columns}, {source}")


def positive(raw: Tensor) -> Tensor:
    """Map a real number to a scale: ``softplus`` shifted so that 0 becomes 1, and bounded below by 1e-5.

    It grows linearly, so that no network output overflows it.

    Raises:
        ValueError: when ``raw`` is not a tensor.
    """
    if not isinstance(raw, Tensor):
        raise ValueError(f"raw must be a tensor, got {shown(raw)}")
    return torch.nn.functional.softplus(raw + SHIFT) + LEAST


def log_sigmoid(x: Tensor) -> Tensor:
    """Return log sigmoid(x) = -softplus(-x); torch's own wakes all threads even for a few numbers."""
    return -torch.nn.functional.softplus(-x, threshold=50.0)


def raw_positive(scale: float, name: str = "scale") -> float:
    """Return the real number that :func:`positive` maps to ``scale``, above 1e-5.

    Raises:
        ValueError: when ``scale`` is not a finite number above 1e-5.
    """
    above = above_zero(name, scale) - LEAST
    if above <= 0:
        raise ValueError(f"{name} must be above {LEAST}, got {scale!r}")
    return above + math.log(-math.expm1(-above)) - SHIFT
