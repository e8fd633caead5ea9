"""Autoregressive steps of flows: each latent mapped by a function whose parameters depend on those before it."""

from collections.abc import Callable
from typing import Any

import pyro.nn
import torch
import torch.nn.functional as F
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

Univariate = Callable[..., tuple[Tensor, Tensor]]
"""``univariate(values, raw, inverse=False)``: numbers ``[...]`` mapped, or mapped back, by the functions with
parameters ``raw``, ``[..., P]``; returns what they become and the logarithm of the slope there."""


class VectorTransform(TransformModule):
    """A bijection of vectors that keeps the logarithm of its Jacobian beside its last value.

    Args:
        both: maps a vector, or maps it back; returns that and the log determinant of the map's Jacobian there.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, both: Callable[[Tensor, bool], tuple[Tensor, Tensor]]) -> None:
        super().__init__(cache_size=1)
        self.__dict__["both"] = both  # of a step that belongs to the guide
        self._last: tuple[Tensor, Tensor] | None = None

    def _call(self, x: Tensor) -> Tensor:
        y, log_jacobian = self.both(x, False)
        self._last = x, log_jacobian
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_jacobian = self.both(y, True)
        self._last = x, -log_jacobian
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |det dy/dx|, ``[...]``."""
        if self._last is None or self._last[0] is not x:
            self._call(x)
        assert self._last is not None
        return self._last[1]


class Autoregressive(nn.Module):
    """A step whose ``condition(context)`` maps vectors, ``[..., size]``, by a masked network of vector and context.

    Mapping takes one pass of the network. Mapping back takes one pass per latent; each pass gets one more latent right.

    Args:
        size: size of the vectors.
        context_dim: size of the context.
        hidden: widths of the hidden layers.
        num_params: P, number of parameters of a univariate function.
        univariate: the univariate functions.
        reverse: whether ``condition`` gives the inverse, which maps back in one pass.
    """

    def __init__(
        self,
        size: int,
        context_dim: int,
        hidden: tuple[int, ...],
        num_params: int,
        univariate: Univariate,
        *,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.univariate, self.reverse = size, univariate, reverse
        widths = [max(width, size) for width in hidden]  # a narrower layer cannot carry every latent
        self.network = pyro.nn.ConditionalAutoRegressiveNN(size, context_dim, widths, param_dims=[1] * num_params)

    def condition(self, context: Tensor) -> Any:
        """Return the transform."""

        def both(value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
            if not inverse:
                mapped, log_slope = self.univariate(value, self._raw(value, context))
                return mapped, log_slope.sum(-1)
            x, log_slope = torch.zeros_like(value), torch.zeros_like(value)
            for _ in range(self.size):
                x, log_slope = self.univariate(value, self._raw(x, context), inverse=True)
            return x, log_slope.sum(-1)

        transform = VectorTransform(both)
        return transform.inv if self.reverse else transform

    def _raw(self, x: Tensor, context: Tensor) -> Tensor:
        return torch.stack(self.network(x, context.expand(*x.shape[:-1], -1)), dim=-1)


def gated(values: Tensor, raw: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Map by g z + (1 - g) m, with a gate g = sigmoid(raw + 2) between 0 and 1."""
    m, gate = raw[..., 0], raw[..., 1] + 2.0
    if inverse:
        return (values - (-gate).sigmoid() * m) * (1 + (-gate).exp()), -F.logsigmoid(gate)
    return gate.sigmoid() * values + (-gate).sigmoid() * m, F.logsigmoid(gate)


def affine(values: Tensor, raw: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Map by exp(s) z + m, with s = 3 tanh(raw / 3) between -3 and 3."""
    m, s = raw[..., 0], 3 * (raw[..., 1] / 3).tanh()
    return ((values - m) * (-s).exp(), -s) if inverse else (values * s.exp() + m, s)
