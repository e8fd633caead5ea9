"""Which observations are unlike others, how sure that is, and which of their features make them so."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from pyrovae.common.checks import at_least, share
from pyrovae.data import as_data
from pyrovae.diagnostics.predictive.draws import coordinates, feature_names
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.particles import Particles
from pyrovae.importance.question import Question, ask, refuse_weights
from pyrovae.programs.densities import log_density, per_datum
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import counted, site_rows
from pyrovae.programs.types import Program, Site, Trace

SCORES = ("evidence", "typicality", "reconstruction")


@shared_keywords(batch_size=BATCH_SIZE)
def anomaly(
    model: Program,
    guide: Program,
    data: Any,
    reference: Any,
    *,
    score: str = "evidence",
    rate: float = 0.1,
    num_particles: int = 500,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Compare observations with reference data that are known to be normal, and that the fit has not seen.

    - "evidence": minus log p(x), by importance sampling.
    - "typicality": distance of log p(x) from its mean over the reference data, so that what is too probable is odd too.
    - "reconstruction": minus E_q[log p(x | z)].

    A p-value is the share of the reference data, and the observation itself, that are at least as odd (conformal). For
    an observation that is like the reference data it is below any level with at most that probability, whatever the
    model ("typicality": but for terms of 1 / n). The observations that are rejected are those of Benjamini and
    Hochberg's procedure: of them, a share ``rate`` at most is expected to be normal. With n reference data no p-value
    is below 1 / (n + 1), so that of N observations fewer than N / (rate (n + 1)) are never rejected: a warning says so.

    The feature named is the one that is least probable given all others: the p-value of -log p(x_d | x_others) among
    that feature's values in the reference data, from particles of the guide and of the prior, each weighted without the
    feature. It is the smallest over the features, and not corrected for their number; of several that are odder than
    in all reference data, which have fewer values where cells are missing, the one that is so by the most nats.

    Source: Bates, Candes, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", 2023; Nalisnick,
    Matsukawa, Teh and Lakshminarayanan, "Detecting out-of-distribution inputs to deep generative models using
    typicality", 2019; An and Cho, "Variational autoencoder based anomaly detection using reconstruction probability",
    2015.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: observations in question: a tensor, a tuple of tensors, a table, or a data set.
        reference: held-out observations that are normal.
        score: "evidence", "typicality" or "reconstruction".
        rate: largest expected share of normal observations among those that are rejected.
        num_particles: number of draws of the guide per observation.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        One row per observation: ``score`` (higher is odder, nats), ``pvalue``, ``rejected``, ``feature`` and
        ``feature_pvalue``. Where the features of a site are not independent given the latents there is none.

    Raises:
        ValueError: for an unknown score, a pair that breaks the contract, bad data or bad numbers.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> from pyrovae import simulate
        >>> normal = simulate(model, torch.zeros(1, 5), num_simulations=200, progress=False).data
        >>> odd = torch.zeros(2, 5) + torch.tensor([[0.0], [20.0]])
        >>> anomaly(model, guides.Exact(model), odd, normal, progress=False)["rejected"].tolist()
        [False, True]
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    num_particles, rate = at_least("num_particles", num_particles, 1), share("rate", rate, ends=False)
    given, normal = (as_data(one, model, guide) for one in (data, reference))
    refuse_weights(normal)
    ours, theirs = (_measured(model, guide, one, num_particles, options) for one in (given, normal))
    scores, references = _scores(score, ours, theirs)
    pvalues = _conformal(scores, references)
    _warn_of_few(len(pvalues), int((~references.isnan()).sum()), rate)
    columns: dict[str, Any] = {
        "score": scores.numpy(), "pvalue": pvalues.numpy(), "rejected": _benjamini_hochberg(pvalues, rate).numpy()
    }  # fmt: skip
    if ours.names:
        by_feature = torch.stack([_conformal(o, t) for o, t in zip(ours.odd.T, theirs.odd.T, strict=True)], 1)
        odder = _oddest(by_feature, ours.odd, theirs.odd)
        smallest = by_feature.gather(1, odder[:, None])[:, 0]
        known = ~smallest.isnan() & (~theirs.odd.isnan()).any(0)[odder]
        smallest = smallest.masked_fill(~known, torch.nan)
        columns["feature"] = [ours.names[k] if yes else "" for k, yes in zip(odder.tolist(), known, strict=True)]
        columns["feature_pvalue"] = smallest.numpy()
    else:
        columns["feature"], columns["feature_pvalue"] = "", np.nan
    return pd.DataFrame(columns, index=given.index).rename_axis("datum")


def _warn_of_few(count: int, references: int, rate: float) -> None:
    """Warn where even the oddest observation cannot be rejected by itself."""
    fewest = math.ceil(count / (rate * (1 + references)) - 1e-9)
    if fewest > 1:
        needed = math.ceil(count / rate) - 1
        warnings.warn(
            f"with {references} reference data no fewer than {fewest} of {count} observations can be rejected at a "
            f"rate of {rate:g}, however odd they are: to reject a single one, give {needed} reference data, or a "
            "larger rate",
            stacklevel=4,
        )


@dataclass(frozen=True)
class _Measured:
    """What is measured of N observations.

    Attributes:
        evidence: log p(x), ``[N]``.
        reconstruction: E_q[log p(x | z)], ``[N]``.
        odd: -log p(x_d | x_others), ``[N, D]``; NaN where a cell is missing.
        names: names of the D features.
    """

    evidence: Tensor
    reconstruction: Tensor
    odd: Tensor
    names: list[str]


def _measured(model: Program, guide: Program, data: Any, num_particles: int, options: Options) -> _Measured:
    with ask(model, guide, data, takes_weights=True, **options) as question:
        parts = list(_by_batch(question, num_particles))
        names = _names(question) if parts[0][2].shape[1] else []
    evidence, reconstruction, odd = (torch.cat(found) for found in zip(*parts, strict=True))
    return _Measured(evidence, reconstruction, odd, names)


def _by_batch(question: Question, num_particles: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Iterate over batches: log evidence, E_q[log p(x | z)], and -log p(x_d | x_others).

    An observation with one impossible cell has particles that are far from where its other cells are probable. So the
    densities of x and of x_others are each the average of two estimates: from the guide's particles, and from as many
    of the prior's.
    """
    for part in question.particles(num_particles, "anomaly"):
        weight, (likelihood, features) = part.log_weight.double(), _densities(question, part, part.model_trace)
        known = features.shape[-1] > 0
        if not part.start:
            noise = DatumNoise("anomaly, prior", question.seed, part.indices, question.data.device)
            reconstruction, logs = torch.zeros_like(weight[0]), [torch.tensor(-torch.inf).to(weight)] * 3
        from_prior, cells = _densities(question, part, _prior(question, part, noise)) if known else (weight, features)
        latents = _latents(part)[..., None]
        rest = torch.cat([latents + _others(features), _others(cells)])
        terms = (weight, torch.cat([weight, from_prior]), rest)
        logs = [torch.logaddexp(log, term.logsumexp(0)) for log, term in zip(logs, terms, strict=True)]
        reconstruction = reconstruction + likelihood.sum(0)
        if part.start + len(weight) == num_particles:
            odd = logs[2] - logs[1][:, None]
            yield (
                (logs[0] - math.log(num_particles)).cpu(), (reconstruction / num_particles).cpu(),
                odd.masked_fill(_missing(question, part), torch.nan).cpu() if known else odd.cpu(),
            )  # fmt: skip


