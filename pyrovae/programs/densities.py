"""Log densities of a trace, per observation and in nats: every scale removed, every mask kept."""

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.programs.sites import data_frames, density_sites, sample_sites
from pyrovae.programs.types import Site, Trace

PARTICLES = "num_particles_vectorized"  # Pyro's plate of particles


def per_datum(site: Site, num_data: int) -> Tensor:
    """Return the site's log density per observation, ``[num_data]``: every scale removed, every mask kept, in nats.

    Plates to the left of the data plate are summed over; Pyro's plate of particles is averaged over.
    """
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    log_prob = scale_and_mask(log_prob, mask=site["mask"])
    particles = [frame.size for frame in data_frames(site) if frame.name == PARTICLES]
    if log_prob.dim() > 1:
        log_prob = log_prob.flatten(0, -2).sum(0)
    return log_prob.expand(num_data) / (particles[0] if particles else 1)


def plate_size(trace: Any, plate: str) -> int:
    """Return the full size of the data plate in a trace: the batch's length, or more where the program subsamples."""
    frame = next(f for site in density_sites(trace) for f in data_frames(site) if f.name == plate)
    return int(frame.full_size or frame.size)


def log_density(trace: Any, num_data: int, *, observed: bool | None = None) -> Tensor:
    """Return the trace's log density per observation, ``[num_data]``, in nats.

    Args:
        trace: trace of a model or a guide.
        num_data: length of the batch.
        observed: whether to count only observed sites (True), only latent ones (False), or both (None).
    """
    total: Tensor | None = None
    for _, site in sample_sites(trace):
        if observed is None or site["is_observed"] == observed:
            term = per_datum(site, num_data)
            total = term if total is None else total + term
    return torch.zeros(num_data) if total is None else total


def num_rows(trace: Trace, plate: str, num_data: int) -> int:
    """Return the length of the data plate in a trace: that of the batch, times the particles where it is repeated.

    It is that of the batch, ``num_data``, where a program has nothing in the plate: a guide of a model without latents.
    """
    sizes = (int(f.size) for site in density_sites(trace) for f in data_frames(site) if f.name == plate)
    return next(sizes, num_data)


def mean_density(trace: Trace, plate: str, num_data: int, *, observed: bool | None = None) -> Tensor:
    """Return the mean of :func:`log_density` over the particles that the trace holds, ``[num_data]``, in nats."""
    rows = num_rows(trace, plate, num_data)
    density = log_density(trace, rows, observed=observed)
    return density if rows == num_data else density.unflatten(0, (num_data, -1)).mean(1)
