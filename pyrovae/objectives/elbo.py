"""The evidence lower bound with its KL weighted: beta-VAE, annealing, capacity, free bits."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.objectives.objective import Drawn, Known, Objective, Weight
from pyrovae.pair import Batch, Layout, Program, Site, Trace, log_density, per_datum, sample_sites


class BetaELBO(Objective):
    """E_q[log p(x | z)] - b KL(q(z | x) || p(z)), per datum.

    b weights the whole KL, the model's and the guide's part alike. With b = 1 it is the ELBO; with another it is no
    bound for b < 1, and a looser one for b > 1. A function of the step makes the weight change over training time:
    annealing (:mod:`pyrovae.objectives.schedules`).

    Source: Higgins et al., "beta-VAE: learning basic visual concepts with a constrained variational framework", 2017.

    Args:
        kl_weight: b: a number or a function of the step.
        analytic: whether a KL is taken in closed form where there is one; else it is the draws' own.
        num_particles: draws a datum, averaged.

    Example:
        >>> from pyrovae import objectives
        >>> annealed = BetaELBO(kl_weight=objectives.linear(1000))
        >>> annealed.at(500)
        >>> float(annealed.weight("kl_weight"))
        0.5
    """

    def __init__(self, kl_weight: Weight = 1.0, *, analytic: bool = True, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.kl_weight, self.analytic = kl_weight, analytic
        self.weigh(kl_weight=kl_weight)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the weighted bound, summed over the data that the batch stands for."""
        drawn = self.draw(model, guide, batch, known, once=False)
        kl = torch.stack(list(kl_by_site(drawn, self.analytic).values())).sum(0)
        return drawn.scale * (reconstruction(drawn) - self.weight("kl_weight") * kl).sum()


class CapacityELBO(Objective):
    """E_q[log p(x | z)] - g |KL - C|: the KL is held at a capacity, which may grow over training time.

    The KL is the batch's mean, an estimate of the mean over the data. It is no bound: what :func:`pyrovae.fit` reports
    as one is the ELBO.

    Source: Burgess et al., "Understanding disentangling in beta-VAE", 2018.

    Args:
        capacity: C in nats per datum: a number or a function of the step.
        strength: g: a number or a function of the step.
        analytic: whether a KL is taken in closed form where there is one.
        num_particles: draws a datum, averaged.
    """

    def __init__(
        self, capacity: Weight, *, strength: Weight = 100.0, analytic: bool = True, num_particles: int = 1
    ) -> None:
        super().__init__(num_particles)
        self.capacity, self.strength, self.analytic = capacity, strength, analytic
        self.weigh(capacity=capacity, strength=strength)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for."""
        drawn = self.draw(model, guide, batch, known, once=False)
        kl = torch.stack(list(kl_by_site(drawn, self.analytic).values())).sum(0)
        away = (kl.mean() - self.weight("capacity")).abs()
        return drawn.scale * (reconstruction(drawn).sum() - len(batch[0]) * self.weight("strength") * away)


class FreeBits(Objective):
    """E_q[log p(x | z)] - sum_j max(l, KL_j): a group of latents pays nothing for its first l nats.

    KL_j is the batch's mean KL of group j. A group is one latent where guide and prior both factorise, and one latent
    site elsewhere. It is no bound: what :func:`pyrovae.fit` reports as one is the ELBO.

    Source: Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016.

    Args:
        free_nats: l, a group: a number or a function of the step.
        by_latent: whether every latent of a site is a group of its own; refused where a site does not factorise.
    """

    def __init__(self, free_nats: Weight, *, by_latent: bool = False) -> None:
        super().__init__()
        self.free_nats, self.by_latent = free_nats, by_latent
        self.weigh(free_nats=free_nats)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for."""
        drawn = self.draw(model, guide, batch, known, once=False)
        if self.by_latent:
            names, n = known.layout.latents, len(batch[0])
            kls = [kl_by_latent(drawn.model_trace.nodes[m], drawn.flat.nodes[m]).flatten(1) for m in names]
            means = torch.cat([kl.sum(0) / n for kl in kls])
        else:
            means = torch.stack([kl.mean() for kl in kl_by_site(drawn, analytic=True).values()])
        paid = torch.maximum(means, self.weight("free_nats")).sum()
        return drawn.scale * (reconstruction(drawn).sum() - len(batch[0]) * paid)

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse sites without a KL a latent, where that is asked for."""
        for name in layout.latents if self.by_latent else ():
            try:
                kl_by_latent(model_trace.nodes[name], guide_trace.nodes[name])
            except NotImplementedError:
                raise ValueError(
                    f"latent site {name!r} does not factorise in both programs, so it has no KL for each latent: use "
                    "by_latent=False"
                ) from None


def reconstruction(drawn: Drawn) -> Tensor:
    """Return log p(x | z), ``[N]``, in nats: the mean over particles of the observed sites' log densities."""
    found = log_density(drawn.model_trace, len(drawn.rows[0]), observed=True)
    return found.unflatten(0, (drawn.shape[1], drawn.shape[0])).mean(1)


def kl_by_site(drawn: Drawn, analytic: bool) -> dict[str, Tensor]:
    """Return KL(q || p) of every latent site of either program, ``[N]`` each, in nats.

    In closed form where there is one and ``analytic``, else log q - log p at the draws.
    """
    rows, found = len(drawn.rows[0]), {}
    for name, site in sample_sites(drawn.flat):
        prior = drawn.model_trace.nodes.get(name)
        kl = None
        if prior is not None and analytic and prior["mask"] is None and site["mask"] is None:
            try:
                kl = kl_divergence(site["fn"], prior["fn"])
            except NotImplementedError:
                kl = None
        if kl is None:
            kl = per_datum(site, rows) - (0 if prior is None else per_datum(prior, rows))
        elif kl.dim() > 1:
            kl = kl.flatten(0, -2).sum(0)
        found[name] = kl.expand(rows).unflatten(0, (drawn.shape[1], drawn.shape[0])).mean(1)
    return found


def kl_by_latent(prior: Site, site: Site) -> Tensor:
    """Return KL(q || p) of every latent of a site, ``[N, D]``, in nats.

    Raises:
        NotImplementedError: when either does not factorise, or no closed form is known.
    """
    q, p = factors(site["fn"]), factors(prior["fn"])
    kl: Tensor = kl_divergence(q, p)
    return kl.expand(site["fn"].shape())


def factors(fn: Any) -> Any:
    """Return a distribution of independent latents with these as batch dimensions.

    Raises:
        NotImplementedError: when they are not independent.
    """
    inner = fn
    while isinstance(inner, torch.distributions.Independent) or type(inner).__name__ == "MaskedDistribution":
        inner = inner.base_dist
    if inner.event_shape or (fn.event_shape and inner is fn):
        raise NotImplementedError
    return inner
