"""Gaps between the bound and the evidence: the limits of the guide's family, and those of its encoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common.checks import at_least, positive
from pyrovae.data import as_data
from pyrovae.diagnostics.evidence.ais import Annealing
from pyrovae.diagnostics.evidence.evaluate import Evaluation, combined_error, standard_error, weigh
from pyrovae.diagnostics.evidence.evidence import Evidence
from pyrovae.diagnostics.evidence.family import Member, member
from pyrovae.diagnostics.evidence.supported import Supported, held_against, supported
from pyrovae.diagnostics.evidence.trust import doubt, unreliable
from pyrovae.importance.options import Options, shared_keywords, without
from pyrovae.importance.question import Question, ask
from pyrovae.programs.densities import log_density
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import is_discrete
from pyrovae.programs.types import Batch, Program

DATA_AT_ONCE = 256
AT_ONCE = 32  # particles per observation


@dataclass(frozen=True)
class Gaps:
    """Estimates for each of N observations. Nats.

    Attributes:
        log_evidence: log p(x), ``[N]``.
        log_evidence_se: its Monte Carlo standard error, ``[N]``.
        optimal: evaluation, as by :func:`pyrovae.evaluate`, of the family's best member for each observation alone.
        guide: evaluation of the guide.
        reliable: whether ``log_evidence``, and therefore the approximation gap, is reliable, ``[N]``.
        refuted: whether ``log_evidence`` lies below an ELBO or an importance-weighted bound by more than four errors of
            both, ``[N]``. A gap is a divergence and cannot be negative: the estimate of the evidence has then failed,
            and the observation has no approximation gap.
    """

    log_evidence: Tensor
    log_evidence_se: Tensor
    optimal: Evaluation
    guide: Evaluation
    reliable: Tensor
    refuted: Tensor

    def __len__(self) -> int:
        return len(self.log_evidence)

    @property
    def optimal_elbo(self) -> Tensor:
        """ELBO of the best member, ``[N]``."""
        return self.optimal.elbo

    @property
    def elbo(self) -> Tensor:
        """ELBO of the guide, ``[N]``."""
        return self.guide.elbo

    @property
    def approximation(self) -> Tensor:
        """Log p(x) less the best member's ELBO, ``[N]``: what the family cannot express; NaN where refuted."""
        return torch.where(self.refuted, math.nan, self.log_evidence - self.optimal_elbo)

    @property
    def amortization(self) -> Tensor:
        """The best member's ELBO less the guide's, ``[N]``: what the encoder does not find."""
        return self.optimal_elbo - self.elbo

    def summary(self) -> dict[str, float]:
        """Return means over the observations, each with the standard error of its PAIRED differences.

        ``unreliable`` is the share of observations whose log evidence is unreliable. ``refuted``, a part of it, is the
        share whose log evidence is below a bound. These are left out of the means of log evidence and approximation
        gap.
        """
        means: dict[str, float] = {"num_data": len(self)}
        for name in ("log_evidence", "optimal_elbo", "elbo", "approximation", "amortization"):
            values = getattr(self, name)
            values = values[~self.refuted] if name in ("log_evidence", "approximation") else values
            means[name], means[f"{name}_se"] = float(values.mean()), standard_error(values)
        means["log_evidence_mc_se"] = combined_error(self.log_evidence_se[~self.refuted])
        means["optimal_elbo_mc_se"] = combined_error(self.optimal.elbo_se)
        means["elbo_mc_se"] = combined_error(self.guide.elbo_se)
        means["unreliable"] = unreliable(self.reliable)
        means["refuted"] = float(self.refuted.double().mean())
        return means

    def __str__(self) -> str:
        summary = self.summary()
        gaps = ", ".join(
            f"{kind} {summary[kind]:.3f} (standard error {summary[f'{kind}_se']:.3f})"
            for kind in ("approximation", "amortization")
        )
        text = f"gaps, nats per observation, means of {len(self)} data: {gaps}; log evidence is {doubt(self.reliable)}"
        return text + self.failure

    @property
    def failure(self) -> str:
        """A sentence about the observations whose log evidence lies below a bound; empty where there are none."""
        count = int(self.refuted.sum())
        return (
            f". The log evidence of {count} data lies below their ELBO, or below their importance-weighted bound: that "
            "is a failure of the estimate, not a gap, and they are left out of log evidence and approximation gap"
            if count
            else ""
        )


