"""What a user states about data that the prior should make: quantiles and probabilities."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.common.checks import finite, share
from pyrovae.uses.values import Values

Statistic = Callable[[Values], Any]
LIKE = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Outcome:
    """How the draws of a statistic meet a statement, number by number, ``[M]``.

    Attributes:
        value: what the draws give.
        se: its Monte Carlo standard error.
        met: whether both agree within four standard errors.
    """

    value: Tensor
    se: Tensor
    met: np.ndarray


class Statement(ABC):
    """A statement about a statistic of what the model makes.

    Attributes:
        name: name of the statement.
        statistic: function of values by site (:class:`pyrovae.Values`), with one row per draw, that returns one number
            per draw.
        mean: whether the observed sites hold their means given the latents instead of draws.
    """

    name: str
    statistic: Statistic
    mean: bool

    def numbers(self, values: Values) -> Tensor:
        """Return the statistic of every draw, ``[S]``, float64.

        Raises:
            ValueError: for what is not one finite number per draw.
        """
        count = len(next(iter(values.values())))
        numbers = torch.as_tensor(np.asarray(self.statistic(values), dtype=float), device="cpu")
        if tuple(numbers.shape) != (count,):
            raise ValueError(f"the statistic of {self.name!r} must return [{count}] numbers, got {list(numbers.shape)}")
        if not bool(numbers.isfinite().all()):
            raise ValueError(f"the statistic of {self.name!r} is not a finite number for some draws")
        return numbers

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """Names of the stated numbers."""

    @property
    @abstractmethod
    def stated(self) -> Tensor:
        """The stated numbers, ``[M]``."""

    @abstractmethod
    def compared(self, numbers: Tensor) -> Outcome:
        """Compare draws of the statistic with what was stated."""

    @abstractmethod
    def residual(self, numbers: Tensor) -> Tensor:
        """Return how far the draws are from what was stated, ``[M]``, in the statement's own unit."""

    @abstractmethod
    def scores(self, numbers: Tensor) -> Tensor:
        """Return weights ``[M, S]``: the derivative of each residual is their mean product with that of log p."""


