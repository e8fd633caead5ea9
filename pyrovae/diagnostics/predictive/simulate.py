"""Data that the model simulates, together with the latents that they came from."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import pyro
import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.data import Data, as_data
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.question import Question, ask
from pyrovae.importance.simulation import simulated
from pyrovae.mcmc.coordinates import PriorGuide
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import site_rows, with_holes
from pyrovae.programs.streams import generator
from pyrovae.programs.types import Program


@dataclass(frozen=True)
class Simulation:
    """S draws (z, x) of the model.

    Attributes:
        data: x and the other inputs of the model, as a set of S observations. Values that are missing in the template
            are missing here, too. Cells that the model masks keep the template's values.
        latents: z by site, ``[S, plates, ..., event]``.
        seen: the tensors of a batch with all S rows, NaN where the model masks them.
        observed: positions in a batch of the tensors that the model observes.
    """

    data: Data
    latents: dict[str, Tensor]
    seen: tuple[Tensor, ...]
    observed: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.data)

    def part(self, chosen: slice) -> "Simulation":
        """Return some of the draws."""
        latents = {name: z[chosen] for name, z in self.latents.items()}
        return Simulation(self.data.subset(chosen), latents, tuple(t[chosen] for t in self.seen), self.observed)


@shared_keywords(batch_size=8 * BATCH_SIZE)
def simulate(
    model: Program,
    data: Any,
    *,
    num_simulations: int | None = None,
    **options: Unpack[Options],
) -> Simulation:
    """Draw latents and data from the model: z ~ p(z), x ~ p(x | z).

    Args:
        model: generative program ``model(*batch)``.
        data: a tensor, a tuple of tensors, or a data set, as a template: its shapes, its covariates and the positions
            of its missing values are used, and observed values are replaced. All rows are used equally often, up to a
            difference of one; the extra rows are chosen at random.
        num_simulations: number of simulations S; None: as many as there are data.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a model that breaks the contract, bad data or bad numbers, or an observation that is not a
            tensor of the batch.

    Example:
        >>> from pyrovae import models
        >>> made = simulate(models.LinearGaussian(2, 5), torch.zeros(1, 5), num_simulations=7, progress=False)
        >>> made.latents["z"].shape, made.data.batch(slice(0, 7))[0].shape
        (torch.Size([7, 2]), torch.Size([7, 5]))
    """
    template = as_data(data, model).fixed().numbered(assumed=True)
    count = len(template) if num_simulations is None else at_least("num_simulations", num_simulations, 1)
    template = template.subset(_rows(len(template), count, options["seed"]))
    batches: list[tuple[Tensor, ...]] = []
    observations: list[tuple[Tensor, ...]] = []
    latents: dict[str, list[Tensor]] = {}
    with (
        ask(model, PriorGuide(model), template, **options) as question,
        pyro.validation_enabled(False),
        question.bar("simulate") as bar,
    ):
        for indices, batch in question.data.batches(question.batch_size):
            noise = partial(DatumNoise, "simulation", question.seed, indices, question.data.device)
            new_batch, trace = simulated(question, batch, noise)
            batches.append(tuple(t.cpu() for t in question.pair.given(new_batch)))
            observations.append(tuple(t.cpu() for t in question.pair.given(_seen(question, new_batch, trace))))
            for name in question.layout.latents:
                latents.setdefault(name, []).append(site_rows(trace.nodes[name]).cpu())
            bar.update(len(indices))
    tensors, whole = (tuple(torch.cat(parts) for parts in zip(*rows, strict=True)) for rows in (batches, observations))
    dataset = Data(*(field.with_values(t) for field, t in zip(template.fields, tensors, strict=True)))
    assert template.numbers is not None
    dataset.numbers, dataset.assumed = template.numbers.cpu(), template.assumed
    observed = tuple(sorted({site.required_reading().source for site in question.layout.observed}))
    return Simulation(dataset, {name: torch.cat(parts) for name, parts in latents.items()}, whole, observed)


def _rows(size: int, count: int, seed: int) -> Tensor:
    """Return row numbers of the template: whole rounds in its order, then a random subset in its order."""
    rounds, rest = divmod(count, size)
    part = torch.randperm(size, generator=generator("rows of the template", seed), device="cpu")[:rest].sort().values
    return torch.cat([torch.arange(size, device="cpu").repeat(rounds), part])


def _seen(question: Question, batch: tuple[Tensor, ...], trace: Any) -> tuple[Tensor, ...]:
    """Return a batch with NaN where the model masks the tensors that it observes."""
    for site in question.layout.observed:
        if site.reading is not None:
            batch = site.reading.into(batch, with_holes(trace.nodes[site.name], site.reading.of(batch)))
    return batch
