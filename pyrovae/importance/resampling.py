"""Draws by weight."""

import numpy as np


def systematic(weights: np.ndarray, source: np.random.Generator, count: int) -> np.ndarray:
    """Draw ``count`` indices by weights ``[K, N]`` that sum to 1, ``[count, N]``, in random order within every column.

    An index occurs ``count`` times its weight, rounded down or up at random.
    """
    marks = (np.arange(count)[:, None] + source.random(weights.shape[1])) / count
    edges = weights.cumsum(0)
    indices = np.stack([np.searchsorted(edges[:, i], marks[:, i]) for i in range(weights.shape[1])], axis=1)
    return source.permuted(indices.clip(max=len(weights) - 1), axis=0)
