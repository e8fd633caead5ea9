"""Weights over training time: functions of the gradient step, from 0.

Any function of the step is a schedule; these are the common ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

from pyrovae.common.checks import at_least, finite, positive, shown

Schedule = Callable[[int], float]
NEAR = 0.01  # share of a weight's whole change that may remain when it counts as finished
FAR = 100  # times the length of a fit: a weight whose end is unknown should be at rest there


@dataclass(frozen=True)
class Settling:
    """A weight that is at its last value, or next to it, from a known step on.

    Attributes:
        weight: function of the step.
        settles: this step.
    """

    weight: Schedule
    settles: int

    def __call__(self, step: int) -> float:
        """Return the weight at a step."""
        return self.weight(step)


def constant(value: float) -> Schedule:
    """Return a constant weight."""
    value = finite("value", value)
    return Settling(lambda step: value, 0)


def linear(steps: int, *, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Return a weight that goes from ``start`` to ``end`` in a straight line over ``steps`` steps, and stays there.

    Source: Bowman et al., "Generating sentences from a continuous space", 2016; Sonderby et al., 2016.
    """
    steps, start, end = at_least("steps", steps, 1), finite("start", start), finite("end", end)
    return Settling(lambda step: start + (end - start) * min(step / steps, 1.0), steps)


def cyclical(period: int, *, rise: float = 0.5, cycles: int = 4, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Return a weight that rises again and again, and stays at ``end`` after the last cycle.

    Args:
        period: number of steps per cycle.
        rise: share of a cycle in which the weight rises; for the rest of the cycle it is at ``end``.
        cycles: number of cycles.
        start: value at the beginning of each cycle.
        end: value to which the weight rises in each cycle.

    Source: Fu et al., "Cyclical annealing schedule: a simple approach to mitigating KL vanishing", 2019.
    """
    period, cycles = at_least("period", period, 1), at_least("cycles", cycles, 1)
    start, end = finite("start", start), finite("end", end)
    if not isinstance(rise, Real) or isinstance(rise, bool) or not 0 < rise <= 1:
        raise ValueError(f"rise must be a share of the period, above 0 and at most 1, got {shown(rise)}")
    rise = float(rise)

    def weight(step: int) -> float:
        inside = (step % period) / period if step < cycles * period else 1.0
        return start + (end - start) * min(inside / rise, 1.0)

    return Settling(weight, (cycles - 1) * period + math.ceil(rise * period))


def sigmoid(middle: int, *, width: float, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Return a weight that is half way from ``start`` to ``end`` at step ``middle``.

    Args:
        middle: step at which the weight is half way.
        width: steps over which the logit changes by 1.
        start: value long before ``middle``.
        end: value long after ``middle``.

    Source: Bowman et al., "Generating sentences from a continuous space", 2016.
    """
    middle, width = at_least("middle", middle, 0), positive("width", width)
    start, end = finite("start", start), finite("end", end)
    settles = middle + math.ceil(width * math.log(1 / NEAR))  # a logit of log 100
    return Settling(lambda step: start + (end - start) * 0.5 * (1 + math.tanh(0.5 * (step - middle) / width)), settles)


def unfinished(name: str, weight: Schedule, num_steps: int) -> str | None:
    """Return a sentence if a weight is still changing at the last of ``num_steps`` steps; None if it is not.

    A user's own function counts as still changing if it has come to rest at another value long after the fit. For a
    function that has not come to rest, or that does not take such steps, the result is None.
    """
    far = weight.settles if isinstance(weight, Settling) else FAR * num_steps
    try:
        first, last, end, later = (float(weight(step)) for step in (0, num_steps - 1, far, 2 * far))
    except Exception:  # from a function that does not take such a step
        return None
    near = NEAR * max(abs(end - last), abs(end - first))
    if far < num_steps or not abs(end - last) > near or not abs(end - later) <= 2 * near:
        return None
    settles = (
        far if isinstance(weight, Settling) else _first(lambda s: abs(weight(s) - end) <= near / 100, num_steps, far)
    )
    return (
        f"{name} reaches {end:.3g} at step {settles}, but the fit has {num_steps} steps, at the last of which it is "
        f"{last:.3g}: fit for longer, or let it rise sooner"
    )


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the first step at which a condition holds; it holds at ``high`` and at all steps after its first."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
