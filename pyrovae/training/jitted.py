"""Pyro's jitted objectives: a fit runs the objectives that they jit, and compiles its steps itself."""

import copy
from typing import Any

from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

PLAIN = {
    JitTrace_ELBO: Trace_ELBO,
    JitTraceEnum_ELBO: TraceEnum_ELBO,
    JitTraceGraph_ELBO: TraceGraph_ELBO,
    JitTraceMeanField_ELBO: TraceMeanField_ELBO,
}


def without_jit(objective: Any) -> Any:
    """Return a copy of an objective; for a jitted one, the objective that it jits, with the same settings.

    ``torch.jit.trace`` runs a program's Python only once, on the first batch: it keeps that batch's length, and nothing
    is known of later batches.

    Raises:
        ValueError: for a subclass of a jitted objective, as its changes are not known.
    """
    jitted = next((cls for cls in PLAIN if isinstance(objective, cls)), None)
    if jitted is None:
        return copy.deepcopy(objective)
    plain = PLAIN[jitted]()
    if type(objective) is not jitted:
        raise ValueError(
            f"{type(objective).__name__} is a subclass of {jitted.__name__}, but a fit compiles its steps itself: make "
            f"it one of {type(plain).__name__}"
        )
    settings = {name: value for name, value in vars(objective).items() if name in vars(plain)}
    vars(plain).update(copy.deepcopy(settings))
    return plain


def said_of(objective: Any) -> list[str]:
    """Return what a fit notes about an objective that it runs without jit: one line, or none."""
    if type(objective) not in PLAIN:
        return []
    plain = PLAIN[type(objective)].__name__
    return [f"{type(objective).__name__} runs as {plain}, since a fit compiles its steps itself"]
