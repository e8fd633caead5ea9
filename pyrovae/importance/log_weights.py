"""Log weights log p(x, z) - log q(z | x), streamed over data and particles in fixed chunks.

A guide that is found to broadcast over particles is run once per observation rather than once per particle, and a chunk
may run compiled. Either way the random numbers are those of :mod:`pyrovae.importance.particles`.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, Unpack

import pyro
import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.particles import chunks, other_lengths_explained
from pyrovae.importance.question import Question, ask
from pyrovae.programs.broadcast import broadcasts, density_once, flattened, guide_once, repeated
from pyrovae.programs.compilation import Runner, agree, signature, tolerance
from pyrovae.programs.densities import log_density
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.noise import DatumNoise, Draw, Given
from pyrovae.programs.state import State, program_state
from pyrovae.programs.tracing import CannotCompile, Function, compiled
from pyrovae.programs.types import Batch, Program
from pyrovae.programs.work import Counted


@shared_keywords(batch_size=BATCH_SIZE, compile="auto")
def log_weights(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_particles: int,
    **options: Unpack[Options],
) -> Tensor:
    """Return log p(x, z) - log q(z | x) of particles z ~ q(z | x), ``[K, N]``, in nats per observation.

    Every subsample or annealing scale is removed and every mask kept. The log weights of an observation depend on
    ``seed``, on its index and on ``num_particles``, not on ``batch_size``.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        num_particles: number of particles per observation, K.
        **options: batch_size, seed, compile, device and progress, as all questions take them
            (:class:`pyrovae.Options`).

    Returns:
        Tensor ``[K, N]`` on the CPU.

    Example:
        Under the exact posterior every log weight is log p(x).

        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> x = torch.ones(7, 5)
        >>> weights = log_weights(model, guides.Exact(model), x, num_particles=3, progress=False)
        >>> weights.allclose(model.log_evidence(x).expand(3, 7), atol=1e-4)
        True

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers.
    """
    num_particles = at_least("num_particles", num_particles, 1)
    with ask(model, guide, data, takes_weights=True, **options) as question:
        parts = stream(question, num_particles, "log weights")
        return torch.cat([part.cpu() for _, part in parts], dim=1)


def stream(question: Question, num_particles: int, label: str | None = None) -> Iterator[tuple[range, Tensor]]:
    """Iterate over batches: the data's indices and their log weights ``[K, len(indices)]``.

    Raises:
        ValueError: when a log weight is not a number, naming the site and the observation.
    """
    weigher = Weigher(question, chunks(num_particles))
    with question.bar(label) as bar, pyro.validation_enabled(False):
        for indices, batch in question.data.batches(question.batch_size):
            weights = weigher(indices, batch)
            if not bool((weights < math.inf).all()):  # NaN is not below infinity
                question.name_what_is_not_finite(indices, batch, num_particles)
            impossible = (weights == -math.inf).all(0)
            if bool(impossible.any()):
                observation = indices[int(impossible.nonzero()[0])]
                raise ValueError(
                    f"no particle of observation {observation} has positive density: the model gives it none"
                )
            yield indices, weights
            bar.update(len(indices))


class Weigher:
    """Computes log weights, a chunk of data and particles at a time, eagerly or compiled.

    Args:
        question: the pair and its data.
        parts: parts of each observation's particles: the first particle and the number of them.
    """

    def __init__(self, question: Question, parts: list[tuple[int, int]]) -> None:
        self.question, self.parts = question, parts
        self.batch_size = min(question.batch_size, len(question.data))
        self.chunks = len(parts) * -(-len(question.data) // self.batch_size)
        self.runner = Runner(question.compile, "a chunk of log weights", question.progress)
        self._once: bool | None = None  # whether the guide broadcasts over particles
        self._draws: dict[Any, list[Draw]] = {}  # of each compiled chunk, whose random numbers are inputs
        self._batches: dict[Any, list[Batch]] = {}

    @functools.cached_property
    def _state(self) -> State:
        return program_state(self.question.pair.modules.values())

    def __call__(self, indices: range, batch: Batch) -> Tensor:
        """Return log weights ``[K, len(indices)]``."""
        missing = self.batch_size - len(indices) if self.runner.chosen and self._draws else 0
        if missing > 0:  # the last batch, made as long as the others
            batch = tuple(torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in batch)
        seeds = [*indices, *[indices[-1]] * max(missing, 0)]
        noise = DatumNoise("particles", self.question.seed, seeds, self.question.data.device)
        weights = [self._chunk(batch, noise, repeats) for _, repeats in self.parts]
        return torch.cat(weights)[:, : len(indices)]

    def _chunk(self, batch: Batch, noise: DatumNoise, repeats: int) -> Tensor:
        if self.runner.chosen is None:
            self._decide(batch)
        key = repeats, signature(batch)
        if self.runner.holds(key) or len(batch[0]) == self.batch_size:
            function = self.runner.function(
                key, lambda: self._compiled(key, batch, repeats), lambda f: self._agrees(f, key, batch, repeats)
            )
            if function is not None:
                weights: Tensor = function(*self._inputs(batch, noise, self._draws[key], repeats))[0]
                return weights
        with other_lengths_explained(self.question.layout, len(batch[0]) * repeats):
            return self._weights(batch, noise, repeats)

    def _decide(self, batch: Batch) -> None:
        """Count the work of a chunk from that of one particle per observation, with noise that is thrown away."""
        counted = Counted()
        with same_streams(batch[0].device):
            self._weights(batch, counted, 1)
        self.runner.decide(counted.work.times(1, rows=self.parts[0][1]), self.chunks, batch[0].device)

    def _compiled(self, key: Any, batch: Batch, repeats: int) -> Function:
        """Compile a chunk, with its random numbers as inputs."""
        state, size, columns = self._state, len(self._state.leaves), len(batch)
        draws: list[Draw] = []

        def pure(*tensors: Tensor) -> list[Tensor]:
            rows, numbers = tensors[size : size + columns], tensors[size + columns :]
            with state.replaced(tensors[:size]):
                return [self._weights(rows, Given(draws, numbers), repeats)]

        trial = self._trial(batch)
        trial.record = draws
        try:
            self._weights(batch, trial, repeats)
        except ValueError as error:
            raise CannotCompile(str(error)) from error
        self._draws[key], self._batches[key] = draws, []
        return compiled(pure, self._inputs(batch, self._trial(batch), draws, repeats))

    def _trial(self, batch: Batch) -> DatumNoise:
        return DatumNoise("particles", self.question.seed, range(len(batch[0])), batch[0].device)

    def _inputs(self, batch: Batch, noise: DatumNoise, draws: list[Draw], repeats: int) -> list[Tensor]:
        self._arrange(noise, repeats)
        return [*self._state.values, *batch, *(noise.numbers(draw) for draw in draws)]

    def _agrees(self, function: Function, key: Any, batch: Batch, repeats: int) -> bool | None:
        """Whether compiled weights are equal to the eager ones; None for a batch that was compared already."""
        if any(all(map(torch.equal, batch, other)) for other in self._batches[key]):
            return None
        self._batches[key].append(batch)
        expected = self._weights(batch, self._trial(batch), repeats)
        weights = function(*self._inputs(batch, self._trial(batch), self._draws[key], repeats))
        return agree(weights, [expected], tolerance(expected))

    def _weights(self, batch: Batch, noise: Any, repeats: int) -> Tensor:
        """Return log weights ``[repeats, len(batch[0])]``."""
        pair, size = self.question.pair, len(batch[0])
        rows = repeated(batch, repeats)
        if repeats > 1 and self._once is None:
            trial = self._trial(batch)
            trial.repeats, trial.outer = 1, repeats
            with trial:
                self._once = broadcasts(pair.guide, batch, repeats, self.question.layout.nesting)
        self._arrange(noise, repeats)
        with noise, Repeated():
            if repeats == 1 or not self._once:
                model_trace, guide_trace = pair.traces(rows)
                weight = log_density(model_trace, len(rows[0])) - log_density(guide_trace, len(rows[0]))
                return weight.unflatten(0, (size, repeats)).T
            particles = guide_once(pair.guide, batch, repeats, self.question.layout.nesting)
            log_q = density_once(particles, repeats, size)
            model_trace = pair.against(flattened(particles), rows)
        return log_density(model_trace, len(rows[0])).unflatten(0, (size, repeats)).T - log_q

    def _arrange(self, noise: Any, repeats: int) -> None:
        if isinstance(noise, DatumNoise):
            apart = repeats > 1 and bool(self._once)
            noise.repeats, noise.outer = (1, repeats) if apart else (repeats, 0)
