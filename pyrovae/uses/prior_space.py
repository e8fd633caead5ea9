"""The space in which a prior starts, where ways through the latents are straight: of flows, and of mixtures."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, distributions

from pyrovae.priors.vamp import EqualMixture

BEYOND, HALVINGS = 12.0, 80  # standard deviations around all components, and steps, of a search for a quantile
SMALLEST = 1e-15


class OwnSpace(Protocol):
    """A space in which a prior is simple."""

    def into(self, value: Tensor) -> Tensor:
        """Return the point of a latent's value."""

    def back(self, point: Tensor) -> Tensor:
        """Return the latent's value at a point."""


class GaussianMixture(NamedTuple):
    """A mixture of Gaussians without correlations: logits ``[..., C]``, means and deviations ``[..., C, D]``."""

    logits: Tensor
    loc: Tensor
    scale: Tensor


def own_space(name: str, fn: Any) -> OwnSpace:
    """Return the space in which a latent's prior starts.

    Raises:
        ValueError: where it has none.
    """
    inner = fn
    while hasattr(inner, "base_dist") and not hasattr(inner, "transforms"):
        inner = inner.base_dist
    if hasattr(inner, "transforms"):
        return Base(list(inner.transforms))
    mixture = gaussian_mixture(fn)
    if mixture is None:
        raise ValueError(
            f"the prior of {name!r} is a {type(inner).__name__}, no transformed distribution and no mixture of "
            'Gaussians, so that it has no space that it starts in: use path="straight" or path="spherical"'
        )
    return Rosenblatt(mixture)


def gaussian_mixture(fn: Any) -> GaussianMixture | None:
    """Return the parts of a mixture of Gaussians without correlations; None for any other distribution."""
    while isinstance(fn, distributions.Independent) and not fn.reinterpreted_batch_ndims:
        fn = fn.base_dist
    if isinstance(fn, EqualMixture):
        parts, logits = fn.components, torch.zeros(fn.size, dtype=torch.float64)
    elif isinstance(fn, distributions.MixtureSameFamily) and len(fn.event_shape) == 1:
        parts, logits = fn.component_distribution, fn.mixture_distribution.logits.double()
    else:
        return None
    while isinstance(parts, distributions.Independent):
        parts = parts.base_dist
    if not isinstance(parts, distributions.Normal):
        return None
    return GaussianMixture(logits.to(parts.loc.device), parts.loc.double(), parts.scale.double())


class Base:
    """The space of a flow's base distribution.

    Args:
        transforms: transforms from it to the latents.
    """

    def __init__(self, transforms: list[Any]) -> None:
        self.transforms = transforms

    def into(self, value: Tensor) -> Tensor:
        """Undo the transforms."""
        for transform in reversed(self.transforms):
            value = transform.inv(value)
        return value

    def back(self, point: Tensor) -> Tensor:
        """Apply the transforms."""
        for transform in self.transforms:
            point = transform(point)
        return point


class Rosenblatt:
    """The standard normal space of a mixture: coordinate by coordinate, the normal score of F(z_k | z_1, ..., z_k-1).

    Source: Rosenblatt, "Remarks on a multivariate transformation", 1952.

    Args:
        mixture: the mixture.
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture
        self.normal = distributions.Normal(torch.zeros_like(mixture.loc[..., 0][..., :1]), 1.0)

    def into(self, value: Tensor) -> Tensor:
        """Return normal scores ``[..., D]``."""
        own, scores = self._weights(value), []
        for k, z in enumerate(value.double().unbind(-1)):
            scores.append(self._score(self._share(own, k, z)))
            own = own + self._component(k).log_prob(z[..., None])
        return torch.stack(scores, -1).to(value.dtype)

    def back(self, point: Tensor) -> Tensor:
        """Return values ``[..., D]`` by halving."""
        own, values = self._weights(point), []
        reach = BEYOND * self.mixture.scale
        low, high = (self.mixture.loc - reach).amin(-2), (self.mixture.loc + reach).amax(-2)
        for k, score in enumerate(point.double().unbind(-1)):
            share = self.normal.cdf(score)
            ends = [end[..., k].expand(score.shape) for end in (low, high)]
            for _ in range(HALVINGS):
                middle = (ends[0] + ends[1]) / 2
                below = self._share(own, k, middle) < share
                ends = [torch.where(below, middle, ends[0]), torch.where(below, ends[1], middle)]
            values.append((ends[0] + ends[1]) / 2)
            own = own + self._component(k).log_prob(values[-1][..., None])
        return torch.stack(values, -1).to(point.dtype)

    def _weights(self, value: Tensor) -> Tensor:
        logits = self.mixture.logits
        return logits.log_softmax(-1).expand(*value.shape[:-1], logits.shape[-1])

    def _component(self, k: int) -> Any:
        return distributions.Normal(self.mixture.loc[..., k], self.mixture.scale[..., k])

    def _share(self, own: Tensor, k: int, z: Tensor) -> Tensor:
        """Return F(z_k | those before), with the components' log weights given those."""
        return (own.softmax(-1) * self._component(k).cdf(z[..., None])).sum(-1)

    def _score(self, share: Tensor) -> Tensor:
        return self.normal.icdf(share.clamp(SMALLEST, 1 - SMALLEST))
