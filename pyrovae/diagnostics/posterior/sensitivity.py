"""How much each observation's posterior owes to the prior, and how much to the likelihood: power-scaling."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.arviz.psis import relative_tail_ess
from pyrovae.common.checks import at_least, positive, share
from pyrovae.diagnostics.posterior.weighted_moments import moments, smoothed_weights
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.particles import Particles
from pyrovae.importance.psis import EQUAL, khat_limit, pareto_khat
from pyrovae.importance.question import Question, ask
from pyrovae.programs.densities import log_density
from pyrovae.programs.sites import is_discrete, site_rows
from pyrovae.programs.types import Program

COMPONENTS = ("prior", "likelihood")
CONFLICT, WEAK = "prior-data conflict", "strong prior or weak likelihood"
Event = Callable[..., Tensor]
SHIFTS = 4  # of the weights against the latents, by which the noise of a sensitivity is estimated


@dataclass(frozen=True, repr=False)
class Sensitivity:
    """Sensitivities of N observations' posteriors of D latents to A powers of the prior and of the likelihood.

    A conclusion is drawn where the posterior probability of an event is at least ``level``, or at most 1 - ``level``.
    It turns where it is no longer drawn, or only then, under some power.

    Attributes:
        prior: sensitivity to the prior, ``[N, D]``: distance per doubling of its power.
        likelihood: sensitivity to the likelihood, ``[N, D]``.
        prior_noise: the sensitivity to the prior that the same weights give to a latent that has nothing to do with
            them, ``[N, D]``: it grows with the number of latents, all of whose densities are in the weights, and falls
            with that of particles.
        likelihood_noise: the same for the likelihood, ``[N, D]``.
        mean: posterior means, ``[N, D]``.
        sd: posterior standard deviations, ``[N, D]``.
        means: posterior means under scaled components, ``[2, A, N, D]``, the prior first.
        sds: their standard deviations, ``[2, A, N, D]``.
        probability: posterior probabilities of C events, ``[N, C]``.
        probabilities: the same under scaled components, ``[2, A, N, C]``.
        khat: Pareto tail index of the weights, the largest over all powers, ``[N]``.
        limit: largest k-hat at which the sensitivities can be trusted.
        alphas: the powers.
        threshold: sensitivity above which a component matters.
        level: posterior probability from which on a conclusion is drawn.
        latents: names of the latents.
        events: names of the events.
        index: names of the observations.
        weights: survey weights of the observations, by which shares are taken; None: all alike.
    """

    prior: Tensor
    likelihood: Tensor
    prior_noise: Tensor
    likelihood_noise: Tensor
    mean: Tensor
    sd: Tensor
    means: Tensor
    sds: Tensor
    probability: Tensor
    probabilities: Tensor
    khat: Tensor
    limit: float
    alphas: tuple[float, ...]
    threshold: float
    level: float
    latents: list[str]
    events: list[str]
    index: np.ndarray
    weights: Tensor | None = None

    @property
    def reliable(self) -> np.ndarray:
        """Whether each observation's weights can be trusted, ``[N]``."""
        result: np.ndarray = (self.khat <= self.limit).numpy()
        return result

    @property
    def diagnosis(self) -> np.ndarray:
        """What each posterior of a latent shows, ``[N, D]``: "" where the prior hardly matters.

        A component matters where its sensitivity is at least twice its noise and, less the noise (a difference of
        squares), at least ``threshold``. Where the noise is above half the threshold, more particles may find more.
        """
        informative, strong = (
            ((value.square() - noise.square() >= self.threshold**2) & (value >= 2 * noise)).numpy()
            for value, noise in ((self.prior, self.prior_noise), (self.likelihood, self.likelihood_noise))
        )
        result: np.ndarray = np.where(informative & strong, CONFLICT, np.where(informative, WEAK, "")).astype(object)
        return result

    @property
    def turned(self) -> np.ndarray:
        """Whether each conclusion turns under some power, ``[N, C]``."""
        own, scaled = self._verdict(self.probability), self._verdict(self.probabilities).flatten(0, 1)
        result: np.ndarray = (scaled != own).any(0).numpy()
        return result

    def _verdict(self, probability: Tensor) -> Tensor:
        return (probability >= self.level).int() - (probability <= 1 - self.level).int()

    def conclusions(self) -> pd.DataFrame:
        """Return one row per observation and event: its posterior probability, the range of it, whether it turns."""
        names = pd.MultiIndex.from_product([self.index, self.events], names=["datum", "conclusion"])
        every = torch.cat([self.probability[None], self.probabilities.flatten(0, 1)])
        columns = {
            "probability": self.probability.flatten().numpy(), "lowest": every.amin(0).flatten().numpy(),
            "highest": every.amax(0).flatten().numpy(), "turned": self.turned.ravel(),
            "reliable": self.reliable.repeat(len(self.events)),
        }  # fmt: skip
        return pd.DataFrame(columns, index=names)

    def table(self) -> pd.DataFrame:
        """Return one row per observation and latent: sensitivities, diagnosis, moments, k-hat, and reliability."""
        names = pd.MultiIndex.from_product([self.index, self.latents], names=["datum", "latent"])
        size = len(self.latents)
        columns = {
            "prior": self.prior.flatten().numpy(), "likelihood": self.likelihood.flatten().numpy(),
            "prior_noise": self.prior_noise.flatten().numpy(),
            "likelihood_noise": self.likelihood_noise.flatten().numpy(),
            "diagnosis": self.diagnosis.ravel(), "mean": self.mean.flatten().numpy(), "sd": self.sd.flatten().numpy(),
            "khat": self.khat.repeat_interleave(size).numpy(), "reliable": self.reliable.repeat(size),
        }  # fmt: skip
        return pd.DataFrame(columns, index=names)

    def summary(self) -> dict[str, float]:
        """Return shares of observations: with a latent of each diagnosis, with a conclusion that turns, unreliable."""
        found, turned = self.diagnosis, self.turned.any(1)
        return {
            "num_data": len(self.index),
            "conflict": self._share((found == CONFLICT).any(1)),
            "weak": self._share((found == WEAK).any(1)),
            "turned": self._share(turned),
            "unreliable": self._share(~self.reliable),
        }

    def _share(self, rows: Any) -> float:
        return float(np.average(rows, weights=None if self.weights is None else self.weights.numpy()))

    def __repr__(self) -> str:
        result = self.summary()
        text = (
            f"power-scaling of {len(self.index)} posteriors of {len(self.latents)} latents: {result['conflict']:.0%} "
            f"with a {CONFLICT}, {result['weak']:.0%} with a {WEAK}, "
            f"{result['turned']:.0%} with a conclusion that turns"
        )
        return text + (f"; {result['unreliable']:.0%} UNRELIABLE (k-hat)" if result["unreliable"] else "")


