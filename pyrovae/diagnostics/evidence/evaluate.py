"""How good the bound and the evidence are, per observation."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.common.weights import effective_size, weighted, weighted_errors
from pyrovae.importance.log_weights import stream
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.psis import draws_needed, khat_limit, pareto_khat
from pyrovae.importance.question import ask
from pyrovae.programs.types import Program

COARSE = 0.1  # nats; rounding of a log weight beyond which the tail of the weights cannot be seen


@dataclass(frozen=True)
class Evaluation:
    """Estimates for each of N observations, from K particles per observation. Nats, higher is better.

    Attributes:
        elbo: evidence lower bound E_q[log w], ``[N]``.
        elbo_se: its Monte Carlo standard error, ``[N]``.
        log_evidence: importance-weighted estimate of log p(x), log mean w, ``[N]``; biased down by about half of
            ``log_evidence_se`` squared.
        log_evidence_se: its Monte Carlo standard error by the delta method, ``[N]``, valid where ``reliable`` is true.
        khat: Pareto tail index of the weights, ``[N]``; infinite where rounding dominates the weights, that is, where a
            log weight is so large that floating point represents it to no better than 0.1 nats.
        ess: effective sample size (sum w)^2 / sum w^2, ``[N]``, between 1 and K.
        num_particles: number of particles K.
        index: numbers of the observations within the set that they are a part of, ``[N]``; None numbers them from 0.
        weights: survey weights of the observations, ``[N]``, by which means over them are taken; None: all alike.
    """

    elbo: Tensor
    elbo_se: Tensor
    log_evidence: Tensor
    log_evidence_se: Tensor
    khat: Tensor
    ess: Tensor
    num_particles: int
    index: np.ndarray | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.elbo)

    @property
    def khat_limit(self) -> float:
        """The largest k-hat at which K weights are reliable, by :func:`pyrovae.khat_limit`."""
        return khat_limit(self.num_particles)

    @property
    def reliable(self) -> Tensor:
        """Whether each observation's weights are reliable, ``[N]``: k-hat is at most ``khat_limit``."""
        return self.khat <= self.khat_limit

    @property
    def draws_needed(self) -> Tensor:
        """How many particles each observation's k-hat calls for, ``[N]``, by :func:`pyrovae.draws_needed`.

        No number is practical where k-hat is above 0.7.
        """
        return draws_needed(self.khat)

    @property
    def bounds(self) -> list[tuple[Tensor, Tensor]]:
        """Lower bounds of log p(x): ELBO and importance-weighted bound, each with its standard error, ``[N]``."""
        return [(self.elbo, self.elbo_se), (self.log_evidence, self.log_evidence_se)]

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return an interval per observation for log p(x), ``[N]`` each, by Student's t, corrected for the bias.

        Trust it only where ``reliable`` is true.
        """
        return interval(self.log_evidence, self.log_evidence_se, self.num_particles, level)

    def summary(self) -> dict[str, float]:
        """Return means over the observations, in nats per observation, weighted where they have survey weights.

        ``effective_num_data``, of weighted data, is (sum w)^2 / sum w^2: as many rows of equal weight tell as much.
        ``*_se`` is the standard error of a mean over observations drawn from a population; ``*_mc_se`` is the part of
        it that more particles would remove. ``khat_over_limit`` is the share of observations with unreliable weights.
        """
        means: dict[str, float] = {"num_data": len(self), "num_particles": self.num_particles}
        if self.weights is not None:
            means["effective_num_data"] = effective_size(self.weights)
        for name in ("elbo", "log_evidence"):
            values = self.weighted(name)
            means[name], means[f"{name}_se"] = float(values.mean()), standard_error(values)
            means[f"{name}_mc_se"] = combined_error(weighted_errors(getattr(self, f"{name}_se"), self.weights))
        means["khat_limit"] = self.khat_limit
        means["khat_over_limit"] = float(weighted((~self.reliable).double(), self.weights).mean())
        means["ess"] = float(self.weighted("ess").mean())
        return means

    def weighted(self, name: str) -> Tensor:
        """Return an estimate as it counts in a mean over the observations, ``[N]``: itself if they have no weights."""
        return weighted(getattr(self, name).double(), self.weights)

    def worst(self, count: int = 10) -> pd.DataFrame:
        """List the observations with the least reliable importance weights, the highest k-hat first.

        Args:
            count: number of observations to list.

        Returns:
            One row per observation, by its number in the set: ``khat``, ``reliable`` (k-hat is within its limit),
            ``draws_needed`` (number of particles that this k-hat calls for), ``ess``, ``gap`` (log evidence - ELBO, in
            nats), ``elbo``.
        """
        columns = {
            "khat": self.khat,
            "reliable": self.reliable,
            "draws_needed": self.draws_needed,
            "ess": self.ess,
            "gap": self.log_evidence - self.elbo,
            "elbo": self.elbo,
        }
        return self._tabulated(columns).iloc[self.order(count)]

    def order(self, count: int) -> list[int]:
        """Return the rows of the observations with the least reliable importance weights, the highest k-hat first."""
        count = at_least("count", count, 1)
        order: list[int] = self.khat.nan_to_num(math.inf).argsort(descending=True, stable=True)[:count].tolist()
        return order

    def table(self) -> pd.DataFrame:
        """Return the estimates of every observation, one row each, by its number in the set."""
        columns = ("elbo", "elbo_se", "log_evidence", "log_evidence_se", "khat", "reliable", "ess")
        weights = {} if self.weights is None else {"weight": self.weights}
        return self._tabulated({name: getattr(self, name) for name in columns} | weights)

    def _tabulated(self, columns: Mapping[str, Tensor]) -> pd.DataFrame:
        table = pd.DataFrame({name: values.numpy() for name, values in columns.items()}, index=self.index)
        return table.rename_axis("datum")


def worst(evaluation: Evaluation, count: int = 10) -> pd.DataFrame:
    """List the observations with the least reliable importance weights, as :meth:`Evaluation.worst` does."""
    return evaluation.worst(count)


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of ``[N]`` independent values; NaN for one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def combined_error(errors: Tensor) -> float:
    """Return the Monte Carlo standard error of the mean of ``[N]`` independent estimates with these errors."""
    return float(errors.square().sum().sqrt() / len(errors))


def log_mean(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log mean weight and its standard error by the delta method, ``[N]`` each, from ``[K, N]``."""
    weights = log_weights.double()
    largest = weights.max(0).values
    relative = (weights - largest).exp()  # in (0, 1], so that weights of any size keep their digits
    mean = relative.mean(0)
    spread = relative.std(0) if len(weights) > 1 else torch.full_like(mean, math.nan)
    return largest + mean.log(), spread / mean / math.sqrt(len(weights))


