"""Pareto-smoothed log weights, by ArviZ."""

import arviz as az
import numpy as np

from pyrovae.arviz.labels import ARVIZ_1
from pyrovae.importance.psis import EQUAL
from pyrovae.programs.isolation import importing


@importing()
def smoothed(log_weights: np.ndarray, relative_ess: np.ndarray | None = None) -> np.ndarray:
    """Return log weights ``[draws, data]``, Pareto-smoothed per observation; without a tail they stay unsmoothed.

    Args:
        log_weights: log weights, with any offset per column.
        relative_ess: effective sample size of each column's draws relative to their number, ``[data]``, on which the
            length of the tail depends; None for independent draws.
    """
    weights = log_weights - log_weights.max(0)
    tail = int(min(len(weights) / 5, 3 * len(weights) ** 0.5))
    if tail < 5:
        return weights
    largest = np.sort(weights, axis=0)[-tail - 1 :]
    uneven = largest[-1] - largest[0] > EQUAL
    if relative_ess is None and uneven.any():
        weights[:, uneven] = _smoothed_by_arviz(weights[:, uneven].astype(float), 1.0)
    elif relative_ess is not None:
        for column in np.flatnonzero(uneven):
            weights[:, [column]] = _smoothed_by_arviz(weights[:, [column]].astype(float), float(relative_ess[column]))
    return weights


def _smoothed_by_arviz(log_weights: np.ndarray, relative_ess: float) -> np.ndarray:
    if not ARVIZ_1:
        return np.asarray(az.psislw(log_weights.T, reff=relative_ess)[0]).T
    from arviz_stats.base import array_stats

    return np.asarray(array_stats.psislw(-log_weights, r_eff=relative_ess, axis=0)[0]).T  # it takes minus the logs


@importing()
def relative_tail_ess(values: np.ndarray) -> np.ndarray:
    """Return the effective sample size of both 5% tails of columns ``[draws, data]``, relative to the draws."""
    columns = [az.ess(np.ascontiguousarray(c)[None], method="tail", prob=0.05, relative=True) for c in values.T]
    return np.array([float(c) for c in columns])
