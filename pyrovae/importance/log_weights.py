"""Log weights log p(x, z) - log q(z | x), streamed over data and particles in fixed chunks.

A guide that is seen to broadcast over particles is run once a datum rather than once a particle, and a chunk may run
compiled; the random numbers are those of :mod:`pyrovae.importance.particles` either way.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.common.checks import at_least
from pyrovae.common.progress import progress_bar
from pyrovae.importance.particles import BATCH_SIZE, chunks, other_lengths_explained
from pyrovae.importance.question import Question, question
from pyrovae.programs.broadcast import broadcasts, density_once, flattened, guide_once, repeated, tolerance
from pyrovae.programs.compilation import (
    CannotCompile,
    Choice,
    Counted,
    Function,
    State,
    agree,
    check_mode,
    compiled,
    signature,
)
from pyrovae.programs.densities import log_density
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.noise import DatumNoise, Draw, Given
from pyrovae.programs.types import Program

CHECKS = 2  # of compiled log weights against eager ones


def log_weights(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_particles: int,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    compile: bool | str = "auto",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Tensor:
    """Return log p(x, z) - log q(z | x) of particles z ~ q(z | x), ``[K, N]``, in nats per datum.

    Every subsample or annealing scale is removed and every mask kept. The numbers of a datum depend on ``seed``, on its
    index and on ``num_particles``, not on ``batch_size``.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        num_particles: K.
        batch_size: data held by a call of the programs, each with up to 256 particles at once.
        seed: of the particles.
        compile: whether the programs are traced once and compiled; "auto" does so where it saves more time than it
            costs. The random numbers are the same.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

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
    batch_size = at_least("batch_size", batch_size, 1)
    check_mode(compile)
    with question(model, guide, data, seed=seed, device=device) as asked:
        label = "log weights" if progress else None
        parts = stream(asked, num_particles, batch_size, label, compile)
        return torch.cat([part.cpu() for _, part in parts], dim=1)


def stream(
    asked: Question,
    num_particles: int,
    batch_size: int = BATCH_SIZE,
    progress: str | None = None,
    compile: bool | str = False,
) -> Iterator[tuple[range, Tensor]]:
    """Iterate over batches: the data's indices and their log weights ``[K, len(indices)]``.

    Raises:
        ValueError: when a log weight is not a number, naming the site and the datum.
    """
    weigher = Weigher(asked, compile, chunks(num_particles), batch_size, progress)
    bar = progress_bar(total=len(asked.data), label=progress, unit="data")
    with bar, pyro.validation_enabled(False):
        for indices, batch in asked.data.batches(batch_size):
            weights = weigher(indices, batch)
            if not bool((weights < math.inf).all()):  # NaN is not below infinity
                asked.name_what_is_not_finite(indices, batch, num_particles)
            impossible = (weights == -math.inf).all(0)
            if bool(impossible.any()):
                datum = indices[int(impossible.nonzero()[0])]
                raise ValueError(f"no particle of datum {datum} has positive density: the model gives it none")
            yield indices, weights
            bar.update(len(indices))