@shared_keywords(batch_size=BATCH_SIZE)
def sensitivity(
    model: Program,
    guide: Program,
    data: Any,
    *,
    alphas: Sequence[float] = (0.8, 1.25),
    threshold: float = 0.05,
    conclusions: Mapping[str, Event] | None = None,
    level: float = 0.95,
    num_particles: int = 1000,
    **options: Unpack[Options],
) -> Sensitivity:
    """Say how each observation's posterior changes when the prior, or the likelihood, is raised to a power.

    p(z)^a p(x | z) and p(z) p(x | z)^a are reached by reweighting the particles that the posterior itself is estimated
    from, without a fit. The distance of two posteriors of a latent is the cumulative Jensen-Shannon distance of their
    distribution functions; a sensitivity is that distance per doubling of the power. Where both components matter, the
    prior and the observation disagree; where the prior alone does, it is strong or the observation says little.

    Source: Kallioinen, Paananen, Burkner and Vehtari, "Detecting and diagnosing prior and likelihood sensitivity with
    power-scaling", 2024; the same definitions as in ArviZ's ``psense``.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set.
        alphas: a power below 1 and one above.
        threshold: sensitivity above which a component matters.
        conclusions: events by name, each a function ``f(latents, *batch)`` of a dict of latents by site,
            ``[rows, ...]``, and the batch's tensors, that returns True or False per row, ``[rows]``. None: whether each
            latent is above 0.
        level: posterior probability of an event from which on a conclusion is drawn.
        num_particles: number of draws of the guide per observation.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for powers that are not around 1, a pair that breaks the contract, discrete latents, or latents that
            the guide leaves out.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> found = sensitivity(model, guides.Exact(model), torch.zeros(7, 5), num_particles=200, progress=False)
        >>> found.prior.shape, list(found.table().columns[:2])
        (torch.Size([7, 2]), ['prior', 'likelihood'])
    """
    powers = _powers(alphas)
    if conclusions is not None and (
        not isinstance(conclusions, Mapping) or not conclusions or not all(map(callable, conclusions.values()))
    ):
        raise ValueError(f"conclusions must be functions by name, at least one, got {conclusions!r}")
    num_particles, threshold = at_least("num_particles", num_particles, 25), positive("threshold", threshold)
    if not 0.5 < share("level", level, ends=False):
        raise ValueError(f"level must be a probability above 0.5, got {level!r}")
    with ask(model, guide, data, takes_weights=True, **options) as question:
        question.layout.require_guided("prior density")
        parts = [_scaled(batch, powers) for batch in _batches(question, num_particles, conclusions)]
        names, index, weights = _latents(question), question.data.index, question.data.weights
    events = [f"{name} > 0" for name in names] if conclusions is None else list(conclusions)
    whole = {name: torch.cat([part[name] for part in parts], -1 if name == "khat" else -2) for name in parts[0]}
    return Sensitivity(
        **whole, limit=khat_limit(num_particles), alphas=powers, threshold=threshold, level=level, latents=names,
        events=events, index=index, weights=weights,
    )  # fmt: skip


