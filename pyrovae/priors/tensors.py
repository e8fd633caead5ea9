"""A distribution's tensors, moved together."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import ReferenceType

from torch import Tensor, nn
from torch.distributions import Distribution, Transform

T = TypeVar("T")


def map_tensors(value: T, fn: Callable[[Tensor], Tensor]) -> T:
    """Return a copy of a distribution (or a transform) with ``fn`` applied to every tensor inside; others stay."""
    return _map(value, fn, {})


def _map(value: Any, fn: Callable[[Tensor], Tensor], copies: dict[int, Any]) -> Any:
    if id(value) in copies:  # a transform and its inverse refer to each other
        return copies[id(value)]
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, nn.Module):
        return value._apply(fn)
    if isinstance(value, list | tuple):
        return type(value)(_map(part, fn, copies) for part in value)
    if not isinstance(value, Distribution | Transform):
        return value
    result = copies[id(value)] = copy.copy(value)
    for name, part in vars(value).items():  # weak references lead back to the original: made anew when needed
        result.__dict__[name] = None if isinstance(part, ReferenceType) else _map(part, fn, copies)
    return result
