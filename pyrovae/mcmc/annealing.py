"""Annealed importance sampling of many data and chains at once, forwards and backwards."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.importance.question import Question
from pyrovae.importance.simulation import simulated
from pyrovae.mcmc.coordinates import Coordinates, PriorGuide
from pyrovae.mcmc.field import Field, Point
from pyrovae.mcmc.hamiltonian import At, move, pull, push
from pyrovae.programs.modules import unwrapped
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.types import Batch, Program

TARGET = 0.65  # acceptance probability that step sizes are adapted to
PILOTS = 32  # least number of chains of a pilot run
SEEN = 200  # draws of the start, from which its tails are estimated
MOVES = 4  # transitions of a pilot run at each of its temperatures
FIRST = 5  # times as many transitions at the first temperature, where step sizes are not known
KEPT = 0.5  # share of a pilot run's chains that stay effective in a step to its next temperature
MOST_STAGES = 200  # largest number of temperatures of a pilot run
LEAST_STEP = 1e-18  # least step from one temperature to the next
LARGEST = 3.0  # largest step size; leapfrog steps of a normal target with a perfect metric break down at 2
BETWEEN = 0.25, 1e4  # bounds of the scale of draws times that of gradients, which is 1 for a normal target
DENSE = 64  # largest number of latents for which metrics hold correlations
HEAVY = 4.5  # standard deviations from 5% to 95% above which a tail is heavy: normal tails have 3.3, Laplace's 4.5
MOST_STRETCHED = 80.0  # largest size of a stretched coordinate
KEEP = 8  # last transitions of a stage, whose points a metric is taken from
CLIMB = 60  # steps uphill, twice, in search of parts of the posterior that no chain has met
SETTLE = 40  # transitions after these steps
NEAR = 6.0  # largest distance of a chain that is near such a part, in its standard deviations (RMS over the latents)
FAR = 4.0  # standard deviations at which draws and gradients are cut


@dataclass(frozen=True)
class Schedule:
    """How a run is done.

    Attributes:
        num_chains: number of chains per observation.
        num_steps: number of leapfrog steps per transition.
        step_size: step size to start from, in units of the metric.
        calls: number of calls of the model's gradient that a batch may need.
    """

    num_chains: int
    num_steps: int
    step_size: float
    calls: int


@dataclass(frozen=True)
class Annealed:
    """Results of a run of a batch's chains.

    Attributes:
        log_weights: log weights, ``[num_chains, data]``.
        acceptance: mean acceptance probabilities, ``[data]``.
        ratios: log f_1 - log f_0 of the draws that the chains started from, ``[num_chains, data]``. These are the
            draws' log weights; where the start is normalised, their mean is a lower bound of log p(x).
        ends: where the chains are before their last step, in stretched coordinates, ``[data, num_chains, dim]``.
    """

    log_weights: Tensor
    acceptance: Tensor
    ratios: Tensor
    ends: Tensor


@dataclass(frozen=True)
class Stretch:
    """Coordinates in which heavy tails are light: z = centre + width sinh(u) for latents whose start has such tails.

    The tails of Cauchy's distribution become those of an exponential one, whose draws a chain can carry back to where
    the data are. For other latents u = z.

    Attributes:
        centre: centre of every latent, ``[data, dim]``.
        width: width of every latent, ``[data, dim]``.
        heavy: which latents are stretched, ``[data, dim]``.
    """

    centre: Tensor
    width: Tensor
    heavy: Tensor

    @classmethod
    def seen(cls, draws: Tensor) -> "Stretch":
        """Return the coordinates that suit draws of the start, ``[data, draws, dim]``."""
        ends = _quantiles(draws, 0.05, 0.25, 0.5, 0.75, 0.95)
        width = ((ends[3] - ends[1]) / 1.349).clamp(min=1e-12)
        return cls(ends[2], width, (ends[4] - ends[0]) / width > HEAVY)

    def of(self, chosen: Tensor) -> "Stretch":
        """Return the coordinates of some data of the batch."""
        return Stretch(self.centre[chosen], self.width[chosen], self.heavy[chosen])

    def into(self, free: Tensor) -> Tensor:
        """Return u of z, ``[rows, dim]`` each."""
        centre, width, heavy = self._rows(free)
        return torch.where(heavy, ((free - centre) / width).asinh(), free)

    def point(self, at: At, stretched: Tensor) -> Point:
        """Return the densities of u and their gradients, from those of z and the Jacobian."""
        if not bool(self.heavy.any()):
            return at(stretched)
        centre, width, heavy = self._rows(stretched)
        inner = torch.where(heavy, stretched, 0).clamp(-MOST_STRETCHED, MOST_STRETCHED)
        slope = torch.where(heavy, width * inner.cosh(), 1.0)
        here = at(torch.where(heavy, centre + width * inner.sinh(), stretched))
        outside = (inner != stretched).logical_and(heavy).any(1)
        logs = here.logs + slope.log().sum(1)
        forces = here.forces * slope + torch.where(heavy, inner.tanh(), 0)
        return Point(stretched, torch.where(outside, -torch.inf, logs), forces)

    def _rows(self, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        repeats = len(free) // len(self.centre)
        centre, width, heavy = (t.repeat_interleave(repeats, 0) for t in (self.centre, self.width, self.heavy))
        return centre, width, heavy


@dataclass(frozen=True)
class Plan:
    """What a pilot run has learned of a batch, at S temperatures of every observation's own.

    Attributes:
        stretch: coordinates that the chains move in.
        temperatures: temperatures, ``[S + 1, data]``: 0 first, and 1 from where the observation has arrived.
        counts: how many steps the observation took to arrive, ``[data]``.
        step_sizes: step sizes at each temperature, ``[S + 1, data]``.
        factors: F of the metric (F F')^-1 at each temperature, ``[S + 1, data, dim]`` or ``[S + 1, data, dim, dim]``.
    """

    stretch: Stretch
    temperatures: Tensor
    counts: Tensor
    step_sizes: Tensor
    factors: Tensor

    def at(self, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the temperature, step size and factor after this share of every observation's path."""
        position = share * self.counts
        low = position.floor().long().clamp(max=self.counts.long() - 1)
        near, data = position.round().long().clamp(min=1), torch.arange(len(low), device=low.device)
        temperature = torch.lerp(self.temperatures[low, data], self.temperatures[low + 1, data], position - low)
        return temperature, self.step_sizes[near, data], self.factors[near, data]

    def of(self, chosen: Tensor) -> "Plan":
        """Return the plan of some data of the batch."""
        rest = (t[:, chosen] for t in (self.temperatures, self.step_sizes, self.factors))
        temperatures, step_sizes, factors = rest
        return Plan(self.stretch.of(chosen), temperatures, self.counts[chosen], step_sizes, factors)


class CannotScore(ValueError):
    """The guide's density is not known at latents that it did not draw, so that no chain can start from it."""


class Annealer:
    """Carries chains from the guide (or the prior) to the posterior, or back.

    The path is q(z | x)^(1 - b) p(x, z)^b in unconstrained coordinates. Every observation has its own temperatures,
    step sizes and metrics. They are learned in a pilot run and fixed before the run that counts, so the weights of that
    run are unbiased.

    A pilot run is a sequential Monte Carlo sampler. Its chains are weighed for the next temperature, which is as far
    away as leaves half of them effective. They are drawn again by these weights, and moved. Step sizes follow the
    acceptance of the chains, and metrics follow their spread and their gradients.

    Source: for the pilot run, Del Moral, Doucet and Jasra, "Sequential Monte Carlo samplers", 2006; for its
    temperatures, Zhou, Johansen and Aston, "Toward automatic model comparison: an adaptive sequential Monte Carlo
    approach", 2016.

    Args:
        question: the pair and its data; the guide is where chains start.
        schedule: schedule of the run.

    Raises:
        ValueError: for a latent without unconstrained coordinates, or a guide that cannot score an externally supplied
            z.
    """

    def __init__(self, question: Question, schedule: Schedule) -> None:
        self.question, self.schedule, self.batch_size = question, schedule, question.batch_size
        self.coordinates = Coordinates(question)
        self.from_prior = isinstance(unwrapped(question.pair.guide), PriorGuide)
        if not self.from_prior:
            _see_that_it_scores(question, self.coordinates)
        calls = -(-len(question.data) // question.batch_size) * schedule.calls
        self.field = Field(question, self.ends, calls)

    def bar(self, label: str, total: int) -> Any:
        """Return a progress bar over data."""
        return self.question.bar(label, total=total)

    def batches(self, which: Sequence[int] | None = None) -> Iterator[tuple[Sequence[int], Batch]]:
        """Iterate over batches of all data, or of the data ``which``; the latter are filled for compiled programs."""
        data = self.question.data
        rest = range(len(data)) if which is None else which
        for first in range(0, len(rest), self.batch_size):
            indices = rest[first : first + self.batch_size]
            if which is None:
                yield indices, data.batch(slice(first, first + len(indices)))
            else:
                indices = self.filled(indices, self.batch_size)
                yield indices, data.batch(torch.tensor(indices, device=data.device))

    def filled(self, chosen: Sequence[int], size: int) -> list[int]:
        """Repeat the last of some data until there are ``size`` of them, the number that compiled programs take."""
        return [*chosen, *[chosen[-1]] * (size - len(chosen) if self.field.runner.chosen else 0)]

    def plan(self, indices: Sequence[int], batch: Batch, attempt: int = 0) -> Plan:
        """Learn temperatures, step sizes and metrics in a pilot run, whose stages get longer with each attempt."""
        chains = max(PILOTS, self.schedule.num_chains)
        draws = self.start(_repeated(batch, SEEN), self._noise(indices, f"start {attempt}", SEEN))
        stretch = Stretch.seen(_by_datum(draws, len(indices)))
        noise, rows = self._noise(indices, f"pilot {attempt}", chains), _repeated(batch, chains)
        at = functools.partial(stretch.point, functools.partial(self.field, rows))
        pilot = _Pilot(self.schedule, len(indices), at, noise)
        return pilot.run(stretch.into(self.start(rows, noise)), MOVES << attempt, stretch)

    def forwards(
        self, indices: Sequence[int], batch: Batch, plan: Plan, num_temperatures: int, purpose: str = "forwards"
    ) -> Annealed:
        """Anneal draws of the guide into the posterior: E[exp(log_weight)] = p(x)."""
        chains = self.schedule.num_chains
        noise, rows = self._noise(indices, purpose, chains), _repeated(batch, chains)
        path = [t / num_temperatures for t in range(num_temperatures + 1)]
        return self._run(indices, rows, self.start(rows, noise), path, plan, noise)

    def backwards(
        self, indices: Sequence[int], batch: Batch, exact: Tensor, plan: Plan, num_temperatures: int
    ) -> Annealed:
        """Anneal exact posterior draws ``[data, dim]`` into the guide: E[exp(log_weight)] = 1 / p(x)."""
        noise = self._noise(indices, "backwards", self.schedule.num_chains)
        free = exact.repeat_interleave(self.schedule.num_chains, 0)
        path = [t / num_temperatures for t in range(num_temperatures, -1, -1)]
        return self._run(indices, _repeated(batch, self.schedule.num_chains), free, path, plan, noise)

    def _run(
        self, indices: Sequence[int], rows: Batch, free: Tensor, path: list[float], plan: Plan, noise: DatumNoise
    ) -> Annealed:
        """Follow a path of shares of the plan: weigh the step to each share, then move there."""
        chains = self.schedule.num_chains
        at = functools.partial(plan.stretch.point, functools.partial(self.field, rows))
        here = at(plan.stretch.into(free))
        ratios = _ratio(here)
        log_weight = torch.zeros(len(free), dtype=torch.float64, device=free.device)
        acceptance = torch.zeros(len(indices), dtype=free.dtype, device=free.device)
        before = plan.at(path[0])[0]
        for share in path[1:]:
            temperature, size, factor = plan.at(share)
            step = (temperature - before).repeat_interleave(chains)
            log_weight += torch.where(step == 0, 0.0, step * _ratio(here))
            before = temperature
            if share == path[-1]:
                break
            outcome = move(
                here, at, _weights(temperature.repeat_interleave(chains), here), size.repeat_interleave(chains), factor,
                self.schedule.num_steps, noise,
            )  # fmt: skip
            here = outcome.point
            acceptance += _by_datum(outcome.acceptance, len(indices)).mean(1) / max(1, len(path) - 2)
        by_datum = functools.partial(_by_datum, size=len(indices))
        return Annealed(by_datum(log_weight).T, acceptance, by_datum(ratios).T, by_datum(here.free))

    def missed(self, indices: Sequence[int], batch: Batch, plan: Plan, run: Annealed) -> Tensor:
        """Return log p(x, part) of a part of the posterior that the chains have missed, ``[data]``; -inf if none.

        The search starts from the side of the data. Draws of the start first move up log f_1 - log f_0, the log
        likelihood or the log weight, which is highest where the start has too little mass. Then they move up log f_1.
        From there, chains move for a while. The part that they find counts as missed where the chains of the run have
        less than a third of its mass, which is computed as that of a Gaussian.

        Args:
            indices: indices of the data.
            batch: batch of these data.
            plan: plan of these data.
            run: run whose chains may have missed a part.
        """
        count, size = self.schedule.num_chains, len(indices)
        noise, rows = self._noise(indices, "elsewhere", count), _repeated(batch, count)
        at = functools.partial(plan.stretch.point, functools.partial(self.field, rows))
        _, step_size, factor = plan.at(1.0)
        here = at(plan.stretch.into(self.start(rows, noise)))
        for ends, stride in (((-1.0, 1.0), 1.0), ((0.0, 1.0), 0.1)):
            weights = torch.tensor(ends, dtype=here.free.dtype, device=here.free.device)[:, None, None]
            for k in range(CLIMB):
                uphill = pull(factor, (weights * here.forces).sum(0))
                uphill = uphill / uphill.norm(dim=1, keepdim=True).clamp(min=1e-12)
                here = at(here.free + push(factor, stride * (1 - k / CLIMB) * uphill))
        target, sizes = _weights(torch.ones((), device=here.free.device), here), step_size.repeat_interleave(count)
        for _ in range(SETTLE):
            outcome = move(here, at, target, sizes, factor, self.schedule.num_steps, noise)
            here, sizes = (
                outcome.point,
                sizes * (outcome.acceptance - TARGET).exp(),
            )  # the part may be narrower or wider than where the run's chains are
        return _missed(_by_datum(here.free, size), _by_datum(here.logs[1], size), run)

    def ends(self, rows: Batch, free: Tensor) -> list[Tensor]:
        """Return the log densities of both ends of the path, ``[rows]`` each."""
        if not self.from_prior:
            return list(self.coordinates.both(rows, free))
        prior, likelihood = self.coordinates.joint(rows, free)
        return [prior, prior + likelihood]

    def start(self, rows: Batch, noise: DatumNoise) -> Tensor:
        """Draw from the guide, ``[rows, dim]``."""
        with noise:
            return self.coordinates.draw(rows)

    def simulate(self, indices: Sequence[int], batch: Batch) -> tuple[Batch, Tensor]:
        """Draw latents and data from the model; return the batch with these data, and the latents ``[data, dim]``."""
        noise = functools.partial(self._noise, indices, "simulation", 1)
        simulation, trace = simulated(self.question, batch, noise)
        return simulation, self.coordinates.of(trace, len(simulation[0]))

    def _noise(self, indices: Sequence[int], purpose: str, repeats: int) -> DatumNoise:
        noise = DatumNoise(f"annealing, {purpose}", self.question.seed, indices, self.question.data.device)
        noise.repeats = repeats
        return noise


class _Pilot:
    """A sequential Monte Carlo sampler of a batch, from which a plan is taken.

    Args:
        schedule: schedule of the run.
        size: number of data of the batch.
        at: returns the densities at any stretched coordinates.
        noise: random numbers of the data.
    """

    def __init__(self, schedule: Schedule, size: int, at: At, noise: DatumNoise) -> None:
        self.schedule, self.size, self.at, self.noise = schedule, size, at, noise
        self.chains = noise.repeats

    def run(self, free: Tensor, moves: int, stretch: Stretch) -> Plan:
        """Carry draws of the start to the posterior, with ``moves`` transitions at each temperature."""
        here = self.at(free)
        temperature = torch.zeros(self.size, dtype=torch.float64, device=free.device)
        counts = torch.zeros_like(temperature)
        step_size = torch.full((self.size,), self.schedule.step_size, dtype=free.dtype, device=free.device)
        stages: list[tuple[Tensor, Tensor, Tensor]] = []
        while bool((temperature < 1).any()):
            counts = counts + (temperature < 1)
            ratio = _by_datum(_ratio(here), self.size)
            last = len(stages) + 1 == MOST_STAGES
            following = torch.ones_like(temperature) if last else _following(temperature, ratio)
            here = self._drawn_again(here, _times((following - temperature)[:, None], ratio))
            temperature = following
            num_moves = moves if stages else FIRST * moves
            here, step_size, stage = self._moved(here, temperature, step_size, num_moves)
            stages.append((temperature, *stage))
        temperatures, sizes, factors = (torch.stack(part) for part in zip(*stages, strict=True))
        first = torch.zeros_like(temperatures[:1])
        return Plan(
            stretch, torch.cat([first, temperatures]), counts, torch.cat([sizes[:1], sizes]),
            torch.cat([factors[:1], factors]),
        )  # fmt: skip

    def _moved(
        self, here: Point, temperature: Tensor, step_size: Tensor, moves: int
    ) -> tuple[Point, Tensor, tuple[Tensor, Tensor]]:
        """Move at a temperature; return the points, the step size, and the stage's mean step size and metric."""
        factor = self._metric([here], temperature)
        weights = _weights(temperature.repeat_interleave(self.chains), here)
        points, sizes = [], []
        for _ in range(moves):
            outcome = move(
                here, self.at, weights, step_size.repeat_interleave(self.chains), factor, self.schedule.num_steps,
                self.noise,
            )  # fmt: skip
            here = outcome.point
            acceptance = _by_datum(outcome.acceptance, self.size).mean(1)
            step_size = (step_size * (acceptance - TARGET).exp()).clamp(max=LARGEST)
            points.append(here)
            sizes.append(step_size.log())
        return (
            here,
            step_size,
            (torch.stack(sizes[moves // 2 :]).mean(0).exp(), self._metric(points[-KEEP:], temperature)),
        )

    def _metric(self, points: list[Point], temperature: Tensor) -> Tensor:
        weights = _weights(temperature.repeat_interleave(self.chains), points[0])[:, :, None]
        draws = torch.cat([_by_datum(p.free, self.size) for p in points], 1)
        forces = torch.cat([_by_datum((weights * p.forces).sum(0).to(p.free), self.size) for p in points], 1)
        return _metric(draws, forces)

    def _drawn_again(self, here: Point, weights: Tensor) -> Point:
        """Draw every observation's chains by their log weights, ``[data, chains]``, systematically."""
        with self.noise:
            offset = _by_datum(torch.rand_like(here.free[:, 0]), self.size)[:, :1].double()
        grid = (torch.arange(self.chains, device=offset.device) + offset) / self.chains
        shares = weights.softmax(1).nan_to_num(1 / self.chains)
        parents = torch.searchsorted(shares.cumsum(1), grid).clamp(max=self.chains - 1)
        rows = (parents + self.chains * torch.arange(self.size, device=offset.device)[:, None]).flatten()
        return Point(here.free[rows], here.logs[:, rows], here.forces[:, rows])


def _missed(draws: Tensor, logs: Tensor, run: Annealed) -> Tensor:
    """Return the log mass around draws, ``[data, draws, dim]``, if a run's chains have less than a third of it there.

    The log mass, ``[data]``, is that of a Gaussian with the draws' medians and spreads; it is -inf where chains have
    met it.
    """
    centre, spread = draws.median(1, keepdim=True).values, _spread(draws)
    mass = logs.double().median(1).values + 0.5 * draws.shape[2] * math.log(2 * math.pi * math.e)
    mass = mass + spread.double().log().sum(1)
    near = ((run.ends - centre) / spread[:, None]).square().mean(2) < NEAR**2  # [data, chains]
    met = (run.log_weights.T.softmax(1) * near).sum(1)
    share = (mass - run.log_weights.logsumexp(0) + math.log(len(run.log_weights))).sigmoid()
    return torch.where(met < share / 3, mass, -torch.inf).nan_to_num(-torch.inf, torch.inf, -torch.inf)


def _following(temperature: Tensor, ratio: Tensor) -> Tensor:
    """Return the next temperature per observation, at which a share KEPT of its chains stays effective, ``[data]``."""
    rest = 1 - temperature

    def enough(step: Tensor) -> Tensor:
        weights = _times(step[:, None], ratio).log_softmax(1)
        return (-(2 * weights).logsumexp(1)).exp() >= KEPT * ratio.shape[1]

    low, high = torch.full_like(rest, LEAST_STEP).log(), rest.clamp(min=LEAST_STEP).log()
    for _ in range(50):
        middle = 0.5 * (low + high)
        far = enough(middle.exp())
        low, high = torch.where(far, middle, low), torch.where(far, high, middle)
    return torch.where(enough(rest) | (rest <= LEAST_STEP), 1.0, temperature + low.exp())


def _times(step: Tensor, ratio: Tensor) -> Tensor:
    """Return the log weights of a step of temperature; for no step they are 0, whatever the ratio."""
    return torch.where(step > 0, step * ratio.nan_to_num(-torch.inf, torch.inf, -torch.inf), 0.0)


def _metric(draws: Tensor, forces: Tensor) -> Tensor:
    """Return F of the metric (F F')^-1 that suits draws and the target's gradients there, ``[data, draws, dim]`` each.

    For a normal target with precision P, the draws have the covariance C = P^-1 and the gradients have the covariance
    G = P. In general F F' = S is the matrix between them, S G S = C. For a normal target it is exactly P^-1, however
    few draws there are, as long as there are more draws than latents. Scales come from quartiles, and values far
    outside of them are cut, since priors may have no variance.

    Source: Seyboldt, Carlson and Carpenter, "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence",
    on which the sampler nutpie rests.
    """
    near, far = _spread(draws), _spread(forces)
    scale = near / (near * far).clamp(*BETWEEN).sqrt()
    count, dim = draws.shape[1:]
    if not 1 < dim <= DENSE:
        return scale
    ridge = dim / (dim + 50 * count) * torch.eye(dim, dtype=torch.float64, device=draws.device)
    c, g = _covariance(draws, near, 1 / scale) + ridge, _covariance(forces, far, scale) + ridge
    root, inverse = _roots(g)
    geometric_mean = inverse @ _roots(root @ c @ root)[0] @ inverse
    factor = torch.linalg.cholesky_ex(0.5 * (geometric_mean + geometric_mean.mT))[0].nan_to_num(0, 0, 0)
    return scale[:, :, None] * factor.to(scale)


def _covariance(values: Tensor, spread: Tensor, unit: Tensor) -> Tensor:
    """Return the covariance of values times ``unit``, cut far out and scaled so that its mean diagonal is 1."""
    cut = FAR * spread[:, None]
    inside = (values - values.median(1, keepdim=True).values).clamp(-cut, cut) * unit[:, None]
    inside = (inside - inside.mean(1, keepdim=True)).double()
    covariance = (inside.mT @ inside / inside.shape[1]).nan_to_num(0, 0, 0)
    return covariance / covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp(min=1e-12)


def _quantiles(values: Tensor, *shares: float) -> Tensor:
    """Return quantiles of ``[data, draws, dim]``, ``[shares, data, dim]``."""
    ordered = values.sort(1).values
    return torch.stack([ordered[:, round(share * (values.shape[1] - 1))] for share in shares])


def _spread(values: Tensor) -> Tensor:
    """Return a standard deviation by quartiles of ``[data, draws, dim]``, ``[data, dim]``."""
    low, high = _quantiles(values, 0.25, 0.75)
    return ((high - low) / 1.349).clamp(min=1e-12)


def _roots(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square roots of positive matrices, and their inverses."""
    values, vectors = torch.linalg.eigh(matrices)
    values = values.clamp(min=1e-10).sqrt()[:, None]
    return (vectors * values) @ vectors.mT, (vectors / values) @ vectors.mT


def _ratio(here: Point) -> Tensor:
    """Return log f_1 - log f_0 of every row."""
    start, joint = here.logs.double()
    return joint - start


def _by_datum(values: Tensor, size: int) -> Tensor:
    """Turn ``[rows, ...]`` into ``[data, chains, ...]``."""
    return values.unflatten(0, (size, -1))


def _weights(temperature: Tensor, here: Point) -> Tensor:
    """Return the weights of both ends, ``[2, 1]`` or ``[2, rows]``."""
    return torch.stack([1 - temperature, temperature]).to(here.logs.dtype).reshape(2, -1)


def _repeated(batch: Batch, repeats: int) -> Batch:
    return tuple(t.repeat_interleave(repeats, 0) for t in batch)


def _see_that_it_scores(question: Question, coordinates: Coordinates) -> None:
    """Refuse a guide that cannot evaluate its density at an externally supplied z."""
    if question.layout.auxiliary:
        raise CannotScore(
            f"the guide's density of the latents is not known, since its site {question.layout.auxiliary[0]!r} is not "
            "in the model: start from the prior (guide=None in ais, anneal_from_guide=False in evidence)"
        )
    batch = question.data.batch(slice(0, 1))
    free = coordinates.draw(batch)
    try:
        scored = bool(coordinates.both(batch, free + 1e-3)[0].isfinite().all())
        reason = "its density there is not a number"
    except Exception as error:  # of any kind: a flow without an inverse, for example
        scored, reason = False, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    if not scored:
        raise CannotScore(
            f"the guide cannot score a z that it did not draw ({reason}): start from the prior (guide=None in ais, "
            "anneal_from_guide=False in evidence)"
        )


def prior_guide(model: Program, guide: Any) -> Program:
    """Return the guide, or the model's prior where it is None."""
    return PriorGuide(model) if guide is None else guide
