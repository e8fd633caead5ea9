"""Weights over training time: functions of the gradient step, from 0.

Any function of the step is one; these are the common ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

from pyrovae.common.checks import at_least, finite, positive, shown

Schedule = Callable[[int], float]
NEAR = 0.01  # share of a weight's way that may be left where it counts as at its end
FAR = 100  # times the length of a fit, where a weight whose end is not known is looked for at rest


@dataclass(frozen=True)
class Settling:
    """A weight that is at its last value, or next to it, from a known step on.

    Attributes:
        weight: function of the step.
        settles: that step.
    """

    weight: Schedule
    settles: int

    def __call__(self, step: int) -> float:
        """Return the weight at a step."""
        return self.weight(step)


def constant(value: float) -> Schedule:
    """Return a weight that stays as it is."""
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
        period: steps of a cycle.
        rise: share of a cycle in which it rises; for the rest it is at ``end``.
        cycles: their number.
        start: value at the beginning of each.
        end: value that each rises to.

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
        middle: step at which it is half way.
        width: steps over which the logit changes by 1.
        start: value long before.
        end: value long after.

    Source: Bowman et al., "Generating sentences from a continuous space", 2016.
    """
    middle, width = at_least("middle", middle, 0), positive("width", width)
    start, end = finite("start", start), finite("end", end)
    settles = middle + math.ceil(width * math.log(1 / NEAR))  # a logit of log 100
    return Settling(lambda step: start + (end - start) * 0.5 * (1 + math.tanh(0.5 * (step - middle) / width)), settles)


def unfinished(name: str, weight: Schedule, num_steps: int) -> str | None:
    """Return a sentence where a weight is still on its way at the last of so many steps; None where it is not.

    A function of the user's counts as on its way where it has come to rest somewhere else long after the fit; of one
    that has not, or does not take such steps, nothing is said.
    """
    far = weight.settles if isinstance(weight, Settling) else FAR * num_steps
    try:
        first, last, end, later = (float(weight(step)) for step in (0, num_steps - 1, far, 2 * far))
    except Exception:  # of a function that takes no such step
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
    """Return the first step at which a condition holds that holds at ``high`` and from its first step on."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
