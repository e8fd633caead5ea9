"""Reference posteriors by Hamiltonian Monte Carlo, labelled for ArviZ."""

from typing import Any, Unpack

import pyro
import torch

from pyrovae.arviz.labels import assemble, labelled, own_dims, refuse_beyond, refuse_names
from pyrovae.arviz.mixing import mixing
from pyrovae.common.checks import at_least
from pyrovae.importance.options import Options, shared_keywords
from pyrovae.importance.question import ask
from pyrovae.mcmc.chains import Sampler
from pyrovae.programs.types import Program


@shared_keywords(batch_size=256, compile="auto")
def hmc(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_draws: int = 500,
    num_steps: int = 8,
    dense: bool = True,
    max_bytes: int = 4 * 2**30,
    **options: Unpack[Options],
) -> Any:
    """Sample the exact posterior of each observation's latents, given the parameters, by Hamiltonian Monte Carlo.

    All data and all chains of a batch move at once, in unconstrained coordinates. Chains start at the guide's draws.
    Each observation has its own step size and metric, which are adapted during the warm-up. Trajectories have random
    lengths of up to half a period of a Gaussian posterior.

    - ``posterior``: draws of every latent site, dimensions ``chain``, ``draw``, ``datum``, further plates, events.
    - ``sample_stats``: ``lp`` (log p(x, z), with the Jacobian of unconstrained coordinates, in nats),
      ``acceptance_rate`` and ``diverging`` of every draw; ``step_size`` of every observation; ``rhat``, ``ess_bulk``
      and ``ess_tail`` of every observation, by ArviZ, the worst over its latents. The draws of an observation with
      ``rhat`` above 1.01 are unreliable.
    - ``observed_data``, NaN where the model masks it.

    A latent that a mask leaves without a density (padding of a sequence) keeps the guide's draws.

    Source: Neal, "MCMC using Hamiltonian dynamics", 2011; Vehtari et al., "Rank-normalization, folding, and
    localization: an improved R-hat", 2021.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``, where chains start.
        data: a tensor, a tuple of tensors, or a data set.
        num_chains: number of chains per observation.
        num_warmup: number of transitions per chain that adapt it and are thrown away.
        num_draws: number of transitions per chain that are kept.
        num_steps: number of leapfrog steps per transition; each costs a gradient of the model.
        dense: whether a metric holds correlations (memory grows with the square of the number of latents per
            observation), or only scales.
        max_bytes: refuse draws that take more memory than this.
        **options: batch_size, seed, compile, device and progress, as all questions take them
            (:class:`pyrovae.Options`).

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, a latent that cannot be moved along a
            gradient, draws beyond ``max_bytes``, or a site with the name of a dimension.
    """
    num_chains = at_least("num_chains", num_chains, 1)
    num_warmup = at_least("num_warmup", num_warmup, 20)
    num_draws = at_least("num_draws", num_draws, 8)
    num_steps = at_least("num_steps", num_steps, 1)
    with ask(model, guide, data, takes_weights=True, **options) as question, pyro.validation_enabled(False):
        question.layout.require_latents()
        sampler = Sampler(question, num_chains, num_warmup, num_draws, num_steps, dense)
        alone: dict[str, list[str]] = {site.name: [] for site in question.layout.observed}
        refuse_names({**alone, **sampler.coordinates.plates})
        refuse_beyond(max_bytes, 8 * num_chains * num_draws * len(question.data) * (sampler.coordinates.dim + 3))
        parts = list(sampler.batches())
        index = question.data.index
        plates = sampler.coordinates.plates
    posterior: dict[str, Any] = {}
    for name in parts[0].values:
        values = torch.cat([part.values[name] for part in parts], dim=2).numpy()
        posterior[name] = ("chain", "draw", *own_dims(name, values.ndim - 3, plates[name])), values
    dims = ("chain", "draw", "datum")
    stats: dict[str, Any] = {
        "lp": (dims, torch.cat([part.log_joint for part in parts], dim=2).numpy()),
        "acceptance_rate": (dims, torch.cat([part.acceptance for part in parts], dim=2).numpy()),
        "diverging": (dims, torch.cat([part.divergent for part in parts], dim=2).numpy()),
        "step_size": ("datum", torch.cat([part.step_size for part in parts]).numpy()),
    }
    draws = labelled(posterior, index)
    stats.update(mixing(draws))
    observed = {}
    for name, plates_of in parts[0].plates.items():
        values = torch.cat([part.observed[name] for part in parts]).numpy()
        observed[name] = own_dims(name, values.ndim - 1, plates_of), values
    groups = {"posterior": draws, "sample_stats": labelled(stats, index), "observed_data": labelled(observed, index)}
    return assemble(groups)
