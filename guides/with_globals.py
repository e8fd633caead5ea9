"""Guide of global latents, which all observations share, beside the latents of each observation."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.common.checks import at_least, program, shown, site_name, widths
from pyrovae.common.checks import positive as above_zero
from pyrovae.distributions.supports import bijection, constraint
from pyrovae.nn import positive, raw_positive

Global = tuple[str, tuple[int, ...], str]
"""Name of a site, its shape, and the name of its support among torch's constraints."""


class WithGlobals(nn.Module):
    """q(w) q(z | x): a factorised Gaussian, unconstrained, for each global latent w; ``local`` for q(z | x).

    Source: Kucukelbir, Tran, Ranganath, Gelman and Blei, "Automatic differentiation variational inference", 2017.

    Args:
        local: guide of the latents of every observation.
        sites: the global latents; :meth:`of` finds them.
        num_data: number of observations in the whole data set, as in the model: a batch of local latents counts for all
            of them.
        scale: initial value of the standard deviations.
    """

    def __init__(self, local: nn.Module, sites: Sequence[Global], *, num_data: int, scale: float = 0.02) -> None:
        super().__init__()
        program("local", local)
        if not isinstance(sites, Sequence) or isinstance(sites, str):
            raise ValueError(f"sites must be a sequence of (name, shape, support), got {shown(sites)}")
        if not sites:
            raise ValueError("sites is empty: there are no global latents, and without them the local guide will do")
        self.sites = tuple(_checked(latent) for latent in sites)
        self.num_data, self.scale = at_least("num_data", num_data, 1), above_zero("scale", scale)
        raw_scale = raw_positive(self.scale)
        self.local = local
        bijections = {name: bijection(getattr(constraints, support)) for name, _, support in self.sites}
        shapes = {name: bijections[name].inverse_shape(shape) for name, shape, _ in self.sites}
        self.loc = nn.ParameterDict({_key(name): torch.zeros(shape) for name, shape in shapes.items()})
        self.raw_scale = nn.ParameterDict({_key(name): torch.full(shape, raw_scale) for name, shape in shapes.items()})

    @classmethod
    def of(cls, local: nn.Module, model: Any, *batch: Tensor, scale: float = 0.02) -> "WithGlobals":
        """Return the guide of a model's global latents.

        Args:
            local: guide of the latents of every observation.
            model: model with ``num_data``; it is run once to find its latents outside the data plate. If it has
                ``start``, values by site, the guide starts there; otherwise it starts at a draw of the prior.
            *batch: arguments of the model; a few observations are enough.
            scale: initial value of the standard deviations.
        """
        with torch.random.fork_rng(), torch.no_grad(), pyro.get_param_store().scope():
            trace = poutine.trace(model).get_trace(*batch)
        latents = {
            name: site
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not site["is_observed"] and not site["cond_indep_stack"]
            and not poutine.util.site_is_subsample(site)
        }  # fmt: skip
        num_data = getattr(model, "num_data", None)
        if num_data is None:
            raise ValueError(
                f"the model, a {type(model).__name__}, does not say how many data it is fitted to, beside which its "
                "global latents count once: give it num_data"
            )
        sites = [(name, tuple(site["value"].shape), _support(name, site["fn"])) for name, site in latents.items()]
        guide = cls(local, sites, num_data=num_data, scale=scale)
        guide.start_at({**{n: s["value"] for n, s in latents.items()}, **getattr(model, "start", {})})
        return guide

    def start_at(self, values: Mapping[str, Tensor]) -> None:
        """Set the medians."""
        with torch.no_grad():
            for name, _, support in self.sites:
                self.loc[_key(name)].copy_(bijection(getattr(constraints, support)).inv(values[name]))

    def posterior(self, name: str) -> dist.TorchDistribution:
        """Return q(w) of one global latent."""
        support = next(s for n, _, s in self.sites if n == name)
        loc = self.loc[_key(name)]
        free = dist.Normal(loc, positive(self.raw_scale[_key(name)])).to_event(loc.dim())
        return free if support == "real" else dist.TransformedDistribution(free, [_whole(support, loc.dim())])

    def draw(self) -> dict[str, Tensor]:
        """Return a draw of every global latent, by site, for ``pyrovae.given``."""
        with torch.no_grad():
            return {name: self.posterior(name).sample() for name, _, _ in self.sites}

    def median(self) -> dict[str, Tensor]:
        """Return the median of every global latent, by site, for ``pyrovae.given``."""
        with torch.no_grad():
            return {n: bijection(getattr(constraints, s))(self.loc[_key(n)]) for n, _, s in self.sites}

    def forward(self, *batch: Tensor) -> Any:
        """Sample the global latents, then those of every observation; return what the local guide returns."""
        pyro.module("globals", self)
        for name, _, _ in self.sites:
            pyro.sample(name, self.posterior(name))
        with poutine.scale(scale=self.num_data / batch[0].shape[0]):  # as the model's plate does
            return self.local(*batch)


def _checked(latent: Any) -> Global:
    """Return the name, the shape and the support of a global latent.

    Raises:
        ValueError: when it is not such a triple.
    """
    if not isinstance(latent, list | tuple) or len(latent) != 3:
        raise ValueError(f"each of sites must be (name, shape, support), got {shown(latent)}")
    name, shape, support = site_name("name in sites", latent[0]), widths("shape in sites", latent[1]), latent[2]
    try:
        bijection(constraint(support)).inverse_shape(shape)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"site {name!r} in sites has no Gaussian on its support {shown(support)}: {error}") from None
    return name, shape, str(support)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a parameter's name cannot have dots


def _whole(support: str, dims: int) -> Any:
    transform = bijection(getattr(constraints, support))
    reinterpreted = dims - transform.domain.event_dim
    return dist.transforms.IndependentTransform(transform, reinterpreted) if reinterpreted > 0 else transform


def _support(name: str, fn: Any) -> str:
    inner = fn.support
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    for candidate in ("real", "real_vector", "positive", "nonnegative", "unit_interval", "simplex"):
        if inner is getattr(constraints, candidate) or str(inner) == str(getattr(constraints, candidate)):
            return {"real_vector": "real", "nonnegative": "positive"}.get(candidate, candidate)
    raise ValueError(
        f"global latent {name!r} has support {inner}, on which this guide has no Gaussian: it takes real, positive, "
        "unit_interval and simplex ones"
    )