def _prior(question: Question, part: Particles, noise: DatumNoise) -> Trace:
    """Return a trace of the model on the part's rows, whose latents are drawn from the prior."""
    noise.repeats = len(part.rows[0]) // len(part.indices)
    with noise, Repeated():
        return question.pair.density(question.pair.model, part.rows)


def _latents(part: Particles) -> Tensor:
    """Return log p(z) - log q(z | x), ``[K, n]``."""
    size = len(part.rows[0])
    latents = log_density(part.model_trace, size, observed=False) - log_density(part.guide_trace, size)
    return latents.double().unflatten(0, (len(part.indices), -1)).T


def _others(features: Tensor) -> Tensor:
    """Return log p(x_others | z), without each feature in turn, ``[K, n, D]``."""
    impossible = features == -torch.inf
    finite = features.masked_fill(impossible, 0.0)
    others = finite.sum(-1, keepdim=True) - finite
    elsewhere = impossible.sum(-1, keepdim=True) - impossible.long() > 0
    return others.masked_fill(elsewhere, -torch.inf)


def _densities(question: Question, part: Particles, trace: Trace) -> tuple[Tensor, Tensor]:
    """Return log p(x | z), ``[K, n]``, and log p(x_d | z) of every feature, ``[K, n, D]``."""
    whole, features = torch.zeros_like(part.log_weight, dtype=torch.float64), []
    for site in question.layout.observed:
        node = trace.nodes[site.name]
        size = len(part.rows[0])
        whole = whole + per_datum(node, size).double().unflatten(0, (len(part.indices), -1)).T
        single = _of_features(node, size)
        if single is not None:
            features.append(single.double().unflatten(0, (len(part.indices), -1)).transpose(0, 1))
    empty = whole.new_zeros(*whole.shape, 0)
    complete = len(features) == len(question.layout.observed)
    return whole, torch.cat(features, -1) if complete else empty


