"""Regularisers on the aggregate posterior q(z), the mean of q(z | x) over the data, estimated from a batch."""

from typing import Any

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from torch import Tensor

from pyrovae.common.checks import at_least, flag
from pyrovae.objectives.elbo import counted, factors, kl_by_site, reconstruction
from pyrovae.objectives.objective import Known, Objective, Weight
from pyrovae.programs.handlers import Unrecorded
from pyrovae.programs.layout import Layout
from pyrovae.programs.sites import released
from pyrovae.programs.types import Batch, Program, Trace

NOWHERE = -1e30  # the log density of what is masked, finite so that its gradient is 0


class BetaTCVAE(Objective):
    """E_q[log p(x | z)] - a I(x; z) - b TC(q(z)) - c sum_j KL(q(z_j) || p(z_j)).

    With a = b = c = 1 the sum of the three terms is the mean KL of the ELBO: information between observation and
    latents, total correlation of the latents, and each latent's distance from its prior. log q(z) and log q(z_j) are
    estimated from the batch as a sample of the data set (minibatch-weighted sampling), which is biased. With weights
    other than 1 the objective is a surrogate, and what :func:`pyrovae.fit` reports as a bound is the ELBO. Observations
    whose latents are masked are left out of the batch, and the same share is left out of the data set.

    Source: Chen, Li, Grosse and Duvenaud, "Isolating sources of disentanglement in variational autoencoders", 2018.

    Args:
        num_data: N, number of observations in the whole data set.
        information: weight a: a number or a function of the step.
        total_correlation: weight b, likewise.
        dimensionwise: weight c, likewise.
    """

    def __init__(
        self,
        num_data: int,
        *,
        information: Weight = 1.0,
        total_correlation: Weight = 6.0,
        dimensionwise: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.num_data = at_least("num_data", num_data, 1)
        self.information, self.total_correlation, self.dimensionwise = information, total_correlation, dimensionwise
        self.weigh(information=information, total_correlation=total_correlation, dimensionwise=dimensionwise)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for."""
        particles = self.draw(model, guide, batch, known)
        n = len(batch[0])
        (name,) = known.layout.latents
        site = particles.flat.nodes[name]
        some = counted(site)[:, 0]
        by_latent = (
            factors(site["fn"]).log_prob(site["value"][:, None]).expand(n, n, -1)
        )  # log q(z_ij | x_k), [i, k, j]
        by_latent = by_latent.masked_fill(~some[:, None], NOWHERE)
        share = some.sum().clamp(min=1).to(by_latent) / n
        log_size = (self.num_data * n * share.square()).log()
        log_q_given_x = by_latent.diagonal(dim1=0, dim2=1).sum(0)
        log_q = by_latent.sum(-1).logsumexp(1) - log_size
        log_factors = (by_latent.logsumexp(1) - log_size).sum(-1)
        log_prior = particles.log_p[0] - reconstruction(particles)
        kl = (
            self.weight("information") * (log_q_given_x - log_q)
            + self.weight("total_correlation") * (log_q - log_factors)
            + self.weight("dimensionwise") * (log_factors - log_prior)
        )
        return particles.scale * (reconstruction(particles) - torch.where(some, kl, 0.0)).sum()

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse a guide whose latents are not independent given x, and masks of single latents."""
        _one_site("BetaTCVAE", layout)
        masked_whole("BetaTCVAE", layout, model_trace, guide_trace)
        for name in layout.latents:
            try:
                factors(guide_trace.nodes[name]["fn"])
                flat = guide_trace.nodes[name]["fn"].event_dim == 1
            except NotImplementedError:
                flat = False
            if not flat or layout.nesting > 1:
                raise ValueError(
                    f"BetaTCVAE needs a guide whose latents are independent given x, such as MeanField, but site "
                    f"{name!r} has a {type(guide_trace.nodes[name]['fn']).__name__}"
                )


class MMD(Objective):
    """E_q[log p(x | z)] - b KL - l MMD^2(q(z), p(z)), with the maximum mean discrepancy over the batch.

    With b = 0 this is the Wasserstein autoencoder (WAE-MMD); InfoVAE with information weight a has b = 1 - a and
    l = a + l' - 1. The prior only has to be sampled. The kernel is a sum of inverse multiquadratics,
    C / (C + |z - z'|^2) for C around 2 D. MMD^2 is estimated without bias from one draw per observation and as many
    draws of the prior. It is multiplied by the number of observations, so that l weighs it against nats per
    observation; observations whose latents are masked do not count. The objective is not a bound. With b = 0 the
    prior's density is not used: a learned prior whose draws carry no gradient (a mixture, a VampPrior) stays as it is.

    Source: Tolstikhin, Bousquet, Gelly and Schoelkopf, "Wasserstein auto-encoders", 2018; Zhao, Song and Ermon,
    "InfoVAE: balancing learning and inference in variational autoencoders", 2019.

    Args:
        mmd_weight: weight l: a number or a function of the step.
        kl_weight: weight b, likewise.
    """

    def __init__(self, mmd_weight: Weight = 100.0, *, kl_weight: Weight = 0.0) -> None:
        super().__init__()
        self.mmd_weight, self.kl_weight = mmd_weight, kl_weight
        self.weigh(mmd_weight=mmd_weight, kl_weight=kl_weight)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for."""
        particles = self.draw(model, guide, batch, known)
        n = len(batch[0])
        z, prior = latents(particles.flat, known.layout, n), latents(from_prior(model, batch), known.layout, n)
        kl = torch.stack(list(kl_by_site(particles, analytic=True).values())).sum(0)
        some = _counted_rows(particles.flat, known.layout)
        apart = some.sum() * mmd2(z, prior, some)
        value = (reconstruction(particles) - self.weight("kl_weight") * kl).sum() - self.weight("mmd_weight") * apart
        return particles.scale * value

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse masks of single latents."""
        masked_whole("MMD", layout, model_trace, guide_trace)


class DIPVAE(Objective):
    """The ELBO minus a penalty where the covariance of the aggregate posterior's latents is not the identity.

    ::

        l_o sum_{i != j} C_ij^2 + l_d sum_i (C_ii - 1)^2

    with C the covariance over the batch of the means of q(z | x) (DIP-VAE-I), plus the mean of its variances
    (DIP-VAE-II). The penalty counts once per observation; observations whose latents are masked are left out entirely.
    The objective is not a bound.

    Source: Kumar, Sattigeri and Balakrishnan, "Variational inference of disentangled latent concepts from unlabeled
    observations", 2018.

    Args:
        off_diagonal: weight l_o: a number or a function of the step.
        diagonal: weight l_d, likewise.
        variances: whether C includes the variances (II) or not (I).
    """

    def __init__(self, *, off_diagonal: Weight = 10.0, diagonal: Weight = 10.0, variances: bool = True) -> None:
        super().__init__()
        self.off_diagonal, self.diagonal, self.variances = off_diagonal, diagonal, flag("variances", variances)
        self.weigh(off_diagonal=off_diagonal, diagonal=diagonal)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for."""
        particles = self.draw(model, guide, batch, known)
        (name,) = known.layout.latents
        fn = particles.flat.nodes[name]["fn"]
        some = _counted_rows(particles.flat, known.layout)
        size, means = some.sum(), torch.where(some[:, None], fn.mean, 0.0)
        centred = torch.where(some[:, None], means - means.sum(0) / size.clamp(min=1), 0.0)
        covariance = centred.T @ centred / size.clamp(min=1)
        if self.variances:
            own = torch.where(some[:, None, None], _covariance(fn), 0.0)
            covariance = covariance + own.sum(0) / size.clamp(min=1)
        off = covariance.square().sum() - covariance.diagonal().square().sum()
        away = (covariance.diagonal() - 1).square().sum()
        penalty = self.weight("off_diagonal") * off + self.weight("diagonal") * away
        kl = torch.stack(list(kl_by_site(particles, analytic=True).values())).sum(0)
        return particles.scale * ((reconstruction(particles) - kl).sum() - size * penalty)

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse a guide whose mean or covariance has no closed form, and masks of single latents."""
        _one_site("DIPVAE", layout)
        masked_whole("DIPVAE", layout, model_trace, guide_trace)
        (name,) = layout.latents
        fn = guide_trace.nodes[name]["fn"]
        try:
            has_moments = fn.event_dim == 1 and fn.mean.dim() == 2 and _covariance(fn).dim() == 3
        except NotImplementedError:
            has_moments = False
        if not has_moments:
            raise ValueError(
                f"DIPVAE needs the mean and covariance of q(z | x), which the {type(fn).__name__} of site {name!r} "
                "does not have in closed form: use a Gaussian guide of vectors"
            )


def _one_site(objective: str, layout: Layout) -> None:
    if len(layout.latents) > 1:
        raise ValueError(
            f"{objective} takes one latent site, and the pair has {', '.join(layout.latents)}: use an objective "
            "without the aggregate posterior's correlations, or put the latents into one site"
        )


def masked_whole(objective: str, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse masks that leave out single latents of an observation, or that differ between the programs.

    Raises:
        ValueError: for such a mask; the message names the site.
    """
    whole = counted(guide_trace.nodes[layout.latents[0]])[:, :1]
    for name in layout.latents:
        sites = [trace.nodes[name] for trace in (model_trace, guide_trace)]
        if not all(bool((counted(site) == whole).all()) for site in sites):
            raise ValueError(
                f"{objective} compares the codes of data as wholes, but latent site {name!r} has a mask that leaves "
                "out a part of a code, or that differs between model and guide: mask whole data, in both programs alike"
            )


def _counted_rows(trace: Trace, layout: Layout) -> Tensor:
    """Return for which observations all latents count, ``[N]`` of bool."""
    return torch.stack([counted(trace.nodes[name]).all(1) for name in layout.latents]).all(0)


def _covariance(fn: Any) -> Tensor:
    """Return the covariance matrices of a batch of distributions of vectors, ``[N, D, D]``.

    Raises:
        NotImplementedError: where they have no closed form.
    """
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    if hasattr(fn, "covariance_matrix"):
        covariance: Tensor = fn.covariance_matrix
        return covariance
    factors(fn)  # raises where the latents are not independent
    return torch.diag_embed(fn.variance)


def from_prior(model: Program, batch: Batch) -> Trace:
    """Run the model with nothing observed."""
    with Unrecorded():
        return poutine.trace(released(model)).get_trace(*batch)


def latents(trace: Trace, layout: Layout, num_data: int) -> Tensor:
    """Return all latents of the model, side by side, ``[N, D]``; plates besides the data plate are refused."""
    values = []
    for name in layout.latents:
        value = trace.nodes[name]["value"]
        if layout.nesting > 1:
            raise ValueError(f"latent site {name!r} is in a plate besides that of the data: this objective takes none")
        values.append(value.expand(trace.nodes[name]["fn"].shape()).reshape(num_data, -1))
    return torch.cat(values, dim=1)


def mmd2(one: Tensor, other: Tensor, some: Tensor | None = None) -> Tensor:
    """Return the unbiased estimate of the squared maximum mean discrepancy of two samples, ``[N, D]`` each.

    Args:
        one: a sample.
        other: another sample.
        some: which rows of both samples count, ``[N]`` of bool; None: all. With fewer than two rows the result is 0.
    """
    n = len(one)
    together = torch.cat([one, other])
    distances = (together[:, None] - together).square().sum(-1)
    base = 2.0 * one.shape[1]
    kernel = torch.stack([c * base / (c * base + distances) for c in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)]).sum(0)
    counts = one.new_ones(n, dtype=torch.bool) if some is None else some
    both = counts[:, None] & counts
    apart = both & ~torch.eye(n, dtype=torch.bool, device=one.device)
    pairs = apart.sum().clamp(min=1)
    within = [torch.where(apart, k, 0.0).sum() / pairs for k in (kernel[:n, :n], kernel[n:, n:])]
    between = torch.where(both, kernel[:n, n:], 0.0).sum() / both.sum().clamp(min=1)
    return torch.where(apart.any(), within[0] + within[1] - 2 * between, 0.0)


def permuted(z: Tensor) -> Tensor:
    """Return draws of the product of the latents' marginals: each column of ``[N, D]`` in its own random order."""
    return z.gather(0, torch.rand_like(z).argsort(0))
