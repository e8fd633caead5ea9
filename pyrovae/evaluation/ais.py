"""Log evidence per datum by annealed importance sampling, and a sandwich of it on simulated data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.checks import at_least, positive
from pyrovae.compiled import check_mode
from pyrovae.evaluation.evaluate import combined_error, interval, log_mean, standard_error
from pyrovae.pair import Program
from pyrovae.particles import question
from pyrovae.sampling import Annealer, Schedule, prior_guide

DATA_AT_ONCE = 128


@dataclass(frozen=True)
class Annealing:
    """Estimates for each of N data, from C chains a datum. Nats, higher is better.

    Attributes:
        log_evidence: log mean of the chains' weights, ``[N]``; their mean is unbiased for p(x), so that this is biased
            down, by about half of ``log_evidence_se`` squared.
        log_evidence_se: its standard error by the delta method, ``[N]``, NaN for one chain.
        acceptance: mean acceptance probability of the transitions, ``[N]``, 0.65 where step sizes could be adapted.
        log_weights: ``[C, N]``.
    """

    log_evidence: Tensor
    log_evidence_se: Tensor
    acceptance: Tensor
    log_weights: Tensor

    def __len__(self) -> int:
        return len(self.log_evidence)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return an interval for every datum's log p(x), ``[N]`` each, by Student's t and with the bias taken off."""
        return interval(self.log_evidence, self.log_evidence_se, len(self.log_weights), level)

    def summary(self) -> dict[str, float]:
        """Return means over the data, in nats; ``*_se`` is over data, ``*_mc_se`` the part that chains account for."""
        return {
            "num_data": len(self),
            "num_chains": len(self.log_weights),
            "log_evidence": float(self.log_evidence.mean()),
            "log_evidence_se": standard_error(self.log_evidence),
            "log_evidence_mc_se": combined_error(self.log_evidence_se),
            "acceptance": float(self.acceptance.mean()),
        }


