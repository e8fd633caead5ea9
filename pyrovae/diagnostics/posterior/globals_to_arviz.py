"""Global latents as an ArviZ object."""

from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae.arviz.labels import as_integers, assemble, labelled, own_dims, refuse_beyond, refuse_names
from pyrovae.common.checks import flag
from pyrovae.data import Data, as_data
from pyrovae.diagnostics.posterior.global_draws import Shared, shared
from pyrovae.diagnostics.predictive.draws import draw
from pyrovae.importance.options import Options, shared_keywords, without
from pyrovae.importance.question import ask
from pyrovae.mcmc.coordinates import PriorGuide
from pyrovae.programs.handlers import given
from pyrovae.programs.isolation import default_device, same_streams
from pyrovae.programs.sites import is_discrete
from pyrovae.programs.streams import stream_seed
from pyrovae.programs.types import Program


@shared_keywords()
def globals_to_arviz(
    model: Program,
    guide: Any,
    data: Any,
    *,
    num_draws: int = 200,
    num_particles: int = 200,
    predictive: bool = False,
    max_bytes: int = 4 * 2**30,
    **options: Unpack[Options],
) -> Any:
    """Return draws of the global latents as an ArviZ object, for leave-one-out comparison.

    Where global latents have a posterior (hyperparameters, a Bayesian decoder), leaving out one observation is
    meaningful. The guide approximates that posterior, and ArviZ 1.x can correct for the approximation:
    ``loo_approximate_posterior(found, log_p, log_q)``, with ``log_p`` and ``log_q`` from ``found.sample_stats``. Its
    k-hat says whether the correction is reliable: it is for a few hyperparameters, not for thousands of weights.

    - ``posterior``: draws of every global latent.
    - ``log_likelihood``: log p(x_i | w) of every draw and observation, with local latents integrated out, by the name
      of the observed site, or ``data`` if there are several and it is their joint density.
    - ``log_prior``: log p(w) of every draw, by site. With it ArviZ 1.x scales the prior and the likelihood:
      ``az.psense_summary(found)``.
    - ``sample_stats``: ``log_p``, log p(w, x) of every draw; ``log_q``, log q(w).
    - ``posterior_predictive`` and ``observed_data``, with ``predictive=True``: a replicate of every observation for
      every draw, with new local latents. Of an outcome of one number per observation, ArviZ 1.x plots ``plot_loo_pit``.

    Source: Magnusson, Andersen, Jonasson and Vehtari, "Bayesian leave-one-out cross-validation for large data", 2019.

    Args:
        model: generative program with latents outside the data plate.
        guide: :class:`~pyrovae.guides.WithGlobals`, or one with its ``draw()``, ``posterior(name)`` and ``local``.
        data: the data that the pair was fitted to.
        num_draws: number of draws of the global latents; each needs one ``evaluate`` of all data.
        num_particles: number of importance samples per observation for each draw.
        predictive: whether to draw replicates of the data, too.
        max_bytes: largest size in memory of the replicates; larger ones are refused.
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a guide without global latents, a site with the name of a dimension, and as
            :func:`pyrovae.evaluate` does.
    """
    predictive = flag("predictive", predictive)
    if hasattr(guide, "draw"):
        with same_streams(default_device(options["device"])):
            refuse_names({name: [] for name in guide.draw()})
    data = as_data(data, model, guide).fixed()
    draws = shared(model, guide, data, num_draws=num_draws, num_particles=num_particles, **without(options))
    replicates, observed = _replicates(model, draws, data, max_bytes, options) if predictive else ({}, {})
    chain = ("chain", "draw")
    names = _observed(model, draws, data, options)
    groups: dict[str, dict[str, Any]] = {
        "posterior": {
            name: ((*chain, *own_dims(name, value.dim() - 1, [])[1:]), value[None].numpy())
            for name, value in draws.values.items()
        },
        "log_likelihood": {
            names[0] if len(names) == 1 else "data": ((*chain, "datum"), draws.log_likelihood[None].numpy())
        },
        "log_prior": {name: (chain, v[None].numpy()) for name, v in draws.log_prior.items()},
        "sample_stats": {name: (chain, getattr(draws, name)[None].numpy()) for name in ("log_p", "log_q")},
    }
    if predictive:
        dims = {name: own_dims(name, value.ndim - 1, []) for name, value in observed.items()}
        groups["posterior_predictive"] = {n: ((*chain, *dims[n]), v[None]) for n, v in replicates.items()}
        groups["observed_data"] = {n: (dims[n], v) for n, v in observed.items()}
    return assemble({name: labelled(variables) for name, variables in groups.items()})


def _first(draws: Shared, number: int) -> dict[str, Tensor]:
    return {name: value[number] for name, value in draws.values.items()}


def _observed(model: Program, draws: Shared, data: Data, options: Options) -> list[str]:
    """Return the names of the observed sites."""
    program = given(model, _first(draws, 0))
    with ask(program, PriorGuide(program), data, seed=options["seed"], device=options["device"]) as question:
        return [site.name for site in question.layout.observed]


def _replicates(
    model: Program, draws: Shared, data: Data, max_bytes: int, options: Options
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return replicates by observed site, ``[S, N, ...]``, and the observed values, ``[N, ...]``."""
    replicates: dict[str, list[Tensor]] = {}
    observed: dict[str, Tensor] = {}
    discrete: set[str] = set()
    count = len(draws.log_p)
    for number in range(count):
        program = given(model, _first(draws, number))
        seed = stream_seed("replicates", options["seed"], number)
        with ask(program, PriorGuide(program), data, seed=seed, device=options["device"]) as question:
            parts = list(draw(question, 1, ("prior_predictive",), None))
        for name in parts[0].observed:
            observed[name] = torch.cat([part.observed[name] for part in parts])
            replicates.setdefault(name, []).append(torch.cat([p.groups["prior_predictive"][name][0] for p in parts]))
            if is_discrete(parts[0].traces[1].nodes[name]["fn"]):
                discrete.add(name)
        if not number:
            refuse_beyond(max_bytes, count * sum(v[0].numel() * v[0].element_size() for v in replicates.values()))

    def array(name: str, values: Tensor) -> np.ndarray:
        return as_integers(values.numpy()) if name in discrete else values.numpy()

    stacked = {name: array(name, torch.stack(values)) for name, values in replicates.items()}
    return stacked, {name: array(name, value) for name, value in observed.items()}
