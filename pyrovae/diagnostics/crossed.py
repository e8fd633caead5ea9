"""Errors of means over seeds and observations, each of which meets each of the others."""

import math

from torch import Tensor


def crossed_error(values: Tensor) -> float:
    """Return the standard error of the mean of ``[seeds, data]`` for new seeds and new data.

    Every seed meets every observation, so that the entries of a row share their seed and those of a column their
    observation: the variance of the mean is a sum of a part by data, a part by seeds and what is left,

        s_data^2 / N + s_seed^2 / K - s_rest^2 / (N K),

    with s_data the standard deviation of the data's means, s_seed of the seeds' means, each of which holds a share of
    s_rest, that of the residuals. With one seed it is s_data / sqrt(N), the error for new data given that seed.

    Source: of the variance components, Searle, Casella and McCulloch, "Variance components", 1992; of the design, Owen,
    "The pigeonhole bootstrap", 2007.

    Args:
        values: ``[K, N]``.
    """
    by_data, by_seed, rest = _parts(values)
    return math.sqrt(max(by_data + by_seed - rest, rest))


def crossed_df(values: Tensor) -> float:
    """Return the degrees of freedom of :func:`crossed_error`, by Satterthwaite: about those of the largest part.

    Two standard errors either way are an interval of 95% for many. For few, as of few seeds, take Student's t with
    these: intervals then hold 95% of the time of five seeds, a little less of three, about 90% of two.
    """
    seeds, size = values.shape
    by_data, by_seed, rest = _parts(values)
    if size < 2 or by_data + by_seed <= 0:
        return math.nan
    spread = by_data**2 / (size - 1)
    if seeds > 1:
        spread += by_seed**2 / (seeds - 1) + rest**2 / ((seeds - 1) * (size - 1))
    return max(by_data + by_seed - rest, rest) ** 2 / spread


def _parts(values: Tensor) -> tuple[float, float, float]:
    """Return the parts of the variance of the mean of ``[K, N]``: of data's means, of seeds' means, of residuals."""
    seeds, size = values.shape
    if size < 2:
        return math.nan, math.nan, math.nan
    by_data = float(values.mean(0).var() / size)
    if seeds == 1:
        return by_data, 0.0, 0.0
    rest = values - values.mean(0) - values.mean(1, keepdim=True) + values.mean()
    left = float(rest.square().sum() / ((seeds - 1) * (size - 1)) / (seeds * size))
    return by_data, float(values.mean(1).var() / seeds), left
