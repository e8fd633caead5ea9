"""What a distribution of a guide can do: attributes that it may declare, and their values where it does not.

A user's distribution declares where it differs: ``can_score = False`` where its density is known only at its own draws,
and ``reparametrised = False`` where its draws are not a function of parameters that could be free per observation. It
declares ``marginals``, a method that returns the distribution of its coordinates, where they have one in closed form.
"""

from typing import Any

import pyro.distributions as dist


def can_score(fn: Any) -> bool:
    """Whether a distribution can evaluate its density at values that it did not draw."""
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    return bool(getattr(fn, "can_score", not isinstance(fn, dist.Delta)))


def reparametrised(fn: Any) -> bool:
    """Whether a distribution's draws are a function of its parameters, so that a gradient can move them."""
    return bool(getattr(fn, "reparametrised", fn.has_rsample))
