"""When an estimate of log evidence is to be trusted, and how it is said that it is not."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

ERRORS = 4.0  # standard errors beyond which two numbers contradict each other
LOST = 10.0  # nats below the best, where a chain's weight counts for nothing
NEXT_TO_NOTHING = 0.02  # nats, that no contradiction is made of


class Summarised(Protocol):
    """Estimates of N data with a summary."""

    @property
    def reliable(self) -> Tensor:
        """Whether each is to be trusted, ``[N]``."""
        ...

    def __len__(self) -> int: ...

    def summary(self) -> dict[str, float]:
        """Return means over the data."""
        ...


def agree(difference: Tensor, *errors: Tensor) -> Tensor:
    """Whether a difference is within four standard errors of what it is a difference of."""
    return difference.abs() <= _allowed(errors)


def distance_below(estimate: Tensor, error: Tensor, bounds: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return how far each estimate of log p(x) is below the highest bound that contradicts it, 0 where none does.

    An ELBO is a lower bound; the log of an unbiased estimate of p(x) exceeds log p(x) by c nats with a probability of
    at most exp(-c), by Markov's inequality. What lies below either by more than four standard errors is refuted.

    Args:
        estimate: ``[N]``.
        error: its standard error, ``[N]``.
        bounds: lower bounds and their standard errors, ``[N]`` each.
    """
    below = torch.zeros_like(estimate)
    for bound, bound_error in bounds:
        difference = (bound - estimate).nan_to_num(math.inf, math.inf, 0)
        below = torch.where(difference > _allowed((error, bound_error)), torch.maximum(below, difference), below)
    return below


def _allowed(errors: Sequence[Tensor]) -> Tensor:
    total = torch.stack([error.nan_to_num(math.inf, math.inf) for error in errors]).square().sum(0).sqrt()
    return ERRORS * total + NEXT_TO_NOTHING


def effective(log_weights: Tensor) -> Tensor:
    """Return the effective sample size (sum w)^2 / sum w^2 of log weights ``[K, N]``, ``[N]``; 0 for no weight."""
    shares = log_weights.double().log_softmax(0)
    return (-(2 * shares).logsumexp(0)).exp().nan_to_num(0)


def normal_part(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many of log weights ``[K, N]`` are within ten nats of the largest, and their variance, ``[N]`` each.

    Chains that have lost their way are far below and count for nothing; of the others log weights are about normal.
    """
    kept = log_weights > log_weights.max(0).values - LOST
    count = kept.sum(0).double()
    shifted = torch.where(kept, log_weights - log_weights.max(0).values, 0).double()
    mean = shifted.sum(0) / count
    return count, torch.where(kept, shifted - mean, 0).square().sum(0) / (count - 1).clamp(min=1)


def unreliable(reliable: Tensor) -> float:
    """Return the share of data whose estimate is not to be trusted."""
    return float((~reliable).double().mean())


def described(method: str, found: Summarised) -> str:
    """Say in words what an estimate of the evidence comes to, and for how many data it is not to be trusted."""
    summary = found.summary()
    text = (
        f"log evidence {summary['log_evidence']:.3f} nats per observation by {method}, mean of {len(found)} data "
        f"(standard error {summary['log_evidence_se']:.3f} over data, {summary['log_evidence_mc_se']:.3f} Monte Carlo)"
    )
    return f"{text}; {doubt(found.reliable)}"


def doubt(reliable: Tensor) -> str:
    """Say for how many data an estimate is not to be trusted."""
    count = int((~reliable).sum())
    if not count:
        return "reliable for all of them"
    return f"NOT RELIABLE for {count} of {len(reliable)} data (.reliable), whose estimates may be far too low"