class Weigher:
    """Computes log weights, a chunk of data and particles at a time, eagerly or compiled.

    Args:
        asked: the pair and its data.
        compile: True, False or "auto".
        parts: of the particles of every datum.
        batch_size: data in a chunk.
        progress: None says nothing.
    """

    def __init__(
        self, asked: Question, compile: bool | str, parts: list[tuple[int, int]], batch_size: int, progress: str | None
    ) -> None:
        self.asked, self.parts, self.progress = asked, parts, progress
        self.batch_size = min(batch_size, len(asked.data))
        self.chunks = len(parts) * -(-len(asked.data) // self.batch_size)
        self.choice = Choice(compile, "a chunk of log weights", self._say)
        self._once: bool | None = None  # whether the guide broadcasts over particles
        self._functions: dict[Any, tuple[Function, list[Draw]]] = {}
        self._checks: dict[Any, list[tuple[Tensor, ...]]] = {}
        self._state: State | None = None

    def __call__(self, indices: range, batch: tuple[Tensor, ...]) -> Tensor:
        """Return log weights ``[K, len(indices)]``."""
        missing = self.batch_size - len(indices) if self.choice.chosen and self._functions else 0
        if missing > 0:  # the last batch, made as long as the others
            batch = tuple(torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in batch)
        seeds = [*indices, *[indices[-1]] * max(missing, 0)]
        noise = DatumNoise("particles", self.asked.seed, seeds, self.asked.data.device)
        found = [self._chunk(batch, noise, repeats) for _, repeats in self.parts]
        return torch.cat(found)[:, : len(indices)]

    def _chunk(self, batch: tuple[Tensor, ...], noise: DatumNoise, repeats: int) -> Tensor:
        if self.choice.chosen is None:
            self._decide(batch)
        if self.choice.chosen:
            key = repeats, signature(batch)
            if key not in self._functions and len(batch[0]) == self.batch_size:
                self._compile(key, batch, repeats)
            if key in self._functions and self._checked(key, batch, repeats):
                function, draws = self._functions[key]
                weights: Tensor = function(*self._inputs(batch, noise, draws, repeats))[0]
                return weights
        with other_lengths_explained(self.asked.layout, len(batch[0]) * repeats):
            return self._weights(batch, noise, repeats)

    def _decide(self, batch: tuple[Tensor, ...]) -> None:
        """Count the work of a chunk by that of one particle a datum, with noise that is thrown away."""
        counted = Counted()
        with same_streams(batch[0].device):
            self._weights(batch, counted, 1)
        self.choice.decide(counted.work.times(1, rows=self.parts[0][1]), self.chunks, batch[0].device)

    def _compile(self, key: Any, batch: tuple[Tensor, ...], repeats: int) -> None:
        """Compile a chunk, with its random numbers as inputs."""
        modules = list(self.asked.pair.modules.values())
        self._state = self._state or program_state(modules)
        state, held, taken = self._state, len(self._state.leaves), len(batch)
        draws: list[Draw] = []

        def pure(*tensors: Tensor) -> list[Tensor]:
            rows, numbers = tensors[held : held + taken], tensors[held + taken :]
            with state.replaced(tensors[:held]):
                return [self._weights(rows, Given(draws, numbers), repeats)]

        try:
            trial = self._trial(batch)
            trial.record = draws
            try:
                self._weights(batch, trial, repeats)
            except ValueError as error:
                raise CannotCompile(str(error)) from error
            self._functions[key] = compiled(pure, self._inputs(batch, self._trial(batch), draws, repeats)), draws
            self._checks[key] = []
        except CannotCompile as error:
            self._give_up(error)

    def _trial(self, batch: tuple[Tensor, ...]) -> DatumNoise:
        return DatumNoise("particles", self.asked.seed, range(len(batch[0])), batch[0].device)

    def _inputs(self, batch: tuple[Tensor, ...], noise: DatumNoise, draws: list[Draw], repeats: int) -> list[Tensor]:
        assert self._state is not None
        self._arrange(noise, repeats)
        return [*self._state.values, *batch, *(noise.numbers(draw) for draw in draws)]

    def _checked(self, key: Any, batch: tuple[Tensor, ...], repeats: int) -> bool:
        """See that compiled weights are the eager ones, on the batch that they were traced with and on another."""
        checked = self._checks[key]
        if len(checked) == CHECKS or any(all(map(torch.equal, batch, other)) for other in checked):
            return True
        checked.append(batch)
        function, draws = self._functions[key]
        expected = self._weights(batch, self._trial(batch), repeats)
        if agree(function(*self._inputs(batch, self._trial(batch), draws, repeats)), [expected], tolerance(expected)):
            return True
        self._give_up(CannotCompile("compiled, its log weights differ from those computed eagerly"))
        return False

    def _give_up(self, error: CannotCompile) -> None:
        if self.choice.mode is True:
            warnings.warn(f"compile=True, but the programs run eagerly: {error}", stacklevel=2)
        self._functions.clear()
        self.choice.give_up(str(error))

    def _weights(self, batch: tuple[Tensor, ...], noise: Any, repeats: int) -> Tensor:
        """Return log weights ``[repeats, len(batch[0])]``."""
        pair, size = self.asked.pair, len(batch[0])
        rows = repeated(batch, repeats)
        if repeats > 1 and self._once is None:
            trial = self._trial(batch)
            trial.repeats, trial.outer = 1, repeats
            with trial:
                self._once = broadcasts(pair.guide, batch, repeats, self.asked.layout.nesting)
        self._arrange(noise, repeats)
        with noise, Repeated():
            if repeats == 1 or not self._once:
                model_trace, guide_trace = pair.traces(rows)
                weight = log_density(model_trace, len(rows[0])) - log_density(guide_trace, len(rows[0]))
                return weight.unflatten(0, (size, repeats)).T
            particles = guide_once(pair.guide, batch, repeats, self.asked.layout.nesting)
            log_q = density_once(particles, repeats, size)
            model_trace = pair.against(flattened(particles), rows)
        return log_density(model_trace, len(rows[0])).unflatten(0, (size, repeats)).T - log_q

    def _arrange(self, noise: Any, repeats: int) -> None:
        if isinstance(noise, DatumNoise):
            apart = repeats > 1 and bool(self._once)
            noise.repeats, noise.outer = (1, repeats) if apart else (repeats, 0)

    def _say(self, line: str) -> None:
        if self.progress is not None:
            tqdm.write(line)


def program_state(modules: list[torch.nn.Module]) -> State:
    """Return what the programs read: their modules' tensors, and the bare parameters in the store."""
    owned = {id(p) for module in modules for p in module.parameters()}
    store = pyro.get_param_store().get_state()
    bare = {name: value for name, value in store["params"].items() if id(value) not in owned}
    return State(modules, bare, {name: store["constraints"][name] for name in bare})
