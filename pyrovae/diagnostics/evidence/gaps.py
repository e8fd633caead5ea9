"""Where the bound loses: what the guide's family cannot express, and what its encoder does not find."""

import math
from dataclasses import dataclass
from typing import Any, Unpack

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
AT_ONCE = 32  # particles of each


@dataclass(frozen=True)
class Gaps:
    """Estimates for each of N data. Nats.

    Attributes:
        log_evidence: log p(x), ``[N]``.
        log_evidence_se: its Monte Carlo standard error, ``[N]``.
        optimal: what :func:`pyrovae.evaluate` says of the family's best member, fitted to each observation alone.
        guide: the same of the guide.
        reliable: whether ``log_evidence`` is to be trusted, and so the approximation gap, ``[N]``.
        refuted: whether it lies below an ELBO or an importance-weighted bound beyond four errors of both, ``[N]``: a
            gap is a divergence, and cannot be negative; such an observation has none, since its evidence has failed.
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
        """Log p(x) less the best member's ELBO, ``[N]``: what no member of the family can reach; NaN where refuted."""
        return torch.where(self.refuted, math.nan, self.log_evidence - self.optimal_elbo)

    @property
    def amortization(self) -> Tensor:
        """The best member's ELBO less the guide's, ``[N]``: what the encoder does not find."""
        return self.optimal_elbo - self.elbo

    def summary(self) -> dict[str, float]:
        """Return means over the data, each with the standard error of its PAIRED differences over the data.

        ``unreliable`` is the share of data whose log evidence is not to be trusted. ``refuted``, a part of it, is the
        share whose log evidence is below a bound: log evidence and approximation gap are means of the others.
        """
        found: dict[str, float] = {"num_data": len(self)}
        for name in ("log_evidence", "optimal_elbo", "elbo", "approximation", "amortization"):
            values = getattr(self, name)
            values = values[~self.refuted] if name in ("log_evidence", "approximation") else values
            found[name], found[f"{name}_se"] = float(values.mean()), standard_error(values)
        found["log_evidence_mc_se"] = combined_error(self.log_evidence_se[~self.refuted])
        found["optimal_elbo_mc_se"] = combined_error(self.optimal.elbo_se)
        found["elbo_mc_se"] = combined_error(self.guide.elbo_se)
        found["unreliable"] = unreliable(self.reliable)
        found["refuted"] = float(self.refuted.double().mean())
        return found

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
        """A sentence on the data whose log evidence lies below a bound of it; empty where there are none."""
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

    The best member of the guide's family is found for every observation by itself: from where the encoder puts it, its
    free parameters (those that the head puts out: location and scale, a flow's context; of a plain Pyro guide, those of
    its distributions) maximise the observation's own ELBO by Adam, with a step length that falls to 0. What a family
    shares (the networks of a flow's steps) stays as it is.

    On training data the amortization gap says what the encoder lacks in capacity; how much larger it is on held-out
    data, how badly it generalises.

    Source: Cremer, Li and Duvenaud, "Inference suboptimality in variational autoencoders", 2018.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        log_evidence: what :func:`ais` or :func:`evidence` has returned, or estimates and their standard errors, ``[N]``
            each, where they are at hand. None: by annealing from the prior, and from the guide what is not reliable
            then. Importance weights of the best member would not do: a member fitted to one mode of a posterior knows
            nothing of the others, so that its k-hat is fine where its gap is largest. They and the ELBOs are held
            against the estimate as lower bounds; one that is higher refutes it.
        num_particles: of the ELBOs and of the importance weights.
        num_steps: of Adam; more, where an amortization gap comes out clearly below 0.
        particles_per_step: an observation.
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
    data = as_data(data).fixed()
    given = _given(log_evidence, len(data))
    weighed: list[list[dict[str, Tensor]]] = []
    with ask(model, guide, data, **options) as question, pyro.validation_enabled(False):
        _refuse_discrete(question)
        with question.bar("gaps") as bar:
            for indices, batch in question.data.batches(question.batch_size):
                start = member(question, batch)
                noise = DatumNoise("best member, fitted", question.seed, indices, question.data.device)
                fitted = _fitted(question, batch, start, noise, num_steps, particles_per_step, lr)
                both = fitted, start.params
                weighed.append([_weighed(question, batch, start, params, indices, num_particles) for params in both])
                bar.update(len(indices))
    optimal, own = (
        Evaluation(**{name: torch.cat([p[name] for p in parts]) for name in parts[0]}, num_particles=num_particles)
        for parts in zip(*weighed, strict=True)
    )
    bounds = [*optimal.bounds, *own.bounds]
    if given is None:
        chains: dict[str, Any] = {"num_chains": 16, "num_temperatures": "auto", **without(options, "batch_size")}
        known = supported(model, [None, guide], data, range(len(data)), bounds, **chains)
    else:
        known = held_against(given, bounds)
    return Gaps(known.log_evidence, known.log_evidence_se, optimal, own, known.reliable, known.refuted)


def _given(known: Any, count: int) -> Annealing | Evidence | Supported | None:
    """Return evidence that is at hand as an object with its reliability."""
    if known is None:
        return None
    found: Any = known
    if not isinstance(known, Annealing | Evidence):
        estimate, error = (t.double() for t in known)
        reliable = torch.ones_like(estimate, dtype=torch.bool)
        found = Supported(estimate, error, reliable, ~reliable)
    sizes = [len(found.log_evidence), len(found.log_evidence_se)]
    if set(sizes) != {count}:
        raise ValueError(f"log_evidence holds {sizes} values for {count} data")
    checked: Annealing | Evidence | Supported = found
    return checked


def _refuse_discrete(question: Question) -> None:
    question.layout.require_latents()
    with Repeated():
        trace = poutine.trace(question.pair.model).get_trace(*question.data.batch(slice(0, 1)))
    for name in question.layout.latents:
        if is_discrete(trace.nodes[name]["fn"]):
            raise ValueError(f"latent site {name!r} is discrete: its distribution cannot be fitted along a gradient")


def _log_weights(question: Question, batch: Batch, q: Member, params: list[Tensor], repeats: int, noise: Any) -> Tensor:
    """Return log p(x, z) - log q(z) of draws of every observation's q, ``[repeats, data]``."""
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
    """Return the parameters of every observation's best member, by Adam from the encoder's."""
    with torch.enable_grad():
        params = [p.clone().requires_grad_() for p in q.params]
        optimizer = torch.optim.Adam(params, lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        for _ in range(num_steps):
            bound = _log_weights(question, batch, q, params, repeats, noise).mean(0).sum()
            for param, found in zip(params, torch.autograd.grad(-bound, params), strict=True):
                param.grad = found.nan_to_num(0, 0, 0)
            optimizer.step()
            schedule.step()
    return [p.detach() for p in params]


def _weighed(
    question: Question, batch: Batch, q: Member, params: list[Tensor], indices: range, num_particles: int
) -> dict[str, Tensor]:
    """Judge every observation's q, with the same random numbers for every q."""
    noise = DatumNoise("best member, weighed", question.seed, indices, question.data.device)
    sizes = [min(AT_ONCE, num_particles - first) for first in range(0, num_particles, AT_ONCE)]
    parts = [_log_weights(question, batch, q, params, repeats, noise) for repeats in sizes]
    weights = torch.cat(parts)
    bad = (weights.isnan() | (weights == torch.inf)).any(0)
    if bool(bad.any()):
        raise ValueError(
            f"a log weight of observation {indices[int(bad.nonzero()[0])]} is not a finite number: the model or the "
            "guide "
            "returns NaN or infinity there (evaluate names the site)"
        )
    return {name: values.cpu() for name, values in weigh(weights).items()}
