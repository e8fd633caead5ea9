"""Data drawn from the model, in the form of a batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.importance.question import Question
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.origins import kept_whole
from pyrovae.programs.sites import GIVEN, as_observed, counted, released, sample_sites
from pyrovae.programs.types import Batch, Program, Trace

_ONE_RUN, _IN_TURN, _APART = "one run draws the data", "the data are drawn in turn", "no function of the data is used"


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

    Every model is run on its first draws once more, to see that it draws them again and that it observes them as they
    were drawn.

    Args:
        question: the pair and its data.
        program: the model, which observes nothing.
        batch: batch that the program is run on first.
        noise: returns the random numbers of the batch's data, the same at every call.

    Raises:
        ValueError: for data that depend on each other in a circle, and for a model that observes something else than
            what was drawn for it.
    """
    if _ONE_RUN in question.seen:
        trace = _run(question, program, batch, noise)
        return _filled(question, batch, trace), trace
    drawing = _settled(question, program, batch, batch, noise)
    _see_that_draws_are_observed(question, drawing)
    if (drawing.rounds > 2 or question.layout.feeds_back) and _IN_TURN not in question.seen:
        _see_that_it_draws_in_turn(question, program, batch, noise, drawing)
        question.seen.add(_IN_TURN)
    if _APART not in question.seen:
        _see_that_draws_are_apart(question, program, batch, noise, drawing)
        question.seen.add(_APART)
    exact = all(site.reading is None or site.reading.exact for site in question.layout.observed)
    if exact and drawing.rounds <= 2 and not question.layout.feeds_back:
        question.seen.add(_ONE_RUN)
    return drawing.batch, drawing.trace


@dataclass(frozen=True)
class _Drawing:
    """Data that a model draws again when it is given them.

    Attributes:
        batch: batch with the draws in place.
        trace: trace of the last run.
        rounds: number of runs.
        last: number of the run in which each cell of the batch changed last, by more than rounding.
        last_bit: the same, by one bit at least.
    """

    batch: Batch
    trace: Trace
    rounds: int
    last: list[Tensor]
    last_bit: list[Tensor]


def _settled(
    question: Question, program: Program, batch: Batch, inputs: Batch, noise: Callable[[], DatumNoise]
) -> _Drawing:
    """Run a program on its own draws, from ``inputs`` on, until it draws them again.

    They must be the same to the bit while there are runs left, as cells of one observation may differ widely in size.
    """
    last = last_bit = [torch.zeros_like(t, dtype=torch.int32) for t in batch]
    rounds = 2 + max((t[0].numel() for t in batch), default=0)
    for number in range(1, rounds + 1):
        trace = _run(question, program, inputs, noise)
        draws = _filled(question, batch, trace)
        changed = [_differ(a, b) for a, b in zip(draws, inputs, strict=True)]
        bits = [a.double().nan_to_num() != b.double().nan_to_num() for a, b in zip(draws, inputs, strict=True)]
        to_the_bit = question.layout.feeds_back and number < rounds
        if not any(bool(cells.any()) for cells in (bits if to_the_bit else changed)):
            return _Drawing(draws, trace, number, last, last_bit)
        last = [then.masked_fill(cells, number) for then, cells in zip(last, changed, strict=True)]
        last_bit = [then.masked_fill(cells, number) for then, cells in zip(last_bit, bits, strict=True)]
        inputs = draws
    raise ValueError(_circle(question))


def _circle(question: Question) -> str:
    return (
        f"what the model observes ({', '.join(repr(site.name) for site in question.layout.observed)}) depends on "
        "itself in a circle, so that no data can be drawn from it: let each observation depend on earlier ones alone, "
        "and hand over what they share, such as a total, as a covariate"
    )


def _run(question: Question, program: Program, batch: Batch, noise: Callable[[], DatumNoise]) -> Trace:
    with noise(), Repeated():
        trace = poutine.trace(program).get_trace(*batch)
    question.layout.require_sites(name for name, _ in sample_sites(trace))
    return trace


