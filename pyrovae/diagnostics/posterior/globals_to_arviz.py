"""Global latents as an ArviZ object."""

from typing import Any, Unpack

from pyrovae.arviz.labels import assemble, labelled, own_dims, refuse_names
from pyrovae.diagnostics.posterior.global_draws import shared
from pyrovae.importance.options import Options, shared_keywords, without
from pyrovae.programs.isolation import default_device, same_streams
from pyrovae.programs.types import Program


@shared_keywords()
def globals_to_arviz(
    model: Program,
    guide: Any,
    data: Any,
    *,
    num_draws: int = 200,
    num_particles: int = 200,
    **options: Unpack[Options],
) -> Any:
    """Return draws of the global latents as an ArviZ object, for leave-one-out comparison.

    Where global latents have a posterior (hyperparameters, a Bayesian decoder), leaving out one observation is
    meaningful. The guide approximates that posterior, and ArviZ 1.x can correct for the approximation:
    ``loo_approximate_posterior(found, log_p, log_q)``, with ``log_p`` and ``log_q`` from ``found.sample_stats``. Its
    k-hat says whether the correction is reliable: it is for a few hyperparameters, not for thousands of weights.

    - ``posterior``: draws of every global latent.
    - ``log_likelihood``: ``data``, log p(x_i | w) of every draw and observation, with local latents integrated out.
    - ``log_prior``: log p(w) of every draw, by site. With it ArviZ 1.x scales the prior and the likelihood:
      ``az.psense_summary(found)``.
    - ``sample_stats``: ``log_p``, log p(w, x) of every draw; ``log_q``, log q(w).

    Source: Magnusson, Andersen, Jonasson and Vehtari, "Bayesian leave-one-out cross-validation for large data", 2019.

    Args:
        model: generative program with latents outside the data plate.
        guide: :class:`~pyrovae.guides.WithGlobals`, or one with its ``draw()``, ``posterior(name)`` and ``local``.
        data: the data that the pair was fitted to.
        num_draws: number of draws of the global latents; each needs one ``evaluate`` of all data.
        num_particles: number of importance samples per observation for each draw.
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a guide without global latents, a site with the name of a dimension, and as
            :func:`pyrovae.evaluate` does.
    """
    if hasattr(guide, "draw"):
        with same_streams(default_device(options["device"])):
            refuse_names({name: [] for name in guide.draw()})
    draws = shared(model, guide, data, num_draws=num_draws, num_particles=num_particles, **without(options))
    posterior = {
        name: (("chain", "draw", *own_dims(name, value.dim() - 1, [])[1:]), value[None].numpy())
        for name, value in draws.values.items()
    }
    likelihood = ("chain", "draw", "datum"), draws.log_likelihood[None].numpy()
    stats = {name: (("chain", "draw"), getattr(draws, name)[None].numpy()) for name in ("log_p", "log_q")}
    groups: dict[str, dict[str, Any]] = {
        "posterior": posterior,
        "log_likelihood": {"data": likelihood},
        "log_prior": {name: (("chain", "draw"), v[None].numpy()) for name, v in draws.log_prior.items()},
        "sample_stats": stats,
    }
    return assemble({name: labelled(variables) for name, variables in groups.items()})
