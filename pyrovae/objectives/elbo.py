"""The evidence lower bound with its KL weighted: beta-VAE, annealing, capacity, free bits."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.common.checks import flag
from pyrovae.internals.pyro import mask_of
from pyrovae.objectives.objective import Drawn, Known, Objective, Weight
from pyrovae.programs.densities import log_density, per_datum
from pyrovae.programs.layout import Layout
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.types import Batch, Program, Site, Trace


class BetaELBO(Objective):
    """E_q[log p(x | z)] - b KL(q(z | x) || p(z)), per observation.

    b weights the whole KL, both the model's and the guide's part. With b = 1 the objective is the ELBO; for b < 1 it is
    not a bound, and for b > 1 it is a looser bound. A function of the step makes the weight change over training time:
    annealing (:mod:`pyrovae.objectives.schedules`).

    Source: Higgins et al., "beta-VAE: learning basic visual concepts with a constrained variational framework", 2017.

    Args:
        kl_weight: weight b: a number or a function of the step.
        analytic: whether a KL is taken in closed form where there is one; otherwise it is estimated from the draws.
        num_particles: number of draws per observation, over which the objective is averaged.

    Example:
        >>> from pyrovae import objectives
        >>> annealed = BetaELBO(kl_weight=objectives.linear(1000))
        >>> _ = annealed.at(500)
        >>> float(annealed.weight("kl_weight"))
        0.5
    """

    def __init__(self, kl_weight: Weight = 1.0, *, analytic: bool = True, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.kl_weight, self.analytic = kl_weight, flag("analytic", analytic)
        self.weigh(kl_weight=kl_weight)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the weighted bound, summed over the data that the batch stands for."""
        particles = self.draw(model, guide, batch, known, once=False)
        kl = torch.stack(list(kl_by_site(particles, self.analytic).values())).sum(0)
        return particles.scale * (reconstruction(particles) - self.weight("kl_weight") * kl).sum()


class CapacityELBO(Objective):
    """E_q[log p(x | z)] - g |KL - C|: the KL is held at a capacity, which may grow over training time.

    The KL is the batch's mean, an estimate of the mean over the data; observations whose latents are all masked do not
    count. The objective is not a bound: what :func:`pyrovae.fit` reports as a bound is the ELBO.

    Source: Burgess et al., "Understanding disentangling in beta-VAE", 2018.

    Args:
        capacity: C in nats per observation: a number or a function of the step.
        strength: weight g: a number or a function of the step.
        analytic: whether a KL is taken in closed form where there is one.
        num_particles: number of draws per observation, over which the objective is averaged.
    """

    def __init__(
        self, capacity: Weight, *, strength: Weight = 100.0, analytic: bool = True, num_particles: int = 1
    ) -> None:
        super().__init__(num_particles)
        self.capacity, self.strength, self.analytic = capacity, strength, flag("analytic", analytic)
        self.weigh(capacity=capacity, strength=strength)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for."""
        particles = self.draw(model, guide, batch, known, once=False)
        kl = torch.stack(list(kl_by_site(particles, self.analytic).values())).sum()
        some = torch.stack([counted_data(particles, name) for name in known.layout.latents]).any(0).sum()
        away = (kl - some * self.weight("capacity")).abs()
        return particles.scale * (reconstruction(particles).sum() - self.weight("strength") * away)


class FreeBits(Objective):
    """E_q[log p(x | z)] - sum_j max(l, KL_j): a group of latents pays nothing for its first l nats.

    KL_j is the batch's mean KL of group j, over the observations in which it is not masked. A group is one latent site,
    or with ``by_latent`` one latent. The objective is not a bound: what :func:`pyrovae.fit` reports as a bound is the
    ELBO.

    Source: Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016.

    Args:
        free_nats: l, nats per group: a number or a function of the step.
        by_latent: whether every latent of a site is a group of its own; refused if a site does not factorise, or if its
            masks differ between the two programs.
    """

    def __init__(self, free_nats: Weight, *, by_latent: bool = False) -> None:
        super().__init__()
        self.free_nats, self.by_latent = free_nats, flag("by_latent", by_latent)
        self.weigh(free_nats=free_nats)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for."""
        particles = self.draw(model, guide, batch, known, once=False)
        free = self.weight("free_nats")
        if self.by_latent:
            sites = [(particles.model_trace.nodes[name], particles.flat.nodes[name]) for name in known.layout.latents]
            costs = [torch.maximum(kl_by_latent(*pair).sum(0), counted(pair[1]).sum(0) * free).sum() for pair in sites]
        else:
            kls = kl_by_site(particles, analytic=True).items()
            costs = [torch.maximum(kl.sum(), counted_data(particles, name).sum() * free) for name, kl in kls]
        return particles.scale * (reconstruction(particles).sum() - torch.stack(costs).sum())

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """With ``by_latent``, refuse sites that have no KL for each latent."""
        for name in layout.latents if self.by_latent else ():
            try:
                kl_by_latent(model_trace.nodes[name], guide_trace.nodes[name])
            except NotImplementedError:
                raise ValueError(
                    f"latent site {name!r} does not factorise in both programs, so it has no KL for each latent: use "
                    "by_latent=False"
                ) from None
            if not bool((counted(model_trace.nodes[name]) == counted(guide_trace.nodes[name])).all()):
                raise ValueError(
                    f"latent site {name!r} is masked otherwise in the model than in the guide, so that it has no KL "
                    "for each latent: mask it in both alike, or use by_latent=False"
                )


