"""What a distribution of a guide can do: attributes that it may declare, and what they are where it does not.

A distribution of the user's declares what is not so: ``can_score = False`` where its density is known at its own draws
alone, ``reparametrised = False`` where its draws are no function of parameters that could be free for every
observation, and ``marginals``, a method that returns the distribution of its coordinates, where they have one in closed
form.
"""

from typing import Any

import pyro.distributions as dist


def can_score(fn: Any) -> bool:
    """Whether a distribution knows its density at values that it did not draw."""
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    return bool(getattr(fn, "can_score", not isinstance(fn, dist.Delta)))


def reparametrised(fn: Any) -> bool:
    """Whether a distribution's draws are a function of its parameters, along whose gradient they can be moved."""
    return bool(getattr(fn, "reparametrised", fn.has_rsample))
