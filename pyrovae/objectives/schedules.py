"""Weights over training time: functions of the gradient step, from 0.

Any function of the step is one; these are the common ones.
"""

import math
from collections.abc import Callable

from pyrovae.checks import at_least, positive

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """Return a weight that stays as it is."""
    return lambda step: value


def linear(steps: int, *, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Return a weight that goes from ``start`` to ``end`` in a straight line over ``steps`` steps, and stays there.

    Source: Bowman et al., "Generating sentences from a continuous space", 2016; Sonderby et al., 2016.
    """
    at_least("steps", steps, 1)
    return lambda step: start + (end - start) * min(step / steps, 1.0)


def cyclical(period: int, *, rise: float = 0.5, cycles: int = 4, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Return a weight that rises again and again, and stays at ``end`` after the last cycle.

    Args:
        period: steps of a cycle.
        rise: share of a cycle in which it rises; for the rest it is at ``end``.
        cycles: their number.
        start: value at the beginning of each.
        end: value that each rises to.

    Source: Fu et al., "Cyclical annealing schedule: a simple approach to mitigating KL vanishing", 2019.
    """
    at_least("period", period, 1)
    at_least("cycles", cycles, 1)
    if not 0 < rise <= 1:
        raise ValueError(f"rise must be a share of the period, above 0 and at most 1, got {rise!r}")

    def weight(step: int) -> float:
        inside = (step % period) / period if step < cycles * period else 1.0
        return start + (end - start) * min(inside / rise, 1.0)

    return weight


def sigmoid(middle: int, *, width: float, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Return a weight that is half way from ``start`` to ``end`` at step ``middle``.

    Args:
        middle: step at which it is half way.
        width: steps over which the logit changes by 1.
        start: value long before.
        end: value long after.

    Source: Bowman et al., "Generating sentences from a continuous space", 2016.
    """
    positive("width", width)
    return lambda step: start + (end - start) * 0.5 * (1 + math.tanh(0.5 * (step - middle) / width))
