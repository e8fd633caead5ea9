"""A question put to a pair: programs and data, read and checked, on the device."""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.common.progress import progress_bar
from pyrovae.data import Data, as_data
from pyrovae.importance.options import BATCH_SIZE
from pyrovae.importance.particles import (
    Particles,
    chunks,
    non_finite_site,
    other_lengths_explained,
)
from pyrovae.importance.reading import read
from pyrovae.programs.densities import log_density
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.isolation import bare_params, default_device, isolated, placed
from pyrovae.programs.layout import Layout
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.types import Program
from pyrovae.tables import Encoding


@dataclass(frozen=True)
class Question:
    """A pair and the data of the question, read and checked, on the device.

    Attributes:
        pair: pair of the programs.
        data: data that the question is about.
        layout: layout of the pair.
        seed: seed of all draws.
        batch_size: number of observations per call of the programs.
        compile: True, False or "auto".
        progress: whether to show progress bars.
        seen: properties of the model that this question has seen to hold, by name.
    """

    pair: Pair
    data: Data
    layout: Layout
    seed: int
    batch_size: int = BATCH_SIZE
    compile: bool | str = False
    progress: bool = False
    seen: set[str] = field(default_factory=set, compare=False)

    def bar(self, label: str | None, *, total: int | None = None, unit: str = "data") -> Any:
        """Return a progress bar, by default over the data; None as a label shows none."""
        shown = label if self.progress else None
        return progress_bar(total=len(self.data) if total is None else total, label=shown, unit=unit)

    def particles(self, num_particles: int, label: str | None = None) -> Iterator[Particles]:
        """Draw particles for every observation, batch by batch, at most ``PARTICLES_PER_CALL`` per observation at once.

        Args:
            num_particles: number of particles per observation.
            label: label of the progress bar; None shows none.

        Raises:
            ValueError: when a log weight is not a number, naming the site and the observation.
        """
        with self.bar(label) as bar, pyro.validation_enabled(False):
            for indices, batch in self.data.batches(self.batch_size):
                noise = DatumNoise("particles", self.seed, indices, self.data.device)
                for start, repeats in chunks(num_particles):
                    yield self._draw(indices, batch, noise, start, repeats)
                bar.update(len(indices))

    def name_what_is_not_finite(self, indices: range, batch: tuple[Tensor, ...], num_particles: int) -> None:
        """Draw a batch's particles again, and raise an error that names the observation and the site."""
        noise = DatumNoise("particles", self.seed, indices, self.data.device)
        for start, repeats in chunks(num_particles):
            self._draw(indices, batch, noise, start, repeats)
        raise ValueError(f"a log weight of data {indices[0]} to {indices[-1]} is not a finite number")

    def _draw(
        self, indices: range, batch: tuple[Tensor, ...], noise: DatumNoise, start: int, repeats: int
    ) -> Particles:
        rows = tuple(t.repeat_interleave(repeats, dim=0) for t in batch)
        noise.repeats = repeats
        with other_lengths_explained(self.layout, len(rows[0])), noise, Repeated():
            model_trace, guide_trace = self.pair.traces(rows)
        if not self.layout.summed:  # sites that are summed out are one site together with what observes them
            self.layout.require_sites(name for name, _ in sample_sites(model_trace))
        size = len(indices) * repeats
        weight = log_density(model_trace, size) - log_density(guide_trace, size)
        weight = weight.unflatten(0, (len(indices), repeats)).T
        bad = (weight.isnan() | (weight == math.inf)).any(0)
        if bool(bad.any()):
            observation = indices[int(bad.nonzero()[0])]
            site = non_finite_site(model_trace, guide_trace)
            raise ValueError(
                f"the log weight of observation {observation} is not a finite number, first at site {site!r}: the "
                "program returns NaN or infinity there"
            )
        return Particles(indices, start, rows, model_trace, guide_trace, weight)


@contextmanager
def ask(
    model: Program,
    guide: Program,
    data: Any,
    *,
    seed: int,
    device: Any,
    batch_size: int = BATCH_SIZE,
    compile: bool | str = False,
    progress: bool = False,
    takes_weights: bool = False,
) -> Iterator[Question]:
    """Read a pair and data for a question per observation: eval mode, no gradients, all global state put back.

    Data with a random protocol (dynamic binarisation) are drawn once, the same for every pair and seed. Bare
    parameters of plain functions are read from the caller's param store.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set.
        seed: seed of all draws.
        device: device to run on; None means CUDA where there is one.
        batch_size: number of observations per call of the programs.
        compile: True, False or "auto".
        progress: whether to show progress bars.
        takes_weights: whether the question is about each observation by itself, or weights its means; any other
            question refuses data with survey weights.

    Raises:
        ValueError: for a pair that breaks the contract, or data that the pair or the question cannot take.
    """
    pair = Pair(model, guide)
    device = default_device(device)
    data = placed_data(pair, data, device).fixed().numbered(assumed=True)
    if not takes_weights:
        refuse_weights(data)
    modules = list(pair.modules.values())
    with ExitStack() as stack:
        stack.enter_context(placed(pair.all_modules, device))
        stack.enter_context(
            isolated(
                purpose="question",
                seed=seed,
                device=device,
                modules=pair.all_modules,
                training=False,
                params=bare_params(device, modules),
            )
        )
        stack.enter_context(torch.no_grad())
        layout = read(pair, data)
        layout.require_per_datum()
        _name_what_is_left_out(layout)
        yield Question(pair.numbered(layout), data, layout, seed, batch_size, compile, progress)


def refuse_weights(data: Data) -> None:
    """Refuse data with survey weights, for a question that takes means over them without.

    Raises:
        ValueError: saying what to ask about instead.
    """
    if data.weights is not None:
        raise ValueError(
            "the data carry survey weights, which this question does not take: ask about data.sampled(count), rows "
            "drawn by their weights, which stand for the population, or about data.unweighted(), the sample as it is"
        )


def _name_what_is_left_out(layout: Layout) -> None:
    if layout.factors:
        warnings.warn(
            f"pyro.factor {', '.join(map(repr, layout.factors))} counts in training, and is left out of what is "
            "computed per observation: it is no density of data",
            stacklevel=4,
        )


def placed_data(pair: Pair, data: Any, device: torch.device, encoding: Encoding | None = None) -> Data:
    """Return the data as a set on ``device``, floating tensors in the dtype of the pair's parameters.

    A table is read as ``encoding`` says, or, where that is None, as the table was that the pair was fitted to.

    Raises:
        ValueError: for data that :func:`as_data` refuses, for no data, and for data whose spread is lost in that dtype.
    """
    parameters = [p for module in pair.modules.values() for p in module.parameters() if p.is_floating_point()]
    dtype = parameters[0].dtype if parameters else None
    data_set = as_data(data, pair.model, pair.guide, encoding=encoding).to(device, dtype)
    if not len(data_set):
        raise ValueError(
            "the data set is empty, as a part of splits can be if its share is less than one observation: "
            "give more data"
        )
    if dtype is not None:
        data_set.see_that_rounding_is_harmless()
    return data_set
