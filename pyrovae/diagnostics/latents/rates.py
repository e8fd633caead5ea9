"""The rate of every latent site: which latents hold the information about the data."""

from typing import Any, Unpack

import pandas as pd
import torch

from pyrovae.common.checks import at_least
from pyrovae.diagnostics.evidence.evaluate import standard_error
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.question import ask
from pyrovae.programs.densities import per_datum
from pyrovae.programs.types import Program


@shared_keywords(batch_size=BATCH_SIZE)
def rates(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_particles: int = 100,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Return E_q[log q(z_l | ...) - log p(z_l | ...)] of every latent site, in nats per observation.

    The rates add up to the whole KL; the reconstruction less the whole KL is the ELBO. With a guide that samples the
    layers in the model's order, from the top (``guides.Ladder``), each rate is the KL of that layer given those above,
    and a layer with a rate close to zero is not used. With another order (``guides.Hierarchical``,
    ``guides.Clustered``) only the sum is a KL: terms move from one site to another, and a single rate may be negative.

    Source: Sonderby et al., "Ladder variational autoencoders", 2016, figure 4.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        num_particles: number of draws per observation.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        One row per site, in the model's order: ``rate``, and ``rate_se``, its standard error over the data.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, or a guide with auxiliary sites.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> found = rates(model, guides.Exact(model), torch.zeros(7, 5), num_particles=10, progress=False)
        >>> list(found.index)
        ['z']
    """
    num_particles = at_least("num_particles", num_particles, 1)
    sums: dict[str, list[torch.Tensor]] = {}
    with ask(model, guide, data, **options) as question:
        question.layout.require_guided("rates")
        if question.layout.auxiliary:
            raise ValueError(
                f"site {question.layout.auxiliary[0]!r} of the guide is not in the model, so it has no rate"
            )
        for part in question.particles(num_particles, "rates"):
            size = len(part.rows[0])
            for name in question.layout.latents:
                log_q, log_p = (per_datum(t.nodes[name], size) for t in (part.guide_trace, part.model_trace))
                ratio = (log_q - log_p).double().unflatten(0, (len(part.indices), -1)).sum(1).cpu()
                totals = sums.setdefault(name, [])
                if part.start:
                    totals[-1] += ratio
                else:
                    totals.append(ratio)
    means = {name: torch.cat(totals) / num_particles for name, totals in sums.items()}
    rows = {name: {"rate": float(m.mean()), "rate_se": standard_error(m)} for name, m in means.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("site")
