"""A sandwich of log p(x) on simulated data: bidirectional Monte Carlo."""

from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.data import as_data
from pyrovae.diagnostics.evidence.ais import DATA_AT_ONCE, annealing, finite, schedule_of
from pyrovae.diagnostics.evidence.evaluate import log_mean, standard_error
from pyrovae.importance.options import Options, shared_keywords
from pyrovae.programs.types import Program


@dataclass(frozen=True)
class Sandwich:
    """Bounds of each simulated observation's log p(x), from chains run in both directions. Nats.

    Attributes:
        lower: bound from chains that ran from the guide to the posterior, ``[N]``, below log p(x) in expectation.
        lower_se: its standard error over the chains, ``[N]``.
        upper: bound from chains that ran from the observation's true latents back to the guide, ``[N]``, above log p(x)
            in expectation.
        upper_se: its standard error over the chains, ``[N]``, given these latents.
        data: the simulated batch.
    """

    lower: Tensor
    lower_se: Tensor
    upper: Tensor
    upper_se: Tensor
    data: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.lower)

    def summary(self) -> dict[str, float]:
        """Return means over the observations, and ``width``, which bounds the sum of both errors in expectation."""
        width = self.upper - self.lower
        return {
            "num_data": len(self),
            "lower": float(self.lower.mean()),
            "upper": float(self.upper.mean()),
            "width": float(width.mean()),
            "width_se": standard_error(width),
        }


@shared_keywords(batch_size=DATA_AT_ONCE, compile="auto")
def bdmc(
    model: Program,
    data: Any,
    *,
    guide: Program | None = None,
    num_chains: int = 16,
    num_temperatures: int = 500,
    num_steps: int = 1,
    step_size: float = 0.5,
    **options: Unpack[Options],
) -> Sandwich:
    """Bracket log p(x) of data that the model simulates: bidirectional Monte Carlo.

    The true latents of a simulated observation are an exact draw from its posterior. Chains that start there and run
    backwards bound log p(x) from above, as :func:`ais` bounds it from below. The width of the sandwich proves how good
    the settings are, for data like those that the model simulates.

    Source: Grosse, Ghahramani and Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", 2015.

    Args:
        model: generative program ``model(*batch)``.
        data: a tensor, a tuple of tensors, or a data set. As many observations are simulated as it has; covariates are
            taken from it, observed values are replaced.
        guide: where forward chains start, or None for the prior.
        num_chains: number of chains per observation in each direction.
        num_temperatures: number of temperatures of the path in each direction.
        num_steps: number of leapfrog steps per transition.
        step_size: step size from which adaptation starts, in units of the metric.
        **options: batch_size, seed, compile, device and progress, as all questions take them
            (:class:`pyrovae.Options`).

    Raises:
        ValueError: as :func:`ais` does, and for an observation that is not a tensor of the batch.
    """
    num_temperatures = at_least("num_temperatures", num_temperatures, 1)
    schedule = schedule_of(num_chains, num_steps, step_size, num_temperatures)
    data = as_data(data, model, guide).fixed()
    lower, upper, batches = [], [], []
    with annealing(model, guide, data, schedule, **options) as annealer, annealer.bar("bdmc", len(data)) as bar:
        for indices, batch in annealer.batches():
            simulation, exact = annealer.simulate(indices, batch)
            plan = annealer.plan(indices, simulation)
            forwards = annealer.forwards(indices, simulation, plan, num_temperatures)
            backwards = annealer.backwards(indices, simulation, exact, plan, num_temperatures)
            lower.append(finite(forwards.log_weights.cpu(), indices))
            upper.append(finite(backwards.log_weights.cpu(), indices))
            batches.append(tuple(t.cpu() for t in annealer.question.pair.given(simulation)))
            bar.update(len(indices))
    below, below_se = log_mean(torch.cat(lower, dim=1))
    above, above_se = log_mean(torch.cat(upper, dim=1))
    return Sandwich(below, below_se, -above, above_se, tuple(torch.cat(t) for t in zip(*batches, strict=True)))
