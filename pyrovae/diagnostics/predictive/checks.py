"""The user's data beside data that the model draws: statistics of whole sets, and every feature's marginal."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.data import as_data
from pyrovae.diagnostics.calibration.ranks import Ranks, Tally, rank
from pyrovae.diagnostics.predictive.draws import draw
from pyrovae.importance.particles import BATCH_SIZE
from pyrovae.importance.question import Question, question
from pyrovae.mcmc.coordinates import PriorGuide
from pyrovae.programs.types import Program

Statistic = Callable[[Tensor], Tensor | float]


def prior_predictive_check(
    model: Program,
    guide: Program,
    data: Any,
    statistics: dict[str, Statistic],
    *,
    site: str | None = None,
    num_sets: int = 200,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare statistics of the data with those of whole sets that the model draws from its prior.

    Source: Box, "Sampling and Bayes' inference in scientific modelling and robustness", 1980.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program, by which the pair is read; nothing is drawn from it.
        data: a tensor, a tuple of tensors, or a data set.
        statistics: by name, each a function of a set ``[N, ...]`` that returns one number, such as
            ``lambda x: x.std()``.
        site: observed site that is looked at; None is the first.
        num_sets: sets drawn, each as large as the data.
        batch_size: data held by a call of the programs.
        seed: of the draws.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        A row a statistic: ``observed``; ``mean`` and ``sd`` over the drawn sets; ``pvalue``, two-sided, of the observed
        value's rank among them, at least 2 / (num_sets + 1): small where the prior does not expect such data.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers.
    """
    return _check(
        "prior_predictive", model, guide, data, statistics, site, num_sets, batch_size, seed, device, progress
    )


