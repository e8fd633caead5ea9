"""Annealed importance sampling of many data and chains at once, forwards and backwards."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.noise import DatumNoise
from pyrovae.pair import Batch, Program, unwrapped
from pyrovae.particles import Question, simulated
from pyrovae.sampling.coordinates import Coordinates, PriorGuide
from pyrovae.sampling.field import Field, Point
from pyrovae.sampling.hamiltonian import move

TARGET = 0.65  # acceptance probability that step sizes are adapted to
FIRST = 20  # transitions of a pilot run at its first temperature
PILOT = 4  # a pilot run has so many times fewer chains and temperatures


@dataclass(frozen=True)
class Schedule:
    """How a run is done.

    Attributes:
        num_chains: chains a datum.
        num_temperatures: T, distributions after the first.
        num_steps: leapfrog steps of a transition.
        step_size: to start from, in standard deviations of the starting distribution.
    """

    num_chains: int
    num_temperatures: int
    num_steps: int
    step_size: float

    def temperatures(self, device: torch.device) -> Tensor:
        """Return b_0 = 0, ..., b_T = 1, close together at both ends, ``[T + 1]``."""
        even = torch.linspace(-4, 4, self.num_temperatures + 1, dtype=torch.float64, device=device).sigmoid()
        return (even - even[0]) / (even[-1] - even[0])

    def pilot(self) -> "Schedule":
        """Return a shorter run that step sizes are adapted in."""
        fewer = max(4, self.num_chains // PILOT), max(50, self.num_temperatures // PILOT)
        return Schedule(*fewer, self.num_steps, self.step_size)


@dataclass(frozen=True)
class Annealed:
    """Log weights of a batch's chains, ``[num_chains, data]``, and mean acceptance probabilities, ``[data]``."""

    log_weights: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class Plan:
    """What a pilot run has learned of a batch.

    Attributes:
        temperatures: b_0 = 0, ..., b_T = 1 of every datum, ``[T + 1, data]``.
        step_sizes: at each of them, ``[T + 1, data]``.
        scale: standard deviations of the starting distribution, ``[data, dim]``.
    """

    temperatures: Tensor
    step_sizes: Tensor
    scale: Tensor


