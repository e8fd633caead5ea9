"""Latents as unconstrained numbers, one row per observation and chain, whatever sites and supports a pair has."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyrovae.distributions.supports import of_components
from pyrovae.importance.question import Question
from pyrovae.programs.densities import log_density
from pyrovae.programs.enumeration import SUMMED
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.sites import base, counted, is_enumerated, outer_plates, sample_sites, support_of
from pyrovae.programs.types import Batch, Program, Site, Trace


class PriorGuide:
    """The model's own prior as a guide: it samples every latent that is not summed out, and no data.

    Args:
        model: generative program ``model(*batch)``.
    """

    def __init__(self, model: Program) -> None:
        self.model = model

    def __call__(self, *batch: Tensor) -> Any:
        """Sample the latents of every observation of the batch."""
        return poutine.block(self.model, hide_fn=lambda site: site["is_observed"] or is_enumerated(site))(*batch)


class Unconstrained(Messenger):
    """Gives latent sites the values that unconstrained numbers stand for, each through its own support.

    Attributes:
        values: values of the sites met so far, in their supports.
        log_jacobian: log |dz/du| of every row, summed over the sites met so far.

    Args:
        free: unconstrained values by site, with the site's plates.
        rows: length of the batch.
    """

    def __init__(self, free: Mapping[str, Tensor], rows: int) -> None:
        super().__init__()
        self.free, self.rows = free, rows
        self.values: dict[str, Tensor] = {}
        self.log_jacobian: Tensor | float = 0.0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.free or msg["is_observed"]:
            return
        free, to_support = self.free[msg["name"]], _bijection(msg["fn"])
        value = to_support(free)
        jacobian = to_support.log_abs_det_jacobian(free, value)
        events = jacobian.dim() - (value.dim() - msg["fn"].event_dim)
        jacobian = jacobian.flatten(-events).sum(-1) if events else jacobian
        jacobian = jacobian.flatten(0, -2).sum(0) if jacobian.dim() > 1 else jacobian
        self.log_jacobian = self.log_jacobian + jacobian.expand(self.rows)
        self.values[msg["name"]] = value
        msg["value"], msg["done"] = value, True


@dataclass(frozen=True)
class _Place:
    """Columns of a site, the shape of its numbers for one observation, and the data's dimension from the right."""

    start: int
    stop: int
    shape: tuple[int, ...]
    data_dim: int


