"""The internals of Pyro that are used: its stack of handlers, its marks on parameters, its looks at values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import pyro.util
from pyro import poutine
from torch import Tensor

LOOKING = "pyro.infer.util"  # the module that leaves terms of probability 0 out of enumerated sums
Handler = TypeVar("Handler")


def handlers_around(kind: type[Handler]) -> list[Handler]:
    """Return the effect handlers of a kind that are active around a program, the outermost first."""
    return [handler for handler in poutine.runtime._PYRO_STACK if isinstance(handler, kind)]


def leaf_of(value: Any) -> Tensor:
    """Return the unconstrained tensor that a parameter's value, or rows of the value, come from."""
    leaf: Tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
    source: Tensor = getattr(value, "_pyro_unconstrained_param", leaf)
    return source


def mark_leaf(rows: Any, value: Any) -> None:
    """Note on the rows that they come from a parameter's value, in the place where Pyro's plate notes it too."""
    rows._pyro_unconstrained_param = leaf_of(value)


def constraints_of(store: Any) -> Mapping[str, Any]:
    """Return the constraints of a param store, by name."""
    constraints: Mapping[str, Any] = store._constraints
    return constraints


def mask_of(fn: Any) -> Any:
    """Return the mask of a masked distribution; None of any other."""
    return getattr(fn, "_mask", None)


@contextmanager
def without_looks_for_nan() -> Iterator[None]:
    """Switch off Pyro's warnings of NaN, which look at values."""
    before = {name: getattr(pyro.util, name) for name in ("torch_isnan", "torch_isinf")}
    try:
        for name in before:
            setattr(pyro.util, name, lambda _: False)
        yield
    finally:
        for name, function in before.items():
            setattr(pyro.util, name, function)
