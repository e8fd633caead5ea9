"""Tests of uniformity that combine a p-value per value by Cauchy's distribution."""

import numpy as np
from scipy.special import betainc


def pot_c(values: np.ndarray) -> np.ndarray:
    """Return p-values of uniformity by the order statistics, ``[Q]``: sensitive to the bulk and to both ends.

    The i-th smallest of n uniform values has a Beta(i, n + 1 - i) distribution. The p-values of all n are combined by
    Cauchy's distribution, those above one half counted as one half.

    Source: Tesso and Vehtari, "LOO-PIT predictive model checking" (arXiv 2603.02928), 2026; as in ArviZ 1.3.

    Args:
        values: values between 0 and 1, ``[n, Q]``.
    """
    count = np.arange(1, len(values) + 1)[:, None]
    probability = betainc(count, count[::-1], np.sort(values, axis=0))
    pvalues = 2 * np.minimum(probability, 1 - probability)
    return _combined(np.where(pvalues < 0.5, np.tan((0.5 - pvalues) * np.pi), 0.0))


def piet_c(values: np.ndarray) -> np.ndarray:
    """Return p-values of uniformity by the values one by one, ``[Q]``: sensitive to single values near 0 and 1.

    Source: as :func:`pot_c`.

    Args:
        values: values between 0 and 1, ``[n, Q]``.
    """
    pvalues = 2 * np.minimum(values, 1 - values)
    return _combined(np.tan((0.5 - pvalues) * np.pi))


def _combined(cauchy: np.ndarray) -> np.ndarray:
    result: np.ndarray = 0.5 - np.arctan(cauchy.mean(0)) / np.pi
    return result