class Coordinates:
    """The unconstrained numbers of all latents of an observation, side by side, ``[rows, dim]``.

    Args:
        question: the pair and its data.

    Raises:
        ValueError: for a latent that is discrete or has no unconstrained coordinates, naming the site.
    """

    def __init__(self, question: Question) -> None:
        self.pair = question.pair
        self._layout = question.layout
        batch = question.data.batch(slice(0, 1))
        with Repeated():
            trace = poutine.trace(self.pair.model).get_trace(*batch)
        question.layout.require_sites(name for name, _ in sample_sites(trace))
        self.plates: dict[str, list[str]] = {}  # names of the plates left of the data plate, by site
        self._places: dict[str, _Place] = {}
        self.dim = 0
        for name in question.layout.latents:
            site = trace.nodes[name]
            to_support = _to_support(name, site)
            free = to_support.inv(_whole(site))
            events = site["fn"].event_dim + to_support.domain.event_dim - to_support.codomain.event_dim
            shape = free.movedim(-1 - events, 0).shape[1:]
            self.plates[name] = outer_plates(site)
            self._places[name] = _Place(self.dim, self.dim + shape.numel(), tuple(shape), -1 - events)
            self.dim += shape.numel()

    def of(self, trace: Trace, rows: int) -> Tensor:
        """Return the latents in a trace of the model as unconstrained numbers, ``[rows, dim]``."""
        parts = []
        for name, place in self._places.items():
            site = trace.nodes[name]
            value = _whole(site)
            free = _bijection(site["fn"]).inv(value)
            if not bool(site["fn"].support.check(value).all()):
                raise ValueError(f"latent site {name!r} has a value outside its support {site['fn'].support}")
            parts.append(free.movedim(place.data_dim, 0).reshape(-1, place.stop - place.start))
        return torch.cat(parts, dim=1) if parts else torch.zeros(rows, 0)

    def held(self, trace: Trace) -> Tensor | None:
        """Return which numbers a mask of the model leaves without a density, ``[rows, dim]``; None if all have one."""
        masks = {name: counted({**trace.nodes[name], "value": _whole(trace.nodes[name])}) for name in self._places}
        if all(mask is None for mask in masks.values()):
            return None
        parts = []
        for name, place in self._places.items():
            site, mask = trace.nodes[name], masks[name]
            if mask is None:
                mask = torch.ones_like(_whole(site), dtype=torch.bool)
            to_support = _bijection(site["fn"])
            events = to_support.codomain.event_dim
            if events and to_support.domain is not to_support.codomain:  # the numbers are not the values themselves
                mask = mask.flatten(-events).all(-1)
                mask = mask.reshape(*mask.shape, *(1,) * to_support.domain.event_dim)
            shape = to_support.inv(_whole(site)).shape
            parts.append(mask.expand(shape).movedim(place.data_dim, 0).reshape(-1, place.stop - place.start))
        return ~torch.cat(parts, dim=1)

    def draw(self, rows: Batch) -> Tensor:
        """Draw from the guide, ``[rows, dim]``, in the coordinates of the model's supports.

        Raises:
            ValueError: when a draw is outside the model's support.
        """
        with Repeated():
            return self.of(self.pair.traces(rows)[0], len(rows[0]))

    def split(self, free: Tensor) -> dict[str, Tensor]:
        """Return the numbers of every site, with the dimensions that the site has."""
        return {
            name: free[:, place.start : place.stop].reshape(-1, *place.shape).movedim(0, place.data_dim)
            for name, place in self._places.items()
        }

    def joint(self, rows: Batch, free: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(z) + log |dz/du| and log p(x | z), each ``[rows]``, in nats."""
        handler, trace = self._run(rows, free)
        prior = log_density(trace, len(free), observed=False) + handler.log_jacobian
        return prior, log_density(trace, len(free), observed=True)

    def both(self, rows: Batch, free: Tensor) -> tuple[Tensor, Tensor]:
        """Return log q(z | x) + log |dz/du| and log p(x, z) + log |dz/du|, each ``[rows]``, in nats."""
        handler, trace = self._run(rows, free)
        with Repeated():
            guide_trace = poutine.trace(poutine.condition(self.pair.guide, data=handler.values)).get_trace(*rows)
        log_q = log_density(guide_trace, len(free)) + handler.log_jacobian
        return log_q, log_density(trace, len(free)) + handler.log_jacobian

    def values(self, rows: Batch, free: Tensor) -> dict[str, Tensor]:
        """Return the latents of every site in its own support, ``[rows, ...]``; further plates come after the rows."""
        handler, trace = self._run(rows, free)
        return {
            name: value.movedim(value.dim() - 1 - trace.nodes[name]["fn"].event_dim, 0)
            for name, value in handler.values.items()
        }

    def _run(self, rows: Batch, free: Tensor) -> tuple[Unconstrained, Trace]:
        """Run the model at unconstrained latents."""
        handler = Unconstrained(self.split(free), len(free))
        with Repeated(), handler:
            trace = self.pair.density(self.pair.model, rows)
        if not self._layout.summed:
            self._layout.require_sites(name for name, _ in sample_sites(trace))
        return handler, trace


def _whole(site: Site) -> Tensor:
    value: Tensor = site["value"]
    return value if site["infer"].get(SUMMED) else value.expand(site["fn"].batch_shape + site["fn"].event_shape)


def _to_support(name: str, site: Site) -> Any:
    support = support_of(site["fn"])
    advice = "estimate its evidence by importance sampling (evaluate), which takes it as it is"
    if support is None:
        raise ValueError(
            f"latent site {name!r} has a prior, a {type(base(site['fn'])).__name__}, that does not say its support: "
            f"give that class a support, or {advice}"
        )
    if support.is_discrete:
        raise ValueError(
            f"latent site {name!r} is discrete, and cannot be moved along a gradient: sum it out in the model, or "
            f"{advice}"
        )
    if not isinstance(base(site["fn"]), torch.distributions.VonMises):  # torch names the real line as its support
        with contextlib.suppress(NotImplementedError):
            return _bijection(site["fn"])
        kind = f"support {support}"
    else:
        kind = "a circle for its support"
    raise ValueError(f"latent site {name!r} has {kind}, which has no unconstrained coordinates: {advice}")


def _bijection(fn: Any) -> Any:
    return biject_to(of_components(fn.support))