@dataclass(frozen=True)
class Quantiles(Statement):
    """Stated quantiles of a statistic of the data.

    Quantiles of whole numbers are taken in the middle of the steps of the distribution function, so that they vary
    smoothly with the hyperparameters; such a quantile is met where the statement is one of the draws' distribution.

    Source: Ma, Genton and Parzen, "Asymptotic properties of sample quantiles of discrete distributions", 2011.

    Args:
        name: name of the statement.
        statistic: function of values by site that returns one number per draw: ``lambda v: v["x"][:, 0]``, or
            ``lambda v: v.to_frame()["income"]``.
        quantiles: values by probability: ``{0.05: 150.0, 0.5: 170.0, 0.95: 190.0}``.
        mean: whether the observed sites hold their means given the latents: the output of a decoder.

    Raises:
        ValueError: for probabilities outside 0 and 1, or quantiles that descend.
    """

    name: str
    statistic: Statistic
    quantiles: Mapping[float, float]
    mean: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.quantiles, Mapping) or not self.quantiles:
            raise ValueError(f"quantiles must be values by probability, such as {{0.5: 170.0}}, got {self.quantiles!r}")
        pairs = sorted(
            (share("a probability of quantiles", p, ends=False), finite("a quantile", v))
            for p, v in self.quantiles.items()
        )
        if any(a[1] > b[1] for a, b in itertools.pairwise(pairs)):
            raise ValueError(f"the quantiles of {self.name!r} must ascend with their probabilities, got {dict(pairs)}")
        object.__setattr__(self, "quantiles", dict(pairs))

    @classmethod
    def like(
        cls, name: str, statistic: Statistic, distribution: Any, probabilities: Sequence[float] = LIKE,
        mean: bool = False,
    ) -> "Quantiles":  # fmt: skip
        """State the quantiles of a distribution with a ``ppf``: one of PreliZ, or of ``scipy.stats``.

        Args:
            name: name of the statement.
            statistic: function of values by site that returns one number per draw.
            distribution: the distribution that the statistic should have.
            probabilities: probabilities of the quantiles.
            mean: whether the observed sites hold their means given the latents.
        """
        if not callable(getattr(distribution, "ppf", None)):
            raise ValueError(f"the distribution must have ppf, as PreliZ's and scipy's have, got {distribution!r}")
        return cls(name, statistic, {p: float(distribution.ppf(p)) for p in probabilities}, mean)

    @property
    def labels(self) -> list[str]:
        """Names of the stated numbers."""
        return [f"{p:.4g} quantile" for p in self.quantiles]

    @property
    def stated(self) -> Tensor:
        """The stated quantiles, ``[M]``."""
        return torch.tensor(list(self.quantiles.values()), dtype=torch.float64, device="cpu")

    @property
    def unit(self) -> float:
        """The range of the stated quantiles; of a single one its size."""
        values = self.stated
        return float(values[-1] - values[0]) or abs(float(values[0])) or 1.0

    def compared(self, numbers: Tensor) -> Outcome:
        """Compare quantiles of the draws with those that were stated."""
        quantiles, density = self._estimated(numbers)
        se = (self._levels * (1 - self._levels) / len(numbers)).sqrt() / density
        met = (quantiles - self.stated).abs() <= 4 * se
        if _whole(numbers):
            below, upto = ((numbers[:, None] + s < self.stated).double().mean(0) for s in (0.5, -0.5))
            error = 4 * (self._levels * (1 - self._levels) / len(numbers)).sqrt()
            met = (below - error <= self._levels) & (self._levels <= upto + error)
            quantiles = torch.quantile(numbers, self._levels, interpolation="lower")
        return Outcome(quantiles, se, met.numpy())

    def scores(self, numbers: Tensor) -> Tensor:
        """Return the weights of the derivatives of the quantiles."""
        quantiles, density = self._estimated(numbers)
        below = (_smooth(numbers)[None] <= quantiles[:, None]).double() - self._levels[:, None]
        return -below / density[:, None] / self.unit

    def residual(self, numbers: Tensor) -> Tensor:
        """Return how far the smooth quantiles are from the stated ones, ``[M]``."""
        return (self._estimated(numbers)[0] - self.stated) / self.unit

    @property
    def _levels(self) -> Tensor:
        return torch.tensor(list(self.quantiles), dtype=torch.float64, device="cpu")

    def _estimated(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return smooth quantiles, and the density of the statistic there, ``[M]`` each."""
        smooth, levels = _smooth(numbers), self._levels
        half = torch.minimum(levels, 1 - levels).div(2).clamp(max=0.05)
        low, high = torch.quantile(smooth, levels - half), torch.quantile(smooth, levels + half)
        tiny = 1e-9 * (1 + float(smooth.abs().max()))
        return torch.quantile(smooth, levels), 2 * half / (high - low).clamp(min=tiny)


@dataclass(frozen=True)
class Probability(Statement):
    """A stated probability of an event.

    Args:
        name: name of the statement.
        statistic: function of values by site that returns whether the event happens, per draw:
            ``lambda v: v["x"][:, 0] > 180``.
        probability: the stated probability, between 0 and 1.
        mean: whether the observed sites hold their means given the latents.
    """

    name: str
    statistic: Statistic
    probability: float
    mean: bool = False

    def __post_init__(self) -> None:
        share(f"the probability of {self.name!r}", self.probability, ends=False)

    @property
    def labels(self) -> list[str]:
        """Name of the stated number."""
        return ["probability"]

    @property
    def stated(self) -> Tensor:
        """The stated probability, ``[1]``."""
        return torch.tensor([float(self.probability)], dtype=torch.float64, device="cpu")

    def compared(self, numbers: Tensor) -> Outcome:
        """Compare the share of draws in which the event happens with the stated probability."""
        value = numbers.mean()[None]
        se = (value * (1 - value) / len(numbers)).sqrt().clamp(min=1 / len(numbers))
        return Outcome(value, se, ((value - self.stated).abs() <= 4 * se).numpy())

    def scores(self, numbers: Tensor) -> Tensor:
        """Return the weights of the derivative of the probability."""
        return (numbers - numbers.mean())[None] / self._unit

    def residual(self, numbers: Tensor) -> Tensor:
        """Return how far the share is from the stated probability, ``[1]``.

        Raises:
            ValueError: where the event always or never happens, so that no derivative says what to change.
        """
        if float(numbers.mean()) in (0.0, 1.0):
            how = "never" if float(numbers.mean()) == 0 else "always"
            raise ValueError(
                f"the event {self.name!r} {how} happens in {len(numbers)} draws of the prior: begin with a prior under "
                "which it may, or state quantiles of the statistic instead"
            )
        return (numbers.mean()[None] - self.stated) / self._unit

    @property
    def _unit(self) -> float:
        return float((self.probability * (1 - self.probability)) ** 0.5)


def _whole(numbers: Tensor) -> bool:
    return bool((numbers == numbers.round()).all())


def _smooth(numbers: Tensor) -> Tensor:
    """Spread whole numbers evenly over the unit interval around them; leave other numbers as they are."""
    if not _whole(numbers):
        return numbers
    spread = (torch.arange(len(numbers), dtype=torch.float64, device="cpu") + 0.5) * 0.6180339887498949 % 1
    return numbers + spread - 0.5