@shared_keywords(batch_size=DATA_AT_ONCE)
def gaps(
    model: Program,
    guide: Program,
    data: Any,
    *,
    log_evidence: tuple[Tensor, Tensor] | Annealing | Evidence | None = None,
    num_particles: int = 1000,
    num_steps: int = 500,
    particles_per_step: int = 8,
    lr: float = 0.03,
    **options: Unpack[Options],
) -> Gaps:
    """Split each observation's log p(x) - ELBO into an approximation gap and an amortization gap.

    The best member of the guide's family is fitted to every observation separately. Its free parameters start at the
    encoder's values and maximise the observation's own ELBO by Adam, with a step length that falls to 0. They are the
    parameters that the head puts out (location and scale, a flow's context) or, for a plain Pyro guide, those of its
    distributions. Parameters that all members share (the networks of a flow's steps) stay as they are.

    On training data the amortization gap measures the encoder's lack of capacity. The amount by which it is larger on
    held-out data measures how badly the encoder generalises.

    Source: Cremer, Li and Duvenaud, "Inference suboptimality in variational autoencoders", 2018.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        log_evidence: result of :func:`ais` or :func:`evidence`, or a tuple of estimates and their standard errors,
            ``[N]`` each. None: annealing from the prior, and then from the guide where that is unreliable. The
            importance weights of the best member cannot replace it: a member fitted to one mode of a posterior does not
            see the other modes, so that its k-hat is good where its gap is largest. The ELBOs and the importance
            weights serve only as lower bounds; a bound that is higher refutes the estimate.
        num_particles: number of particles per observation for the ELBOs and the importance weights.
        num_steps: number of steps of Adam; use more if an amortization gap is clearly below 0.
        particles_per_step: number of particles per observation in each step.
        lr: Adam's first step length, in units of the parameters.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, a discrete latent, or a guide whose
            latents depend on each other's draws.

    Example:
        A mean-field guide of a model whose posterior is correlated cannot reach the evidence.

        >>> from pyrovae import guides, models, nn
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> found = gaps(model, guides.MeanField(nn.MLP(5, 8), 2), torch.ones(7, 5), num_steps=50, progress=False)
        >>> bool((found.approximation > -0.5).all() and (found.amortization > -0.5).all())
        True
    """
    num_particles = at_least("num_particles", num_particles, 2)
    num_steps = at_least("num_steps", num_steps, 1)
    particles_per_step = at_least("particles_per_step", particles_per_step, 1)
    lr = positive("lr", lr)
    data = as_data(data, model, guide).fixed()
    estimates = _given(log_evidence, len(data))
    results: list[list[dict[str, Tensor]]] = []
    with ask(model, guide, data, **options) as question, pyro.validation_enabled(False):
        _refuse_discrete(question)
        with question.bar("gaps") as bar:
            for indices, batch in question.data.batches(question.batch_size):
                start = member(question, batch)
                noise = DatumNoise("best member, fitted", question.seed, indices, question.data.device)
                best = _fitted(question, batch, start, noise, num_steps, particles_per_step, lr)
                both = best, start.params
                results.append([_weighed(question, batch, start, params, indices, num_particles) for params in both])
                bar.update(len(indices))
    optimal, own = (_joined(parts, num_particles, data.index) for parts in zip(*results, strict=True))
    bounds = [*optimal.bounds, *own.bounds]
    if estimates is None:
        chains: dict[str, Any] = {"num_chains": 16, "num_temperatures": "auto", **without(options, "batch_size")}
        evidence = supported(model, [None, guide], data, range(len(data)), bounds, **chains)
    else:
        evidence = held_against(estimates, bounds)
    return Gaps(evidence.log_evidence, evidence.log_evidence_se, optimal, own, evidence.reliable, evidence.refuted)


