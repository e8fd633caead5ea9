"""The contract: a generative program and a recognition program, read through effect handlers.

A *pair* is two callables of the same batch, ``model(*batch)`` and ``guide(*batch)``. One ``pyro.plate`` over the data,
at dim -1 and as long as the batch, holds every local latent and every observed site. Everything here works on any such
pair, whoever wrote it; no base class is needed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyrovae.internals.pyro import mask_of
from pyrovae.programs.enumeration import SUMMED
from pyrovae.programs.types import Site

GIVEN = "_given"


def data_frames(site: Site) -> list[Any]:
    """Return the vectorised plates around a site."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def outer_plates(site: Site) -> list[str]:
    """Return the names of the plates left of the data plate, from the left."""
    return [str(frame.name) for frame in sorted(data_frames(site), key=lambda frame: frame.dim) if frame.dim < -1]


def sample_sites(trace: Any) -> Iterator[tuple[str, Site]]:
    """Iterate over a trace's sample sites, without those of no density (subsampling, deterministic values, factors)."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic") and not site_is_subsample(site):
            if not is_factor(site) and not site["infer"].get(SUMMED):
                yield name, site


def density_sites(trace: Any) -> Iterator[Site]:
    """Iterate over a trace's sample sites, including factors and deterministic values, without subsampling."""
    return (site for site in trace.nodes.values() if site["type"] == "sample" and not site_is_subsample(site))


def base(fn: Any) -> Any:
    """Return the distribution inside all wrappers (events, masks, expansions)."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def is_factor(site: Site) -> bool:
    """Whether a site is a ``pyro.factor``: a term of the training loss, and no density of anything."""
    return isinstance(base(site["fn"]), Unit)


def beside_densities(site: Site, role: str) -> bool:
    """Whether a sample site of a program counts only in training: a factor, or what a guide observes."""
    return is_factor(site) or (role == "guide" and bool(site["is_observed"]))


def hidden_from_questions(site: Site, role: str) -> bool:
    """Whether a sample site is no part of densities per observation: it counts only in training or is deterministic."""
    deterministic = bool(site["infer"].get("_deterministic")) and site["is_observed"]
    return not site_is_subsample(site) and (deterministic or beside_densities(site, role))


class Released(Messenger):
    """Draws anew what a model observes, as ``poutine.uncondition`` does, except deterministic values.

    What the model was to observe is kept in the site's ``infer``, by the name :data:`GIVEN`.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            msg["infer"] = {**msg["infer"], GIVEN: msg["value"]}
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def released(program: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model that observes nothing and draws its data."""
    simulator: Callable[..., Any] = Released()(program)
    return simulator


def is_enumerated(site: Site) -> bool:
    """Whether a latent is marked to be summed out."""
    marked = site["infer"].get("enumerate") == "parallel" and not site["infer"].get("num_samples")
    marked = marked and not site["is_observed"]
    return marked and not site_is_subsample(site) and bool(site["fn"].has_enumerate_support)


def support_of(fn: Any) -> Constraint | None:
    """Return a distribution's support; None where it does not declare one."""
    try:
        support = fn.support
    except (NotImplementedError, AttributeError):
        return None
    return support if isinstance(support, Constraint) else None


def is_discrete(fn: Any) -> bool:
    """Whether a distribution is over discrete values; one without a support is taken to be continuous."""
    support = support_of(fn)
    return support is not None and bool(support.is_discrete)


def counted(site: Site) -> Tensor | None:
    """Return which cells of a site's value its density counts, in the shape of the value; None for all of them.

    Pyro masks a site (``poutine.mask``) or a distribution (``.mask``); distributions of pyrovae mask their columns.
    """
    fn, value = site["fn"], site["value"]
    masks = [(site["mask"], fn.event_dim)]
    while hasattr(fn, "base_dist"):
        own = getattr(fn, "mask_of", mask_of(fn))
        masks.append((own, fn.event_dim))
        fn = fn.base_dist
    joint: Tensor | None = None
    for mask, events in masks:
        if mask is None or mask is True:
            continue
        cells = torch.as_tensor(mask, device=value.device).bool()
        cells = cells.reshape(cells.shape + (1,) * events)
        joint = cells if joint is None else joint & cells
    if joint is None:
        return None
    while joint.dim() > value.dim():  # along enumerated dimensions a mask is the same
        joint = joint[0]
    return joint.expand(value.shape)


def as_observed(site: Site, drawn: Tensor, data: Tensor) -> Tensor:
    """Return draws of a site that miss what the data miss: masked cells, NaN, labels that are -1."""
    fn = site["fn"]
    while not hasattr(fn, "as_observed") and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    values: Tensor = fn.as_observed(drawn, data) if hasattr(fn, "as_observed") else drawn
    if data.is_floating_point():
        values = torch.where(data.isnan(), data, values)
    cells = counted(site)
    return values if cells is None else torch.where(cells.expand(values.shape), values, data)


def with_holes(site: Site, value: Tensor) -> Tensor:
    """Return values of a site as floating numbers, NaN where its mask leaves them out or its distribution says so.

    Values of a site that can leave out none are returned as they are.
    """
    cells, fn = counted(site), site["fn"]
    while not hasattr(fn, "missing_in") and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if hasattr(fn, "missing_in"):
        cells = ~fn.missing_in(value) if cells is None else cells & ~fn.missing_in(value)
    if cells is None:
        return value
    value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    return torch.where(cells.expand(value.shape), value, torch.nan)


def site_rows(site: dict[str, Any]) -> Tensor:
    """Return a local site's values as ``[rows, ...]``; plates left of the data plate come next."""
    value: Tensor = site["value"]
    if not site["infer"].get(SUMMED):  # such a site's distribution has more dimensions, for what is summed out
        value = value.expand(site["fn"].batch_shape + site["fn"].event_shape)
    return value.movedim(value.dim() - 1 - site["fn"].event_dim, 0)
