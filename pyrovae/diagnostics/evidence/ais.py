"""Log evidence per observation by annealed importance sampling."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Unpack

import pyro
import torch
from torch import Tensor

from pyrovae.common.checks import at_least, positive
from pyrovae.data import as_data
from pyrovae.diagnostics.evidence.evaluate import combined_error, interval, log_mean, standard_error
from pyrovae.diagnostics.evidence.trust import agree, described, distance_below, effective, normal_part, unreliable
from pyrovae.importance.options import Options, shared_keywords
from pyrovae.importance.psis import PRACTICAL, pareto_khat
from pyrovae.importance.question import ask
from pyrovae.mcmc.annealing import Annealer, Schedule, prior_guide
from pyrovae.programs.types import Batch, Program

DATA_AT_ONCE = 128
FIRST_TEMPERATURES = 500  # where "auto" starts
MOST_TEMPERATURES = 4000
LEAST_EFFECTIVE, LEAST_SHARE = 4.0, 0.25  # least effective chains, as a number and as a share
NEGLIGIBLE = -3.0  # log of the share of p(x) that may be missed
SPARE = 1.25  # factor on them that "auto" demands of the run of half as many temperatures


@dataclass(frozen=True)
class Annealing:
    """Estimates for each of N observations, from C chains per observation. Nats, higher is better.

    An estimate is ``reliable`` when all of these conditions hold:

    - At least a quarter of the C chains, and at least four, are effective, by two measures: (sum w)^2 / sum w^2, and
      n exp(-v) for the n chains within ten nats of the best, whose log weights have variance v. (With few chains from a
      wide distribution, the first measure is far too large where all chains have missed the upper tail.)
    - The Pareto k-hat of the weights is at most 0.7, where there are enough chains to estimate it. (With so few chains
      the effective size demands more than :func:`pyrovae.khat_limit` would.)
    - A run with half as many temperatures, and with its own chains, agrees within four standard errors of both.
    - The estimate is not below the bound on log p(x) from the starting draws of the chains by more than four errors.
    - A search finds no part of the posterior that has at least 5% of the estimated mass and of which the chains have
      less than a third. The search starts from draws of the start and moves uphill, first along the log likelihood (or
      the log weight, if the start is a guide) and then along the posterior.

    Otherwise the estimate is likely to be far too low. Its error is then widened by what is known: the difference of
    both runs, the distance below the bound, and the mass that the search found. A mode that neither the chains nor the
    search have met stays unknown.

    Attributes:
        log_evidence: log of the mean weight of the chains, ``[N]``. The mean weight is unbiased for p(x), so its log is
            biased down, by about half of ``log_evidence_se`` squared.
        log_evidence_se: its standard error, ``[N]``, the larger of that by the delta method and that of lognormal
            weights; NaN for one chain; widened where the estimate is unreliable.
        acceptance: mean acceptance probability of the transitions, ``[N]``, 0.65 where step sizes could be adapted.
        log_weights: log weights of the chains, ``[C, N]``.
        num_temperatures: number of temperatures T in each observation's run, ``[N]``.
        half: estimate from half as many temperatures, ``[N]``; it is used only as a check.
        reliable: whether the estimate and its error are reliable, ``[N]``.
    """

    log_evidence: Tensor
    log_evidence_se: Tensor
    acceptance: Tensor
    log_weights: Tensor
    num_temperatures: Tensor
    half: Tensor
    reliable: Tensor

    def __len__(self) -> int:
        return len(self.log_evidence)

    @property
    def ess(self) -> Tensor:
        """Effective sample size of each observation's chains, (sum w)^2 / sum w^2, ``[N]``, between 1 and C."""
        return effective(self.log_weights)

    @property
    def khat(self) -> Tensor:
        """Pareto tail index per observation, ``[N]``; infinite for fewer than 21 chains, too few to estimate it."""
        return pareto_khat(self.log_weights)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return an interval per observation for log p(x), ``[N]`` each, by Student's t, corrected for the bias."""
        return interval(self.log_evidence, self.log_evidence_se, len(self.log_weights), level)

    def summary(self) -> dict[str, float]:
        """Return means over the observations, in nats, and the share of observations whose estimate is unreliable.

        ``*_se`` is the standard error over observations; ``*_mc_se`` is the part of it that comes from the chains.
        """
        return {
            "num_data": len(self),
            "num_chains": len(self.log_weights),
            "num_temperatures": float(self.num_temperatures.double().mean()),
            "log_evidence": float(self.log_evidence.mean()),
            "log_evidence_se": standard_error(self.log_evidence),
            "log_evidence_mc_se": combined_error(self.log_evidence_se),
            "acceptance": float(self.acceptance.mean()),
            "ess": float(self.ess.mean()),
            "unreliable": unreliable(self.reliable),
        }

    def __str__(self) -> str:
        return described("annealed importance sampling", self)


