"""Probabilities of symbols for an entropy coder: of a latent's bins, coordinate by coordinate, and of cells of data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import MaskedDistribution
from scipy import stats
from torch import Tensor, distributions
from torch.distributions import biject_to, constraints

from pyrovae.likelihoods.missing import PartlyObserved
from pyrovae.uses.prior_space import gaussian_mixture

Conditionals = Callable[[int, Tensor], Tensor]  # a coordinate and those before it [n, k] to log densities [n, V]
REACH = 16  # widths between the smallest and the largest code, at most
GRID_DF = 4  # of Student's t, whose quantiles are the bins' edges


@dataclass(frozen=True)
class Values:
    """The values that the D coordinates of a latent may take in a code.

    Attributes:
        values: values ``[V, D]``; one-hot vectors are ``[V, V]`` and a single coordinate.
        log_width: logarithm of the bin's width around each value, ``[V, D]``; 0 for discrete latents.
        event: shape of one observation's value.
        dtype: dtype in which values are scored.
    """

    values: Tensor
    log_width: Tensor
    event: torch.Size
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Number of coordinates, each a symbol in the code."""
        return self.log_width.shape[1]

    def to(self, device: torch.device) -> "Values":
        """Return the values on a device."""
        return Values(self.values.to(device), self.log_width.to(device), self.event, self.dtype)

    def chosen(self, symbols: Tensor) -> Tensor:
        """Return the values ``[n, event]`` of symbols ``[n, D]``."""
        if self.values.shape[1] != self.size:
            return self.values[symbols[:, 0]].reshape(-1, *self.event)
        return self.values.gather(0, symbols).reshape(-1, *self.event)


def _transform(fn: Any) -> Any:
    """Return the transform from unconstrained numbers to the coordinates of a latent.

    Raises:
        ValueError: for a support on which coordinates depend on each other.
    """
    support = fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    try:
        transform = biject_to(support)
    except NotImplementedError:
        transform = None
    if transform is None or transform.domain.event_dim or transform.codomain.event_dim:
        raise ValueError(f"a latent of support {support} cannot be coded: its coordinates depend on each other")
    return transform


def spread_of(fn: Any, draws: Tensor) -> tuple[list[int], list[int]] | None:
    """Return where a latent's bins lie, from draws of it: each coordinate's centre and width, as small whole numbers.

    Args:
        fn: distribution of the latent.
        draws: draws ``[N, event]``.

    Returns:
        Logarithms of the widths to base 2, and centres in half widths, of unconstrained values; None for a discrete
        latent.
    """
    if _is_discrete(fn):
        return None
    rows = draws.double().reshape(len(draws), -1)
    flat = _transform(fn).inv(rows)
    reach = (flat.amax(0) - flat.amin(0)) / REACH
    deviation = torch.maximum(flat.std(0, correction=0), reach).clamp(1e-6, 1e6)
    exponents = deviation.log2().round()
    centres = (flat.mean(0) / (exponents.exp2() / 2)).round()
    return [int(e) for e in exponents], [int(c) for c in centres]


def values_of_latent(fn: Any, spread: tuple[list[int], list[int]] | None, bits: int) -> Values:
    """Return the values that a latent may take in a code.

    Args:
        fn: distribution of the latent.
        spread: as :func:`spread_of` returns it.
        bits: logarithm of the number of bins to base 2.
    """
    event = fn.event_shape
    if spread is None:
        return _enumerated(fn, event)
    exponents, centres = (torch.tensor(part, dtype=torch.float64, device="cpu") for part in spread)
    width = exponents.exp2()
    places = np.arange(2**bits + 1) / 2**bits
    middles = torch.from_numpy(stats.t.ppf((places[1:] + places[:-1]) / 2, GRID_DF))
    edges = torch.from_numpy(stats.t.ppf(places, GRID_DF))
    edges[0], edges[-1] = 2 * middles[0] - edges[1], 2 * middles[-1] - edges[-2]
    unconstrained = centres * width / 2 + middles[:, None] * width
    transform = _transform(fn)
    values = _inside(fn, transform(unconstrained))
    slope = transform.log_abs_det_jacobian(unconstrained, values)
    return Values(values, (edges[1:] - edges[:-1]).log()[:, None] + width.log() + slope, event, _dtype(fn))


def _inside(fn: Any, values: Tensor) -> Tensor:
    """Return values that are inside of the open support also after rounding to the dtype in which they are scored."""
    info, support = torch.finfo(_dtype(fn)), fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    low, high = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    least, most = -info.max / 4, info.max / 4
    if isinstance(low, int | float):
        least = low + info.tiny if not low else low + info.eps * abs(low)
    if isinstance(high, int | float):
        most = high - info.tiny if not high else high - info.eps * abs(high)
    return values.clamp(least, most)


def _is_discrete(fn: Any) -> bool:
    return bool(fn.support.is_discrete)