class Annealer:
    """Carries chains from the guide (or the prior) to the posterior, or back.

    The path is q(z | x)^(1 - b) p(x, z)^b in unconstrained coordinates. Step sizes, one a datum and temperature, are
    learned in a pilot run and fixed before the run that counts, whose weights are unbiased therefore.

    Args:
        question: the pair and its data; the guide is where chains start.
        schedule: of the run.
        batch_size: data held at once.
        compile: True, False or "auto".
        label: of the progress bar; None shows none.

    Raises:
        ValueError: for a latent without unconstrained coordinates, or a guide that cannot score a z from elsewhere.
    """

    def __init__(
        self, question: Question, schedule: Schedule, batch_size: int, compile: bool | str, label: str | None
    ) -> None:
        self.question, self.schedule, self.batch_size, self.label = question, schedule, batch_size, label
        self.coordinates = Coordinates(question)
        self.from_prior = isinstance(unwrapped(question.pair.guide), PriorGuide)
        if not self.from_prior:
            _see_that_it_scores(question, self.coordinates)
        calls = -(-len(question.data) // batch_size) * schedule.num_temperatures * schedule.num_steps
        self.field = Field(question, self.ends, compile, calls, label)

    def batches(self) -> Iterator[tuple[range, Batch]]:
        """Iterate over the data."""
        data = self.question.data
        with tqdm(total=len(data), desc=self.label, unit="data", disable=not self.label, mininterval=0.5) as bar:
            for indices, batch in data.batches(self.batch_size):
                yield indices, batch
                bar.update(len(indices))

    def plan(self, indices: range, batch: Batch) -> Plan:
        """Learn every datum's temperatures and step sizes in a pilot run."""
        pilot = self.schedule.pilot()
        noise, rows = self._noise(indices, "pilot", pilot.num_chains), _repeated(batch, pilot.num_chains)
        scale = self._scale(indices, batch)
        step_size = torch.full_like(scale[:, 0], self.schedule.step_size)
        at = functools.partial(self.field, rows)
        here = at(self.start(rows, noise))
        temperatures = pilot.temperatures(scale.device)
        sizes, spreads = [], []
        for t, temperature in enumerate(temperatures):
            for _ in range(1 if t else FIRST):
                moved = move(
                    here, at, _weights(temperature, here),
                    step_size.repeat_interleave(pilot.num_chains), scale.repeat_interleave(pilot.num_chains, 0),
                    pilot.num_steps, noise,
                )  # fmt: skip
                here = moved.point
                accepted = moved.acceptance.unflatten(0, (len(indices), -1)).mean(1)
                step_size = step_size * (0.2 * (accepted - TARGET)).exp()
            start, joint = here.logs.double()
            sizes.append(step_size)
            spreads.append((joint - start).unflatten(0, (len(indices), -1)).var(1))
        return _planned(temperatures, torch.stack(sizes), torch.stack(spreads), scale, self.schedule.num_temperatures)

    def forwards(self, indices: range, batch: Batch, plan: Plan) -> Annealed:
        """Anneal draws of the guide into the posterior: E[exp(log_weight)] = p(x)."""
        noise = self._noise(indices, "forwards", self.schedule.num_chains)
        rows = _repeated(batch, self.schedule.num_chains)
        free = self.start(rows, noise)
        order = range(1, self.schedule.num_temperatures + 1)
        return self._run(indices, rows, free, list(order), plan, noise, 1)

    def backwards(self, indices: range, batch: Batch, exact: Tensor, plan: Plan) -> Annealed:
        """Anneal exact posterior draws ``[data, dim]`` into the guide: E[exp(log_weight)] = 1 / p(x)."""
        noise = self._noise(indices, "backwards", self.schedule.num_chains)
        rows = _repeated(batch, self.schedule.num_chains)
        free = exact.repeat_interleave(self.schedule.num_chains, 0)
        order = range(self.schedule.num_temperatures - 1, -1, -1)
        return self._run(indices, rows, free, list(order), plan, noise, -1)

    def _run(
        self, indices: range, rows: Batch, free: Tensor, order: list[int], plan: Plan, noise: DatumNoise,
        direction: int,
    ) -> Annealed:  # fmt: skip
        """Visit the temperatures in ``order``: weigh each step to the next, then move under it."""
        chains = self.schedule.num_chains
        temperatures, sizes = (t.repeat_interleave(chains, 1) for t in (plan.temperatures, plan.step_sizes))
        scale = plan.scale.repeat_interleave(chains, 0)
        at = functools.partial(self.field, rows)
        here = at(free)
        log_weight = torch.zeros(len(free), dtype=torch.float64, device=free.device)
        acceptance = torch.zeros(len(indices), dtype=free.dtype, device=free.device)
        for t in order:
            start, joint = here.logs.double()
            log_weight += (temperatures[t] - temperatures[t - direction]) * (joint - start)
            if t == order[-1]:
                break
            moved = move(
                here, at, _weights(temperatures[t], here), sizes[t], scale,
                self.schedule.num_steps, noise,
            )  # fmt: skip
            here = moved.point
            acceptance += moved.acceptance.unflatten(0, (len(indices), -1)).mean(1) / max(1, len(order) - 1)
        return Annealed(log_weight.unflatten(0, (len(indices), -1)).T, acceptance)

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

    def simulate(self, indices: range, batch: Batch) -> tuple[Batch, Tensor]:
        """Draw latents and data from the model; return the batch with these data, and the latents ``[data, dim]``."""
        made, trace = simulated(self.question, batch, self._noise(indices, "simulation", 1))
        return made, self.coordinates.of(trace, len(made[0]))

    def _scale(self, indices: range, batch: Batch) -> Tensor:
        """Return the standard deviation of the guide's draws, ``[data, dim]``."""
        draws = self.start(_repeated(batch, 100), self._noise(indices, "scale", 100)).unflatten(0, (len(indices), -1))
        return draws.std(1).clamp(min=1e-6)

    def _noise(self, indices: range, purpose: str, repeats: int) -> DatumNoise:
        noise = DatumNoise(f"annealing, {purpose}", self.question.seed, indices, self.question.data.device)
        noise.repeats = repeats
        return noise


def _weights(temperature: Tensor, here: Point) -> Tensor:
    """Return the weights of both ends, ``[2, 1]`` or ``[2, rows]``."""
    return torch.stack([1 - temperature, temperature]).to(here.logs.dtype).reshape(2, -1)


def _repeated(batch: Batch, repeats: int) -> Batch:
    return tuple(t.repeat_interleave(repeats, 0) for t in batch)


def _planned(temperatures: Tensor, sizes: Tensor, spreads: Tensor, scale: Tensor, num_temperatures: int) -> Plan:
    """Place temperatures where a pilot run says that the weights spread.

    A step from b to b' adds (b' - b)^2 var(log f_1 - log f_0) to the variance of a log weight, so that the sum is
    least where every step has the same (b' - b) sd. Half of the path is laid out so, half as in the pilot run.
    """
    smooth = torch.nn.functional.avg_pool1d(spreads.T[None], 9, 1, 4, count_include_pad=False)[0].T
    lengths = temperatures.diff()[:, None] * (0.5 * (smooth[1:] + smooth[:-1])).sqrt()
    lengths = lengths.nan_to_num(0, 0, 0)
    lengths = lengths / lengths.sum(0).clamp(min=1e-12) + 1 / len(lengths)
    path = torch.nn.functional.pad(lengths.cumsum(0), (0, 0, 1, 0)).T.contiguous()
    even = torch.linspace(0, 1, num_temperatures + 1, dtype=path.dtype, device=path.device) * path[:, -1:]
    after = torch.searchsorted(path, even.contiguous()).clamp(1, path.shape[1] - 1)
    low, high = path.gather(1, after - 1), path.gather(1, after)
    part = ((even - low) / (high - low)).clamp(0, 1)

    def between(values: Tensor) -> Tensor:
        wide = values.T.expand(len(path), -1)
        return torch.lerp(wide.gather(1, after - 1), wide.gather(1, after), part.to(values.dtype)).T

    found = between(temperatures[:, None])
    found[0], found[-1] = 0.0, 1.0
    return Plan(found, between(sizes.log()).exp(), scale)


def _see_that_it_scores(question: Question, coordinates: Coordinates) -> None:
    """Refuse a guide whose density at a z of another's is not known."""
    if question.layout.auxiliary:
        raise ValueError(
            f"the guide's density of the latents is not known, since its site {question.layout.auxiliary[0]!r} is not "
            "in the model: start from the prior (guide=None in ais, anneal_from_guide=False in evidence)"
        )
    batch = question.data.batch(slice(0, 1))
    free = coordinates.draw(batch)
    try:
        scored = bool(coordinates.both(batch, free + 1e-3)[0].isfinite().all())
        reason = "its density there is not a number"
    except Exception as error:  # in whatever way a flow without an inverse says so
        scored, reason = False, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    if not scored:
        raise ValueError(
            f"the guide cannot score a z that it did not draw ({reason}): start from the prior (guide=None in ais, "
            "anneal_from_guide=False in evidence)"
        )


def prior_guide(model: Program, guide: Any) -> Program:
    """Return the guide, or the model's prior where it is None."""
    return PriorGuide(model) if guide is None else guide