@shared_keywords(batch_size=DATA_AT_ONCE, compile="auto")
def ais(
    model: Program,
    data: Any,
    *,
    guide: Program | None = None,
    num_chains: int = 16,
    num_temperatures: int | str = "auto",
    max_temperatures: int = MOST_TEMPERATURES,
    num_steps: int = 1,
    step_size: float = 0.5,
    **options: Unpack[Options],
) -> Annealing:
    """Estimate each observation's log evidence by annealed importance sampling with Hamiltonian transitions.

    Chains move from the guide (from the prior if there is no guide) to the posterior, through distributions of the
    unconstrained latents that are proportional to q(z | x)^(1 - b) p(x, z)^b. Every observation has its own
    temperatures, step sizes and metric, learned in a pilot run beforehand. Nothing is adapted in the final run, so that
    its weights are unbiased.

    The number of temperatures is chosen for every observation. It starts at 500 and is doubled until a quarter of the
    chains are effective in a run of half as many temperatures. That run only decides and is then discarded, so that the
    final run does not select itself.

    Start from the prior where posteriors may have several modes and the guide may know only one of them. Start from the
    guide where the prior is far from the posterior or has heavy tails, or where there are many latents. A failed
    estimate is marked as unreliable, see :class:`Annealing`.

    Source: Neal, "Annealed importance sampling", 2001; Wu, Burda, Salakhutdinov and Grosse, "On the quantitative
    analysis of decoder-based generative models", 2017.

    Args:
        model: generative program ``model(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        guide: where the chains start; it must be able to score an externally supplied z. None: the prior.
        num_chains: number of chains C per observation; with fewer than five no estimate is reliable.
        num_temperatures: exact number of temperatures of the path; "auto": chosen for every observation. The cost is
            one and a half times this number, times ``num_steps``, in gradients of the model.
        max_temperatures: largest number that "auto" chooses.
        num_steps: number of leapfrog steps per transition.
        step_size: step size from which adaptation starts, in units of the metric.
        **options: batch_size, seed, compile, device and progress, as all questions take them
            (:class:`pyrovae.Options`).

    Returns:
        Estimates per observation, on the CPU in float64.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, a latent that cannot be moved along a
            gradient, or a guide that cannot score a z that it did not draw.

    Example:
        >>> from pyrovae import models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> x = torch.ones(7, 5)
        >>> found = ais(model, x, num_temperatures=100, progress=False)
        >>> bool(((found.log_evidence - model.log_evidence(x)).abs() < 0.5).all())
        True
        >>> bool(found.reliable.all())
        True
    """
    return anneal(
        model, data, guide=guide, num_chains=num_chains, num_temperatures=num_temperatures,
        max_temperatures=max_temperatures, num_steps=num_steps, step_size=step_size, **options,
    )  # fmt: skip


