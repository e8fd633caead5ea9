"""Draws of the global latents, and the likelihood of each observation given them."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.common.progress import progress_bar
from pyrovae.data import as_data
from pyrovae.diagnostics.evidence.evaluate import evaluate
from pyrovae.importance.question import ask, refuse_weights
from pyrovae.programs.handlers import Repeated, given
from pyrovae.programs.isolation import random_state
from pyrovae.programs.types import Program


@dataclass(frozen=True)
class Shared:
    """S draws of the global latents from their guide.

    Attributes:
        values: draws by site, ``[S, ...]``.
        log_likelihood: log p(x_i | w_s), local latents integrated out by importance sampling, ``[S, N]``, nats.
        log_prior: log p(w_s | the latents above it) by site, ``[S]`` each.
        log_p: log p(w_s) + sum_i log p(x_i | w_s), ``[S]``.
        log_q: log q(w_s), ``[S]``.
    """

    values: dict[str, Tensor]
    log_likelihood: Tensor
    log_prior: dict[str, Tensor]
    log_p: Tensor
    log_q: Tensor


def shared(
    model: Program,
    guide: Any,
    data: Any,
    *,
    num_draws: int,
    num_particles: int,
    seed: int,
    device: Any,
    progress: bool,
) -> Shared:
    """Draw the global latents of a pair, and evaluate the data under every draw.

    Raises:
        ValueError: for a guide without the ``draw()``, ``posterior(name)`` and ``local`` of
            :class:`~pyrovae.guides.WithGlobals`.
    """
    num_draws = at_least("num_draws", num_draws, 2)
    if not all(hasattr(guide, name) for name in ("draw", "posterior", "local")):
        raise ValueError(
            "the guide has no global latents to draw: it needs draw(), posterior(name) and local, as guides.WithGlobals"
        )
    data = as_data(data, model, guide).fixed()
    refuse_weights(data)
    with random_state("draws of globals", seed), torch.no_grad():
        draws = [guide.draw() for _ in range(num_draws)]
    options: dict[str, Any] = {"seed": seed, "device": device}
    settings: dict[str, Any] = {
        "num_particles": num_particles,
        "compile": False,
        "progress": False,
        **options,
    }
    rows = []
    with progress_bar(total=len(draws), label="global draws" if progress else None, unit="draw") as bar:
        for weights in draws:
            rows.append(evaluate(given(model, weights), guide.local, data, **settings).log_evidence)
            bar.update()
    log_likelihood = torch.stack(rows)
    with ask(given(model, draws[0]), guide.local, data, **options) as question:
        batch = question.pair.given(question.data.batch(slice(0, 1)))
        priors = [_log_prior(model, w, batch) for w in draws]
    log_prior = {name: torch.tensor([p[name] for p in priors], dtype=torch.float64, device="cpu") for name in draws[0]}
    with torch.no_grad():
        log_q = [sum(float(guide.posterior(name).log_prob(v).sum()) for name, v in w.items()) for w in draws]
    return Shared(
        values={name: torch.stack([w[name].cpu() for w in draws]) for name in draws[0]},
        log_likelihood=log_likelihood,
        log_prior=log_prior,
        log_p=torch.stack(list(log_prior.values())).sum(0) + log_likelihood.sum(1),
        log_q=torch.tensor(log_q, dtype=torch.float64, device="cpu"),
    )


def _log_prior(model: Program, latents: dict[str, Tensor], batch: tuple[Tensor, ...]) -> dict[str, float]:
    values = {name: value.to(batch[0].device) for name, value in latents.items()}
    with Repeated():
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*batch)
    return {name: float(trace.nodes[name]["fn"].log_prob(value).sum()) for name, value in values.items()}