def reconstruction(particles: Drawn) -> Tensor:
    """Return log p(x | z), ``[N]``, in nats: the mean over particles of the observed sites' log densities."""
    densities = log_density(particles.model_trace, len(particles.rows[0]), observed=True)
    return densities.unflatten(0, (particles.shape[1], particles.shape[0])).mean(1)


def kl_by_site(particles: Drawn, analytic: bool) -> dict[str, Tensor]:
    """Return KL(q || p) of every latent site of either program, ``[N]`` each, in nats; 0 where it is masked.

    With ``analytic`` the KL is in closed form where there is one and nothing is masked. Otherwise it is log q - log p
    at the draws.
    """
    rows, kls = len(particles.rows[0]), {}
    for name, site in sample_sites(particles.flat):
        prior = particles.model_trace.nodes.get(name)
        kl = None
        if prior is not None and analytic and not (is_masked(prior) or is_masked(site)):
            try:
                kl = kl_divergence(site["fn"], prior["fn"])
            except NotImplementedError:
                kl = None
        if kl is None:
            kl = per_datum(site, rows) - (0 if prior is None else per_datum(prior, rows))
        elif kl.dim() > 1:
            kl = kl.flatten(0, -2).sum(0)
        kls[name] = kl.expand(rows).unflatten(0, (particles.shape[1], particles.shape[0])).mean(1)
    return kls


def kl_by_latent(prior: Site, site: Site) -> Tensor:
    """Return KL(q || p) of every latent of a site, ``[N, D]``, in nats; 0 where it is masked in the guide.

    Raises:
        NotImplementedError: when one of the two does not factorise, or the KL has no closed form.
    """
    q, p = factors(site["fn"]), factors(prior["fn"])
    kl: Tensor = kl_divergence(q, p)
    count = counted(site)
    return torch.where(count, _by_datum(kl.expand(site["fn"].shape()), site), kl.new_zeros(()))


def is_masked(site: Site) -> bool:
    """Return whether Pyro has a mask around a site or in its distribution, whatever it masks."""
    return any(mask is not True for mask, _ in _masks(site))


def counted(site: Site) -> Tensor:
    """Return which numbers of a site count in its density, as no mask leaves them out, ``[N, D]`` of bool."""
    fn = site["fn"]
    counts = torch.ones(fn.shape(), dtype=torch.bool, device=site["value"].device)
    for mask, event_dim in _masks(site):
        counts = counts & (mask if isinstance(mask, bool) else mask.bool().reshape(*mask.shape, *[1] * event_dim))
    return _by_datum(counts, site)


def counted_data(particles: Drawn, name: str) -> Tensor:
    """Return for which observations a site of the guide counts, at least in part, ``[N]`` of bool."""
    return counted(particles.flat.nodes[name]).any(1).unflatten(0, (particles.shape[1], particles.shape[0]))[:, 0]


def _masks(site: Site) -> Iterator[tuple[Any, int]]:
    """Iterate over the masks of a site, each with the number of dimensions to the right of its own."""
    fn = site["fn"]
    if site["mask"] is not None:
        yield site["mask"], fn.event_dim
    while isinstance(fn, torch.distributions.Independent | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            yield mask_of(fn), fn.event_dim
        fn = fn.base_dist


def _by_datum(values: Tensor, site: Site) -> Tensor:
    """Return the numbers of a site, in its own shape, as ``[N, D]``: other plates count as latents."""
    return (
        values.movedim(values.dim() - 1 - site["fn"].event_dim, 0).flatten(1) if values.dim() > 1 else values[:, None]
    )


def factors(fn: Any) -> Any:
    """Return a distribution of independent latents with the latents as batch dimensions.

    Raises:
        NotImplementedError: when they are not independent.
    """
    inner = fn
    while isinstance(inner, torch.distributions.Independent | MaskedDistribution):
        inner = inner.base_dist
    if inner.event_shape or (fn.event_shape and inner is fn):
        raise NotImplementedError
    return inner
