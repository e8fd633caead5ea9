"""Two checks of a prior: what data it expects, and whether the guide's codes look like its draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from pyrovae.checks import at_least
from pyrovae.evaluation.draws import draw
from pyrovae.pair import Program
from pyrovae.particles import BATCH_SIZE, question

Statistic = Callable[[Tensor], Tensor]


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
    at_least("num_sets", num_sets, 1)
    if not statistics:
        raise ValueError("statistics is empty: give at least one function of a set")
    drawn: list[Tensor] = []
    seen: list[Tensor] = []
    with question(model, guide, data, seed=seed, device=device) as asked:
        name = site or asked.layout.observed[0].name
        if name not in [o.name for o in asked.layout.observed]:
            raise ValueError(
                f"site {name!r} is not observed: the model observes {[o.name for o in asked.layout.observed]}"
            )
        parts: dict[int, list[Tensor]] = {}
        for part in draw(asked, num_sets, ("prior_predictive",), batch_size, "prior" if progress else None):
            own = parts.setdefault(part.indices.start, [])
            own.append(part.groups["prior_predictive"][name])
            if len(own) == 1:
                seen.append(part.observed[name])
        drawn = [torch.cat(own) for own in parts.values()]
    sets, observed = torch.cat(drawn, dim=1), torch.cat(seen)
    if observed.is_floating_point():  # what is missing of the data is missing of the sets
        sets = torch.where(observed.isnan(), torch.nan, sets)
    rows = {}
    for label, statistic in statistics.items():
        value = float(statistic(observed))
        simulated = np.array([float(statistic(one)) for one in sets])
        if not (np.isfinite(value) and np.isfinite(simulated).all()):
            raise ValueError(
                f"the statistic {label!r} is not a finite number (of the data: {value}): use one that is, and that "
                "leaves NaN out, such as torch.nanmean, where values are missing"
            )
        above = (1 + (simulated >= value).sum(), 1 + (simulated <= value).sum())
        pvalue = min(1.0, 2 * min(above) / (num_sets + 1))
        rows[label] = {"observed": value, "mean": simulated.mean(), "sd": simulated.std(ddof=1), "pvalue": pvalue}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("statistic")


def prior_against_posterior(
    model: Program,
    guide: Program,
    data: Any,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare the aggregate posterior, one draw of q(z | x) a datum, with as many draws of the prior.

    Where they differ, what is generated from the prior is not like what is encoded, and a richer prior gains by it.

    Source: Hoffman and Johnson, "ELBO surgery", 2016.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        batch_size: data held by a call of the programs.
        seed: of the draws.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        A row a latent coordinate: means and standard deviations of both, the Kolmogorov-Smirnov distance (between 0 and
        1) and its two-sample p-value, uncorrected for the number of rows.

    Raises:
        ValueError: for a pair that breaks the contract, or bad data.
    """
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with question(model, guide, data, seed=seed, device=device) as asked:
        for part in draw(asked, 1, ("posterior", "prior"), batch_size, "draws" if progress else None):
            for name in asked.layout.latents:
                pair = (part.groups["posterior"][name][0], part.groups["prior"][name][0])
                kept.setdefault(name, []).append(pair)
    rows = {}
    for name, pairs in kept.items():
        q, p = (_rows(torch.cat([pair[i] for pair in pairs])) for i in (0, 1))
        for d in range(q.shape[1]):
            test = stats.ks_2samp(q[:, d], p[:, d])
            rows[f"{name}[{d}]" if q.shape[1] > 1 else name] = {
                "posterior_mean": q[:, d].mean(),
                "posterior_sd": q[:, d].std(),
                "prior_mean": p[:, d].mean(),
                "prior_sd": p[:, d].std(),
                "distance": float(test.statistic),
                "pvalue": float(test.pvalue),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("latent")


def _rows(values: Tensor) -> np.ndarray:
    return np.asarray(values.reshape(len(values), -1).double().numpy())
