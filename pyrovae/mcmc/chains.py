"""Reference posteriors: Hamiltonian chains of many data at once, each observation with its own step size and metric."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.importance.question import Question
from pyrovae.mcmc.coordinates import Coordinates
from pyrovae.mcmc.field import Field, Point
from pyrovae.mcmc.hamiltonian import DualAveraging, move
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import outer_plates, site_rows, with_holes
from pyrovae.programs.types import Batch, Trace

TARGET = 0.8
PATH = math.pi  # longest path of a trajectory, in standard deviations: half a period of a Gaussian posterior
GUIDE_DRAWS = 200  # draws of the guide, from which the first metric is taken


@dataclass(frozen=True)
class Chains:
    """Draws of a batch's posteriors.

    Attributes:
        indices: indices of the data.
        values: values of every site, ``[chain, draw, data, ...]``.
        log_joint: log p(x, z), ``[chain, draw, data]``, in nats.
        acceptance: acceptance probability of every trajectory, ``[chain, draw, data]``.
        divergent: whether the trajectory lost more than 1000 nats, ``[chain, draw, data]``.
        step_size: step size after the warm-up, ``[data]``.
        observed: what was observed, by site, ``[data, ...]``, NaN where a mask leaves it out.
        plates: names of the plates left of the data plate, by observed site.
    """

    indices: range
    values: dict[str, Tensor]
    log_joint: Tensor
    acceptance: Tensor
    divergent: Tensor
    step_size: Tensor
    observed: dict[str, Tensor]
    plates: dict[str, list[str]]


class Sampler:
    """Hamiltonian Monte Carlo from the guide's draws, all data and chains of a batch in one run.

    The length of a trajectory's path is drawn between 0 and half a period of a Gaussian posterior, so that no period is
    hit again and again. A trajectory takes ``num_steps`` leapfrog steps; its path is shorter where the observation's
    step size is too small for that length.

    Args:
        question: the pair and its data.
        num_chains: number of chains per observation.
        num_warmup: number of transitions that adapt step size and metric and are thrown away.
        num_draws: number of transitions that are kept.
        num_steps: number of leapfrog steps per transition.
        dense: whether the metric holds correlations, or only scales.
    """

    def __init__(
        self, question: Question, num_chains: int, num_warmup: int, num_draws: int, num_steps: int, dense: bool
    ) -> None:
        self.question, self.coordinates = question, Coordinates(question)
        self.num_chains, self.num_warmup, self.num_draws = num_chains, num_warmup, num_draws
        self.num_steps, self.dense = num_steps, dense
        calls = -(-len(question.data) // question.batch_size) * (num_warmup + num_draws) * num_steps
        self.field = Field(question, self._densities, calls)

    def batches(self) -> Iterator[Chains]:
        """Iterate over batches of data."""
        data = self.question.data
        work = len(data) * (self.num_warmup + self.num_draws)
        with self.question.bar("hmc", total=work, unit="draw") as bar:
            for indices, batch in data.batches(self.question.batch_size):
                yield self._run(indices, batch, bar)

    def _densities(self, rows: Batch, free: Tensor) -> list[Tensor]:
        prior, likelihood = self.coordinates.joint(rows, free)
        return [prior + likelihood]

    def _run(self, indices: range, batch: Batch, bar: Any) -> Chains:
        run = _Run(self, indices, batch)
        for t in range(self.num_warmup):
            run.warm_up(t)
            bar.update(len(indices))
        run.adapted()
        draws: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for _ in range(self.num_draws):
            acceptance, divergent = run.transition()
            draws.append((run.here.free, run.here.logs[0], acceptance, divergent))
            bar.update(len(indices))
        free, logs, acceptance, divergent = (torch.stack(part) for part in zip(*draws, strict=True))
        values = [self.coordinates.values(run.rows, one) for one in run.from_guide(batch, free)]
        return Chains(
            indices=indices,
            values={name: run.by_chain(torch.stack([v[name] for v in values])).cpu() for name in values[0]},
            log_joint=run.by_chain(logs).cpu(),
            acceptance=run.by_chain(acceptance).cpu(),
            divergent=run.by_chain(divergent).cpu(),
            step_size=run.step_size.cpu(),
            observed={
                name: site_rows({**s, "value": with_holes(s, s["value"])}).cpu() for name, s in run.observed.items()
            },
            plates={name: outer_plates(site) for name, site in run.observed.items()},
        )


class _Run:
    """The chains of one batch."""

    def __init__(self, sampler: Sampler, indices: range, batch: Batch) -> None:
        self.sampler, self.size, self.chains = sampler, len(indices), sampler.num_chains
        self.noise = DatumNoise("chains", sampler.question.seed, indices, sampler.question.data.device)
        self.rows = self._repeated(batch, self.chains)
        draws = self._guide(batch, max(GUIDE_DRAWS, self.chains)).unflatten(0, (self.size, -1))
        trace = self._trace(batch)
        self.masked = sampler.coordinates.held(trace)
        self.observed = {site.name: trace.nodes[site.name] for site in sampler.question.layout.observed}
        self.factor = self._moving(draws.std(1).clamp(min=1e-6))
        self.moments = _Moments(self.size, draws.shape[2], sampler.dense, draws)
        self.at = functools.partial(sampler.field, self.rows)
        self.here = self._start(draws)
        self.adaptation = self._adaptation(torch.full_like(draws[:, 0, 0], 0.3))
        self.step_size = self.adaptation.step_size
        self.windows = windows(sampler.num_warmup)

    def _start(self, draws: Tensor) -> Point:
        """Return where the chains begin: each at a draw of the guide, with density above 0 if there is such a draw."""
        starts = draws.split(self.chains, dim=1)
        here = self.at(starts[0].flatten(0, 1))
        for other in starts[1:]:
            lost = here.logs[0] == -torch.inf
            if other.shape[1] < self.chains or not bool(lost.any()):
                break
            here = self.at(other.flatten(0, 1)).where(lost, here)
        return here

    def warm_up(self, t: int) -> None:
        """Make transition ``t`` of the warm-up; adapt the step size at each, the metric at the end of each window."""
        acceptance, _ = self.transition()
        self.adaptation.update(acceptance.unflatten(0, (self.size, -1)).mean(1))
        self.step_size = self.adaptation.step_size
        first, last = self.windows[0], self.windows[-1]
        if first <= t < last:
            self.moments.add(self.here.free.unflatten(0, (self.size, -1)))
        if t + 1 in self.windows[1:]:
            self.factor = self._moving(self.moments.factor())
            self.moments.clear()
            self.adaptation = self._adaptation(self.adaptation.final)

    def adapted(self) -> None:
        """Fix the step size for the draws that are kept."""
        self.step_size = self.adaptation.final

    def transition(self) -> tuple[Tensor, Tensor]:
        """Move every chain; return the acceptance probabilities, and which trajectories diverged."""
        steps = self.sampler.num_steps
        with self.noise:
            path = PATH * torch.rand_like(self.here.free[:, 0])
        size = torch.minimum(self.step_size.repeat_interleave(self.chains), path / steps)
        factor = self.factor.repeat_interleave(self.chains, 0)
        weights = torch.ones_like(self.here.logs[:, :1])
        outcome = move(self.here, self.at, weights, size, factor, steps, self.noise)
        self.here = outcome.point
        return outcome.acceptance, outcome.divergent

    def from_guide(self, batch: Batch, free: Tensor) -> Tensor:
        """Return draws ``[draw, rows, dim]``; they are the guide's where a mask leaves a latent without a density."""
        if self.masked is None:
            return free
        draws = self._guide(batch, self.chains * len(free)).unflatten(0, (self.size, self.chains, len(free)))
        draws = draws.movedim(2, 0).flatten(1, 2)
        return torch.where(self.masked.repeat_interleave(self.chains, 0), draws, free)

    def _trace(self, batch: Batch) -> Trace:
        self.noise.repeats = 1
        with self.noise, Repeated():
            trace = self.sampler.question.pair.traces(batch)[0]
        self.noise.repeats = self.chains
        return trace

    def _moving(self, factor: Tensor) -> Tensor:
        """Return the metric's factor with zeros for latents that a mask leaves without a density: they do not move."""
        if self.masked is None:
            return factor
        free = (~self.masked).to(factor)
        return factor * free if factor.dim() == 2 else factor * free[:, :, None] * free[:, None, :]

    def by_chain(self, values: Tensor) -> Tensor:
        """Turn ``[draw, rows, ...]`` into ``[chain, draw, data, ...]``."""
        return values.unflatten(1, (self.size, self.chains)).movedim(2, 0)

    def _adaptation(self, step_size: Tensor) -> DualAveraging:
        return DualAveraging(step_size, TARGET, PATH / self.sampler.num_steps)

    def _guide(self, batch: Batch, repeats: int) -> Tensor:
        self.noise.repeats = repeats
        with self.noise:
            draws = self.sampler.coordinates.draw(self._repeated(batch, repeats))
        self.noise.repeats = self.chains
        return draws

    @staticmethod
    def _repeated(batch: Batch, repeats: int) -> Batch:
        return tuple(t.repeat_interleave(repeats, 0) for t in batch)


