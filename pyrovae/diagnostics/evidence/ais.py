"""Log evidence per observation by annealed importance sampling, and a sandwich of it on simulated data."""

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
FIRST_TEMPERATURES = 500  # that "auto" begins with
MOST_TEMPERATURES = 4000
LEAST_EFFECTIVE, LEAST_SHARE = 4.0, 0.25  # of the chains, as a number and as a share
NEGLIGIBLE = -3.0  # log of a share of p(x) that may be missed
SPARE = 1.25  # times as many, which "auto" asks of half as many temperatures


@dataclass(frozen=True)
class Annealing:
    """Estimates for each of N data, from C chains per observation. Nats, higher is better.

    An estimate is ``reliable`` when all of these hold:

    - at least a quarter of C chains, and four, are effective: by (sum w)^2 / sum w^2, and by n exp(-v) for the n chains
      within ten nats of the best, whose log weights have the variance v (of few chains from a wide distribution, the
      first is far too large where all have missed its upper tail);
    - their Pareto k-hat, where there are enough chains to tell it, is at most 0.7 (the effective size asks for more
      than :func:`pyrovae.khat_limit` would of so few);
    - a run of half as many temperatures, with chains of its own, agrees within four standard errors of both;
    - it is not below what the draws that the chains started from are known to bound log p(x) by, beyond four errors;
    - a search from the data's side, uphill from draws of the start along the log likelihood (the log weight, from a
      guide) and then the posterior, finds no part of it, of 5% as much or more, of which chains have less than a third.

    Otherwise it is likely to be far too low, and its stated error is widened to what is known of it: the difference of
    both runs, the distance below the bound, and what was found elsewhere. A mode that neither chains nor the search
    have met stays unknown.

    Attributes:
        log_evidence: log mean of the chains' weights, ``[N]``; their mean is unbiased for p(x), so that this is biased
            down, by about half of ``log_evidence_se`` squared.
        log_evidence_se: its standard error, ``[N]``, the larger of the delta method's and that of lognormal weights;
            NaN for one chain; widened where the estimate is not reliable.
        acceptance: mean acceptance probability of the transitions, ``[N]``, 0.65 where step sizes could be adapted.
        log_weights: ``[C, N]``.
        num_temperatures: T of each observation's run, ``[N]``.
        half: the estimate by half as many temperatures, ``[N]``, which counts for nothing else.
        reliable: whether the estimate and its error are to be trusted, ``[N]``.
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
        """Pareto tail index per observation, ``[N]``; infinite for fewer than 21 chains, which cannot tell."""
        return pareto_khat(self.log_weights)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return an interval per observation for log p(x), ``[N]`` each, by Student's t and with the bias taken off."""
        return interval(self.log_evidence, self.log_evidence_se, len(self.log_weights), level)

    def summary(self) -> dict[str, float]:
        """Return means over the data, in nats, and the share of data whose estimate is not to be trusted.

        ``*_se`` is over data, ``*_mc_se`` the part that chains account for.
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

    Chains are carried from the guide (the prior, without one) to the posterior, through distributions proportional to
    q(z | x)^(1 - b) p(x, z)^b of unconstrained latents. Every observation has temperatures, step sizes and metrics of
    its own, learned in a pilot run beforehand: in the run that counts nothing is adapted, and the weights are unbiased.

    The number of temperatures is chosen for every observation: from 500 on it is doubled until a run of half as many
    has a quarter of its chains effective. That run decides and is thrown away, so that the one that counts
    does not choose itself.

    Start from the prior where posteriors may have several modes, of which the guide may know one; start from the guide
    where the prior is far from the posterior or has heavy tails, or latents are many. An estimate that fails says so,
    see :class:`Annealing`.

    Source: Neal, "Annealed importance sampling", 2001; Wu, Burda, Salakhutdinov and Grosse, "On the quantitative
    analysis of decoder-based generative models", 2017.

    Args:
        model: generative program ``model(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        guide: where chains start; one that can score a z that it did not draw. None: the prior.
        num_chains: C, chains per observation; with fewer than five no estimate is reliable.
        num_temperatures: of the path, exactly as many; "auto": chosen. The cost is one and a half times this, times
            ``num_steps``, in gradients of the model.
        max_temperatures: the most that "auto" chooses.
        num_steps: leapfrog steps of a transition.
        step_size: that adaptation starts from, in units of the metric.
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
    """Do what :func:`ais` does, for the data of these numbers, in their order; None: for all."""
    max_temperatures = at_least("max_temperatures", max_temperatures, 1)
    tries = _tries(num_temperatures, max_temperatures)
    schedule = schedule_of(num_chains, num_steps, step_size, tries[0])
    data = as_data(data).fixed()
    rest: list[int] = list(range(len(data)) if only is None else only)
    runs: dict[int, _One] = {}
    with annealing(model, guide, data, schedule, **options) as annealer, annealer.bar("ais", len(rest)) as bar:
        if not annealer.coordinates.dim:
            return _exact(annealer, only, num_chains)
        for attempt, temperatures in enumerate(tries):
            last = attempt == len(tries) - 1
            for indices, batch in annealer.batches(rest if attempt or only is not None else None):
                done = _attempt(annealer, indices, batch, temperatures, attempt, last)
                bar.update(len(done.keys() - runs.keys()))
                runs.update(done)
            rest = [i for i in rest if i not in runs]
            if not rest:
                break
    return _collected([runs[i] for i in (range(len(data)) if only is None else only)])


def _exact(annealer: Annealer, only: Sequence[int] | None, num_chains: int) -> Annealing:
    """Return the likelihood, which is the evidence of a model without latents."""
    batches = [batch for _, batch in annealer.batches(only)]
    density = torch.cat([annealer.ends(rows, rows[0].new_zeros(len(rows[0]), 0))[1] for rows in batches]).double().cpu()
    nothing, all_of_them = torch.zeros_like(density), torch.ones_like(density)
    return Annealing(
        log_evidence=density,
        log_evidence_se=nothing,
        acceptance=all_of_them,
        log_weights=density.expand(num_chains, -1),
        num_temperatures=nothing.long(),
        half=density,
        reliable=all_of_them.bool(),
    )


def check_temperatures(num_temperatures: int | str) -> None:
    """See that a number of temperatures is one, or to be chosen.

    Raises:
        ValueError: naming what was got.
    """
    if isinstance(num_temperatures, str) and num_temperatures != "auto":
        raise ValueError(f'num_temperatures must be "auto" or a whole number, got {num_temperatures!r}')
    if num_temperatures != "auto":
        num_temperatures = at_least("num_temperatures", num_temperatures, 1)


def _tries(num_temperatures: int | str, most: int) -> list[int]:
    """Return the numbers of temperatures to be tried, one after the other."""
    check_temperatures(num_temperatures)
    if num_temperatures != "auto":
        return [int(num_temperatures)]
    doublings = max(0, math.ceil(math.log2(most / FIRST_TEMPERATURES)))
    return [min(FIRST_TEMPERATURES << k, most) for k in range(doublings + 1)]


@dataclass(frozen=True)
class _One:
    """An observation's chains: of the run that counts, of that of half as many temperatures, and where both began."""

    log_weights: Tensor  # [C]
    half: Tensor  # [C]
    ratios: Tensor  # [2 C]
    acceptance: Tensor
    num_temperatures: int
    missed: Tensor  # log mass of what no chain has met


