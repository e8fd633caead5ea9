"""Evidence and posteriors under another prior, by reweighting."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.diagnostics.evidence.evaluate import combined_error, standard_error, weigh
from pyrovae.diagnostics.posterior.weighted_moments import moments, smoothed_weights
from pyrovae.diagnostics.predictive.draws import coordinates
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.particles import Particles
from pyrovae.importance.psis import khat_limit
from pyrovae.importance.question import Question, ask
from pyrovae.priors import as_prior
from pyrovae.programs.densities import per_datum
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.sites import is_discrete, site_rows, support_of
from pyrovae.programs.types import Program

DRAWS = 1000  # of a prior, which show its support


@dataclass(frozen=True, repr=False)
class Reprior:
    """N observations under another prior of one latent site, everything else as it is. Nats, higher is better.

    Attributes:
        log_evidence: log p(x) under the other prior, ``[N]``.
        log_evidence_se: its Monte Carlo standard error, ``[N]``.
        difference: log p(x) under the other prior minus that under the model's own, ``[N]``.
        difference_se: its Monte Carlo standard error, ``[N]``; both come from the same particles, so that it is small
            where the priors are alike.
        mean: posterior means under the other prior, ``[N, D]``.
        sd: posterior standard deviations under it, ``[N, D]``.
        own_mean: posterior means under the model's own prior, ``[N, D]``.
        own_sd: posterior standard deviations under it, ``[N, D]``.
        khat: Pareto tail index of the weights, the larger one of both priors, ``[N]``.
        limit: largest k-hat at which the estimates can be trusted.
        latents: names of the D coordinates of the site.
        index: names of the observations.
    """

    log_evidence: Tensor
    log_evidence_se: Tensor
    difference: Tensor
    difference_se: Tensor
    mean: Tensor
    sd: Tensor
    own_mean: Tensor
    own_sd: Tensor
    khat: Tensor
    limit: float
    latents: list[str]
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def reliable(self) -> Tensor:
        """Whether each observation's weights can be trusted, ``[N]``."""
        return self.khat <= self.limit

    def table(self) -> pd.DataFrame:
        """Return one row per observation: evidence, difference, largest shift of a mean in posterior sds, k-hat."""
        shift = ((self.mean - self.own_mean).abs() / self.own_sd).amax(1) if self.latents else torch.zeros(len(self))
        columns = {
            "log_evidence": self.log_evidence, "log_evidence_se": self.log_evidence_se, "difference": self.difference,
            "difference_se": self.difference_se, "shift": shift, "khat": self.khat, "reliable": self.reliable,
        }  # fmt: skip
        return pd.DataFrame({name: v.numpy() for name, v in columns.items()}, index=self.index).rename_axis("datum")

    def moments(self) -> pd.DataFrame:
        """Return one row per observation and latent: posterior mean and sd under both priors."""
        names = pd.MultiIndex.from_product([self.index, self.latents], names=["datum", "latent"])
        columns = {name: getattr(self, name).flatten().numpy() for name in ("mean", "sd", "own_mean", "own_sd")}
        return pd.DataFrame(columns, index=names)

    def summary(self) -> dict[str, float]:
        """Return means over the observations, the log Bayes factor of the other prior, and the unreliable share.

        ``difference_se`` is the error over observations from a population, ``difference_mc_se`` that of Monte Carlo
        alone. The log Bayes factor is the sum of the differences, with its Monte Carlo error.
        """
        return {
            "num_data": len(self),
            "log_evidence": float(self.log_evidence.mean()),
            "difference": float(self.difference.mean()),
            "difference_se": standard_error(self.difference),
            "difference_mc_se": combined_error(self.difference_se),
            "log_bayes_factor": float(self.difference.sum()),
            "log_bayes_factor_mc_se": float(self.difference_se.square().sum().sqrt()),
            "shift": float(self.table()["shift"].mean()),
            "unreliable": float((~self.reliable).double().mean()),
        }

    def __repr__(self) -> str:
        result = self.summary()
        text = (
            f"another prior for {len(self)} observations: log evidence {result['difference']:+.3f} nats per "
            f"observation (standard error {result['difference_se']:.3f} over observations, "
            f"{result['difference_mc_se']:.3f} Monte Carlo)"
        )
        if self.latents:
            text += f", posterior means moved by {result['shift']:.2f} of a standard deviation"
        bad = int((~self.reliable).sum())
        if bad:
            text += (
                f"; NOT RELIABLE for {bad} of them (k-hat above {self.limit:.2f}): the guide's draws do not represent "
                "their posteriors under one of the priors; fit a model with that prior, and compare"
            )
        return text


@shared_keywords(batch_size=BATCH_SIZE)
def reprior(
    model: Program,
    guide: Program,
    data: Any,
    prior: Any,
    *,
    site: str | None = None,
    num_particles: int = 1000,
    **options: Unpack[Options],
) -> Reprior:
    """Put another prior in the place of a latent's own, and return evidence and posteriors, without a fit.

    The guide's particles are weighted by p'(z) p(x | z) / q(z | x). The rest of the model stays as it was fitted under
    its own prior: this asks what another prior says about these latents, for this decoder. What a decoder that is
    fitted under the other prior would do is another question: fit it, and :func:`pyrovae.compare`.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set.
        prior: the other prior: a distribution with batch shape ``()``, or a module that returns one, within the support
            of the model's own. Where it is narrower, draws outside of it have weight 0; an observation of which no draw
            is inside has the log evidence minus infinity, and is not reliable.
        site: latent site whose prior it replaces; required if there are several.
        num_particles: number of draws of the guide per observation.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, survey weights, a site that is no
            latent, or a prior of another shape or with a wider support.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> sharp = dist.Laplace(torch.zeros(2), 0.7).to_event(1)
        >>> result = reprior(model, guides.Exact(model), torch.zeros(7, 5), sharp, progress=False)
        >>> result.difference.shape, result.mean.shape
        (torch.Size([7]), torch.Size([7, 2]))
    """
    num_particles = at_least("num_particles", num_particles, 25)
    module = as_prior(prior)
    with ask(model, guide, data, **options) as question:
        question.layout.require_guided("prior density")
        name = latent_site(question, site)
        other = _Other(question, module, name)
        parts = [_under_both(*batch) for batch in _batches(question, name, other, num_particles)]
        names, index = other.latents, question.data.index
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return Reprior(**whole, limit=khat_limit(num_particles), latents=names, index=index)


