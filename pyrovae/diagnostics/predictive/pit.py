"""Ranks of held-out data among draws of the model's marginals: probability integral transforms."""

from typing import Any, Unpack

import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.data import as_data
from pyrovae.diagnostics.calibration.ranks import Ranks, Tally, rank
from pyrovae.diagnostics.predictive.draws import draw, feature_names, observed_sites
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.question import Question, ask
from pyrovae.mcmc.coordinates import PriorGuide
from pyrovae.programs.types import Program


@shared_keywords(batch_size=BATCH_SIZE)
def pit(
    model: Program,
    data: Any,
    *,
    site: str | None = None,
    num_draws: int = 199,
    **options: Unpack[Options],
) -> Ranks:
    """Rank every feature of every observation among draws of its marginal p(x_d), with latents integrated out.

    If the model has the marginals of the held-out data, the ranks are uniform (probability integral transforms). A U
    shape means that the model is too narrow, a hump that it is too wide. With covariates, the marginals are conditional
    on them. Ties of discrete features are broken at random. A missing value gets a random rank and is therefore
    evidence neither for the model nor against it.

    Source: Czado, Gneiting and Held, "Predictive model assessment for count data", 2009.

    Args:
        model: generative program ``model(*batch)``.
        data: held-out data: a tensor, a tuple of tensors, or a data set.
        site: observed site to rank; None: all of them, side by side.
        num_draws: number K of draws of the marginal, new draws for every observation.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Ranks ``[N, D]``, one column per feature; ``.table()`` has their p-values, ``plots.ranks`` plots them.

    Raises:
        ValueError: for a model that breaks the contract, bad data or bad numbers.

    Example:
        >>> from pyrovae import models, simulate
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> made = simulate(model, torch.zeros(1, 5), num_simulations=300, progress=False)
        >>> found = pit(model, made.data, seed=1, progress=False)
        >>> found.values.shape, bool((found.pvalue > 1e-4).all())
        (torch.Size([300, 5]), True)
    """
    num_draws = at_least("num_draws", num_draws, 2)
    data = as_data(data, model).fixed()
    tallies: dict[str, Tally] = {}
    with ask(model, PriorGuide(model), data, **options) as question:
        names = observed_sites(question, site)
        for part in draw(question, num_draws, ("prior_predictive",), "pit"):
            for name in names:
                value, draws = part.observed[name], part.groups["prior_predictive"][name]
                below, equal = rank(value, draws, _rounding(value))
                if value.is_floating_point():
                    equal = torch.where(value.isnan(), len(draws), equal)
                tally = tallies.setdefault(name, Tally())
                tally.add(part.indices.start, below.reshape(len(value), -1), equal.reshape(len(value), -1))
    purposes = {name: "ties of pit" if len(names) == 1 else f"ties of pit, {name}" for name in names}
    columns = {name: tally.ranks(purposes[name], question.seed) for name, tally in tallies.items()}
    labels = [label for name, ranks in columns.items() for label in _labels(question, name, ranks.shape[1], len(names))]
    return Ranks(torch.cat(list(columns.values()), 1), num_draws, tuple(labels))


def _labels(question: Question, site: str, count: int, num_sites: int) -> list[str]:
    """Return the names of a site's features: those of the data if every feature has one."""
    names = feature_names(question, site)
    if names is None or len(names) != count:
        return [f"{site}[{d}]" for d in range(count)]
    return list(names) if num_sites == 1 else [f"{site}[{name}]" for name in names]


def _rounding(value: Tensor) -> Tensor | float:
    """Return the rounding difference that counts as a tie, such as that of k / 255 and k times 1 / 255."""
    if not value.is_floating_point():
        return 0.0
    return (4 * torch.finfo(value.dtype).eps * value.abs()).clamp(max=0.25)  # counts are whole numbers, however large
