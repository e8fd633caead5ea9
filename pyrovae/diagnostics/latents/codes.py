"""The codes of data: means of q(z | x)."""

from typing import Any, Unpack

import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.question import ask
from pyrovae.programs.types import Program


@shared_keywords(batch_size=BATCH_SIZE)
def codes(
    model: Program,
    guide: Program,
    data: Any,
    *,
    site: str | None = None,
    num_draws: int = 100,
    **options: Unpack[Options],
) -> Tensor:
    """Return the mean of q(z | x) for every observation, as plots, probes and metrics of codes take them.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        site: latent site; None: all of them, side by side, in the model's order.
        num_draws: number of draws per mean; the error of a mean is sd / sqrt(num_draws).
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Tensor ``[N, D]`` on the CPU. The code of a class index is its mean, and that of a one-hot vector the shares of
        its classes.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, or a site that is not a latent.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> codes(model, guides.Exact(model), torch.zeros(7, 5), num_draws=5, progress=False).shape
        torch.Size([7, 2])
    """
    num_draws = at_least("num_draws", num_draws, 1)
    sums: dict[int, Tensor] = {}
    with ask(model, guide, data, takes_weights=True, **options) as question:
        question.layout.require_latents()
        if site is not None and site not in question.layout.latents:
            raise ValueError(f"site {site!r} is not a latent: the model has {list(question.layout.latents)}")
        names = question.layout.latents if site is None else (site,)
        for part in question.particles(num_draws, "codes"):
            values = [part.values(part.guide_trace.nodes[name]) for name in names]
            total = torch.cat([v.sum(0).reshape(len(part.indices), -1).double() for v in values], dim=1).cpu()
            start = part.indices.start
            sums[start] = sums[start] + total if start in sums else total
    return torch.cat(list(sums.values())) / num_draws
