"""Ranks that are uniform where something is calibrated: simultaneous bands, p-values, symmetry."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from pyrovae.diagnostics.calibration.uniformity import piet_c, pot_c
from pyrovae.programs.streams import numpy_generator

REPEATS = 20_000  # of the null distribution
MOST_POINTS = 99  # at which an empirical distribution function is evaluated


@dataclass(frozen=True)
class Ranks:
    """Ranks of n values among K draws each, for Q quantities.

    They are uniform on 0, ..., K where a value comes from the distribution of its draws. Ties are broken at random, so
    that this holds for discrete quantities too.

    Attributes:
        values: number of draws below each value, ``[n, Q]``, whole numbers from 0 to K.
        num_draws: number of draws K.
        names: names of the quantities.
    """

    values: Tensor
    num_draws: int
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)

    def select(self, names: Sequence[str]) -> "Ranks":
        """Return the ranks of some of the quantities."""
        columns = [self.names.index(name) for name in names]
        return Ranks(self.values[:, columns], self.num_draws, tuple(names))

    def reversed(self) -> "Ranks":
        """Return the ranks counted from the largest draw down."""
        return Ranks(self.num_draws - self.values, self.num_draws, self.names)

    @property
    def pit(self) -> Tensor:
        """Probability integral transforms (rank + 1/2) / (K + 1), ``[n, Q]``."""
        return (self.values.double() + 0.5) / (self.num_draws + 1)

    @property
    def pvalue(self) -> Tensor:
        """P-value of uniformity of every quantity, ``[Q]``, not corrected for the number of quantities.

        It is below alpha exactly where the quantity's distribution function leaves the band of level 1 - alpha. It is
        computed from 20,000 repeats of the null distribution. Where it is too small for them to resolve, it comes from
        the union bound over the points.

        Source: Säilynoja, Bürkner and Vehtari, "Graphical test for discrete uniformity and its applications in
        goodness-of-fit evaluation and multiple sample comparison", 2022.
        """
        null = _Null.of(len(self), self.num_draws)
        return torch.from_numpy(null.pvalue(self._counts(null.points)))

    @property
    def symmetry(self) -> Tensor:
        """P-value of symmetry around one half of every quantity, ``[Q]``, not corrected for the number of quantities.

        The test of Yao and others compares p with 1 - p by a Kolmogorov-Smirnov distance. Both samples come from the
        same ranks, so that tables for independent samples do not hold. Given the distances from one half, the sides on
        which the values lie are fair coins. The Kolmogorov-Smirnov distance is then the largest absolute value of a
        random walk of these coins, and its distribution is known.

        Source: Yao, Vehtari, Simpson and Gelman, "Yes, but did it work? Evaluating variational inference", 2018;
        Butler, "A test for symmetry using the sample distribution function", 1969.
        """
        return torch.tensor(
            [_symmetry(column, self.num_draws) for column in self.values.T], dtype=torch.float64, device="cpu"
        )

    @property
    def uniform(self) -> np.ndarray:
        """Transforms that are uniform between 0 and 1 if the ranks are, ``[n, Q]``: a random point within each rank."""
        chance = numpy_generator("points within ranks", 0).random(tuple(self.values.shape))
        result: np.ndarray = (self.values.double().numpy() + chance) / (self.num_draws + 1)
        return result

    @property
    def pot(self) -> Tensor:
        """P-value of uniformity of every quantity by its order statistics (POT-C), ``[Q]``."""
        return torch.from_numpy(pot_c(self.uniform))

    @property
    def piet(self) -> Tensor:
        """P-value of uniformity of every quantity by its values one by one (PIET-C), ``[Q]``: it sees outliers."""
        return torch.from_numpy(piet_c(self.uniform))

    def band(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return points, and at these the simultaneous band of the distribution function of uniform ranks."""
        if not 0 < level < 1:
            raise ValueError(f"level must be a probability between 0 and 1, got {level!r}")
        return _Null.of(len(self), self.num_draws).band(level)

    def ecdf(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the points of :meth:`band`, and at these every quantity's distribution function, ``[Q, P]``."""
        null = _Null.of(len(self), self.num_draws)
        return null.probabilities, self._counts(null.points) / len(self)

    def _counts(self, points: np.ndarray) -> np.ndarray:
        """Return how many ranks are no larger than each point, ``[Q, P]``."""
        columns = self.values.sort(0).values.T.numpy()
        return np.stack([np.searchsorted(column, points, side="right") for column in columns])

    def __str__(self) -> str:
        return self.table().round(4).to_string()

    def table(self) -> pd.DataFrame:
        """Tabulate one row per quantity.

        - ``pvalue``: p-value of uniformity; ``adjusted``: the same, adjusted for the number of rows (Holm);
        - ``pot``, ``piet``: p-values of ArviZ's tests of uniformity, by the order statistics and by the single values;
        - ``bias``: mean of the transforms less one half, above 0 where values lie above the draws; ``bias_se``: its
          standard error;
        - ``spread``: variance of the transforms relative to that of a uniform variable, above 1 where the draws are too
          narrow and below 1 where they are too wide; ``spread_se``: its standard error;
        - ``symmetry``: p-value of ranks that are low as often as high; ``symmetry_adjusted``: the same, adjusted
          (Holm).
        """
        centred = self.pit - 0.5
        uniform = (1 - (self.num_draws + 1) ** -2) / 12  # variance of the midpoints of K + 1 equal parts of (0, 1)
        spread = centred.square() / uniform
        columns: dict[str, Any] = {
            "pvalue": self.pvalue,
            "adjusted": holm(self.pvalue),
            "pot": self.pot,
            "piet": self.piet,
            "bias": centred.mean(0),
            "bias_se": centred.std(0) / math.sqrt(len(self)),
            "spread": spread.mean(0),
            "spread_se": spread.std(0) / math.sqrt(len(self)),
            "symmetry": self.symmetry,
            "symmetry_adjusted": holm(self.symmetry),
        }
        data = {name: values.numpy() for name, values in columns.items()}
        return pd.DataFrame(data, index=list(self.names)).rename_axis("quantity")


def holm(pvalues: Tensor) -> Tensor:
    """Return p-values that are adjusted to hold for all hypotheses at once.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = pvalues.argsort()
    factors = torch.arange(len(pvalues), 0, -1, dtype=pvalues.dtype, device=pvalues.device)
    adjusted = (pvalues[order] * factors).cummax(0).values.clamp(max=1)
    return torch.empty_like(pvalues).index_put((order,), adjusted)


def rank(value: Tensor, draws: Tensor, tolerance: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Return how many draws ``[K, ...]`` are below a value ``[...]``, and how many equal it within a tolerance."""
    equal = (draws - value).abs() <= tolerance if isinstance(tolerance, Tensor) else draws == value
    return ((draws < value) & ~equal).sum(0), equal.sum(0)


class Tally:
    """Ranks of values among draws that come in parts: batch by batch, and some draws of each batch at a time."""

    def __init__(self) -> None:
        self._below: dict[int, Tensor] = {}
        self._equal: dict[int, Tensor] = {}

    def add(self, batch: int, below: Tensor, equal: Tensor) -> None:
        """Count how many more draws are below the values of a batch, and how many equal them, ``[size, Q]``."""
        for totals, more in ((self._below, below), (self._equal, equal)):
            totals[batch] = totals[batch] + more if batch in totals else more

    def ranks(self, purpose: str, seed: int) -> Tensor:
        """Return ranks ``[n, Q]``; a value that equals some draws takes any place among them at random."""
        below, equal = (torch.cat(list(totals.values())).cpu() for totals in (self._below, self._equal))
        chance = torch.from_numpy(numpy_generator(purpose, seed).random(tuple(below.shape)))
        return below + (chance * (equal + 1)).long()


def _symmetry(ranks: Tensor, num_draws: int) -> float:
    side = 2 * ranks.numpy() - num_draws
    side = side[side != 0]
    distance, start = np.unique(-np.abs(side), return_inverse=True)  # the outermost first
    walk = np.cumsum(np.bincount(start, weights=np.sign(side), minlength=len(distance)))
    return _beyond(int(np.abs(walk).max(initial=0)), len(side))


def _beyond(distance: int, steps: int) -> float:
    """Return the probability that a walk of fair unit steps is ever ``distance`` or more from its start."""
    if distance <= 0:
        return 1.0
    if distance > steps:
        return 0.0
    ends = np.arange(-distance + 1, distance)
    folds = np.arange(-(steps // (2 * distance)) - 1, steps // (2 * distance) + 2)[:, None]
    at = lambda place: stats.binom.pmf((place + steps) / 2, steps, 0.5) * ((place + steps) % 2 == 0)  # noqa: E731
    inside = at(ends + 4 * folds * distance) - at(2 * distance - ends + 4 * folds * distance)
    return float(np.clip(1 - inside.sum(), 0, 1))


@dataclass(frozen=True)
class _Null:
    """Empirical distribution functions of n uniform ranks among K draws.

    Attributes:
        size: number of ranks n.
        points: ranks at which the functions are evaluated.
        probabilities: probability of a rank no larger than each point.
        least: smallest pointwise tail probability of every repeat, sorted.
    """

    size: int
    points: np.ndarray
    probabilities: np.ndarray
    least: np.ndarray

    @staticmethod
    @lru_cache(maxsize=16)
    def of(size: int, num_draws: int) -> "_Null":
        points = np.unique(np.linspace(0, num_draws - 1, min(num_draws, MOST_POINTS)).round().astype(int))
        probabilities = (points + 1) / (num_draws + 1)
        null = _Null(size, points, probabilities, np.empty(0))
        parts = np.diff(probabilities, prepend=0, append=1)
        counts = np.random.default_rng(0).multinomial(size, parts, size=REPEATS)[:, :-1].cumsum(1)
        return _Null(size, points, probabilities, np.sort(null.tail(counts)))

    def tail(self, counts: np.ndarray) -> np.ndarray:
        """Return the smallest two-sided tail probability over the points, ``[R]``, from counts ``[R, P]``."""
        smallest = np.ones(len(counts))
        possible = np.arange(-1, self.size + 1)
        for count, p in zip(counts.T, self.probabilities, strict=True):
            low, high = (of(possible, self.size, p) for of in (stats.binom.cdf, stats.binom.sf))
            smallest = np.minimum(smallest, 2 * np.minimum(low[count + 1], high[count]))
        return smallest

    def pvalue(self, counts: np.ndarray) -> np.ndarray:
        tail = self.tail(counts)
        count = np.searchsorted(self.least, tail * (1 + 1e-9), side="right")
        pvalue = (1 + count) / (1 + len(self.least))
        return np.asarray(np.where(count == 0, np.minimum(pvalue, len(self.points) * tail), pvalue))

    def band(self, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        least = self.least[max(int((1 - level) * (1 + len(self.least)) + 1e-9) - 1, 0)]
        tail = least / 2 * (1 - 1e-9)
        low, high = (of(tail, self.size, self.probabilities) / self.size for of in (stats.binom.ppf, stats.binom.isf))
        return self.probabilities, low, high