def _enumerated(fn: Any, event: torch.Size) -> Values:
    """Return the values of a discrete latent.

    Raises:
        ValueError: for a distribution whose values cannot be enumerated.
    """
    inner = _numbers(fn)
    try:
        if inner is None:  # one-hot vectors
            rows = fn.enumerate_support(expand=False).reshape(-1, int(event.numel())).double()
            return Values(rows, rows.new_zeros(len(rows), 1), event, _dtype(fn))
        numbers = inner.enumerate_support(expand=False).flatten().double()
    except NotImplementedError:
        raise ValueError(
            f"a latent that is a {type(inner or fn).__name__} cannot be coded: its values cannot be enumerated"
        ) from None
    values = numbers[:, None].expand(-1, max(1, event.numel()))
    return Values(values, torch.zeros_like(values), event, _dtype(fn))


def conditionals(fn: Any, values: Values) -> Conditionals | None:
    """Return the log density of each coordinate given those before it, at its values; None where it is not known.

    Args:
        fn: distribution, batch shape ``[n]``.
        values: values that the coordinates may take.
    """
    grid = values.values
    inner = _numbers(fn)
    if inner is not None:
        points = grid.to(values.dtype).reshape(len(grid), 1, *(fn.event_shape or ()))
        whole = inner.log_prob(points).double()
        whole = whole.reshape(len(grid), -1, values.size)
        return lambda k, before: whole[:, :, k].expand(-1, len(before)).T
    if isinstance(fn, distributions.OneHotCategorical):
        masses = fn.log_prob(grid.to(values.dtype).reshape(len(grid), *[1] * len(fn.batch_shape), -1)).double()
        return lambda k, before: masses.expand(-1, len(before)).T
    if isinstance(fn, distributions.MultivariateNormal | distributions.LowRankMultivariateNormal):
        return _of_gaussian(fn, grid)
    return _of_mixture(fn, grid)


def _dtype(fn: Any) -> torch.dtype:
    """Return the dtype in which a distribution is scored: its parameters'."""
    sample: Tensor = fn.sample()
    return sample.dtype if sample.is_floating_point() else torch.get_default_dtype()


def _numbers(fn: Any) -> Any:
    """Return the independent numbers that a distribution is made of; None for any other."""
    while isinstance(fn, distributions.Independent | MaskedDistribution | PartlyObserved):
        fn = fn.base_dist
    if isinstance(fn, distributions.TransformedDistribution):
        steps = [getattr(step, "base_transform", step) for step in fn.transforms]
        base = _numbers(fn.base_dist)
        if base is None or any(step.domain.event_dim or step.codomain.event_dim for step in steps):
            return None
        return distributions.TransformedDistribution(base, steps)
    return None if fn.event_shape else fn


def _of_gaussian(fn: Any, grid: Tensor) -> Conditionals:
    loc, factor = fn.loc.double(), torch.linalg.cholesky(fn.covariance_matrix.double())

    def given(k: int, before: Tensor) -> Tensor:
        centre = loc[..., k].expand(len(before))
        if k:
            noise = torch.linalg.solve_triangular(factor[..., :k, :k], (before - loc[..., :k])[..., None], upper=False)[
                ..., 0
            ]
            centre = centre + (factor[..., k, :k] * noise).sum(-1)
        scale = factor[..., k, k].expand(len(before))
        return distributions.Normal(centre[:, None], scale[:, None]).log_prob(grid[:, k])

    return given


def _of_mixture(fn: Any, grid: Tensor) -> Conditionals | None:
    """Return those of a mixture of products: the components' weights follow the coordinates before."""
    mixture = gaussian_mixture(fn)
    if mixture is None:
        return None
    logits, loc, scale = mixture

    def given(k: int, before: Tensor) -> Tensor:
        shape = (len(before), *loc.shape[-2:])
        own = logits.log_softmax(-1).expand(shape[:2])
        if k:
            seen = distributions.Normal(loc[..., :k], scale[..., :k]).log_prob(before[:, None, :])
            own = own + seen.sum(-1)
        here = distributions.Normal(
            loc[..., k].expand(shape[:2])[..., None], scale[..., k].expand(shape[:2])[..., None]
        )
        return (own.log_softmax(-1)[..., None] + here.log_prob(grid[:, k])).logsumexp(1)

    return given


def cells_of(fn: Any) -> Any:
    """Return the distribution of the single cells of what a model observes; None where they are not independent."""
    inner, discrete = _numbers(fn), discrete_columns(fn)
    return inner if discrete is not None and all(discrete) else None


def discrete_columns(fn: Any) -> list[bool] | None:
    """Return whether each column that a model observes is discrete; None where they are not independent numbers."""
    inner = _numbers(fn)
    if inner is None:
        return None
    if not isinstance(inner.support, constraints.cat):
        return [bool(inner.support.is_discrete)]
    parts = zip(inner.support.cseq, inner.support.lengths, strict=True)
    return [bool(part.is_discrete) for part, length in parts for _ in range(length)]


def log_masses(cells: Any, alphabet: Tensor) -> Tensor:
    """Return the log probabilities of every cell's values, ``[n, D, V]``.

    Args:
        cells: distribution of single cells, batch shape ``[n, ...]`` with D cells.
        alphabet: values that each of the cells may take, ``[V, D]``.
    """
    shape = cells.batch_shape
    values = alphabet.reshape(len(alphabet), 1, *shape[1:]).expand(len(alphabet), *shape)
    inside = cells.support.check(values)
    logs = torch.where(inside, cells.log_prob(values), -torch.inf)
    return logs.double().reshape(len(alphabet), shape[0], -1).permute(1, 2, 0)
