"""Monotonic rational-quadratic splines, and steps that couple the halves of a vector by them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.nn.mlp import MLP
from pyrovae.nn.transforms import Univariate, VectorTransform

LEAST = 1e-3  # least width and height of a bin, as a share of the whole, and least slope


def check_bins(num_bins: int) -> int:
    """Return the number of bins of a spline as an int.

    Raises:
        ValueError: when it is below 2, or so large that the bins' least widths do not fit into the whole.
    """
    if at_least("num_bins", num_bins, 2) >= 1 / LEAST:
        raise ValueError(f"num_bins must be below {1 / LEAST:.0f}, got {num_bins}")
    return int(num_bins)


def spline(values: Tensor, raw: Tensor, bound: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Map numbers by a monotonic rational-quadratic spline on [-bound, bound], the identity outside.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019.

    Args:
        values: numbers to map, ``[...]``.
        raw: unconstrained widths and heights of K bins and slopes at their K - 1 inner knots, ``[..., 3 K - 1]``; zeros
            give the identity.
        bound: half the length of the interval.
        inverse: whether to map back.

    Returns:
        What the numbers are mapped to, and the logarithm of the slope there.
    """
    bins = (raw.shape[-1] + 1) // 3
    raw_widths, raw_heights, raw_slopes = raw.split((bins, bins, bins - 1), dim=-1)
    widths, heights = (2 * bound * (LEAST + (1 - LEAST * bins) * r.softmax(-1)) for r in (raw_widths, raw_heights))
    slopes = LEAST + F.softplus(raw_slopes + math.log(math.expm1(1 - LEAST)))  # 1 where raw is 0
    slopes = F.pad(slopes, (1, 1), value=1.0)
    lefts, bottoms = (F.pad(r.cumsum(-1)[..., :-1], (1, 0)) - bound for r in (widths, heights))
    inside = values.abs() <= bound
    v = values.clamp(-bound, bound)[..., None]
    place = ((v >= (bottoms if inverse else lefts)).sum(-1, keepdim=True) - 1).clamp(0, bins - 1)
    left, bottom, width, height, slope, after = (
        r.expand(*place.shape[:-1], bins).gather(-1, place)
        for r in (lefts, bottoms, widths, heights, slopes[..., :-1], slopes[..., 1:])
    )
    mean = height / width
    bend = slope + after - 2 * mean
    if inverse:
        rise = v - bottom
        b = height * slope - rise * bend
        a = rise * bend + height * (mean - slope)
        root = (b.square() + 4 * a * mean * rise).clamp(min=0).sqrt()
        falls = b < 0  # then a > 0, and b + root would cancel
        share = torch.where(falls, (root - b) / torch.where(falls, 2 * a, 1.0), 2 * mean * rise / (b.abs() + root))
        share = share.clamp(0, 1)
        mapped = left + share * width
    else:
        share = (v - left) / width
        mapped = bottom + height * (mean * share.square() + slope * share * (1 - share)) / (
            mean + bend * share * (1 - share)
        )
    down = mean + bend * share * (1 - share)
    up = after * share.square() + 2 * mean * share * (1 - share) + slope * (1 - share).square()
    log_slope = 2 * (mean / down).log() + up.log()
    log_slope = -log_slope if inverse else log_slope
    mapped, log_slope = mapped.squeeze(-1), log_slope.squeeze(-1)
    return torch.where(inside, mapped, values), torch.where(inside, log_slope, torch.zeros_like(log_slope))


class Coupling(nn.Module):
    """A step that maps one half of the latents by functions of the other half and the context."""

    def __init__(
        self, size: int, context_dim: int, hidden: tuple[int, ...], num_params: int, univariate: Univariate
    ) -> None:
        super().__init__()
        self.kept, self.univariate = size // 2, univariate
        self.network = MLP(self.kept + context_dim, (size - self.kept) * num_params, hidden=hidden)

    def condition(self, context: Tensor) -> Any:
        """Return the transform."""

        def both(value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
            first, second = value[..., : self.kept], value[..., self.kept :]
            raw = self.network(first, context.expand(*value.shape[:-1], -1)).unflatten(-1, (second.shape[-1], -1))
            mapped, log_slope = self.univariate(second, raw, inverse=inverse)
            return torch.cat([first, mapped], dim=-1), log_slope.sum(-1)

        return VectorTransform(both)