def _of_features(node: Site, size: int) -> Tensor | None:
    """Return the log density of every feature of a site, ``[rows, D]``; None where they are not independent."""
    fn = node["fn"]
    if fn.event_dim == 0 and len(fn.batch_shape) == 1:
        return fn.log_prob(node["value"]).expand(size)[:, None]
    if not isinstance(fn, torch.distributions.Independent) or len(fn.batch_shape) != 1:
        return None
    inner = fn.base_dist
    if inner.event_dim:
        return None
    log_prob = inner.log_prob(node["value"])
    cells = counted(node)
    log_prob = log_prob if cells is None else torch.where(cells, log_prob, 0.0)
    return log_prob.expand(size, *log_prob.shape[1:]).flatten(1)


def _missing(question: Question, part: Particles) -> Tensor:
    """Return which features of every observation are missing, ``[n, D]``."""
    cells = []
    for site in question.layout.observed:
        node = part.model_trace.nodes[site.name]
        rows = site_rows(node)
        rows = rows.flatten(1) if rows.dim() > 1 else rows[:, None]
        own = rows.isnan() if rows.is_floating_point() else torch.zeros_like(rows, dtype=torch.bool)
        counts = counted(node)
        if counts is not None:
            own = own | ~counts.reshape(own.shape)
        cells.append(own.unflatten(0, (len(part.indices), -1))[:, 0])
    return torch.cat(cells, 1)


def _names(question: Question) -> list[str]:
    names: list[str] = []
    trace = question.pair.traces(question.data.batch(slice(0, 1)))[0]
    for site in question.layout.observed:
        known = feature_names(question, site.name)
        names += known if known else coordinates(site.name, site_rows(trace.nodes[site.name])[0])
    return names


def _scores(score: str, ours: _Measured, theirs: _Measured) -> tuple[Tensor, Tensor]:
    if score == "reconstruction":
        return -ours.reconstruction, -theirs.reconstruction
    if score == "evidence":
        return -ours.evidence, -theirs.evidence
    centre = theirs.evidence[theirs.evidence.isfinite()].mean()
    return (ours.evidence - centre).abs(), (theirs.evidence - centre).abs()


def _conformal(scores: Tensor, reference: Tensor) -> Tensor:
    """Return the share of the reference, and the observation itself, that are at least as odd; NaN stays NaN."""
    known = reference[~reference.isnan()].sort().values
    above = len(known) - torch.searchsorted(known, scores.nan_to_num(), right=False)
    pvalues = (1 + above.double()) / (1 + len(known))
    return torch.where(scores.isnan(), torch.nan, pvalues)


def _benjamini_hochberg(pvalues: Tensor, rate: float) -> Tensor:
    return torch.from_numpy(stats.false_discovery_control(pvalues.numpy()) <= rate + 1e-12)


def _oddest(pvalues: Tensor, odd: Tensor, reference: Tensor) -> Tensor:
    """Return each observation's feature with the smallest p-value, ``[N]``.

    Several may be odder than in all reference data, of which some features have fewer than others: of these, the one
    that is above its largest reference value by the most nats.
    """
    counts = (~reference.isnan()).sum(0)
    known = pvalues.masked_fill((counts == 0)[None, :], torch.nan).nan_to_num(nan=2.0)
    beyond = known <= 1 / (1 + counts.double())[None, :] + 1e-12
    excess = (odd - reference.nan_to_num(nan=-torch.inf).max(0).values).masked_fill(~beyond | (known > 1), -torch.inf)
    most, least = excess.nan_to_num(nan=-torch.inf).argmax(1), known.min(1)
    is_beyond = beyond.gather(1, least.indices[:, None])[:, 0] & (least.values <= 1)
    return torch.where(is_beyond, most, least.indices)
