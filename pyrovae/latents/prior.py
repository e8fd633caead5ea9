"""The aggregate posterior beside the prior."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from pyrovae.evaluation import draw
from pyrovae.pair import Program
from pyrovae.particles import BATCH_SIZE, question


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
