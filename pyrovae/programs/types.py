"""Names of types."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Program = Callable[..., Any]

Batch = tuple[Tensor, ...]

Site = dict[str, Any]

Trace = Any  # pyro.poutine.Trace, which has no types
