"""Weights of strategies in the mixture of their predictive densities that predicts held-out data best."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from torch import Tensor

from pyrovae.programs.streams import numpy_generator

BOOTSTRAPS = 100


def stacking(log_densities: Mapping[str, Tensor], weights: Tensor | None = None) -> pd.DataFrame:
    """Return the weights w that maximise the mean over data and seeds of log sum_k w_k p_k(x_i), and their errors.

    A strategy has a large weight where it predicts well what the others do not; of strategies that predict alike, the
    weights are arbitrary, and their errors large.

    Source: Yao, Vehtari, Simpson and Gelman, "Using stacking to average Bayesian predictive distributions", 2018;
    Rubin, "The Bayesian bootstrap", 1981, for the errors.

    Args:
        log_densities: log p_k(x_i) of held-out data by strategy, ``[seeds, data]``, nats.
        weights: survey weights of the data, ``[data]``; None: all alike.

    Returns:
        One row per strategy: ``weight``, and ``weight_se``, its standard deviation over 100 sets of random weights of
        the data and, where there are several, of the seeds.
    """
    names = list(log_densities)
    logs = np.stack([log_densities[name].double().numpy() for name in names])  # [strategies, seeds, data]
    counts = np.ones(logs.shape[2]) if weights is None else weights.double().numpy()
    known = np.isfinite(logs.max(0)).all(0)  # an observation that no strategy gives a density says nothing
    logs, counts = logs[:, :, known], counts[known]
    shares = np.exp(logs - logs.max(0))
    source = numpy_generator("stacking", 0)
    best = _best(shares, np.broadcast_to(counts, shares.shape[1:]), np.full(len(names), 1 / len(names)))
    seeds = shares.shape[1]
    chance = [  # of seeds and of observations, each with a weight of its own
        source.exponential(size=(seeds, 1)) if seeds > 1 else np.ones((1, 1)) for _ in range(BOOTSTRAPS)
    ]
    again = [_best(shares, one * counts * source.exponential(size=len(counts)), best) for one in chance]
    return pd.DataFrame({"weight": best, "weight_se": np.std(again, axis=0, ddof=1)}, index=names)


def _best(shares: np.ndarray, counts: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the best weights for densities ``[strategies, seeds, data]`` (up to factors), counts ``[seeds, data]``."""
    if len(start) == 1:
        return np.ones(1)
    counts = counts / counts.sum()

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixture = np.einsum("k,ksi->si", weights, shares).clip(1e-300)
        return -float((counts * np.log(mixture)).sum()), -np.einsum("ksi,si->k", shares, counts / mixture)

    inside = 0.9 * start + 0.1 / len(start)  # on the edge, where a weight is 0, some steps do not leave it
    one = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
    result = minimize(loss, inside, jac=True, bounds=[(0, 1)] * len(start), constraints=one, tol=1e-9)
    found: np.ndarray = result.x.clip(0) / result.x.clip(0).sum()
    return found
