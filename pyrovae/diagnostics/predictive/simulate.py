"""Data that the model makes, together with the latents that they came from."""

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.common.progress import progress_bar
from pyrovae.data import Data, as_data
from pyrovae.importance.particles import BATCH_SIZE
from pyrovae.importance.question import Question, question
from pyrovae.importance.simulation import simulated
from pyrovae.mcmc.coordinates import PriorGuide
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import site_rows, with_holes
from pyrovae.programs.streams import check_seed, generator
from pyrovae.programs.types import Program


@dataclass(frozen=True)
class Simulation:
    """S draws (z, x) of the model.

    Attributes:
        data: x, and what the model is given beside it: a set of S data. What is missing of the template is missing
            of them; cells that the model masks hold what the template has there.
        latents: z by site, ``[S, plates, ..., event]``.
        seen: the tensors of a batch, all S rows, NaN where the model masks them.
    """

    data: Data
    latents: dict[str, Tensor]
    seen: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.data)

    def part(self, chosen: slice) -> "Simulation":
        """Return some of the draws."""
        latents = {name: z[chosen] for name, z in self.latents.items()}
        return Simulation(self.data.subset(chosen), latents, tuple(t[chosen] for t in self.seen))


def simulate(
    model: Program,
    data: Any,
    *,
    num_simulations: int | None = None,
    batch_size: int = 8 * BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Simulation:
    """Draw latents and data from the model: z ~ p(z), x ~ p(x | z).

    Args:
        model: generative program ``model(*batch)``.
        data: a tensor, a tuple of tensors, or a data set: their shapes, their covariates and which values are missing
            are taken, every row as often as another, up to once, and the rest at random; observations are replaced.
        num_simulations: S; None: as many as there are data.
        batch_size: data held by a call of the model.
        seed: of the draws.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for a model that breaks the contract, bad data or bad numbers, or an observation that is not a
            tensor of the batch.

    Example:
        >>> from pyrovae import models
        >>> made = simulate(models.LinearGaussian(2, 5), torch.zeros(1, 5), num_simulations=7, progress=False)
        >>> made.latents["z"].shape, made.data.batch(slice(0, 7))[0].shape
        (torch.Size([7, 2]), torch.Size([7, 5]))
    """
    template = as_data(data).fixed().numbered(assumed=True)
    seed = check_seed(seed)
    count = len(template) if num_simulations is None else at_least("num_simulations", num_simulations, 1)
    template = template.subset(_rows(len(template), count, seed))
    batches: list[tuple[Tensor, ...]] = []
    seen: list[tuple[Tensor, ...]] = []
    latents: dict[str, list[Tensor]] = {}
    with (
        question(model, PriorGuide(model), template, seed=seed, device=device) as asked,
        pyro.validation_enabled(False),
        progress_bar(total=count, label="simulate" if progress else None, unit="data") as bar,
    ):
        for indices, batch in asked.data.batches(batch_size):
            noise = DatumNoise("simulation", seed, indices, asked.data.device)
            made, trace = simulated(asked, batch, noise)
            batches.append(tuple(t.cpu() for t in asked.pair.given(made)))
            seen.append(tuple(t.cpu() for t in asked.pair.given(_seen(asked, made, trace))))
            for name in asked.layout.latents:
                latents.setdefault(name, []).append(site_rows(trace.nodes[name]).cpu())
            bar.update(len(indices))
    tensors, whole = (tuple(torch.cat(parts) for parts in zip(*rows, strict=True)) for rows in (batches, seen))
    made_data = Data(*tensors, image_shape=template.image_shape, missing=template.missing)
    assert template.numbers is not None
    made_data.numbers, made_data.assumed = template.numbers.cpu(), template.assumed
    return Simulation(made_data, {name: torch.cat(parts) for name, parts in latents.items()}, whole)


def _rows(size: int, count: int, seed: int) -> Tensor:
    """Return rows of the template: whole rounds of it, in its order, and a part of one drawn at random, in order."""
    rounds, rest = divmod(count, size)
    part = torch.randperm(size, generator=generator("rows of the template", seed), device="cpu")[:rest].sort().values
    return torch.cat([torch.arange(size, device="cpu").repeat(rounds), part])


def _seen(asked: Question, batch: tuple[Tensor, ...], trace: Any) -> tuple[Tensor, ...]:
    """Return a batch with NaN where the model masks what it observes."""
    found = list(batch)
    for site in asked.layout.observed:
        if site.source is not None:
            found[site.source] = with_holes(trace.nodes[site.name], batch[site.source])
    return tuple(found)
