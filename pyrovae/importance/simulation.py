"""Data drawn from the model, in the form of a batch."""

from typing import Any

from pyro import poutine
from torch import Tensor

from pyrovae.importance.question import Question
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import as_observed, released


def simulated(asked: Question, batch: tuple[Tensor, ...], noise: DatumNoise) -> tuple[tuple[Tensor, ...], Any]:
    """Draw latents and data from the model; return the batch with these data, and the trace.

    What is missing of the batch is missing of the data that take its place: NaN, masked cells, labels of -1.

    Raises:
        ValueError: for an observation that is not a tensor of the batch.
    """
    with noise, Repeated():
        trace = poutine.trace(released(asked.pair.model)).get_trace(*batch)
    made = list(batch)
    for site in asked.layout.observed:
        if site.source is None:
            raise ValueError(f"observed site {site.name!r} is not a tensor of the batch, so no data can take its place")
        known, node = batch[site.source], trace.nodes[site.name]
        made[site.source] = as_observed(node, node["value"].to(known.dtype), known)
    return tuple(made), trace