def _see_that_draws_are_observed(question: Question, drawing: _Drawing) -> None:
    """Refuse a model that, given what was drawn for a site, observes something else there."""
    for site in question.layout.observed:
        if site.reading is not None:
            node = drawing.trace.nodes[site.name]
            drawn = as_observed(node, node["value"], site.reading.of(drawing.batch))
            given = node["infer"][GIVEN].expand(drawn.shape)
            cells, counts = site.reading.inside(drawn), counted(node)
            cells = cells if counts is None else cells & counts.expand(drawn.shape)
            both = drawn.double(), given.double()
            unlike = both[0].isnan() != both[1].isnan()
            if bool((cells & (unlike | _differ(*both, drawing.batch[site.reading.source].dtype))).any()):
                raise ValueError(
                    f"site {site.name!r} does not observe what was drawn for it, as the model changes it first or "
                    "shares it with another site, so that no data can be drawn: give obs= cells of the batch as they "
                    "are, each at one site, and mask (poutine.mask, likelihoods.Missing) those that are missing"
                )


def _see_that_it_draws_in_turn(
    question: Question, program: Program, batch: Batch, noise: Callable[[], DatumNoise], drawing: _Drawing
) -> None:
    """Refuse a model whose data depend on each other in a circle, even where its runs settle.

    From other data, here the draws of other observations, the same draws must be reached. In each run at least one cell
    settles for all observations, as it does where each depends on earlier ones. Cells in a circle settle late and
    together, when a weak dependence has died out.
    """
    if len(batch[0]) > 1:
        start = _filled(question, batch, drawing.trace, shift=1)
        again = _settled(question, program, batch, start, noise)
        if any(bool(_differ(a, b).any()) for a, b in zip(drawing.batch, again.batch, strict=True)):
            raise ValueError(_circle(question))
        drawing = again
    if not _without_gaps(drawing.last_bit) and not _without_gaps(drawing.last):
        raise ValueError(_circle(question))


def _without_gaps(last: list[Tensor]) -> bool:
    """Whether some cell settled, for all observations, in each run up to the last."""
    rounds = {number for then in last for number in then.amax(0).reshape(-1).tolist()} | {0}
    return rounds == set(range(max(rounds) + 1))


def _see_that_draws_are_apart(
    question: Question, program: Program, batch: Batch, noise: Callable[[], DatumNoise], drawing: _Drawing
) -> None:
    """Refuse a model that observes a function of a tensor and computes with that tensor, so that draws are not its own.

    Its draws cannot take the place of the data. They must be the same when the tensor is another.
    """
    unread = [site for site in question.layout.observed if site.function_of is not None]
    if not unread:
        return
    sources = {site.function_of for site in unread}
    changed = tuple(
        t if k not in sources else 0.9 * t if t.is_floating_point() else t.roll(1, 0) for k, t in enumerate(batch)
    )
    trace = _run(question, program, changed, noise)
    for site in question.layout.observed:
        if bool(_differ(*(one.nodes[site.name]["value"] for one in (trace, drawing.trace))).any()):
            raise ValueError(
                f"the model's draws of {site.name!r} depend on a tensor of which it observes a function at site "
                f"{unread[0].name!r}, so that no data can be drawn: hand over that function as the data, and observe "
                "them"
            )


def _filled(question: Question, batch: Batch, trace: Trace, shift: int = 0) -> Batch:
    """Return the batch with draws in place of what is observed; what is missing stays missing.

    Args:
        question: the pair and its data.
        batch: batch whose covariates and missing cells are taken.
        trace: trace that holds the draws.
        shift: number of rows by which the draws are moved.
    """
    for site in question.layout.observed:
        if site.reading is not None:
            node, data = trace.nodes[site.name], site.reading.of(batch)
            value = kept_whole(node["value"], data.dtype)
            value = value.roll(shift, value.dim() + site.reading.data_dim) if shift else value
            batch = site.reading.into(batch, as_observed(node, value, data))
    return batch


def _differ(one: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return which cells differ by more than the rounding of a sum over the cells of an observation.

    Args:
        one: values, with the observations in dimension 0.
        other: values to compare with; NaN is taken for zero in both.
        dtype: dtype in which the values were kept; None for that of ``one``.
    """
    kinds = [kind for kind in (one.dtype, other.dtype, dtype) if kind is not None and kind.is_floating_point]
    if not kinds:
        return one != other
    eps = max(torch.finfo(kind).eps for kind in kinds)
    one, other = one.double().nan_to_num(), other.double().nan_to_num()
    scale = one.abs().flatten(1).amax(1).reshape(-1, *[1] * (one.dim() - 1)) if one.dim() > 1 else one.abs()
    return (one - other).abs() > 4 * eps * max(one[0].numel(), 1) * scale