@shared_keywords(batch_size=DATA_AT_ONCE, compile="auto")
def anneal(
    model: Program,
    data: Any,
    *,
    guide: Program | None,
    num_chains: int,
    num_temperatures: int | str,
    max_temperatures: int = MOST_TEMPERATURES,
    num_steps: int = 1,
    step_size: float = 0.5,
    only: Sequence[int] | None = None,
    **options: Unpack[Options],
) -> Annealing:
    """Do what :func:`ais` does, for the observations with the numbers ``only``, in their order; None: for all."""
    max_temperatures = at_least("max_temperatures", max_temperatures, 1)
    tries = _tries(num_temperatures, max_temperatures)
    schedule = schedule_of(num_chains, num_steps, step_size, tries[0])
    data = as_data(data, model, guide).fixed()
    rest: list[int] = list(range(len(data)) if only is None else only)
    runs: dict[int, _One] = {}
    with annealing(model, guide, data, schedule, **options) as annealer, annealer.bar("ais", len(rest)) as bar:
        if not annealer.coordinates.dim:
            return _exact(annealer, only, num_chains)
        for attempt, temperatures in enumerate(tries):
            last = attempt == len(tries) - 1
            for indices, batch in annealer.batches(rest if attempt or only is not None else None):
                results = _attempt(annealer, indices, batch, temperatures, attempt, last)
                bar.update(len(results.keys() - runs.keys()))
                runs.update(results)
            rest = [i for i in rest if i not in runs]
            if not rest:
                break
    return _collected([runs[i] for i in (range(len(data)) if only is None else only)])


def _exact(annealer: Annealer, only: Sequence[int] | None, num_chains: int) -> Annealing:
    """Return the likelihood, which is the evidence of a model without latents."""
    batches = [batch for _, batch in annealer.batches(only)]
    density = torch.cat([annealer.ends(rows, rows[0].new_zeros(len(rows[0]), 0))[1] for rows in batches]).double().cpu()
    zeros, ones = torch.zeros_like(density), torch.ones_like(density)
    return Annealing(
        log_evidence=density,
        log_evidence_se=zeros,
        acceptance=ones,
        log_weights=density.expand(num_chains, -1),
        num_temperatures=zeros.long(),
        half=density,
        reliable=ones.bool(),
    )


def check_temperatures(num_temperatures: int | str) -> None:
    """Check that a number of temperatures is a whole number or "auto".

    Raises:
        ValueError: naming the value that was given.
    """
    if isinstance(num_temperatures, str) and num_temperatures != "auto":
        raise ValueError(f'num_temperatures must be "auto" or a whole number, got {num_temperatures!r}')
    if num_temperatures != "auto":
        num_temperatures = at_least("num_temperatures", num_temperatures, 1)


def _tries(num_temperatures: int | str, most: int) -> list[int]:
    """Return the numbers of temperatures to try, one after the other."""
    check_temperatures(num_temperatures)
    if num_temperatures != "auto":
        return [int(num_temperatures)]
    doublings = max(0, math.ceil(math.log2(most / FIRST_TEMPERATURES)))
    return [min(FIRST_TEMPERATURES << k, most) for k in range(doublings + 1)]


@dataclass(frozen=True)
class _One:
    """One observation's chains: of the final run, of the run with half as many temperatures, and their start."""

    log_weights: Tensor  # [C]
    half: Tensor  # [C]
    ratios: Tensor  # [2 C]
    acceptance: Tensor
    num_temperatures: int
    missing: Tensor  # log mass of the part that the chains have missed