def posterior_predictive_check(
    model: Program,
    guide: Program,
    data: Any,
    statistics: dict[str, Statistic],
    *,
    site: str | None = None,
    num_sets: int = 200,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare statistics of the data with those of replicated sets: z ~ q(z | x) for every datum, x anew given z.

    Each replicate has seen its own datum, so that p-values crowd around one half when the model is right: a small one
    is strong evidence, a middling one is none. For a check that is not conservative, see :func:`pyrovae.pit` and
    :func:`pyrovae.prior_predictive_check` on held-out data.

    Source: Gelman, Meng and Stern, "Posterior predictive assessment of model fitness via realized discrepancies", 1996.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        statistics: by name, each a function of a set ``[N, ...]`` that returns one number, such as
            ``lambda x: x.std()``.
        site: observed site that is looked at; None is the first.
        num_sets: sets drawn, each as large as the data.
        batch_size: data held by a call of the programs.
        seed: of the draws.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        A row a statistic, as :func:`pyrovae.prior_predictive_check` has them.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers.
    """
    return _check(
        "posterior_predictive", model, guide, data, statistics, site, num_sets, batch_size, seed, device, progress
    )


def pit(
    model: Program,
    data: Any,
    *,
    site: str | None = None,
    num_draws: int = 199,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Ranks:
    """Rank every feature of every datum among draws of its marginal p(x_d), latents integrated out.

    Where the model's marginals are those of held-out data, ranks are uniform (probability integral transforms); a
    U shape means that the model is too narrow there, a hump that it is too wide. Given covariates, marginals are given
    them too. Ties of discrete features are broken at random; a missing value gets a random rank, so that it speaks
    neither for the model nor against it.

    Source: Czado, Gneiting and Held, "Predictive model assessment for count data", 2009.

    Args:
        model: generative program ``model(*batch)``.
        data: held-out data: a tensor, a tuple of tensors, or a data set.
        site: observed site that is looked at; None is the first.
        num_draws: K, of the marginal, for every datum anew.
        batch_size: data held by a call of the programs.
        seed: of draws and ties.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        Ranks ``[N, D]``, a column a feature; ``.table()`` has their p-values, ``plots.ranks`` draws them.

    Raises:
        ValueError: for a model that breaks the contract, bad data or bad numbers.

    Example:
        >>> from pyrovae import models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> from pyrovae.diagnostics.predictive.simulate import simulate
        >>> made = simulate(model, torch.zeros(1, 5), num_simulations=300, progress=False)
        >>> found = pit(model, made.data, seed=1, progress=False)
        >>> found.values.shape, bool((found.pvalue > 1e-4).all())
        (torch.Size([300, 5]), True)
    """
    num_draws = at_least("num_draws", num_draws, 2)
    batch_size = at_least("batch_size", batch_size, 1)
    data = as_data(data).fixed()
    tally = Tally()
    with question(model, PriorGuide(model), data, seed=seed, device=device) as asked:
        name = _observed_site(asked, site)
        for part in draw(asked, num_draws, ("prior_predictive",), batch_size, "pit" if progress else None):
            value, draws = part.observed[name], part.groups["prior_predictive"][name]
            below, equal = rank(value, draws, _rounding(value))
            if value.is_floating_point():
                equal = torch.where(value.isnan(), len(draws), equal)
            tally.add(part.indices.start, below.reshape(len(value), -1), equal.reshape(len(value), -1))
    ranks = tally.ranks("ties of pit", seed)
    own = data.feature_names is not None and len(data.feature_names) == ranks.shape[1]
    names = data.feature_names if own else [f"{name}[{d}]" for d in range(ranks.shape[1])]
    return Ranks(ranks, num_draws, tuple(names or ()))


def _rounding(value: Tensor) -> Tensor | float:
    """Return how far values may be from a tie: a grey level may be k / 255 here, and k times 1 / 255 there."""
    if not value.is_floating_point():
        return 0.0
    return (4 * torch.finfo(value.dtype).eps * value.abs()).clamp(max=0.25)  # counts are whole numbers, however large


def _observed_site(asked: Question, site: str | None) -> str:
    names = [observed.name for observed in asked.layout.observed]
    if site is not None and site not in names:
        raise ValueError(f"site {site!r} is not observed: the model observes {names}")
    return site or names[0]


def _check(
    group: str, model: Program, guide: Program, data: Any, statistics: dict[str, Statistic], site: str | None,
    num_sets: int, batch_size: int, seed: int, device: Any, progress: bool,
) -> pd.DataFrame:  # fmt: skip
    num_sets = at_least("num_sets", num_sets, 1)
    if not isinstance(statistics, Mapping):
        raise ValueError(f"statistics must be a dict of functions of a set, by name, got a {type(statistics).__name__}")
    if not statistics:
        raise ValueError("statistics is empty: give at least one function of a set")
    drawn: list[Tensor] = []
    seen: list[Tensor] = []
    with question(model, guide, data, seed=seed, device=device) as asked:
        name = _observed_site(asked, site)
        parts: dict[int, list[Tensor]] = {}
        for part in draw(asked, num_sets, (group,), batch_size, group if progress else None):
            own = parts.setdefault(part.indices.start, [])
            own.append(part.groups[group][name])
            if len(own) == 1:
                seen.append(part.observed[name])
        drawn = [torch.cat(own) for own in parts.values()]
    sets, observed = torch.cat(drawn, dim=1), torch.cat(seen)
    if observed.is_floating_point():  # what is missing of the data is missing of the sets
        sets = torch.where(observed.isnan(), torch.nan, sets)
    rows = {}
    for label, statistic in statistics.items():
        value = _number(label, statistic, observed)
        simulated = np.array([_number(label, statistic, one) for one in sets])
        if not (np.isfinite(value) and np.isfinite(simulated).all()):
            raise ValueError(
                f"the statistic {label!r} is not a finite number (of the data: {value}): use one that is, and that "
                "leaves NaN out, such as torch.nanmean, where values are missing"
            )
        above = (1 + (simulated >= value).sum(), 1 + (simulated <= value).sum())
        pvalue = min(1.0, 2 * min(above) / (num_sets + 1))
        rows[label] = {"observed": value, "mean": simulated.mean(), "sd": simulated.std(ddof=1), "pvalue": pvalue}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("statistic")


def _number(label: str, statistic: Statistic, one: Tensor) -> float:
    found = statistic(one)
    if isinstance(found, Tensor) and found.numel() != 1:
        raise ValueError(f"the statistic {label!r} must return one number of a set, got {tuple(found.shape)}")
    return float(found)
