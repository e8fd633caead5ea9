"""A guide run once per observation, under a plate of particles, where this leaves the density of its draws the same."""

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.programs.compilation import agree, tolerance
from pyrovae.programs.densities import PARTICLES, log_density
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.sites import data_frames, sample_sites
from pyrovae.programs.types import Batch, Program, Trace


def guide_once(guide: Program, batch: Batch, repeats: int, nesting: int) -> Trace:
    """Run a guide under a plate of ``repeats`` particles, left of ``nesting`` plates of its own."""
    with pyro.plate(PARTICLES, repeats, dim=-1 - nesting):
        trace: Trace = poutine.trace(guide).get_trace(*batch)
    return trace


def density_once(trace: Trace, repeats: int, size: int) -> Tensor:
    """Return log q of such a trace, ``[repeats, size]``, in nats."""
    log_q = torch.zeros(())
    for _, site in sample_sites(trace):
        log_prob = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
        middle = tuple(range(1, log_prob.dim() - 1))
        log_q = log_q + (log_prob.sum(middle) if middle else log_prob)
    return log_q.expand(repeats, size)


def flattened(trace: Trace) -> Trace:
    """Return the draws of such a trace with each observation repeated, its particles next to each other."""
    flat = poutine.Trace()  # of latents alone: the data plate is longer here
    for name, site in sample_sites(trace):
        value = site["value"].expand(site["fn"].shape())
        data_dim = value.dim() - 1 - site["fn"].event_dim
        value = value.movedim(0, data_dim).flatten(data_dim - 1, data_dim)
        own = max(-frame.dim for frame in data_frames(site) if frame.name != PARTICLES)
        value = value.reshape(value.shape[max(data_dim - own, 0) :])  # without the plates that only other sites have
        flat.add_node(name, **{**site, "value": value})
    return flat


def repeated(batch: Batch, repeats: int) -> Batch:
    """Return a batch in which each observation is repeated ``repeats`` times in a row."""
    return tuple(t.repeat_interleave(repeats, dim=0) for t in batch)


def broadcasts(guide: Program, batch: Batch, repeats: int, nesting: int) -> bool:
    """Whether a guide run once, under a plate of particles, does the same as one run with each observation repeated.

    Draws of the first way are scored in the second way: every draw must have the same density.
    """
    rows = repeated(batch, repeats)
    try:
        with same_streams(batch[0].device), Repeated(), torch.no_grad():
            trace = guide_once(guide, batch, repeats, nesting)
            log_q = density_once(trace, repeats, len(batch[0]))
            replay = poutine.replay(guide, trace=flattened(trace))
            expected = log_density(poutine.trace(replay).get_trace(*rows), len(rows[0]))
    except Exception:  # of any kind: the guide cannot be run under the plate, but it can be run as it was written
        return False
    return agree([log_q], [expected.unflatten(0, log_q.T.shape).T], tolerance(log_q))