def _powers(alphas: Any) -> tuple[float, ...]:
    values = tuple(alphas) if isinstance(alphas, Sequence) else ()
    if len(values) != 2 or not all(isinstance(a, int | float) for a in values) or not 0 < values[0] < 1 < values[1]:
        raise ValueError(f"alphas must be a power between 0 and 1 and one above 1, such as (0.8, 1.25), got {alphas!r}")
    return tuple(float(a) for a in values)


def _latents(question: Question) -> list[str]:
    trace = question.pair.traces(question.data.batch(slice(0, 1)))[0]
    sizes = {name: trace.nodes[name]["value"].numel() for name in question.layout.latents}
    return [f"{name}[{k}]" for name, size in sizes.items() for k in range(size)]


def _batches(
    question: Question, num_particles: int, conclusions: Mapping[str, Event] | None
) -> Iterator[tuple[Tensor, ...]]:
    """Iterate over batches: log weights, log p(z), log p(x | z), ``[K, n]``, latents, events ``[K, n, ...]``."""
    kept: list[list[Tensor]] = []
    for part in question.particles(num_particles, "sensitivity"):
        if not part.start:
            kept = []
        size, count = len(part.rows[0]), len(part.indices)
        for name in question.layout.latents:
            if is_discrete(part.model_trace.nodes[name]["fn"]):
                raise ValueError(f"latent site {name!r} is discrete, and has no distribution function to compare")
        log_prior = log_density(part.model_trace, size, observed=False)
        log_joint = log_density(part.model_trace, size)
        values = [part.values(part.guide_trace.nodes[name]) for name in question.layout.latents]
        flat = [v.flatten(2) if v.dim() > 2 else v[..., None] for v in values]
        logs = [v.double().unflatten(0, (count, -1)).T.cpu() for v in (log_prior, log_joint - log_prior)]
        latents = torch.cat(flat, 2).double().cpu()
        events = (latents > 0).double() if conclusions is None else _events(question, part, conclusions)
        kept.append([part.log_weight.double().cpu(), *logs, latents, events])
        if part.start + len(part.log_weight) == num_particles:
            yield tuple(torch.cat(pieces) for pieces in zip(*kept, strict=True))


def _events(question: Question, part: Particles, conclusions: Mapping[str, Event]) -> Tensor:
    """Return whether the events happen, ``[K, n, C]``, as 0 or 1."""
    rows = {name: site_rows(part.guide_trace.nodes[name]) for name in question.layout.latents}
    count, columns = len(part.rows[0]), []
    for name, event in conclusions.items():
        try:
            value = event(dict(rows), *part.rows[:-1])
        except KeyError as error:
            raise ValueError(f"the conclusion {name!r} asks for {error}: the latents are {list(rows)}") from error
        if not isinstance(value, Tensor) or value.shape != (count,) or value.dtype != torch.bool:
            got = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the conclusion {name!r} must return True or False per row, [{count}], got {got}")
        columns.append(value.double().cpu().unflatten(0, (len(part.indices), -1)).T)
    return torch.stack(columns, 2)