def _attempt(
    annealer: Annealer, indices: Sequence[int], batch: Batch, temperatures: int, attempt: int, last: bool
) -> dict[int, _One]:
    """Anneal some data with half of the temperatures, and with all of them those whose chains do well, or all."""
    plan = annealer.plan(indices, batch, attempt)
    half = annealer.forwards(indices, batch, plan, max(1, temperatures // 2), f"half {attempt}")
    enough = torch.ones_like(half.acceptance, dtype=torch.bool) if last else _enough(half.log_weights, SPARE)
    chosen = enough.nonzero().flatten().tolist()
    if not chosen:
        return {}
    rows = torch.tensor(annealer.filled(chosen, len(indices)), device=half.acceptance.device)
    some = [indices[i] for i in rows.tolist()]
    run = annealer.forwards(some, tuple(t[rows] for t in batch), plan.of(rows), temperatures, f"whole {attempt}")
    missed = annealer.missed(some, tuple(t[rows] for t in batch), plan.of(rows), run).cpu()
    log_weights = finite(run.log_weights.cpu(), some)
    ratios = torch.cat([run.ratios, half.ratios[:, rows]]).cpu()
    halves = half.log_weights[:, rows].cpu().nan_to_num(-torch.inf)
    acceptance = run.acceptance.cpu().double()
    return {
        i: _One(log_weights[:, k], halves[:, k], ratios[:, k], acceptance[k], temperatures, missed[k])
        for k, i in enumerate(some)
    }


def _collected(runs: Sequence[_One]) -> Annealing:
    """Return what the runs of all data say, and whether it is to be trusted."""
    log_weights, halves, ratios = (
        torch.stack([getattr(r, n) for r in runs], 1) for n in ("log_weights", "half", "ratios")
    )
    log_evidence, half = log_mean(log_weights)[0], log_mean(halves)[0]
    error, half_error = _error(log_weights, halves), _error(halves, halves)
    khat = pareto_khat(log_weights)
    apart = log_evidence - half
    fine = _enough(log_weights) & ((khat <= PRACTICAL) | khat.isinf()) & agree(apart, error, half_error)
    bounds = [(ratios.mean(0), ratios.std(0) / math.sqrt(len(ratios))), log_mean(ratios)]
    below = distance_below(log_evidence, error, bounds)
    elsewhere = torch.stack([r.missed for r in runs]) - log_evidence
    reliable = fine & (below == 0) & (elsewhere < NEGLIGIBLE)
    more = torch.nn.functional.softplus(elsewhere)
    known = torch.stack([error, apart.abs().nan_to_num(math.inf), below, more]).square().sum(0).sqrt()
    return Annealing(
        log_evidence=log_evidence,
        log_evidence_se=torch.where(reliable, error, known),
        acceptance=torch.stack([r.acceptance for r in runs]),
        log_weights=log_weights,
        num_temperatures=torch.tensor([r.num_temperatures for r in runs]),
        half=half,
        reliable=reliable,
    )


def _enough(log_weights: Tensor, more: float = 1.0) -> Tensor:
    """Whether enough of the chains of each observation are effective, and by so much more, ``[N]`` of ``[C, N]``."""
    count, variance = normal_part(log_weights)
    least = torch.minimum(effective(log_weights), count * (-variance).exp())
    return least >= more * max(LEAST_EFFECTIVE, LEAST_SHARE * len(log_weights))


def _error(log_weights: Tensor, halves: Tensor) -> Tensor:
    """Return the standard error of a log mean of ``[C, N]``, ``[N]``; chains that miss the upper tail do not fool it.

    It is the larger of the delta method's and of that of lognormal weights. The variance of their logarithm falls at
    least by half with twice as many temperatures, so that half of the other run's is as good a guess of it.
    """
    (count, variance), (_, before) = normal_part(log_weights), normal_part(halves)
    lognormal = (torch.maximum(variance, before / 2).exp() - 1).div(count).sqrt()
    return torch.maximum(log_mean(log_weights)[1], lognormal)


def finite(log_weights: Tensor, names: Sequence[int]) -> Tensor:
    """Refuse log weights, ``[C, N]``, of which no mean can be taken."""
    bad = (log_weights.isnan() | (log_weights == torch.inf)).any(0) | (log_weights == -torch.inf).all(0)
    if bool(bad.any()):
        raise ValueError(
            f"the weights of observation {names[int(bad.nonzero()[0])]} are not finite numbers: the model or the guide "
            "returns NaN or infinity where its chains are (evaluate names the site)"
        )
    return log_weights


def schedule_of(chains: int, steps: int, step_size: float, temperatures: int) -> Schedule:
    """Check the numbers of a run."""
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
    """Put a question that chains answer, from the guide, or from the prior where it is None."""
    with (
        ask(model, prior_guide(model, guide), data, **options) as question,
        pyro.validation_enabled(False),
    ):
        yield Annealer(question, schedule)
