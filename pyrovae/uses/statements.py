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
FEW_VALUES = 20  # draws per value, from which on a statistic is discrete


@dataclass(frozen=True)
class Outcome:
    """How the draws of a statistic meet a statement, number by number, ``[M]``.

    Attributes:
        value: what the draws give.
        se: its Monte Carlo standard error.
        below: share of the draws below the stated number; NaN for a probability.
        at_most: share of the draws at most as large as the stated number; NaN for a probability.
        met: whether draws and statement agree within four standard errors.
    """

    value: Tensor
    se: Tensor
    below: Tensor
    at_most: Tensor
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
        try:
            numbers = torch.as_tensor(np.asarray(self.statistic(values), dtype=float), device="cpu")
        except KeyError as error:
            raise ValueError(f"the statistic of {self.name!r} asks for {error}: there are {list(values)}") from error
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

    The quantile of a statistic with few values (counts, shares of a few items) is taken in the middle of the step of
    the distribution function, so that it varies smoothly with the hyperparameters: P(T < v) + P(T = v) / 2 is then the
    stated probability. It is met where v is the draws' quantile, P(T < v) <= p <= P(T <= v). If what you know is how
    often something is *at most* so large, state it as :class:`Probability`: ``lambda v: v["x"][:, 0] <= 4``.

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
        values = [float(distribution.ppf(p)) for p in probabilities]
        pairs = dict(zip(probabilities, values, strict=True))
        if callable(getattr(distribution, "cdf", None)):  # the middle of a step, where there is one
            below, upto = ([float(distribution.cdf(v + s * abs(v) + s)) for v in values] for s in (-1e-9, 1e-9))
            steps = [b - a > 1e-6 for a, b in zip(below, upto, strict=True)]
            pairs = {
                (a + b) / 2 if step else p: v
                for p, v, a, b, step in zip(probabilities, values, below, upto, steps, strict=True)
            }
        return cls(name, statistic, pairs, mean)

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
        levels, near = self._levels, 1e-6 * (1 + self.stated.abs())
        below, at_most = ((numbers[:, None] <= self.stated + s * near).double().mean(0) for s in (-1, 1))
        error = 4 * (levels * (1 - levels) / len(numbers)).sqrt()
        met = (below - error <= levels) & (levels <= at_most + error)
        quantiles, density = self._estimated(numbers)
        if _width(numbers) is not None:
            quantiles = torch.quantile(numbers, levels, interpolation="lower")
        se = (levels * (1 - levels) / len(numbers)).sqrt() / density
        return Outcome(quantiles, se, below, at_most, met.numpy())

    def scores(self, numbers: Tensor) -> Tensor:
        """Return the weights of the derivatives of the quantiles."""
        quantiles, density = self._estimated(numbers)
        below = (_smooth(numbers)[None] <= quantiles[:, None]).double() - self._levels[:, None]
        return -below / density[:, None] / self.unit

    def residual(self, numbers: Tensor) -> Tensor:
        """Return how far the smooth quantiles are from the stated ones, ``[M]``.

        At an end of a discrete statistic's values its middle is out of reach: a quarter of the step will do.
        """
        apart, width = self._estimated(numbers)[0] - self.stated, _width(numbers)
        if width is not None:
            top, bottom = self.stated >= numbers.max() - 1e-6, self.stated <= numbers.min() + 1e-6
            apart = torch.where(top & (apart < 0), (apart + width / 4).clamp(max=0), apart)
            apart = torch.where(bottom & (apart > 0), (apart - width / 4).clamp(min=0), apart)
        return apart / self.unit

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

    def numbers(self, values: Values) -> Tensor:
        """Return whether the event happens, per draw, as 0 or 1.

        Raises:
            ValueError: for other values.
        """
        numbers = super().numbers(values)
        if not bool(((numbers == 0) | (numbers == 1)).all()):
            raise ValueError(
                f"the statistic of {self.name!r} must say whether an event happens, True or False per draw"
            )
        return numbers

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
        value, unknown = numbers.mean()[None], torch.full((1,), torch.nan, dtype=torch.float64, device="cpu")
        se = (value * (1 - value) / len(numbers)).sqrt().clamp(min=1 / len(numbers))
        return Outcome(value, se, unknown, unknown, ((value - self.stated).abs() <= 4 * se).numpy())

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


def _width(numbers: Tensor) -> float | None:
    """Return the step between the values of a discrete statistic; None for a continuous one.

    Whole numbers are discrete, and so is what has few values.
    """
    if bool((numbers == numbers.round()).all()):
        return 1.0
    values = numbers.unique()
    if len(values) > len(numbers) // FEW_VALUES:
        return None
    return float(values.diff().median()) if len(values) > 1 else 1.0


def _smooth(numbers: Tensor) -> Tensor:
    """Spread the values of a discrete statistic evenly over the step around each; leave other numbers as they are."""
    width = _width(numbers)
    if width is None:
        return numbers
    spread = (torch.arange(len(numbers), dtype=torch.float64, device="cpu") + 0.5) * 0.6180339887498949 % 1
    return numbers + (spread - 0.5) * width
