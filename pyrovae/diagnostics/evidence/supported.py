"""The log evidence that annealing supports best, from one start or another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.diagnostics.evidence.ais import Annealing, anneal
from pyrovae.diagnostics.evidence.evaluate import log_mean
from pyrovae.diagnostics.evidence.trust import agree, distance_below
from pyrovae.mcmc.annealing import CannotScore
from pyrovae.programs.types import Program

Bounds = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Supported:
    """Estimates of log p(x), their errors, whether to trust them, and whether a bound refutes them, ``[N]`` each.

    Where a bound refutes an estimate, the error covers the distance to it.
    """

    log_evidence: Tensor
    log_evidence_se: Tensor
    reliable: Tensor
    refuted: Tensor

    def where(self, chosen: Tensor, other: "Supported") -> "Supported":
        """Return the data that are ``chosen``, ``[N]``, and those of the other elsewhere."""
        return Supported(*(torch.where(chosen, a, b) for a, b in zip(_fields(self), _fields(other), strict=True)))

    def at(self, which: Tensor) -> "Supported":
        """Return some of the data."""
        return Supported(*(values[which] for values in _fields(self)))

    def replaced(self, which: Tensor, other: "Supported") -> "Supported":
        """Return these with some data as the other has them."""
        return Supported(*(a.index_copy(0, which, b) for a, b in zip(_fields(self), _fields(other), strict=True)))


def _fields(one: Supported) -> tuple[Tensor, ...]:
    return one.log_evidence, one.log_evidence_se, one.reliable, one.refuted


def supported(
    model: Program, starts: Sequence[Program | None], data: Any, only: Sequence[int], bounds: Bounds, **options: Any
) -> Supported:
    """Anneal from the first start, and what is not to be trusted then from the next ones, too.

    Of two estimates the one that is reliable counts, not the larger: the larger of two noisy numbers would be biased
    up. But both are lower bounds of log p(x) but for their errors, so that one that lies below the other beyond these
    is refuted by it, as by any other bound.

    Args:
        model: generative program.
        starts: guides, or None for the prior; of the later ones, what cannot score latents of elsewhere is left out.
        data: the whole set.
        only: numbers of the data.
        bounds: lower bounds of their log p(x), such as ELBOs, with standard errors, ``[N]`` each.
        options: of :func:`~pyrovae.diagnostics.evidence.ais.anneal`.
    """
    first = anneal(model, data, guide=starts[0], only=only, **options)
    best, raw = held_against(first, bounds), log_mean(first.log_weights)
    for start in starts[1:]:
        rest = (~best.reliable).nonzero().flatten()
        if not len(rest):
            break
        try:
            again = anneal(model, data, guide=start, only=[only[i] for i in rest.tolist()], **options)
        except CannotScore:
            continue
        there, known = log_mean(again.log_weights), tuple(t[rest] for t in raw)
        other = held_against(again, [(a[rest], b[rest]) for a, b in [*bounds, raw]])
        higher = (there[0] > known[0]) & ~agree(there[0] - known[0], there[1], known[1])
        taken = other.reliable | higher
        best = best.replaced(rest, other.where(taken, best.at(rest)))
        raw = tuple(a.index_copy(0, rest, torch.where(taken, b, a[rest])) for a, b in zip(raw, there, strict=True))  # type: ignore[assignment]
    return best


def held_against(found: Annealing | Any, bounds: Bounds) -> Supported:
    """Return estimates as they stand before lower bounds of log p(x)."""
    raw = log_mean(found.log_weights)[1] if isinstance(found, Annealing) else found.log_evidence_se
    below = distance_below(found.log_evidence, raw, bounds)
    error = torch.stack([found.log_evidence_se, below]).square().sum(0).sqrt()
    return Supported(found.log_evidence, error, found.reliable & (below == 0), below > 0)
