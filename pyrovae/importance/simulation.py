"""Data drawn from the model, in the form of a batch."""

from collections.abc import Callable, Sequence

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.importance.question import Question
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import as_observed, released, sample_sites
from pyrovae.programs.types import Batch, Program, Trace


def simulated(question: Question, batch: Batch, noise: Callable[[], DatumNoise]) -> tuple[Batch, Trace]:
    """Draw latents and data from the model; return the batch with these data, and the trace.

    What is missing in the batch is also missing in the drawn data: NaN, masked cells, labels of -1.

    Args:
        question: the pair and its data.
        batch: batch whose covariates and missing cells are taken.
        noise: returns the random numbers of the batch's data, the same at every call.

    Raises:
        ValueError: for an observed site that does not read cells of the batch, or data that depend on each other in a
            circle.
    """
    for site in question.layout.observed:
        site.required_reading()
    return drawn_anew(question, released(question.pair.model), batch, noise)


def drawn_anew(
    question: Question, program: Program, batch: Batch, noise: Callable[[], DatumNoise]
) -> tuple[Batch, Trace]:
    """Run a program that draws what the model observes; return the batch with these draws in place, and the trace.

    A model may compute with what it observes (a decoder that is given the data so far). It is then run again on its own
    draws, with the same random numbers, until the data stay the same. Each run fixes the data that depend on fixed data
    alone, so the draws are the same as if they were made one after another.

    Args:
        question: the pair and its data.
        program: the model, which observes nothing.
        batch: batch that the program is run on first.
        noise: returns the random numbers of the batch's data, the same at every call.

    Raises:
        ValueError: for data that depend on each other in a circle.
    """
    inputs, layout = batch, question.layout
    rounds = 2 + max((t[0].numel() for t in batch), default=0) if layout.feeds_back else 1
    last = [torch.zeros_like(t, dtype=torch.int32) for t in batch]  # round in which each cell changed last
    for number in range(1, rounds + 1):
        with noise(), Repeated():
            trace = poutine.trace(program).get_trace(*inputs)
        layout.require_sites(name for name, _ in sample_sites(trace))
        draws = _filled(question, batch, trace)
        if not layout.feeds_back:
            return draws, trace
        changed = [_changed(a, b) for a, b in zip(draws, inputs, strict=True)]
        if not any(bool(cells.any()) for cells in changed):
            if _in_turn(last):
                return draws, trace
            break
        last = [then.masked_fill(cells, number) for then, cells in zip(last, changed, strict=True)]
        inputs = draws
    raise ValueError(
        f"what the model observes ({', '.join(repr(site.name) for site in layout.observed)}) depends on itself in a "
        "circle, so that no data can be drawn from it: let each observation depend on earlier ones alone"
    )


def _filled(question: Question, batch: Batch, trace: Trace) -> Batch:
    """Return the batch with draws in place of what is observed; what is missing stays missing."""
    for site in question.layout.observed:
        if site.reading is not None:
            node, data = trace.nodes[site.name], site.reading.of(batch)
            batch = site.reading.into(batch, as_observed(node, node["value"].to(data.dtype), data))
    return batch


def _changed(one: Tensor, other: Tensor) -> Tensor:
    """Return which cells differ by more than the rounding of a sum over the cells of an observation."""
    if not one.is_floating_point():
        return one != other
    one, other = one.nan_to_num(), other.nan_to_num()
    rounding = 4 * torch.finfo(one.dtype).eps * max(one[0].numel(), 1)
    scale = one.abs().flatten(1).amax(1).reshape(-1, *[1] * (one.dim() - 1)) if one.dim() > 1 else one.abs()
    return (one - other).abs() > rounding * scale


def _in_turn(last: Sequence[Tensor]) -> bool:
    """Whether some cells settled in each round, as they do where each depends on earlier ones.

    Cells that depend on each other in a circle may also settle, but late and together: a weak dependence dies out.
    """
    rounds = torch.cat([then.unique().cpu() for then in last]).unique()
    return bool((rounds.diff() <= 2).all())  # rounding may hide one round