def interval(estimate: Tensor, error: Tensor, count: int, level: float) -> tuple[Tensor, Tensor]:
    """Return an interval for a log mean, ``[N]`` each: shifted up by half the squared error, by Student's t."""
    if not 0 < level < 1:
        raise ValueError(f"level must be a probability between 0 and 1, got {level!r}")
    width = float(stats.t.ppf(0.5 + level / 2, max(count - 1, 1))) * error
    centre = estimate + 0.5 * error.square()
    return centre - width, centre + width


def weigh(log_weights: Tensor) -> dict[str, Tensor]:
    """Turn log weights ``[K, N]`` into the fields of an :class:`Evaluation`, each ``[N]`` in float64."""
    weights = log_weights.double()
    coarse = (
        torch.where(weights.isfinite(), weights.abs(), 0).max(0).values * torch.finfo(log_weights.dtype).eps > COARSE
    )
    num_particles = weights.shape[0]
    largest = weights.max(0).values
    relative = (weights - largest).exp()
    log_evidence, log_evidence_se = log_mean(weights)
    spread = weights.std(0) if num_particles > 1 else torch.full_like(log_evidence, math.nan)
    return {
        "elbo": weights.mean(0),
        "elbo_se": spread / math.sqrt(num_particles),
        "log_evidence": log_evidence,
        "log_evidence_se": log_evidence_se,
        "khat": pareto_khat(weights).masked_fill(coarse, math.inf),
        "ess": relative.sum(0).square() / relative.square().sum(0),
    }


@shared_keywords(batch_size=BATCH_SIZE, compile="auto")
def evaluate(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_particles: int = 1000,
    **options: Unpack[Options],
) -> Evaluation:
    """Estimate each observation's ELBO and log evidence, and how far the estimates can be trusted.

    Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016, for the estimate of log p(x).

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``, the proposal of importance sampling.
        data: a tensor, a tuple of tensors, or a data set.
        num_particles: number of particles K per observation.
        **options: batch_size, seed, compile, device and progress, as all questions take them
            (:class:`pyrovae.Options`).

    Returns:
        Estimates per observation, on the CPU in float64.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> result = evaluate(model, guides.Exact(model), torch.zeros(7, 5), num_particles=10, progress=False)
        >>> result.log_evidence.shape, result.khat.shape
        (torch.Size([7]), torch.Size([7]))

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers.
    """
    num_particles = at_least("num_particles", num_particles, 1)
    with ask(model, guide, data, takes_weights=True, **options) as question:
        parts = [weigh(part) for _, part in stream(question, num_particles, "evaluate")]
        index, weights = question.data.index, question.data.weights
    fields = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
    _say_what_rounding_decides(fields)
    return Evaluation(**fields, num_particles=num_particles, index=index, weights=weights)


def _say_what_rounding_decides(fields: dict[str, Tensor]) -> None:
    coarse = fields["elbo"].abs() * torch.finfo(torch.float32).eps > COARSE
    coarse &= fields["khat"].isinf()
    if bool(coarse.any()):
        size = float(fields["elbo"][coarse].abs().max())
        warnings.warn(
            f"the log weights of {int(coarse.sum())} data are as large as {size:.2g} nats, which float32 keeps to "
            f"within {size * torch.finfo(torch.float32).eps:.2g} nats: their evidence and k-hat are unreliable; "
            "standardise the data, or cast model and guide to float64",
            stacklevel=3,
        )
