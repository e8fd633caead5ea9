"""The internals of Inductor that are used: compiling a graph with torch's own random numbers."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution


def compile_graph(graph: Any, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile a graph of tensor operations that draws the same random numbers as torch's own operations."""
    options: dict[str, Any] = {"fallback_random": True}
    with _own_random_numbers(), torch.no_grad(), _no_notice_of_cuda():
        run: Callable[..., Any] = torch._inductor.compile(graph, [t.detach() for t in inputs], options=options)
        run(*(t.detach().clone() for t in inputs))
    return run


@contextmanager
def unchanged() -> Iterator[None]:
    """Put back what torch's compiler changes for the whole process."""
    validate = Distribution._validate_args
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Distribution._validate_args = validate


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Keep Inductor from drawing a Bernoulli variable in its own way, which takes other random numbers."""
    from torch._inductor.decomposition import decompositions
    from torch._inductor.lowering import lowerings, make_fallback

    operation = torch.ops.aten.bernoulli.default
    decomposition = decompositions.pop(operation, None)
    lowered = operation in lowerings
    try:
        if not lowered:
            make_fallback(operation, warn=False)  # made here: Inductor itself raises an error where $CI is set
        yield
    finally:
        if not lowered:
            lowerings.pop(operation, None)
        if decomposition is not None:
            decompositions[operation] = decomposition


@contextmanager
def _no_notice_of_cuda() -> Iterator[None]:
    """Silence the notice of a missing CUDA runtime that torch gives when its compiler is first used."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
