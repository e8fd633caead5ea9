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
    """Estimates of log p(x), their errors, whether they are reliable and whether a bound refutes them, ``[N]`` each.

    Where a bound refutes an estimate, the error covers the distance to the bound.
    """

    log_evidence: Tensor
    log_evidence_se: Tensor
    reliable: Tensor
    refuted: Tensor

    def where(self, chosen: Tensor, other: "Supported") -> "Supported":
        """Return these estimates where ``chosen``, ``[N]``, and the other's elsewhere."""
        return Supported(*(torch.where(chosen, a, b) for a, b in zip(_fields(self), _fields(other), strict=True)))

    def at(self, which: Tensor) -> "Supported":
        """Return the estimates of some observations."""
        return Supported(*(values[which] for values in _fields(self)))

    def replaced(self, which: Tensor, other: "Supported") -> "Supported":
        """Return these estimates with those of some observations replaced by the other's."""
        return Supported(*(a.index_copy(0, which, b) for a, b in zip(_fields(self), _fields(other), strict=True)))


def _fields(one: Supported) -> tuple[Tensor, ...]:
    return one.log_evidence, one.log_evidence_se, one.reliable, one.refuted


def supported(
    model: Program, starts: Sequence[Program | None], data: Any, only: Sequence[int], bounds: Bounds, **options: Any
) -> Supported:
    """Anneal from the first start, and from the next ones those observations that are still unreliable.

    Of two estimates the reliable one counts, not the larger: the larger of two noisy numbers would be biased up. But
    both are lower bounds of log p(x), up to their errors. An estimate that lies below the other by more than these
    errors is therefore refuted, as by any other bound.

    Args:
        model: generative program.
        starts: guides, or None for the prior. A later guide that cannot score externally supplied latents is left out.
        data: the whole set.
        only: numbers of the observations to anneal.
        bounds: lower bounds of their log p(x), such as ELBOs, with standard errors, ``[N]`` each.
        options: options of :func:`~pyrovae.diagnostics.evidence.ais.anneal`.
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
        new, old = log_mean(again.log_weights), tuple(t[rest] for t in raw)
        other = held_against(again, [(a[rest], b[rest]) for a, b in [*bounds, raw]])
        higher = (new[0] > old[0]) & ~agree(new[0] - old[0], new[1], old[1])
        choice = other.reliable | higher
        best = best.replaced(rest, other.where(choice, best.at(rest)))
        raw = tuple(a.index_copy(0, rest, torch.where(choice, b, a[rest])) for a, b in zip(raw, new, strict=True))  # type: ignore[assignment]
    return best


def held_against(estimates: Annealing | Any, bounds: Bounds) -> Supported:
    """Return estimates after a check against lower bounds of log p(x)."""
    raw = log_mean(estimates.log_weights)[1] if isinstance(estimates, Annealing) else estimates.log_evidence_se
    below = distance_below(estimates.log_evidence, raw, bounds)
    error = torch.stack([estimates.log_evidence_se, below]).square().sum(0).sqrt()
    return Supported(estimates.log_evidence, error, estimates.reliable & (below == 0), below > 0)
