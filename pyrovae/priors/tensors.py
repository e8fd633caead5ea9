"""A distribution's tensors, moved together."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.distributions import Distribution, Transform

T = TypeVar("T")


def map_tensors(value: T, fn: Callable[[Tensor], Tensor]) -> T:
    """Return a copy of a distribution (or a transform) with ``fn`` done to every tensor inside; others stay."""
    result: Any = value
    if isinstance(value, Tensor):
        result = fn(value)
    elif isinstance(value, list | tuple):
        result = type(value)(map_tensors(part, fn) for part in value)
    elif isinstance(value, Distribution | Transform):
        result = copy.copy(value)
        for name, part in vars(value).items():
            result.__dict__[name] = map_tensors(part, fn)
    return result
