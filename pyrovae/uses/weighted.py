"""Draws of the posterior from the guide's draws and their importance weights."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrovae.arviz.psis import smoothed
from pyrovae.importance.psis import pareto_khat
from pyrovae.importance.question import Question
from pyrovae.importance.resampling import systematic
from pyrovae.programs.streams import numpy_generator

FINITE = 0.5  # k-hat up to which weights have a finite variance


@dataclass(frozen=True)
class Weighted:
    """Draws of a batch of data, resampled by their importance weights.

    Attributes:
        indices: numbers of the observations.
        draws: draws by site, ``[S, len(indices), ...]``.
        khat: Pareto tail index of the weights, ``[len(indices)]``.
        ess: how many independent draws tell as much as these, ``[len(indices)]``: 1 / (sum w^2 + sum f (1 - f) / S^2),
            with the weights w and the fractions f of S w that are rounded up or down at random. Where k-hat is above
            0.5, so that the weights' variance need not be finite, the last term is 1 / S.
        log_evidence: importance-weighted estimate of log p(x), ``[len(indices)]``, nats.
    """

    indices: range
    draws: dict[str, Tensor]
    khat: Tensor
    ess: Tensor
    log_evidence: Tensor


def weighted_draws(question: Question, num_particles: int, num_draws: int, label: str | None) -> Iterator[Weighted]:
    """Draw K particles of every observation, and resample S of them by their Pareto-smoothed weights.

    Resampling is systematic: a particle occurs S w times, rounded down or up at random, so that particles of equal
    weight are each kept once.

    Args:
        question: the pair and its data.
        num_particles: number of particles K.
        num_draws: number of draws S.
        label: label of the progress bar; None shows none.
    """
    values: dict[str, list[Tensor]] = {}
    weights: list[Tensor] = []
    for part in question.particles(num_particles, label):
        weights.append(part.log_weight.double().cpu())
        for name in question.layout.latents:
            values.setdefault(name, []).append(part.values(part.guide_trace.nodes[name]).cpu())
        if sum(map(len, weights)) == num_particles:
            yield _resampled(
                part.indices, {name: torch.cat(v) for name, v in values.items()}, torch.cat(weights), num_draws,
                question.seed,
            )  # fmt: skip
            values, weights = {}, []


def _resampled(indices: range, values: dict[str, Tensor], log_weights: Tensor, num_draws: int, seed: int) -> Weighted:
    weights = np.exp(smoothed(log_weights.numpy()))
    weights = weights / weights.sum(0)
    columns = [  # each observation has a stream of its own
        systematic(weights[:, [k]], numpy_generator("posterior by weight", seed, index), num_draws)
        for k, index in enumerate(indices)
    ]
    chosen = torch.from_numpy(np.concatenate(columns, axis=1))
    draws = {
        name: v.gather(0, chosen.reshape(*chosen.shape, *(1,) * (v.dim() - 2)).expand(num_draws, *v.shape[1:]))
        for name, v in values.items()
    }
    rest = num_draws * weights % 1  # what systematic sampling rounds at random
    rounding = (rest * (1 - rest)).sum(0) / num_draws**2
    khat = pareto_khat(log_weights)
    rough = np.where((khat > FINITE).numpy(), 1 / num_draws, rounding)
    ess = torch.from_numpy(1 / ((weights**2).sum(0) + rough))
    log_evidence = log_weights.logsumexp(0) - np.log(len(log_weights))
    return Weighted(indices, draws, khat, ess, log_evidence)
