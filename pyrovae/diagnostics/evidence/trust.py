"""When an estimate of log evidence is reliable, and how reports say that it is not."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

ERRORS = 4.0  # standard errors beyond which two numbers contradict each other
LOST = 10.0  # nats below the best weight, beyond which a chain's weight is negligible
NEXT_TO_NOTHING = 0.02  # nats, too few for a contradiction


class Summarised(Protocol):
    """Estimates for N observations, with a summary."""

    @property
    def reliable(self) -> Tensor:
        """Whether each estimate is reliable, ``[N]``."""
        ...

    def __len__(self) -> int: ...

    def summary(self) -> dict[str, float]:
        """Return means over the observations."""
        ...


def agree(difference: Tensor, *errors: Tensor) -> Tensor:
    """Whether a difference is within four standard errors of the two numbers together."""
    return difference.abs() <= _allowed(errors)


def distance_below(estimate: Tensor, error: Tensor, bounds: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return how far each estimate of log p(x) is below the highest bound that contradicts it, 0 where none does.

    An ELBO is a lower bound. The log of an unbiased estimate of p(x) exceeds log p(x) by c nats with a probability of
    at most exp(-c), by Markov's inequality. An estimate that lies below either of them by more than four standard
    errors is refuted.

    Args:
        estimate: estimates of log p(x), ``[N]``.
        error: their standard errors, ``[N]``.
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
    """Return the effective sample size (sum w)^2 / sum w^2, ``[N]``, from log weights ``[K, N]``; 0 if all are zero."""
    shares = log_weights.double().log_softmax(0)
    return (-(2 * shares).logsumexp(0)).exp().nan_to_num(0)


def normal_part(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many log weights ``[K, N]`` are within ten nats of the largest, and their variance, ``[N]`` each.

    Lost chains are far below and have negligible weight; the log weights of the others are about normal.
    """
    near = log_weights > log_weights.max(0).values - LOST
    count = near.sum(0).double()
    shifted = torch.where(near, log_weights - log_weights.max(0).values, 0).double()
    mean = shifted.sum(0) / count
    return count, torch.where(near, shifted - mean, 0).square().sum(0) / (count - 1).clamp(min=1)


def unreliable(reliable: Tensor) -> float:
    """Return the share of observations whose estimate is unreliable."""
    return float((~reliable).double().mean())


def described(method: str, estimates: Summarised) -> str:
    """Return a sentence on the estimates of the evidence, and for how many observations they are unreliable."""
    summary = estimates.summary()
    text = (
        f"log evidence {summary['log_evidence']:.3f} nats per observation by {method}, mean of {len(estimates)} data "
        f"(standard error {summary['log_evidence_se']:.3f} over data, {summary['log_evidence_mc_se']:.3f} Monte Carlo)"
    )
    return f"{text}; {doubt(estimates.reliable)}"


def doubt(reliable: Tensor) -> str:
    """Return a phrase on the number of observations whose estimate is unreliable."""
    count = int((~reliable).sum())
    if not count:
        return "reliable for all of them"
    return f"NOT RELIABLE for {count} of {len(reliable)} data (.reliable), whose estimates may be far too low"