def _scaled(batch: tuple[Tensor, ...], powers: tuple[float, ...]) -> dict[str, Tensor]:
    """Return the sensitivities of a batch of n observations, and the moments under each power."""
    weight, prior, likelihood, latents, events = batch
    base, khat = smoothed_weights(weight), pareto_khat(weight)
    mean, sd = moments(base, latents)
    means, sds, chances, slopes, noises = [], [], [], [], []
    distance = Distance(latents)
    for component in (prior, likelihood):
        distances, relative = [], _relative_ess(weight, component)
        noise: Any = 0.0
        for alpha in powers:
            logs = torch.where(weight == -math.inf, weight, weight + (alpha - 1) * component)
            own, khat = smoothed_weights(logs, relative), torch.maximum(khat, pareto_khat(logs))
            own_mean, own_sd = moments(own, latents)
            means.append(own_mean)
            sds.append(own_sd)
            chances.append((own[..., None] * events).sum(0))
            distances.append(distance(base, own) / abs(math.log2(alpha)))
            shifts = [distance(base, _apart(base, own, k)) / abs(math.log2(alpha)) for k in range(1, SHIFTS + 1)]
            noise = noise + torch.stack(shifts).square().mean(0) / len(powers)
        slopes.append((distances[0] + distances[1]) / 2)
        noises.append(noise.sqrt())
    shape = (len(COMPONENTS), len(powers), *mean.shape)
    return {
        "prior": slopes[0], "likelihood": slopes[1], "prior_noise": noises[0], "likelihood_noise": noises[1],
        "mean": mean, "sd": sd, "khat": khat,
        "means": torch.stack(means).reshape(shape), "sds": torch.stack(sds).reshape(shape),
        "probability": (base[..., None] * events).sum(0),
        "probabilities": torch.stack(chances).reshape(*shape[:-1], events.shape[2]),
    }  # fmt: skip


def _relative_ess(weight: Tensor, component: Tensor) -> np.ndarray | None:
    """Return ArviZ's estimates of how independent draws are, ``[n]``, if all have equal weight; else None.

    ArviZ takes draws of equal weight, and lets the length of their tail depend on this estimate.
    """
    level = weight.amax(0) - weight.amin(0) <= EQUAL
    return relative_tail_ess(component.numpy()) if bool(level.all()) else None


def _apart(base: Tensor, own: Tensor, number: int) -> Tensor:
    """Return weights whose ratio to the base is that of other particles, so that it has nothing to do with latents."""
    ratio = torch.where(base > 0, own / base, 0.0).roll(number * len(own) // (SHIFTS + 1), 0)
    weights = base * ratio
    return weights / weights.sum(0)


class Distance:
    """The cumulative Jensen-Shannon distance of two weightings of the same values, ``[n, D]``.

    Source: Nguyen and Vreeken, "Non-parametric Jensen-Shannon divergence", 2015; the larger one of the values and of
    their negatives, as in Kallioinen et al. 2024.

    Args:
        values: values ``[K, n, D]``.
    """

    def __init__(self, values: Tensor) -> None:
        ordered, order = values.sort(0)
        self._sides = [(ordered.diff(dim=0), order), (ordered.diff(dim=0).flip(0), order.flip(0))]

    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the distance between two weightings ``[K, n]`` that sum to 1."""
        sides = [_one_sided(width, order, one, other) for width, order in self._sides]
        return torch.maximum(*sides)


def _one_sided(width: Tensor, order: Tensor, one: Tensor, other: Tensor) -> Tensor:
    p, q = (w[..., None].expand_as(order).gather(0, order).cumsum(0)[:-1] for w in (one, other))
    tiny = torch.finfo(torch.float64).tiny
    middle = (0.5 * (p + q)).clamp(min=tiny).log2()
    p_area, q_area = (p * width).sum(0), (q * width).sum(0)
    p_log, q_log = (v.clamp(min=tiny).log2() for v in (p, q))
    half = 0.5 / math.log(2)
    there = (width * p * (p_log - middle)).sum(0) + half * (q_area - p_area)
    back = (width * q * (q_log - middle)).sum(0) + half * (p_area - q_area)
    return ((there.clamp(min=0) + back.clamp(min=0)) / (p_area + q_area)).sqrt()
