"""What a sample site is beside its density: which cells of its value count, its support, whether it is a factor."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions.constraints import Constraint

Site = Mapping[str, Any]


def base(fn: Any) -> Any:
    """Return the distribution inside all wrappers (events, masks, expansions)."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def is_factor(site: Site) -> bool:
    """Whether a site is a ``pyro.factor``: a term of the training loss, and no density of anything."""
    return isinstance(base(site["fn"]), Unit)


def beside_densities(site: Site, role: str) -> bool:
    """Whether a sample site of a program counts in training alone: a factor, or what a guide observes."""
    return is_factor(site) or (role == "guide" and bool(site["is_observed"]))


def hidden_from_questions(site: Site, role: str) -> bool:
    """Whether a sample site has nothing to do with densities per datum: beside them, or a deterministic value."""
    deterministic = bool(site["infer"].get("_deterministic")) and site["is_observed"]
    return not site_is_subsample(site) and (deterministic or beside_densities(site, role))


class Released(Messenger):
    """Draws what a model observes anew, as ``poutine.uncondition`` does, but for deterministic values."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def released(program: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model that observes nothing, and draws its data."""
    made: Callable[..., Any] = Released()(program)
    return made


def is_enumerated(site: Site) -> bool:
    """Whether a latent is marked to be summed out."""
    marked = site["infer"].get("enumerate") == "parallel" and not site["infer"].get("num_samples")
    marked = marked and not site["is_observed"]
    return marked and not site_is_subsample(site) and bool(site["fn"].has_enumerate_support)


def support_of(fn: Any) -> Constraint | None:
    """Return a distribution's support; None where it does not say one."""
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
    """Return which cells of a site's value its density counts, in the shape of the value; None: all of them.

    Pyro masks a site (``poutine.mask``) or a distribution (``.mask``), ours their columns.
    """
    fn, value = site["fn"], site["value"]
    masks = [(site["mask"], fn.event_dim)]
    while hasattr(fn, "base_dist"):
        own = getattr(fn, "_mask", None) if hasattr(fn, "_mask") else getattr(fn, "mask_of", None)
        masks.append((own, fn.event_dim))
        fn = fn.base_dist
    found: Tensor | None = None
    for mask, events in masks:
        if mask is None or mask is True:
            continue
        cells = torch.as_tensor(mask, device=value.device).bool()
        cells = cells.reshape(cells.shape + (1,) * events)
        found = cells if found is None else found & cells
    if found is None:
        return None
    while found.dim() > value.dim():  # along what is enumerated a mask is the same
        found = found[0]
    return found.expand(value.shape)


def as_observed(site: Site, drawn: Tensor, data: Tensor) -> Tensor:
    """Return draws of a site in which is missing what is missing of the data: masked cells, NaN, labels that are -1."""
    fn = site["fn"]
    while not hasattr(fn, "as_observed") and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    found: Tensor = fn.as_observed(drawn, data) if hasattr(fn, "as_observed") else drawn
    if data.is_floating_point():
        found = torch.where(data.isnan(), data, found)
    cells = counted(site)
    return found if cells is None else torch.where(cells.expand(found.shape), found, data)


def with_holes(site: Site, value: Tensor) -> Tensor:
    """Return values of a site as floating numbers, NaN where its mask leaves them out; as they are without a mask."""
    cells = counted(site)
    if cells is None:
        return value
    value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    return torch.where(cells.expand(value.shape), value, torch.nan)
