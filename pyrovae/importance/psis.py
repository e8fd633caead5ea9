"""Pareto-smoothed importance sampling: the tail index of weights, its limit, and when a mean is reliable."""

import math

import torch
from torch import Tensor

from pyrovae.common.weights import weighted

EQUAL = 1e-4  # nats
PRACTICAL = 0.7  # k-hat above which no practical number of draws is enough
MOST_UNRELIABLE = 0.1  # share of unreliable observations above which a mean over the data is unreliable


def khat_limit(num_weights: int) -> float:
    """Return the largest k-hat at which S weights are reliable, min(1 - 1 / log10 S, 0.7).

    It is 0.5 for 100 weights, 0.667 for 1,000, 0.7 from 2,155 on, and minus infinity for a single one.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", 2024, section 3.2.4.

    Args:
        num_weights: number of weights, S.

    Example:
        >>> [round(khat_limit(size), 3) for size in (100, 200, 1000, 5000)]
        [0.5, 0.565, 0.667, 0.7]
    """
    return min(1 - 1 / math.log10(num_weights), PRACTICAL) if num_weights > 1 else -math.inf


def draws_needed(khat: Tensor) -> Tensor:
    """Return the least number of weights that a tail index needs, 10^(1 / (1 - max(0, k))), infinite from k = 1 on.

    It is 2,154 for k = 0.7. Above that k, importance sampling is not practical: errors fall too slowly with the number
    of weights, and :func:`khat_limit` never goes higher. Find a better proposal then.

    Source: as :func:`khat_limit`.

    Args:
        khat: tail indices, of any shape.

    Example:
        >>> draws_needed(torch.tensor([0.0, 0.5, 1.2])).tolist()
        [10.0, 100.0, inf]
    """
    return 10 ** (1 / (1 - khat.double().nan_to_num(1, 1, 0).clamp(0, 1)))


def trusted_on_average(reliable: Tensor, weights: Tensor | None = None) -> bool:
    """Whether a mean over data is reliable: at most one observation in ten is unreliable.

    This is the rule for whole rows of tables and figures. An unreliable estimate is too low, so a mean over many of
    them favours the strategy with the better proposal, whatever its model.

    Args:
        reliable: whether each observation (and seed) is reliable, ``[..., N]``.
        weights: survey weights, ``[N]``; None: all observations alike.
    """
    return float(weighted((~reliable).double(), weights).mean()) <= MOST_UNRELIABLE


def pareto_khat(log_weights: Tensor) -> Tensor:
    """Return the Pareto tail index k-hat of each column of log weights.

    Above :func:`khat_limit` an importance sampling estimate from these weights is unreliable. k-hat is infinite where
    fewer than five weights lie in the tail (too few particles, or one that dominates all). It is 0 where the weights
    are equal up to rounding (they differ by less than 1e-4 nats), or those of the tail are, so that there is no tail
    to fit: such weights are bounded.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", 2024; the generalised Pareto
    fit is that of Zhang and Stephens, "A new and efficient estimation method for the generalized Pareto distribution",
    2009, with the weakly informative prior of the former. The tail holds ceil(min(K / 5, 3 sqrt(K))) weights, as in the
    paper and in ArviZ 0.23; ArviZ 1.x rounds down.

    Args:
        log_weights: log weights, ``[K, N]``, in nats, with any offset per column.

    Returns:
        k-hat, ``[N]``, float64.

    Example:
        Weights whose logarithm is exponential with mean 1/2 have a tail of index 1/2.

        >>> exponential = torch.empty(100_000, 1).exponential_(2.0, generator=torch.Generator().manual_seed(0))
        >>> 0.3 < pareto_khat(exponential).item() < 0.7
        True
    """
    shifted = log_weights.double()
    shifted = shifted - shifted.max(0).values
    num_particles, num_data = shifted.shape
    tail = math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))
    khat = torch.full((num_data,), math.inf, dtype=torch.float64, device=shifted.device)
    if tail < 5:
        return khat
    level = shifted.min(0).values > -EQUAL
    largest = shifted.topk(tail + 1, dim=0, sorted=True).values.flip(0)
    cutoff = largest[0].clamp(min=math.log(torch.finfo(torch.float64).tiny))
    above = largest[1:] > cutoff
    full = above.all(0) & ~level
    exceedances = largest[1:].exp() - cutoff.exp()
    if bool(full.any()):
        khat[full] = _generalised_pareto_shape(exceedances[:, full])
    for column in (~full & ~level).nonzero().flatten().tolist():  # ties at the cutoff shorten the tail
        own = exceedances[above[:, column], column]
        if len(own) >= 5:
            khat[column] = _generalised_pareto_shape(own[:, None])[0]
    khat[level | (largest[-1] - largest[0] <= EQUAL)] = 0.0  # a tail without any spread: the weights are bounded
    return khat


def _generalised_pareto_shape(exceedances: Tensor) -> Tensor:
    """Return an estimate ``[N]`` of the shape of exceedances ``[M, N]``, which ascend in every column."""
    size = exceedances.shape[0]
    num_grid = 30 + int(math.sqrt(size))
    grid = 1 - torch.sqrt(
        num_grid / (torch.arange(1, num_grid + 1, device=exceedances.device, dtype=torch.float64) - 0.5)
    )
    quartile = exceedances[int(size / 4 + 0.5) - 1]
    theta = grid[:, None] / (3 * quartile) + 1 / exceedances[-1]
    shape = torch.stack([torch.log1p(-row * exceedances).mean(0) for row in theta])
    profile = size * (torch.log(-theta / shape) - shape - 1)
    weight = torch.softmax(profile, dim=0)
    weight = torch.where(weight >= 10 * torch.finfo(torch.float64).eps, weight, 0.0)
    posterior = (theta * weight / weight.sum(0)).sum(0)
    khat = torch.log1p(-posterior * exceedances).mean(0)
    return (size * khat + 5) / (size + 10)
