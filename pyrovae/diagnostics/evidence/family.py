"""A guide's own family, with free parameters for every observation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import transform_to

from pyrovae.distributions.traits import reparametrised
from pyrovae.guides.guide import Guide
from pyrovae.importance.question import Question
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.modules import unwrapped
from pyrovae.programs.types import Batch, Site

Build = Callable[[list[Tensor]], dist.TorchDistribution]
_PREFERRED = {"covariance_matrix": "scale_tril", "precision_matrix": "scale_tril", "probs": "logits"}


@dataclass(frozen=True)
class Member:
    """q of every observation of a batch, one distribution per latent site.

    Attributes:
        params: free parameters, unconstrained; each has a data dimension.
        data_dims: the data dimension of each parameter, counted from the right.
        builds: for every site, the positions of its parameters in ``params``, and the function from these parameters to
            its distribution.
        masks: mask of every site, ``[..., data]``; None where there is none.
    """

    params: list[Tensor]
    data_dims: list[int]
    builds: dict[str, tuple[list[int], Build]]
    masks: dict[str, Any]

    def log_prob(self, name: str, q: dist.TorchDistribution, value: Tensor, repeats: int) -> Tensor:
        """Return a site's log density of every row, ``[rows]``, with its mask, and with further plates summed over."""
        mask = self.masks[name]
        if isinstance(mask, Tensor) and mask.dim() and mask.shape[-1] > 1:
            mask = mask.repeat_interleave(repeats, -1)
        density = scale_and_mask(q.log_prob(value), mask=mask)
        return density.flatten(0, -2).sum(0) if density.dim() > 1 else density

    def distributions(self, params: list[Tensor], repeats: int) -> dict[str, dist.TorchDistribution]:
        """Return the distribution of every site, with each observation repeated ``repeats`` times in a row."""
        rows = [p.repeat_interleave(repeats, p.dim() + d) for p, d in zip(params, self.data_dims, strict=True)]
        return {name: build([rows[i] for i in which]) for name, (which, build) in self.builds.items()}


def member(question: Question, batch: Batch) -> Member:
    """Return the member of its own family that the guide assigns to every observation of a batch.

    The free parameters are those that the guide's head puts out (location and scale, a flow's context). For a plain
    Pyro guide, they are all parameters of the distributions that it samples from.

    Raises:
        ValueError: for a guide whose latents depend on each other's draws, or whose distributions have no parameters
            that can be read.
    """
    guide: Any = unwrapped(question.pair.guide)
    inner = getattr(guide, "family", None)
    family = guide if isinstance(guide, Guide) else inner if isinstance(inner, Guide) else None
    with torch.no_grad(), Repeated():
        alone = question.layout.latents == (getattr(family, "latent", None),) and not question.layout.auxiliary
        if family is not None and alone and callable(getattr(guide, "params", None)):
            params = guide.params(*question.pair.given(batch)).detach()
            mask = poutine.trace(question.pair.guide).get_trace(*batch).nodes[family.latent]["mask"]
            builds: dict[str, tuple[list[int], Build]] = {family.latent: ([0], lambda p: family.member(p[0]))}
            return Member([params], [-params.dim()], builds, {family.latent: mask})
        return _from_sites(question, batch)


def _from_sites(question: Question, batch: Batch) -> Member:
    guide, latents = question.pair.guide, question.layout.latents
    traces = [poutine.trace(guide).get_trace(*batch) for _ in range(2)]
    if question.layout.auxiliary:
        raise ValueError(f"site {question.layout.auxiliary[0]!r} of the guide is not in the model: it has no family")
    params: list[Tensor] = []
    data_dims: list[int] = []
    builds: dict[str, tuple[list[int], Build]] = {}
    for name in latents:
        free, build = _freed(name, traces[0].nodes[name])
        again, _ = _freed(name, traces[1].nodes[name])
        if not all(torch.equal(one, other) for one, other in zip(free, again, strict=True)):
            raise ValueError(
                f"the guide's distribution of {name!r} depends on another draw, so that an observation has no "
                "parameters of its own: gaps are defined for guides whose latents are drawn given the data alone"
            )
        builds[name] = (list(range(len(params), len(params) + len(free))), build)
        batch_dims = len(traces[0].nodes[name]["fn"].batch_shape)
        params += free
        data_dims += [batch_dims - 1 - one.dim() for one in free]
    return Member(params, data_dims, builds, {name: traces[0].nodes[name]["mask"] for name in latents})


def _freed(name: str, site: Site) -> tuple[list[Tensor], Build]:
    """Return the unconstrained parameters of a site's distribution, and the function that rebuilds it from them."""
    fn = site["fn"]
    if reparametrised(fn):
        try:
            return _parameters(fn, fn.batch_shape)
        except (NotImplementedError, TypeError, AttributeError):
            pass
    raise ValueError(
        f"the guide's distribution of {name!r}, a {type(fn).__name__}, has no parameters that can be moved along a "
        "gradient: gaps are defined for reparametrised distributions, and for pyrovae's guides of one latent"
    )


def _parameters(fn: Any, batch_shape: torch.Size) -> tuple[list[Tensor], Build]:
    if isinstance(fn, torch.distributions.Independent):
        count = fn.reinterpreted_batch_ndims
        params, build = _parameters(fn.base_dist, batch_shape + fn.base_dist.batch_shape[-count:])
        return params, lambda p: build(p).to_event(count)
    if isinstance(fn, dist.torch_distribution.ExpandedDistribution):
        return _parameters(fn.base_dist, batch_shape)
    names = [name for name in fn.arg_constraints if name in vars(fn)] or list(fn.arg_constraints)
    names = list(dict.fromkeys(_PREFERRED.get(name, name) for name in names))
    if not names:
        raise TypeError(f"a {type(fn).__name__} has no parameters")
    maps = [transform_to(fn.arg_constraints[name]) for name in names]
    params = []
    for name, to_support in zip(names, maps, strict=True):
        value = getattr(fn, name)
        events = to_support.codomain.event_dim
        value = value.expand(batch_shape + value.shape[value.dim() - events :])
        params.append(to_support.inv(value).clone())
    kind = type(fn)
    return params, lambda p: kind(**{n: t(v) for n, t, v in zip(names, maps, p, strict=True)})