def _joined(parts: Sequence[dict[str, Tensor]], num_particles: int, index: np.ndarray) -> Evaluation:
    fields = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Evaluation(**fields, num_particles=num_particles, index=index)


def _given(log_evidence: Any, count: int) -> Annealing | Evidence | Supported | None:
    """Return the evidence that the caller supplies as an object with its reliability."""
    if log_evidence is None:
        return None
    estimates: Any = log_evidence
    if not isinstance(log_evidence, Annealing | Evidence):
        estimate, error = (t.double() for t in log_evidence)
        reliable = torch.ones_like(estimate, dtype=torch.bool)
        estimates = Supported(estimate, error, reliable, ~reliable)
    sizes = [len(estimates.log_evidence), len(estimates.log_evidence_se)]
    if set(sizes) != {count}:
        raise ValueError(f"log_evidence holds {sizes} values for {count} data")
    result: Annealing | Evidence | Supported = estimates
    return result


def _refuse_discrete(question: Question) -> None:
    question.layout.require_latents()
    with Repeated():
        trace = poutine.trace(question.pair.model).get_trace(*question.data.batch(slice(0, 1)))
    for name in question.layout.latents:
        if is_discrete(trace.nodes[name]["fn"]):
            raise ValueError(f"latent site {name!r} is discrete: its distribution cannot be fitted along a gradient")


def _log_weights(question: Question, batch: Batch, q: Member, params: list[Tensor], repeats: int, noise: Any) -> Tensor:
    """Return log p(x, z) - log q(z) for draws from every observation's q, ``[repeats, data]``."""
    rows = tuple(t.repeat_interleave(repeats, 0) for t in batch)
    noise.repeats = repeats
    values = {}
    log_q: Tensor | float = 0.0
    for name, site in q.distributions(params, repeats).items():
        with noise:
            values[name] = site.rsample()
        log_q = log_q + q.log_prob(name, site, values[name], repeats)
    with Repeated():
        trace = question.pair.density(poutine.condition(question.pair.model, data=values), rows)
    return (log_density(trace, len(rows[0])) - log_q).unflatten(0, (-1, repeats)).T


def _fitted(
    question: Question, batch: Batch, q: Member, noise: DatumNoise, num_steps: int, repeats: int, lr: float
) -> list[Tensor]:
    """Return the parameters of every observation's best member, by Adam from the encoder's values."""
    with torch.enable_grad():
        params = [p.clone().requires_grad_() for p in q.params]
        optimizer = torch.optim.Adam(params, lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        for _ in range(num_steps):
            bound = _log_weights(question, batch, q, params, repeats, noise).mean(0).sum()
            for param, gradient in zip(params, torch.autograd.grad(-bound, params), strict=True):
                param.grad = gradient.nan_to_num(0, 0, 0)
            optimizer.step()
            schedule.step()
    return [p.detach() for p in params]


def _weighed(
    question: Question, batch: Batch, q: Member, params: list[Tensor], indices: range, num_particles: int
) -> dict[str, Tensor]:
    """Evaluate every observation's q, with the same random numbers for every q."""
    noise = DatumNoise("best member, weighed", question.seed, indices, question.data.device)
    sizes = [min(AT_ONCE, num_particles - first) for first in range(0, num_particles, AT_ONCE)]
    parts = [_log_weights(question, batch, q, params, repeats, noise) for repeats in sizes]
    weights = torch.cat(parts)
    bad = (weights.isnan() | (weights == torch.inf)).any(0)
    if bool(bad.any()):
        raise ValueError(
            f"a log weight of observation {indices[int(bad.nonzero()[0])]} is not a finite number: the model or the "
            "guide returns NaN or infinity there (evaluate names the site)"
        )
    return {name: values.cpu() for name, values in weigh(weights).items()}
