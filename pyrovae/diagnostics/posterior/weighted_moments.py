"""Pareto-smoothed weights of particles, and the posterior moments that they give."""

import numpy as np
import torch
from torch import Tensor

from pyrovae.arviz.psis import smoothed


def smoothed_weights(log_weights: Tensor, relative_ess: np.ndarray | None = None) -> Tensor:
    """Return Pareto-smoothed weights ``[K, n]`` that sum to 1 per observation, from log weights on the CPU.

    Args:
        log_weights: log weights ``[K, n]``, with any offset per observation.
        relative_ess: as :func:`pyrovae.arviz.psis.smoothed` takes it.
    """
    return torch.from_numpy(smoothed(log_weights.double().numpy(), relative_ess)).softmax(0)


def moments(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted means and standard deviations, ``[n, D]`` each.

    Args:
        weights: weights ``[K, n]`` that sum to 1.
        values: values ``[K, n, D]``.
    """
    mean = (weights[..., None] * values).sum(0)
    return mean, (weights[..., None] * (values - mean).square()).sum(0).sqrt()