@dataclass(frozen=True)
class Sandwich:
    """Bounds of each simulated datum's log p(x), from chains run both ways. Nats.

    Attributes:
        lower: from chains that ran from the guide to the posterior, ``[N]``, below log p(x) in expectation.
        lower_se: its standard error over the chains, ``[N]``.
        upper: from chains that ran from the draw that the datum came from back to the guide, ``[N]``, above log p(x) in
            expectation.
        upper_se: its standard error over the chains, ``[N]``, given that draw.
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
        """Return means over the data, and ``width``, which both errors together do not exceed in expectation."""
        width = self.upper - self.lower
        return {
            "num_data": len(self),
            "lower": float(self.lower.mean()),
            "upper": float(self.upper.mean()),
            "width": float(width.mean()),
            "width_se": standard_error(width),
        }


def ais(
    model: Program,
    data: Any,
    *,
    guide: Program | None = None,
    num_chains: int = 16,
    num_temperatures: int = 500,
    num_steps: int = 1,
    step_size: float = 0.5,
    batch_size: int = DATA_AT_ONCE,
    seed: int = 0,
    compile: bool | str = "auto",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Annealing:
    """Estimate each datum's log evidence by annealed importance sampling with Hamiltonian transitions.

    Chains are carried from the guide (the prior, without one) to the posterior, through distributions proportional to
    q(z | x)^(1 - b) p(x, z)^b of unconstrained latents. Every datum has step sizes of its own, one a temperature,
    adapted in a shorter run beforehand: in the run that counts nothing is adapted, and the weights are unbiased.

    Source: Neal, "Annealed importance sampling", 2001; Wu, Burda, Salakhutdinov and Grosse, "On the quantitative
    analysis of decoder-based generative models", 2017.

    Args:
        model: generative program ``model(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        guide: where chains start; one that can score a z that it did not draw. None: the prior.
        num_chains: C, chains a datum.
        num_temperatures: of the path. The cost is this, times ``num_steps``, in gradients of the model.
        num_steps: leapfrog steps of a transition.
        step_size: that adaptation starts from, in standard deviations of the starting distribution.
        batch_size: data held at once, each with all of its chains.
        seed: of the chains.
        compile: whether the model's gradient is traced once and compiled; "auto" does so where it saves more time than
            it costs.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        Estimates per datum, on the CPU in float64.

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
    """
    return anneal(
        model, data, guide=guide, num_chains=num_chains, num_temperatures=num_temperatures, num_steps=num_steps,
        step_size=step_size, batch_size=batch_size, seed=seed, compile=compile, device=device, progress=progress,
    )  # fmt: skip


def anneal(
    model: Program,
    data: Any,
    *,
    guide: Program | None,
    num_chains: int,
    num_temperatures: int,
    num_steps: int = 1,
    step_size: float = 0.5,
    batch_size: int = DATA_AT_ONCE,
    seed: int,
    compile: bool | str = "auto",
    device: torch.device | str | None,
    progress: bool,
    names: Sequence[int] | None = None,
) -> Annealing:
    """Do what :func:`ais` does, for data that a message about one calls by ``names``."""
    schedule = _schedule(num_chains, num_temperatures, num_steps, step_size)
    label = "ais" if progress else None
    weights, acceptance = [], []
    with _annealer(model, guide, data, schedule, batch_size, seed, compile, device, label) as annealer:
        for indices, batch in annealer.batches():
            part = annealer.forwards(indices, batch, annealer.plan(indices, batch))
            called = indices if names is None else names[indices.start : indices.stop]
            weights.append(_finite(part.log_weights.cpu(), called))
            acceptance.append(part.acceptance.cpu())
    log_weights = torch.cat(weights, dim=1)
    return Annealing(*log_mean(log_weights), torch.cat(acceptance).double(), log_weights)


def bdmc(
    model: Program,
    data: Any,
    *,
    guide: Program | None = None,
    num_chains: int = 16,
    num_temperatures: int = 500,
    num_steps: int = 1,
    step_size: float = 0.5,
    batch_size: int = DATA_AT_ONCE,
    seed: int = 0,
    compile: bool | str = "auto",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Sandwich:
    """Bracket log p(x) of data that the model simulates: bidirectional Monte Carlo.

    The latent that a simulated datum came from is an exact draw of its posterior. Chains that start there and run
    backwards bound log p(x) from above, as :func:`ais` bounds it from below; the width of the sandwich proves how good
    the settings are, for data like those that the model makes.

    Source: Grosse, Ghahramani and Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", 2015.

    Args:
        model: generative program ``model(*batch)``.
        data: as many data are simulated as there are here; covariates are taken from it, observations are replaced.
        guide: where forward chains start, or None for the prior.
        num_chains: chains a datum, each way.
        num_temperatures: of the path.
        num_steps: leapfrog steps of a transition.
        step_size: that adaptation starts from.
        batch_size: data held at once.
        seed: of data and chains.
        compile: as :func:`ais` has it.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Raises:
        ValueError: as :func:`ais` does, and for an observation that is not a tensor of the batch.
    """
    schedule = _schedule(num_chains, num_temperatures, num_steps, step_size)
    lower, upper, simulated = [], [], []
    label = "bdmc" if progress else None
    with _annealer(model, guide, data, schedule, batch_size, seed, compile, device, label) as annealer:
        for indices, batch in annealer.batches():
            made, exact = annealer.simulate(indices, batch)
            plan = annealer.plan(indices, made)
            lower.append(_finite(annealer.forwards(indices, made, plan).log_weights.cpu(), indices))
            upper.append(_finite(annealer.backwards(indices, made, exact, plan).log_weights.cpu(), indices))
            simulated.append(tuple(t.cpu() for t in annealer.question.pair.given(made)))
    below, below_se = log_mean(torch.cat(lower, dim=1))
    above, above_se = log_mean(torch.cat(upper, dim=1))
    return Sandwich(below, below_se, -above, above_se, tuple(torch.cat(t) for t in zip(*simulated, strict=True)))


def _finite(log_weights: Tensor, names: Sequence[int]) -> Tensor:
    """Refuse log weights, ``[C, N]``, of which no mean can be taken."""
    bad = (log_weights.isnan() | (log_weights == torch.inf)).any(0) | (log_weights == -torch.inf).all(0)
    if bool(bad.any()):
        raise ValueError(
            f"the weights of datum {names[int(bad.nonzero()[0])]} are not finite numbers: the model or the guide "
            "returns NaN or infinity where its chains are (evaluate names the site)"
        )
    return log_weights


def _schedule(chains: int, temperatures: int, steps: int, step_size: float) -> Schedule:
    return Schedule(
        num_chains=at_least("num_chains", chains, 1),
        num_temperatures=at_least("num_temperatures", temperatures, 1),
        num_steps=at_least("num_steps", steps, 1),
        step_size=positive("step_size", step_size),
    )


@contextmanager
def _annealer(
    model: Program, guide: Any, data: Any, schedule: Schedule, batch_size: int, seed: int, compile: bool | str,
    device: Any, label: str | None,
) -> Iterator[Annealer]:  # fmt: skip
    at_least("batch_size", batch_size, 1)
    check_mode(compile)
    with (
        question(model, prior_guide(model, guide), data, seed=seed, device=device) as asked,
        pyro.validation_enabled(False),
    ):
        yield Annealer(asked, schedule, batch_size, compile, label)
