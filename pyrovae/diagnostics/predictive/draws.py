"""Draws from the guide, the prior and both predictive distributions, for every observation."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.data.columns import Columns
from pyrovae.importance.particles import Particles
from pyrovae.importance.question import Question
from pyrovae.importance.simulation import drawn_anew
from pyrovae.programs.densities import per_datum
from pyrovae.programs.enumeration import drawn_back
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import outer_plates, released, sample_sites, with_holes
from pyrovae.programs.streams import stream_seed
from pyrovae.tables import Column, Scaling

GROUPS = ("posterior", "posterior_predictive", "prior", "prior_predictive")
CONDITIONAL, PRIOR_DENSITY = DENSITIES = ("log_likelihood", "log_prior")  # of the posterior draws


@dataclass
class Draws:
    """Draws of a batch of data, by group and site, each ``[K, len(indices), ...]``.

    Attributes:
        indices: numbers of the observations.
        groups: posterior, posterior_predictive, prior and prior_predictive, each by site; log densities of the
            posterior draws, ``[K, len(indices)]``, nats: log_likelihood, by observed site, log p(x | z), and log_prior,
            by latent site, log p(z | the latents above it).
        observed: observed values by site, ``[len(indices), ...]``; NaN where a mask leaves them out.
        log_weight: log weights of the posterior draws, ``[K, len(indices)]``, nats.
        plates: names of the plates left of the data plate, by site, in the order of the values' dimensions.
        traces: traces of the guide and of the model from which the posterior draws come.
    """

    indices: range
    groups: dict[str, dict[str, Tensor]]
    observed: dict[str, Tensor]
    log_weight: Tensor
    plates: dict[str, list[str]] = field(default_factory=dict)
    traces: tuple[Any, ...] = ()


def draw(question: Question, num_draws: int, groups: tuple[str, ...], label: str | None) -> Iterator[Draws]:
    """Iterate over draws, one part of the data and of the draws at a time.

    The posterior group holds the guide's draws. The predictive groups hold new draws of every observed site.

    Raises:
        ValueError: for log densities of a model with latents that are summed out.
    """
    densities = [group for group in groups if group in DENSITIES]
    if densities and question.layout.summed:
        raise ValueError(
            f"latent site {question.layout.summed[0]!r} is summed out, so that single draws have no log p(x | z): "
            f"leave {densities[0]!r} out of groups"
        )
    for part in question.particles(num_draws, label):
        traces: dict[str, Any] = {"posterior": part.guide_trace}
        if question.layout.summed:
            traces["posterior"] = _with_drawn_back(question, part)
        if "posterior_predictive" in groups:
            program = poutine.replay(released(question.pair.model), trace=traces["posterior"])
            traces["posterior_predictive"] = _run(question, program, part, "posterior predictive")
        if {"prior", "prior_predictive"} & set(groups):
            traces["prior"] = traces["prior_predictive"] = _run(
                question, released(question.pair.model), part, "prior predictive"
            )
        observed = {site.name: part.model_trace.nodes[site.name] for site in question.layout.observed}
        observed = {name: site for name, site in observed.items() if site["value"].numel()}
        latents = question.layout.latents + question.layout.summed
        sites = {"posterior": latents, "prior": latents}
        values = {
            group: {name: part.values(traces[group].nodes[name]).cpu() for name in sites.get(group, tuple(observed))}
            for group in groups
            if group not in DENSITIES
        }
        names = {CONDITIONAL: [s.name for s in question.layout.observed], PRIOR_DENSITY: question.layout.latents}
        for group in densities:
            values[group] = {name: _log_density(part, name) for name in names[group]}
        yield Draws(
            indices=part.indices,
            groups=values,
            observed={name: _seen(part, site) for name, site in observed.items()},
            log_weight=part.log_weight.cpu(),
            plates={name: outer_plates(site) for name, site in sample_sites(part.model_trace)},
            traces=(part.guide_trace, part.model_trace),
        )


def _seen(part: Particles, site: Any) -> Tensor:
    """Return the observed values of a site, NaN where they are masked."""
    return part.values({**site, "value": with_holes(site, site["value"])})[0].cpu()


def _with_drawn_back(question: Question, part: Particles) -> Any:
    """Return the guide's draws together with posterior draws of the latents that are summed out."""
    latents = {name: part.guide_trace.nodes[name]["value"] for name in question.layout.latents}
    program = poutine.condition(question.pair.model, data=latents)
    noise = DatumNoise(
        "summed out", stream_seed("summed out", question.seed, part.start), part.indices, question.data.device
    )
    noise.repeats = part.log_weight.shape[0]
    with noise, Repeated(), torch.no_grad():
        trace = drawn_back(program, part.rows, question.layout.summed, question.layout.nesting)
    both = part.guide_trace.copy()
    for name in question.layout.summed:
        both.add_node(name, **trace.nodes[name])
    return both


def _log_density(part: Particles, name: str) -> Tensor:
    density = per_datum(part.model_trace.nodes[name], len(part.rows[0]))
    return density.unflatten(0, (len(part.indices), -1)).T.cpu()


def _run(question: Question, program: Any, part: Particles, purpose: str) -> Any:
    seed = stream_seed(purpose, question.seed, part.start)  # a separate seed for every part of an observation's draws

    def noise() -> DatumNoise:
        own = DatumNoise(purpose, seed, part.indices, question.data.device)
        own.repeats = part.log_weight.shape[0]
        return own

    with torch.no_grad():
        return drawn_anew(question, program, part.rows, noise)[1]


def observed_sites(question: Question, site: str | None) -> list[str]:
    """Return the names of all observed sites, or only ``site`` if it is given.

    Raises:
        ValueError: for a site that is not observed.
    """
    names = [observed.name for observed in question.layout.observed]
    if site is not None and site not in names:
        raise ValueError(f"site {site!r} is not observed: the model observes {names}")
    return names if site is None else [site]


def typed_columns(question: Question, name: str) -> tuple[tuple[Column, ...], Scaling] | None:
    """Return the columns of a table that an observed site holds, and their scales; None for other data."""
    reading = next(site.reading for site in question.layout.observed if site.name == name)
    source = None if reading is None else question.data.fields[reading.source]
    if reading is None or not isinstance(source, Columns):
        return None
    if reading.columns is None:
        return source.columns, source.fitted
    chosen = reading.columns
    if chosen.dim() != 1 or not bool((chosen >= 0).all()):
        return None
    return tuple(source.columns[i] for i in chosen.tolist()), source.fitted.taken(chosen.tolist())


def feature_names(question: Question, name: str) -> list[str] | None:
    """Return the names of an observed site's columns, or None where the data have no names for them."""
    reading = next(site.reading for site in question.layout.observed if site.name == name)
    names = None if reading is None else question.data.fields[reading.source].feature_names
    if reading is None or names is None or reading.columns is None:
        return names
    columns = reading.columns
    return [names[i] for i in columns.tolist()] if columns.dim() == 1 and bool((columns >= 0).all()) else None


def coordinates(site: str, one: Tensor) -> list[str]:
    """Return names for the coordinates of an observation at a site: ``z``, or ``z[0]``, ``z[1]``, ..., ``z[0, 1]``."""
    if one.numel() == 1:
        return [site]
    return [f"{site}[{', '.join(map(str, index))}]" for index in np.ndindex(*one.shape)]