def latent_site(question: Question, site: str | None) -> str:
    """Return the name of a latent site: the only one, or the one that is named.

    Raises:
        ValueError: for several latents without a name, or a site that is none.
    """
    latents = list(question.layout.latents)
    if site is None and len(latents) > 1:
        raise ValueError(f"the model has the latents {latents}: say whose prior to replace, site={latents[0]!r}")
    if site is not None and site not in latents:
        raise ValueError(f"site {site!r} is not a latent: the model has {latents}")
    return latents[0] if site is None else site


class _Other:
    """The other prior of a site, with density 0 outside of its support.

    Args:
        question: the pair and its data.
        module: module that returns the prior.
        name: name of the site.

    Raises:
        ValueError: for a prior of another shape, or that is discrete where the site is not.
    """

    def __init__(self, question: Question, module: nn.Module, name: str) -> None:
        node = question.pair.traces(question.data.batch(slice(0, 1)))[0].nodes[name]
        own, value = node["fn"], node["value"]
        own_copy = copy.deepcopy(module).to(value.device)
        fn = (own_copy.to(value.dtype) if value.is_floating_point() else own_copy).eval()()
        if fn.batch_shape or fn.event_shape != own.event_shape:
            raise ValueError(
                f"the prior must have batch shape () and event shape {tuple(own.event_shape)}, as {name!r} has in the "
                f"model, got {tuple(fn.batch_shape)} and {tuple(fn.event_shape)}"
            )
        if is_discrete(fn) != is_discrete(own):
            raise ValueError(f"the prior and the latent {name!r} must both be discrete, or both be continuous")
        with same_streams(value.device):
            reached = fn.sample(torch.Size([DRAWS]))
        support = support_of(own)
        if support is not None and not bool(support.check(reached).all()):
            raise ValueError(
                f"the prior has draws outside of the support of {name!r} in the model, {support}, where the guide has "
                "none to weight: fit a model with that prior"
            )
        self.fn, self.inside = fn, reached[0]
        self.latents = [] if is_discrete(own) else coordinates(name, site_rows(node)[0])

    def log_prob(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the log density of values, minus infinity outside of the support."""
        inside = self.fn.support.check(value)
        wide = inside.reshape(*inside.shape, *(1,) * (value.dim() - inside.dim()))
        density: Tensor = self.fn.log_prob(torch.where(wide, value, self.inside))
        return torch.where(inside, density, -math.inf)


def _batches(
    question: Question, name: str, other: _Other, num_particles: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Iterate over batches: log weights under the own and the other prior, ``[K, n]``, and latents ``[K, n, D]``."""
    kept: list[tuple[Tensor, ...]] = []
    for part in question.particles(num_particles, "reprior"):
        kept = kept if part.start else []
        kept.append(_under(part, name, other))
        if part.start + len(part.log_weight) == num_particles:
            weight, moved, latents = (torch.cat(pieces) for pieces in zip(*kept, strict=True))
            yield weight, moved, latents


def _under(part: Particles, name: str, other: _Other) -> tuple[Tensor, Tensor, Tensor]:
    node, size = part.model_trace.nodes[name], len(part.rows[0])
    change = per_datum({**node, "fn": other}, size) - per_datum(node, size)
    weight, shape = part.log_weight.cpu(), part.log_weight.shape
    moved = weight.double() + change.double().unflatten(0, (len(part.indices), -1)).T.cpu()
    latents = part.values(node).reshape(*shape, -1)[..., : len(other.latents)]
    return weight, moved, latents.double().cpu()


def _under_both(weight: Tensor, moved: Tensor, latents: Tensor) -> dict[str, Tensor]:
    own, other = weigh(weight), weigh(moved)
    never = (moved == -math.inf).all(0)
    moved = torch.where(never, 0.0, moved)  # moments of no draws are not known
    shares = [w.double().softmax(0) * len(w) for w in (moved, weight)]
    mean, sd = moments(smoothed_weights(moved), latents)
    own_mean, own_sd = moments(smoothed_weights(weight), latents)
    evidence = torch.where(never, -math.inf, other["log_evidence"])
    other["khat"] = torch.where(never, math.inf, other["khat"])
    mean, sd = (torch.where(never[:, None], torch.nan, v) for v in (mean, sd))
    return {
        "log_evidence": evidence, "log_evidence_se": other["log_evidence_se"],
        "difference": evidence - own["log_evidence"],
        "difference_se": (shares[0] - shares[1]).std(0) / math.sqrt(len(weight)),
        "khat": torch.maximum(own["khat"], other["khat"]),
        "mean": mean, "sd": sd, "own_mean": own_mean, "own_sd": own_sd,
    }  # fmt: skip
