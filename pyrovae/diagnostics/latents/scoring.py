"""Guides evaluated at externally supplied latents, and guides whose q(z | x) is not one distribution."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.importance.question import Question
from pyrovae.programs.densities import log_density
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.sites import counted, site_rows
from pyrovae.programs.types import Batch, Program

FEW = 32  # observations that show whether a guide draws numbers of its own


def refuse_masked(names: Iterable[str], *traces: Any) -> None:
    """Refuse latents that a mask leaves without a density: for these data they are undetermined.

    Raises:
        ValueError: naming the latent.
    """
    for name in names:
        cells = [counted(trace.nodes[name]) for trace in traces]
        if not all(one is None or bool(one.all()) for one in cells):
            raise ValueError(
                f"latent site {name!r} is masked for some data, so that it is undetermined there: leave these data out"
            )


def conditioned(program: Program, latents: Mapping[str, Tensor], plates: Mapping[str, int], rows: Batch) -> Any:
    """Run a program with externally supplied latents, and return its trace.

    Args:
        program: model or guide.
        latents: values by site, ``[rows, ...]``; the plates left of the data plate come right after the rows.
        plates: number of plates left of the data plate, by site.
        rows: the batch.

    A density may be NaN where a latent lies so far from the posterior of an observation that a flow's inverse
    overflows; its limit there is 0.

    Raises:
        ValueError: for a program that cannot score the latents, as all densities are NaN or it fails.
    """
    values = {name: value.movedim(0, plates[name]) for name, value in latents.items()}
    try:
        with Repeated():
            trace = poutine.trace(poutine.condition(program, data=values)).get_trace(*rows)
            unknown = bool(log_density(trace, len(rows[0])).isnan().all())
            reason = "its density is NaN"
    except (RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        unknown, reason = True, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    if unknown:
        raise ValueError(
            f"the guide cannot score a z that it did not draw ({reason}), so q(z) is not known: use a guide that can"
        )
    return trace


def draws_of_its_own(question: Question, batch: Batch) -> bool:
    """Whether a guide draws numbers of its own before it samples, so that its q(z | x) differs from run to run.

    Two runs score the same latents and are compared. The answer is no for a guide that cannot score them.
    """
    rows = tuple(t[:FEW] for t in batch)
    with Repeated():
        sites = poutine.trace(question.pair.guide).get_trace(*rows).nodes
    latents = {name: site_rows(sites[name]) for name in question.layout.latents}
    plates = {name: len(sites[name]["fn"].batch_shape) - 1 for name in latents}
    try:
        one, other = (
            log_density(conditioned(question.pair.guide, latents, plates, rows), len(rows[0])) for _ in range(2)
        )
    except ValueError:
        return False
    return not torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def refuse_unscored(question: Question) -> None:
    """Refuse a guide that cannot score an externally supplied z, by a test with its draws for other observations.

    Raises:
        ValueError: with the reason.
    """
    question.layout.require_latents()
    rows = tuple(t[:FEW] for t in question.data.batch(slice(0, FEW)))
    with Repeated():
        sites = poutine.trace(question.pair.guide).get_trace(*rows).nodes
    others = {name: site_rows(sites[name]).roll(1, 0) for name in question.layout.latents}
    plates = {name: len(sites[name]["fn"].batch_shape) - 1 for name in others}
    conditioned(question.pair.guide, others, plates, rows)
