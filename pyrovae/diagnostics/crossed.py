"""Standard errors of means over seeds and observations, where every seed meets every observation."""

import math

from torch import Tensor


def crossed_error(values: Tensor) -> float:
    """Return the standard error of the mean of ``[seeds, data]`` for new seeds and new data.

    Every seed meets every observation. The entries of a row share their seed, and the entries of a column share their
    observation. The variance of the mean therefore has a part from the data, a part from the seeds and a remainder,

        s_data^2 / N + s_seed^2 / K - s_rest^2 / (N K).

    Here s_data is the standard deviation of the observations' means, s_seed that of the seeds' means, and s_rest that
    of the residuals; s_data and s_seed each contain a share of s_rest. With one seed the error is s_data / sqrt(N), the
    error for new data given that seed.

    Source: Searle, Casella and McCulloch, "Variance components", 1992, for the variance components; Owen, "The
    pigeonhole bootstrap", 2007, for the design.

    Args:
        values: ``[K, N]``.
    """
    by_data, by_seed, rest = _parts(values)
    return math.sqrt(max(by_data + by_seed - rest, rest))


def crossed_df(values: Tensor) -> float:
    """Return the degrees of freedom of :func:`crossed_error`, by Satterthwaite: about those of the largest part.

    With many degrees of freedom, two standard errors either way are a 95% interval. With few, as from few seeds, use
    Student's t with these degrees of freedom. The intervals then cover 95% of the time with five seeds, a little less
    with three, and about 90% with two.
    """
    seeds, size = values.shape
    by_data, by_seed, rest = _parts(values)
    if size < 2 or by_data + by_seed <= 0:
        return math.nan
    spread = by_data**2 / (size - 1)
    if seeds > 1:
        spread += by_seed**2 / (seeds - 1) + rest**2 / ((seeds - 1) * (size - 1))
    return max(by_data + by_seed - rest, rest) ** 2 / spread


def fold_error(means: Tensor, held_out: float = 0.0) -> float:
    """Return the standard error of the mean over the folds of a cross-validation, of one mean per fold, ``[K]``.

    The folds share most of their training data, so that their means are correlated, and no unbiased estimate of the
    variance exists (Bengio and Grandvalet, 2004). Nadeau and Bengio's estimate is (1 / K + r) s^2, where s is the
    standard deviation of the folds' means, and r the size of a test part relative to that of a training part:
    1 / (K - 1) where training takes all of the rest. Use Student's t with K - 1 degrees of freedom.

    Source: Nadeau and Bengio, "Inference for the generalization error", 2003.

    Args:
        means: one mean per fold, ``[K]``.
        held_out: share of the rest of a fold that is for validation.
    """
    count = len(means)
    if count < 2:
        return math.nan
    return math.sqrt((1 / count + 1 / ((count - 1) * (1 - held_out))) * float(means.var()))


def _parts(values: Tensor) -> tuple[float, float, float]:
    """Return the parts of the variance of the mean of ``[K, N]``: from data, from seeds and from residuals."""
    seeds, size = values.shape
    if size < 2:
        return math.nan, math.nan, math.nan
    by_data = float(values.mean(0).var() / size)
    if seeds == 1:
        return by_data, 0.0, 0.0
    residuals = values - values.mean(0) - values.mean(1, keepdim=True) + values.mean()
    rest = float(residuals.square().sum() / ((seeds - 1) * (size - 1)) / (seeds * size))
    return by_data, float(values.mean(1).var() / seeds), rest
