"""Weights of observations that were sampled with unequal probabilities: means, their errors, and draws by weight."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.common.rows import shuffled


def check_weights(weights: Any, count: int) -> Tensor:
    """Return weights as float64 ``[N]``.

    Raises:
        ValueError: for weights of another number of observations, below 0 or not finite.
    """
    given = weights.detach().cpu() if isinstance(weights, Tensor) else weights
    numbers = torch.from_numpy(np.array(given, dtype=np.float64))
    if tuple(numbers.shape) != (count,):
        raise ValueError(f"weights must be one number per observation, [{count}], got {list(numbers.shape)}")
    wrong = ~(numbers.isfinite() & (numbers >= 0))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"weights must be finite numbers of at least 0, got {float(numbers[row]):g} for observation {row} "
            f"({int(wrong.sum())} in all): correct them, or drop these observations"
        )
    return numbers


def weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return values ``[..., N]`` whose plain mean is the weighted mean, and whose plain error is that mean's error.

    With the weighted mean m = sum(w v) / sum(w), these are m + N w (v - m) / sum(w), the linearised values of the ratio
    estimator. Their standard deviation by the square root of N is its standard error for rows that were sampled
    independently, with probabilities proportional to 1 / w. They are linear in the values, so that differences can be
    taken before or after.

    Source: Sarndal, Swensson and Wretman, "Model assisted survey sampling", 1992, section 5.7.

    Args:
        values: values, ``[..., N]``.
        weights: weights, ``[N]``; None leaves the values as they are.
    """
    if weights is None:
        return values
    values, own = values.double(), shares(weights).to(values.device) * len(weights)
    used = torch.where(own > 0, values, 0.0)  # a row of weight 0 counts for nothing, whatever its value
    mean = (own * used).mean(-1, keepdim=True)
    return mean + own * (used - mean)


def weighted_errors(errors: Tensor, weights: Tensor | None) -> Tensor:
    """Return Monte Carlo errors ``[N]`` of values as they count in the weighted mean."""
    if weights is None:
        return errors
    return torch.where(weights > 0, errors, 0.0) * shares(weights) * len(weights)


def shares(weights: Tensor) -> Tensor:
    """Return weights that add up to 1, ``[N]``; NaN where all are 0."""
    relative = weights / weights.max()  # so that neither large nor small ones are lost
    return relative / relative.sum()


def effective_size(weights: Tensor) -> float:
    """Return the number of rows of equal weight that tell as much, (sum w)^2 / sum w^2.

    Source: Kish, "Survey sampling", 1965, section 11.7.
    """
    return float(1 / shares(weights).square().sum())


def most_drawn(weights: Tensor) -> int:
    """Return how many rows can be drawn by their weights with none of them twice, sum(w) / max(w)."""
    return int(1 / float(shares(weights).max()) + 1e-9)


def drawn_by_weight(weights: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Draw ``count`` rows by systematic sampling: a row occurs count w / sum(w) times, rounded down or up at random.

    The rows are put into a random order first, as those of a table may follow each other in some pattern.

    Args:
        weights: weights, ``[N]``.
        count: number of rows to draw.
        source: generator on the CPU.

    Returns:
        The rows, ``[count]``; a row whose weight is large occurs several times, one after the other.
    """
    order = shuffled(len(weights), source)[:]
    ends = shares(weights)[order].cumsum(0)
    chance = torch.rand((), generator=source, dtype=torch.float64, device="cpu")
    marks = (torch.arange(count, dtype=torch.float64, device="cpu") + chance) / count
    last = int((weights[order] > 0).nonzero()[-1])
    return order[torch.searchsorted(ends, marks, right=True).clamp(max=last)]
