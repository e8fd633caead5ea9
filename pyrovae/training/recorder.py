"""The traces of a pair that an objective runs, and the bound that follows from them."""

import math
from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrovae.programs.densities import PARTICLES, mean_density, num_rows, plate_size
from pyrovae.programs.handlers import Numbers, is_recorded
from pyrovae.programs.layout import Layout
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import data_frames, sample_sites
from pyrovae.programs.types import Batch, Program


class Recorded:
    """A program that keeps its traces; any other attribute is the program's own.

    Attributes:
        numbers: numbers of the observations of the batch that it runs on.
    """

    numbers: Tensor

    def __init__(self, program: Program, name: str, layout: Layout, *, register: bool) -> None:
        self.program, self.name, self.layout = program, name, layout
        self.register = register and isinstance(program, nn.Module) and not isinstance(program, PyroModule)
        self.traces: list[Any] = []

    def __call__(self, *batch: Tensor) -> Any:
        """Run the program."""
        if self.register:
            pyro.module(self.name, self.program)
        with Numbers(self.numbers, self.name, batch, self.layout):
            trace = poutine.trace(self.program).get_trace(*batch)
        if is_recorded():
            self.traces.append(trace)
        return trace.nodes["_RETURN"]["value"]

    def __getattr__(self, name: str) -> Any:
        if "program" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["program"], name)


class Recorder:
    """Runs a pair for an objective, and keeps the traces of these runs."""

    def __init__(self, pair: Pair, layout: Layout, *, register: bool) -> None:
        self.model = Recorded(pair.model, "model", layout, register=register)
        self.guide = Recorded(pair.guide, "guide", layout, register=register)

    def given(self, batch: Batch) -> Batch:
        """Return the tensors of a batch that the programs take; the numbers of its observations are set aside."""
        self.model.numbers = self.guide.numbers = batch[-1]
        return batch[:-1]

    @property
    def model_traces(self) -> list[Any]:
        """Traces of the model, in the order of its runs."""
        return self.model.traces

    @property
    def guide_traces(self) -> list[Any]:
        """Traces of the guide, in the order of its runs."""
        return self.guide.traces

    def clear(self) -> None:
        """Forget the traces."""
        self.model.traces.clear()
        self.guide.traces.clear()

    def loss_size(self, layout: Layout, num_data: int) -> int:
        """Return how many observations the summed loss stands for: all of them where the data plate subsamples."""
        trace = self.model_traces[-1]
        full = plate_size(
            trace, layout.plate
        )  # longer than the batch also where each observation stands once per particle
        return full if layout.subsampled or full != num_rows(trace, layout.plate, num_data) else num_data

    def annealed(self, layout: Layout, num_data: int) -> bool:
        """Whether a site carries another scale than that of a subsampled plate: another number, or a tensor."""
        plate = self.loss_size(layout, num_data) / num_data
        sites = [site for trace in (*self.model_traces, *self.guide_traces) for _, site in sample_sites(trace)]
        local = [layout.plate in {frame.name for frame in data_frames(site)} for site in sites]
        expected = [plate if inside else 1.0 for inside in local]
        scales = [site["scale"] for site in sites]
        return any(isinstance(s, Tensor) or abs(s - e) > 1e-6 * e for s, e in zip(scales, expected, strict=True))

    @torch.no_grad()
    def decompose(self, num_data: int, layout: Layout, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch's mean bound, reconstruction and KL in nats per observation, given the loss of a bound.

        Where latents are shared by all data or summed out, the bound is the objective's, and its parts are NaN. That
        bound is NaN too where a site carries a scale beyond the plate's.
        """
        nan = torch.full_like(loss, math.nan)
        if layout.global_latents or layout.unguided or _enumerated(self.guide_traces):
            return (nan if self.annealed(layout, num_data) else -loss), nan, nan
        plate = layout.plate
        reconstruction = _mean([mean_density(trace, plate, num_data, observed=True) for trace in self.model_traces])
        prior = _mean([mean_density(trace, plate, num_data, observed=False) for trace in self.model_traces])
        posterior = _mean([mean_density(trace, plate, num_data, observed=False) for trace in self.guide_traces])
        kl = posterior - prior
        return reconstruction - kl, reconstruction, kl


def _mean(densities: list[Tensor]) -> Tensor:
    return torch.stack(densities).mean()


def _enumerated(traces: Iterable[Any]) -> bool:
    return any(
        site["infer"].get("_enumerate_dim") is not None or _outer_dims(site)
        for trace in traces
        for _, site in sample_sites(trace)
    )


def _outer_dims(site: dict[str, Any]) -> bool:
    plates = [frame.dim for frame in data_frames(site) if frame.name != PARTICLES]
    particles = [frame.dim for frame in data_frames(site) if frame.name == PARTICLES]
    return site["value"].dim() - site["fn"].event_dim > -min([*plates, *particles, 0])