def windows(num_warmup: int) -> list[int]:
    """Return when the metric's windows begin and end: from 15% of the warm-up to 90%, each twice as long as before."""
    start, stop = int(0.15 * num_warmup), int(0.9 * num_warmup)
    edges, width = [start], max(10, (stop - start) // 7)
    while edges[-1] + 3 * width <= stop:
        edges.append(edges[-1] + width)
        width *= 2
    return [*edges, stop] if stop > edges[-1] else edges


class _Moments:
    """Sums over the chains and transitions of a window, from which the metric is taken."""

    def __init__(self, size: int, dim: int, dense: bool, draws: Tensor) -> None:
        self.dense = dense
        self.count = 0
        self.offset = draws.mean(1)  # so that sums of squares lose no digits
        self.total = torch.zeros_like(self.offset)
        self.square = torch.zeros(size, dim, dim).to(draws) if dense else torch.zeros_like(self.offset)

    def add(self, free: Tensor) -> None:
        """Add the chains' positions, ``[data, chain, dim]``."""
        centred = free - self.offset[:, None]
        self.count += free.shape[1]
        self.total += centred.sum(1)
        self.square += centred.mT @ centred if self.dense else centred.square().sum(1)

    def clear(self) -> None:
        """Begin another window."""
        self.count = 0
        self.total.zero_()
        self.square.zero_()

    def factor(self) -> Tensor:
        """Return F of the covariance F F', ``[data, dim(, dim)]``; with few draws correlations are shrunk."""
        mean = self.total / self.count
        if not self.dense:
            return (self.square / self.count - mean.square()).clamp(min=1e-12).sqrt()
        covariance = self.square / self.count - mean[:, :, None] * mean[:, None, :]
        scale = covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()
        correlation = covariance / (scale[:, :, None] * scale[:, None, :])
        keep = self.count / (self.count + 5 * correlation.shape[1])
        eye = torch.eye(correlation.shape[1]).to(correlation)
        return scale[:, :, None] * torch.linalg.cholesky(keep * correlation + (1 - keep) * eye)
