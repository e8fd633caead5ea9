"""Particles z ~ q(z | x) and their log weights log p(x, z) - log q(z | x), streamed over data and particles.

Each observation is in its batch once per particle, so any pair that keeps the contract runs as it was written. Each
observation has its own random stream, so its numbers do not depend on its batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.common.checks import brief
from pyrovae.programs.layout import Layout
from pyrovae.programs.sites import sample_sites, site_rows

PARTICLES_PER_CALL = 256  # fixed, so that an observation's particles do not depend on the batch size


@dataclass(frozen=True)
class Particles:
    """Some particles of some data.

    Attributes:
        indices: indices of the data within the set.
        start: number of the first of these particles among all particles of an observation.
        rows: the batch, with every observation K times in a row.
        model_trace: trace of the model, whose data plate is ``len(indices) * K`` long: K particles of the first
            observation, and so on.
        guide_trace: trace of the guide, likewise.
        log_weight: log weights, ``[K, len(indices)]``, in nats.
    """

    indices: range
    start: int
    rows: tuple[Tensor, ...]
    model_trace: Any
    guide_trace: Any
    log_weight: Tensor

    def values(self, site: dict[str, Any]) -> Tensor:
        """Return a local site's values as ``[K, len(indices), ...]``; plates left of the data plate come next."""
        return site_rows(site).unflatten(0, (len(self.indices), -1)).transpose(0, 1)


@contextmanager
def other_lengths_explained(layout: Layout, length: int) -> Iterator[None]:
    """Where programs fail inside the block, say that they ran on a batch of another length."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the pair ran on a batch of {layout.num_data} data but fails on one of {length}; "
            f"programs must read the number of data from their batch: {type(error).__name__}: {brief(error)}"
        ) from error


def chunks(num_particles: int) -> list[tuple[int, int]]:
    """Split particles into calls that are as equal as possible: the first particle and the number of them."""
    size = -(-num_particles // -(-num_particles // PARTICLES_PER_CALL))
    return [(start, min(size, num_particles - start)) for start in range(0, num_particles, size)]


def non_finite_site(model_trace: Any, guide_trace: Any) -> str:
    """Return the first site, in the order of the run, with a density that is not finite for some observation."""
    for trace in (guide_trace, model_trace):
        for name, site in sample_sites(trace):
            value: Tensor = site["value"]
            finite = not value.is_floating_point() or bool(value.isfinite().all())
            log_prob = scale_and_mask(site["fn"].log_prob(value, *site["args"], **site["kwargs"]), mask=site["mask"])
            if not finite or not bool(log_prob.isfinite().all()):
                return name
    return "unknown"
