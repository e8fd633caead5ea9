"""Draws from the guide, the prior and both predictive distributions, for every observation."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.importance.particles import Particles
from pyrovae.importance.question import Question
from pyrovae.importance.simulation import drawn_anew
from pyrovae.programs.densities import per_datum
from pyrovae.programs.enumeration import drawn_back
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import outer_plates, released, sample_sites, with_holes
from pyrovae.programs.streams import stream_seed

GROUPS = ("posterior", "posterior_predictive", "prior", "prior_predictive")
CONDITIONAL = "log_likelihood"  # no draws, but log p(x | z) at those of the posterior


@dataclass
class Draws:
    """Draws of a batch of data, by group and site, each ``[K, len(indices), ...]``.

    Attributes:
        indices: of the data.
        groups: posterior, posterior_predictive, prior and prior_predictive, each by site; log_likelihood, by observed
            site, log p(x | z) of the posterior draws, ``[K, len(indices)]``, nats.
        observed: what was observed, ``[len(indices), ...]`` by site; NaN where a mask leaves it out.
        log_weight: of the posterior draws, ``[K, len(indices)]``, nats.
        plates: names of the plates left of the data plate, by site, in the order of the values' dimensions.
        traces: of the guide and of the model, that the draws of the posterior come from.
    """

    indices: range
    groups: dict[str, dict[str, Tensor]]
    observed: dict[str, Tensor]
    log_weight: Tensor
    plates: dict[str, list[str]] = field(default_factory=dict)
    traces: tuple[Any, ...] = ()


def draw(question: Question, num_draws: int, groups: tuple[str, ...], label: str | None) -> Iterator[Draws]:
    """Iterate over draws, a part of the data and of the draws at a time.

    The posterior group holds the guide's draws; the predictive groups draw every observed site anew.

    Raises:
        ValueError: for log_likelihood of a model with latents that are summed out.
    """
    if CONDITIONAL in groups and question.layout.summed:
        raise ValueError(
            f"latent site {question.layout.summed[0]!r} is summed out, so that single draws have no log p(x | z): "
            f"leave {CONDITIONAL!r} out of groups"
        )
    for part in question.particles(num_draws, label):
        traces: dict[str, Any] = {"posterior": part.guide_trace}
        if question.layout.summed:
            traces["posterior"] = _with_drawn_back(question, part)
        if "posterior_predictive" in groups:
            replayed = poutine.replay(released(question.pair.model), trace=traces["posterior"])
            traces["posterior_predictive"] = _run(question, replayed, part, "posterior predictive")
        if {"prior", "prior_predictive"} & set(groups):
            traces["prior"] = traces["prior_predictive"] = _run(
                question, released(question.pair.model), part, "prior predictive"
            )
        observed = {site.name: part.model_trace.nodes[site.name] for site in question.layout.observed}
        observed = {name: site for name, site in observed.items() if site["value"].numel()}
        latents = question.layout.latents + question.layout.summed
        sites = {"posterior": latents, "prior": latents}
        found = {
            group: {name: part.values(traces[group].nodes[name]).cpu() for name in sites.get(group, tuple(observed))}
            for group in groups
            if group != CONDITIONAL
        }
        if CONDITIONAL in groups:
            found[CONDITIONAL] = {site.name: _log_likelihood(part, site.name) for site in question.layout.observed}
        yield Draws(
            indices=part.indices,
            groups=found,
            observed={name: _seen(part, site) for name, site in observed.items()},
            log_weight=part.log_weight.cpu(),
            plates={name: outer_plates(site) for name, site in sample_sites(part.model_trace)},
            traces=(part.guide_trace, part.model_trace),
        )


def _seen(part: Particles, site: Any) -> Tensor:
    """Return what was observed at a site, NaN where it is masked."""
    return part.values({**site, "value": with_holes(site, site["value"])})[0].cpu()


def _with_drawn_back(question: Question, part: Particles) -> Any:
    """Return the guide's draws together with those of the latents that are summed out, from their posterior."""
    drawn_by_guide = {name: part.guide_trace.nodes[name]["value"] for name in question.layout.latents}
    conditioned = poutine.condition(question.pair.model, data=drawn_by_guide)
    noise = DatumNoise(
        "summed out", stream_seed("summed out", question.seed, part.start), part.indices, question.data.device
    )
    noise.repeats = part.log_weight.shape[0]
    with noise, Repeated(), torch.no_grad():
        drawn = drawn_back(conditioned, part.rows, question.layout.summed, question.layout.nesting)
    both = part.guide_trace.copy()
    for name in question.layout.summed:
        both.add_node(name, **drawn.nodes[name])
    return both


def _log_likelihood(part: Particles, name: str) -> Tensor:
    found = per_datum(part.model_trace.nodes[name], len(part.rows[0]))
    return found.unflatten(0, (len(part.indices), -1)).T.cpu()


def _run(question: Question, program: Any, part: Particles, purpose: str) -> Any:
    seed = stream_seed(purpose, question.seed, part.start)  # every part of an observation's draws has its own

    def noise() -> DatumNoise:
        own = DatumNoise(purpose, seed, part.indices, question.data.device)
        own.repeats = part.log_weight.shape[0]
        return own

    with torch.no_grad():
        return drawn_anew(question, program, part.rows, noise)[1]


def observed_sites(question: Question, site: str | None) -> list[str]:
    """Return the names of the observed sites, or the one that was asked for.

    Raises:
        ValueError: for a site that is not observed.
    """
    names = [observed.name for observed in question.layout.observed]
    if site is not None and site not in names:
        raise ValueError(f"site {site!r} is not observed: the model observes {names}")
    return names if site is None else [site]


def feature_names(question: Question, name: str) -> list[str] | None:
    """Return the names of an observed site's columns, where the data have names for them."""
    reading = next(site.reading for site in question.layout.observed if site.name == name)
    names = None if reading is None else question.data.fields[reading.source].feature_names
    if reading is None or names is None or reading.columns is None:
        return names
    columns = reading.columns
    return [names[i] for i in columns.tolist()] if columns.dim() == 1 and bool((columns >= 0).all()) else None


def coordinates(site: str, one: Tensor) -> list[str]:
    """Return names of the numbers that an observation has at a site: ``z``, or ``z[0]``, ``z[1]``, ..., ``z[0, 1]``."""
    if one.numel() == 1:
        return [site]
    return [f"{site}[{', '.join(map(str, index))}]" for index in np.ndindex(*one.shape)]
