"""What all data share as an ArviZ object."""

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
    """Return draws of what all data share as an ArviZ object, for leave-one-out comparison.

    Where parameters have a posterior (hyperparameters, a Bayesian decoder), leaving an observation out means something,
    and the guide is an approximation that can be corrected for, with ArviZ 1.x:
    ``loo_approximate_posterior(found, log_p, log_q)``, the two of ``found.sample_stats``. Its k-hat says whether that
    holds: it will for a few hyperparameters, not for thousands of weights.

    - ``posterior``: draws of every global latent.
    - ``log_likelihood``: ``data``, log p(x_i | w) of every draw and observation, its own latents integrated out.
    - ``sample_stats``: ``log_p``, log p(w, x) of every draw; ``log_q``, log q(w).

    Source: Magnusson, Andersen, Jonasson and Vehtari, "Bayesian leave-one-out cross-validation for large data", 2019.

    Args:
        model: generative program with latents outside the data plate.
        guide: :class:`~pyrovae.guides.WithGlobals`, or one with its ``draw()``, ``posterior(name)`` and ``local``.
        data: what the pair was fitted to.
        num_draws: of the global latents; each costs an ``evaluate`` of all data.
        num_particles: importance samples per observation, for each draw.
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a guide without global latents, a site with the name of a dimension, and for what
            :func:`pyrovae.evaluate` refuses.
    """
    if hasattr(guide, "draw"):
        with same_streams(default_device(options["device"])):
            refuse_names({name: [] for name in guide.draw()})
    found = shared(model, guide, data, num_draws=num_draws, num_particles=num_particles, **without(options))
    posterior = {
        name: (("chain", "draw", *own_dims(name, value.dim() - 1, [])[1:]), value[None].numpy())
        for name, value in found.values.items()
    }
    likelihood = ("chain", "draw", "datum"), found.log_likelihood[None].numpy()
    stats = {name: (("chain", "draw"), getattr(found, name)[None].numpy()) for name in ("log_p", "log_q")}
    groups: dict[str, dict[str, Any]] = {
        "posterior": posterior,
        "log_likelihood": {"data": likelihood},
        "sample_stats": stats,
    }
    return assemble({name: labelled(variables) for name, variables in groups.items()})