def _attempt(
    annealer: Annealer, indices: Sequence[int], batch: Batch, temperatures: int, attempt: int, last: bool
) -> dict[int, _One]:
    """Anneal some data with half the temperatures; those whose chains do well, or all if ``last``, with all of them."""
    plan = annealer.plan(indices, batch, attempt)
    half = annealer.forwards(indices, batch, plan, max(1, temperatures // 2), f"half {attempt}")
    enough = torch.ones_like(half.acceptance, dtype=torch.bool) if last else _enough(half.log_weights, SPARE)
    positions = enough.nonzero().flatten().tolist()
    if not positions:
        return {}
    rows = torch.tensor(annealer.filled(positions, len(indices)), device=half.acceptance.device)
    some = [indices[i] for i in rows.tolist()]
    run = annealer.forwards(some, tuple(t[rows] for t in batch), plan.of(rows), temperatures, f"whole {attempt}")
    missing = annealer.missed(some, tuple(t[rows] for t in batch), plan.of(rows), run).cpu()
    log_weights = finite(run.log_weights.cpu(), some)
    ratios = torch.cat([run.ratios, half.ratios[:, rows]]).cpu()
    halves = half.log_weights[:, rows].cpu().nan_to_num(-torch.inf)
    acceptance = run.acceptance.cpu().double()
    return {
        i: _One(log_weights[:, k], halves[:, k], ratios[:, k], acceptance[k], temperatures, missing[k])
        for k, i in enumerate(some)
    }


def _collected(runs: Sequence[_One]) -> Annealing:
    """Return the estimates from the runs of all observations, and whether they are reliable."""
    log_weights, halves, ratios = (
        torch.stack([getattr(r, n) for r in runs], 1) for n in ("log_weights", "half", "ratios")
    )
    log_evidence, half = log_mean(log_weights)[0], log_mean(halves)[0]
    error, half_error = _error(log_weights, halves), _error(halves, halves)
    khat = pareto_khat(log_weights)
    difference = log_evidence - half
    fine = _enough(log_weights) & ((khat <= PRACTICAL) | khat.isinf()) & agree(difference, error, half_error)
    bounds = [(ratios.mean(0), ratios.std(0) / math.sqrt(len(ratios))), log_mean(ratios)]
    below = distance_below(log_evidence, error, bounds)
    missing_share = torch.stack([r.missing for r in runs]) - log_evidence
    reliable = fine & (below == 0) & (missing_share < NEGLIGIBLE)
    widening = torch.nn.functional.softplus(missing_share)
    wide_error = torch.stack([error, difference.abs().nan_to_num(math.inf), below, widening]).square().sum(0).sqrt()
    return Annealing(
        log_evidence=log_evidence,
        log_evidence_se=torch.where(reliable, error, wide_error),
        acceptance=torch.stack([r.acceptance for r in runs]),
        log_weights=log_weights,
        num_temperatures=torch.tensor([r.num_temperatures for r in runs]),
        half=half,
        reliable=reliable,
    )


def _enough(log_weights: Tensor, factor: float = 1.0) -> Tensor:
    """Whether ``factor`` times the least number of chains are effective, ``[N]``, from log weights ``[C, N]``."""
    count, variance = normal_part(log_weights)
    least = torch.minimum(effective(log_weights), count * (-variance).exp())
    return least >= factor * max(LEAST_EFFECTIVE, LEAST_SHARE * len(log_weights))


def _error(log_weights: Tensor, halves: Tensor) -> Tensor:
    """Return the standard error of a log mean over ``[C, N]``, ``[N]``, also where chains miss the upper tail.

    It is the larger of the error by the delta method and the error of lognormal weights. The variance of the log
    weights falls at least by half with twice as many temperatures. Half of the other run's variance is therefore an
    equally good guess of it.
    """
    (count, variance), (_, before) = normal_part(log_weights), normal_part(halves)
    lognormal = (torch.maximum(variance, before / 2).exp() - 1).div(count).sqrt()
    return torch.maximum(log_mean(log_weights)[1], lognormal)


def finite(log_weights: Tensor, names: Sequence[int]) -> Tensor:
    """Return log weights, ``[C, N]``; refuse those that have no finite mean."""
    bad = (log_weights.isnan() | (log_weights == torch.inf)).any(0) | (log_weights == -torch.inf).all(0)
    if bool(bad.any()):
        raise ValueError(
            f"the weights of observation {names[int(bad.nonzero()[0])]} are not finite numbers: the model or the guide "
            "returns NaN or infinity where its chains are (evaluate names the site)"
        )
    return log_weights


def schedule_of(chains: int, steps: int, step_size: float, temperatures: int) -> Schedule:
    """Return the schedule of a run, after checks of its numbers."""
    num_steps = at_least("num_steps", steps, 1)
    return Schedule(
        num_chains=at_least("num_chains", chains, 1),
        num_steps=num_steps,
        step_size=positive("step_size", step_size),
        calls=3 * temperatures * num_steps // 2,
    )


@contextmanager
def annealing(
    model: Program, guide: Any, data: Any, schedule: Schedule, **options: Unpack[Options]
) -> Iterator[Annealer]:
    """Prepare chains that start from the guide, or from the prior if ``guide`` is None."""
    with (
        ask(model, prior_guide(model, guide), data, **options) as question,
        pyro.validation_enabled(False),
    ):
        yield Annealer(question, schedule)
