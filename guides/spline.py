"""Neural spline flow guides: monotonic rational-quadratic splines, by coupling or autoregressive."""

import math
from typing import Any

import pyro.nn
import torch
import torch.nn.functional as F
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.checks import at_least, positive
from pyrovae.guides.flow import Flow
from pyrovae.nn import MLP, Network

LEAST = 1e-3  # of a bin's width and height, as a share of the whole, and of a slope


def spline(values: Tensor, raw: Tensor, bound: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Map numbers by a monotonic rational-quadratic spline on [-bound, bound], the identity outside.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019.

    Args:
        values: ``[...]``.
        raw: unconstrained widths and heights of K bins and slopes at their K - 1 inner knots, ``[..., 3 K - 1]``; zeros
            give the identity.
        bound: half the length of the interval.
        inverse: whether to map back.

    Returns:
        What the numbers are mapped to, and the logarithm of the slope there.
    """
    bins = (raw.shape[-1] + 1) // 3
    raw_widths, raw_heights, raw_slopes = raw.split((bins, bins, bins - 1), dim=-1)
    widths, heights = (2 * bound * (LEAST + (1 - LEAST * bins) * r.softmax(-1)) for r in (raw_widths, raw_heights))
    slopes = LEAST + F.softplus(raw_slopes + math.log(math.expm1(1 - LEAST)))  # 1 where raw is 0
    slopes = F.pad(slopes, (1, 1), value=1.0)
    lefts, bottoms = (F.pad(r.cumsum(-1)[..., :-1], (1, 0)) - bound for r in (widths, heights))
    inside = values.abs() <= bound
    v = values.clamp(-bound, bound)[..., None]
    place = ((v >= (bottoms if inverse else lefts)).sum(-1, keepdim=True) - 1).clamp(0, bins - 1)
    left, bottom, width, height, slope, after = (
        r.expand(*place.shape[:-1], bins).gather(-1, place)
        for r in (lefts, bottoms, widths, heights, slopes[..., :-1], slopes[..., 1:])
    )
    mean = height / width
    bend = slope + after - 2 * mean
    if inverse:
        rise = v - bottom
        b = height * slope - rise * bend
        root = (b.square() + 4 * (rise * bend + height * (mean - slope)) * mean * rise).clamp(min=0).sqrt()
        share = 2 * mean * rise / (b + root)
        mapped = left + share * width
    else:
        share = (v - left) / width
        mapped = bottom + height * (mean * share.square() + slope * share * (1 - share)) / (
            mean + bend * share * (1 - share)
        )
    down = mean + bend * share * (1 - share)
    up = after * share.square() + 2 * mean * share * (1 - share) + slope * (1 - share).square()
    log_slope = 2 * (mean / down).log() + up.log()
    log_slope = -log_slope if inverse else log_slope
    mapped, log_slope = mapped.squeeze(-1), log_slope.squeeze(-1)
    return torch.where(inside, mapped, values), torch.where(inside, log_slope, torch.zeros_like(log_slope))


class _Vectors(TransformModule):
    """A bijection of vectors that keeps the logarithm of its Jacobian beside its last value."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._last: tuple[Tensor, Tensor] | None = None

    def _both(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        y, log_jacobian = self._both(x, inverse=False)
        self._last = x, log_jacobian
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_jacobian = self._both(y, inverse=True)
        self._last = x, -log_jacobian
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |det dy/dx|, ``[...]``."""
        if self._last is None or self._last[0] is not x:
            self._call(x)
        assert self._last is not None
        return self._last[1]


class Coupling(nn.Module):
    """Splines for one half of the latents, by a network of the other half and the context."""

    def __init__(self, size: int, context_dim: int, hidden: tuple[int, ...], num_bins: int, bound: float) -> None:
        super().__init__()
        self.kept, self.num_bins, self.bound = size // 2, num_bins, bound
        out = (size - self.kept) * (3 * num_bins - 1)
        self.network = MLP(self.kept + context_dim, out, hidden=hidden)

    def condition(self, context: Tensor) -> Any:
        """Return the transform."""
        return _Coupling(self, context)


class _Coupling(_Vectors):
    def __init__(self, step: Coupling, context: Tensor) -> None:
        super().__init__()
        self.__dict__.update(step=step, context=context)  # not a submodule: it belongs to the guide

    def _both(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        step = self.step
        first, second = value[..., : step.kept], value[..., step.kept :]
        context = self.context.expand(*value.shape[:-1], -1)
        raw = step.network(torch.cat([first, context], dim=-1)).unflatten(-1, (second.shape[-1], -1))
        mapped, log_slope = spline(second, raw, step.bound, inverse=inverse)
        return torch.cat([first, mapped], dim=-1), log_slope.sum(-1)


class Autoregressive(nn.Module):
    """Splines for every latent, by a masked network of those before it and the context."""

    def __init__(self, size: int, context_dim: int, hidden: tuple[int, ...], num_bins: int, bound: float) -> None:
        super().__init__()
        self.size, self.num_bins, self.bound = size, num_bins, bound
        params = [num_bins, num_bins, num_bins - 1]
        self.network = pyro.nn.ConditionalAutoRegressiveNN(size, context_dim, list(hidden), param_dims=params)

    def raw(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the splines' parameters for every latent, ``[..., size, 3 K - 1]``."""
        found = self.network(x, context.expand(*x.shape[:-1], -1))
        return torch.cat([part.transpose(-1, -2) for part in found], dim=-1)

    def condition(self, context: Tensor) -> Any:
        """Return the transform."""
        return _Autoregressive(self, context)


class _Autoregressive(_Vectors):
    def __init__(self, step: Autoregressive, context: Tensor) -> None:
        super().__init__()
        self.__dict__.update(step=step, context=context)

    def _both(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        step = self.step
        if not inverse:
            mapped, log_slope = spline(value, step.raw(value, self.context), step.bound)
            return mapped, log_slope.sum(-1)
        x, log_slope = torch.zeros_like(value), torch.zeros_like(value)
        for _ in range(step.size):  # each pass gets one more latent right, in the network's own order
            x, log_slope = spline(value, step.raw(x, self.context), step.bound, inverse=True)
        return x, log_slope.sum(-1)


class SplineCoupling(Flow):
    """A Gaussian pushed through rational-quadratic splines of one half of the latents, given the other half.

    ::

        z_t = (first, spline(second; network(first, c(x)))),   (first, second) = P z_{t-1}

    Sampling and scoring both take one pass a step. The splines are the identity outside [-bound, bound], so that no
    step explodes; location and scale are those of the data, since they come first.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019.

    Args:
        encoder: network from the batch's tensors to features ``[N, encoder.out_features]``.
        latent_dim: number of latents; with one alone the splines depend on the context only.
        num_steps: number of steps.
        hidden: widths of the hidden layers of each step's network.
        context_dim: number of features c(x) that the steps take.
        num_bins: of a spline.
        bound: half the length of the interval on which the splines bend.
        latent: name of the latent site.
        support: of the latent, a constraint of torch or its name, to which the flow is mapped; None is the real line.

    Example:
        >>> from pyrovae import nn
        >>> q = SplineCoupling(nn.MLP(64, 32), 3).posterior(torch.zeros(5, 64))
        >>> q.log_prob(q.sample()).shape
        torch.Size([5])
    """

    step: type[Any] = Coupling

    def __init__(
        self,
        encoder: Network | nn.Module,
        latent_dim: int,
        *,
        num_steps: int = 2,
        hidden: tuple[int, ...] = (64, 64),
        context_dim: int = 32,
        num_bins: int = 8,
        bound: float = 5.0,
        latent: str = "z",
        support: Any = None,
    ) -> None:
        self.num_bins, self.bound = at_least("num_bins", num_bins, 2), float(positive("bound", bound))
        super().__init__(
            encoder,
            latent_dim,
            num_steps=num_steps,
            hidden=hidden,
            context_dim=context_dim,
            latent=latent,
            support=support,
        )

    def make_step(self) -> nn.Module:
        """Return a step of splines."""
        made: nn.Module = self.step(self.free_dim, self.context_dim, self.hidden, self.num_bins, self.bound)
        return made


class SplineAutoregressive(SplineCoupling):
    """A Gaussian pushed through rational-quadratic splines of every latent, given those before it.

    ::

        z_t = spline(P z_{t-1}; autoregressive(P z_{t-1}, c(x)))

    Sampling takes one pass a step, scoring a z that came from elsewhere one pass a latent. The arguments are those of
    :class:`SplineCoupling`.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019.
    """

    step: type[Any] = Autoregressive
