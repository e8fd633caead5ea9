"""The density of every single coordinate of a site, where its family has one in closed form."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

Marginals = Callable[[Tensor], Tensor]


def marginals(fn: Any) -> Marginals | None:
    """Return a function from values ``[..., D]`` to the log densities of their coordinates, ``[..., D]``.

    The known families are products of numbers (``to_event``), Gaussians of any covariance, mixtures of Gaussians, and
    transforms of all these that act on one coordinate at a time. A distribution over numbers has D = 1.

    Args:
        fn: distribution of batch shape ``[...]`` and event shape ``[D]`` or none.

    Returns:
        None where the family's marginals are not known.
    """
    if fn.event_shape == ():
        return lambda values: fn.log_prob(values[..., 0])[..., None]
    if len(fn.event_shape) != 1:
        return None
    product = _product(fn)
    return None if product is None else product.log_prob


def _product(fn: Any) -> Any:
    """Return a distribution over numbers, batch shape ``[..., D]``, of the coordinates of a vector."""
    if callable(own := getattr(fn, "marginals", None)):
        return own()
    if isinstance(fn, torch.distributions.Independent) and fn.reinterpreted_batch_ndims == 1:
        return fn.base_dist
    if isinstance(fn, torch.distributions.MultivariateNormal | torch.distributions.LowRankMultivariateNormal):
        return dist.Normal(fn.mean, fn.variance.sqrt())
    if isinstance(fn, torch.distributions.MixtureSameFamily):
        return _mixture(fn)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        return _transformed(fn)
    return None


def _mixture(fn: Any) -> Any:
    parts = _product(fn.component_distribution)  # [..., C, D]
    if not isinstance(parts, torch.distributions.Normal):
        return None
    loc, scale = parts.loc.transpose(-1, -2), parts.scale.transpose(-1, -2)
    logits = fn.mixture_distribution.logits[..., None, :].expand(loc.shape)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale))


def _transformed(fn: Any) -> Any:
    steps = []
    for step in fn.transforms:
        while isinstance(step, torch.distributions.transforms.IndependentTransform):
            step = step.base_transform
        if step.domain.event_dim or step.codomain.event_dim:  # mixes coordinates
            return None
        steps.append(step)
    base = _product(fn.base_dist)
    return None if base is None else dist.TransformedDistribution(base, steps)
