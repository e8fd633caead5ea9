"""Pareto-smoothed log weights, by ArviZ."""

import arviz as az
import numpy as np

from pyrovae.arviz.labels import ARVIZ_1
from pyrovae.importance.psis import EQUAL
from pyrovae.programs.isolation import importing


@importing()
def smoothed(log_weights: np.ndarray) -> np.ndarray:
    """Return log weights ``[draws, data]``, Pareto-smoothed per observation; without a tail they stay unsmoothed."""
    weights = log_weights - log_weights.max(0)
    tail = int(min(len(weights) / 5, 3 * len(weights) ** 0.5))
    if tail < 5:
        return weights
    largest = np.sort(weights, axis=0)[-tail - 1 :]
    uneven = largest[-1] - largest[0] > EQUAL
    if uneven.any():
        weights[:, uneven] = _smoothed_by_arviz(weights[:, uneven].astype(float))
    return weights


def _smoothed_by_arviz(log_weights: np.ndarray) -> np.ndarray:
    if not ARVIZ_1:
        return np.asarray(az.psislw(log_weights.T)[0]).T
    from arviz_stats.base import array_stats

    return np.asarray(array_stats.psislw(-log_weights, axis=0)[0]).T  # it takes minus the log weights
