"""The user's data compared with data that the model draws: statistics of whole sets, and every feature's marginal."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.diagnostics.predictive.draws import draw, observed_sites
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.question import Question, ask
from pyrovae.programs.types import Program

Statistic = Callable[[Tensor], Tensor | float]


@shared_keywords(batch_size=BATCH_SIZE)
def prior_predictive_check(
    model: Program,
    guide: Program,
    data: Any,
    statistics: dict[str, Statistic],
    *,
    site: str | None = None,
    num_sets: int = 200,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Compare statistics of the data with those of whole sets that the model draws from its prior.

    Source: Box, "Sampling and Bayes' inference in scientific modelling and robustness", 1980.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program; it is used only to read the pair, and nothing is drawn from it.
        data: a tensor, a tuple of tensors, or a data set.
        statistics: statistics by name, each a function from a set ``[N, ...]`` to one number, such as
            ``lambda x: x.std()``.
        site: observed site to check; required if there are several.
        num_sets: number of sets to draw, each as large as the data.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        One row per statistic: ``observed``; ``mean`` and ``sd`` over the drawn sets; ``pvalue``, the two-sided p-value
        of the observed value's rank among them. It is at least 2 / (num_sets + 1), and small where the prior does not
        expect such data.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers.
    """
    return _check("prior_predictive", model, guide, data, statistics, site, num_sets, options)


@shared_keywords(batch_size=BATCH_SIZE)
def posterior_predictive_check(
    model: Program,
    guide: Program,
    data: Any,
    statistics: dict[str, Statistic],
    *,
    site: str | None = None,
    num_sets: int = 200,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Compare statistics of the data with those of replicated sets: z ~ q(z | x) per observation, then x ~ p(x | z).

    Each replicate depends on its own observation, so that p-values concentrate around one half if the model is right. A
    small p-value is strong evidence against the model, but a medium one is no evidence for it. For a check that is not
    conservative, see :func:`pyrovae.pit` and :func:`pyrovae.prior_predictive_check` on held-out data.

    Source: Gelman, Meng and Stern, "Posterior predictive assessment of model fitness via realized discrepancies", 1996.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        statistics: statistics by name, each a function from a set ``[N, ...]`` to one number, such as
            ``lambda x: x.std()``.
        site: observed site to check; required if there are several.
        num_sets: number of sets to draw, each as large as the data.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        One row per statistic, as in :func:`pyrovae.prior_predictive_check`.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers.
    """
    return _check("posterior_predictive", model, guide, data, statistics, site, num_sets, options)


def _observed_site(question: Question, site: str | None) -> str:
    names = observed_sites(question, site)
    if len(names) > 1:
        raise ValueError(f"the model observes {names}, and a statistic is of one of them: name it, site={names[0]!r}")
    return names[0]


def _check(
    group: str, model: Program, guide: Program, data: Any, statistics: dict[str, Statistic], site: str | None,
    num_sets: int, options: Options,
) -> pd.DataFrame:  # fmt: skip
    num_sets = at_least("num_sets", num_sets, 1)
    if not isinstance(statistics, Mapping):
        raise ValueError(f"statistics must be a dict of functions of a set, by name, got a {type(statistics).__name__}")
    if not statistics:
        raise ValueError("statistics is empty: give at least one function of a set")
    sets, observed = _sets(group, model, guide, data, site, num_sets, options)
    rows = {}
    for label, statistic in statistics.items():
        value = _number(label, statistic, observed)
        simulated = np.array([_number(label, statistic, one) for one in sets])
        if not (np.isfinite(value) and np.isfinite(simulated).all()):
            raise ValueError(
                f"the statistic {label!r} is not a finite number (of the data: {value}): use one that is; where "
                "values are missing, use one that leaves NaN out, such as torch.nanmean"
            )
        above = (1 + (simulated >= value).sum(), 1 + (simulated <= value).sum())
        pvalue = min(1.0, 2 * min(above) / (num_sets + 1))
        rows[label] = {"observed": value, "mean": simulated.mean(), "sd": simulated.std(ddof=1), "pvalue": pvalue}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("statistic")


def _sets(
    group: str, model: Program, guide: Program, data: Any, site: str | None, num_sets: int, options: Options
) -> tuple[Tensor, Tensor]:
    """Return drawn sets ``[num_sets, N, ...]`` and the observed set; the same values are missing in all of them."""
    observations: list[Tensor] = []
    parts: dict[int, list[Tensor]] = {}
    with ask(model, guide, data, **options) as question:
        name = _observed_site(question, site)
        for part in draw(question, num_sets, (group,), group):
            own = parts.setdefault(part.indices.start, [])
            own.append(part.groups[group][name])
            if len(own) == 1:
                observations.append(part.observed[name])
    sets, observed = torch.cat([torch.cat(own) for own in parts.values()], dim=1), torch.cat(observations)
    if observed.is_floating_point():
        sets = torch.where(observed.isnan(), torch.nan, sets)
    return sets, observed


def _number(label: str, statistic: Statistic, one: Tensor) -> float:
    value = statistic(one)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"the statistic {label!r} must return one number of a set, got {tuple(value.shape)}")
    return float(value)
