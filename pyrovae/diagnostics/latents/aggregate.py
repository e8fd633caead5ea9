"""The parts of the KL term: information about the data, dependence between latents, distance to the prior."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack

import pandas as pd
import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyrovae.common.checks import at_least
from pyrovae.data import as_data
from pyrovae.diagnostics.evidence.evaluate import standard_error
from pyrovae.diagnostics.latents.scoring import FEW, conditioned, draws_of_its_own, refuse_masked
from pyrovae.diagnostics.predictive.draws import coordinates
from pyrovae.distributions.marginals import marginals
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.question import Question, ask
from pyrovae.programs.densities import log_density, per_datum
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.sites import support_of
from pyrovae.programs.streams import stream_seed
from pyrovae.programs.types import Program

PAIRS = 2**18  # pairs of a draw and an observation that are scored at once
NUMBERS = 2**24  # most latent coordinates of these pairs together
MOMENTS = 64  # draws from which the moments of an unknown marginal are estimated
MOST_FREE = 500.0  # limit on the unconstrained scale, beyond which numbers are rounded to an edge of their support


@dataclass(frozen=True)
class Aggregate:
    """The rate E[log q(z | x) - log p(z)] of N observations and its parts, in nats, one per observation, ``[N]``.

    With q(z) = 1/N sum_j q(z | x_j), the aggregate posterior of these data::

        rate = mutual information + marginal KL
             = mutual information + total correlation + sum of dimension-wise KLs + dependence in the prior

    The identities hold draw by draw, so that the parts add up. The mutual information is that between an observation's
    number and its code, at most log N. In expectation over repeated sets it is below that of the population.
    ``mutual_information_upper``, which leaves an observation's own q out of q(z), is above it. Where the two differ, N
    is too small.

    Attributes:
        distortion: E[-log p(x | z)].
        rate: E[log q(z | x) - log p(z)].
        mutual_information: E[log q(z | x) - log q(z)].
        mutual_information_upper: the same with q(z) over the other N - 1 observations.
        marginal_kl: E[log q(z) - log p(z)], the rate that a prior which fits the codes would save.
        total_correlation: E[log q(z) - sum_d log q(z_d)], the dependence between the latents.
        dimension_wise: E[log q(z_d) - log p(z_d)], ``[N, D]``; NaN where the prior's marginals have no closed form.
        prior_dependence: E[sum_d log p(z_d) - log p(z)], 0 for a prior with independent latents; NaN likewise.
        names: names of the D coordinates.
        mc_se: Monte Carlo standard errors of the means, by name, which more draws would remove; NaN for one draw.
        estimated: whether the guide's marginals have no closed form (flows). Each q(z_d | x) is then replaced by a
            Gaussian with the moments of 64 draws, on the unconstrained scale of z_d. Where it is not Gaussian, the
            dimension-wise KLs are too small, and the total correlation is too large by the same amount.
    """

    distortion: Tensor
    rate: Tensor
    mutual_information: Tensor
    mutual_information_upper: Tensor
    marginal_kl: Tensor
    total_correlation: Tensor
    dimension_wise: Tensor
    prior_dependence: Tensor
    names: tuple[str, ...]
    mc_se: dict[str, float]
    estimated: bool

    def __len__(self) -> int:
        return len(self.rate)

    def __str__(self) -> str:
        summary = self.summary()
        lines = [f"{name}: {summary[name]:.3f} (se {summary[f'{name}_se']:.3f})" for name in _TERMS]
        return "\n".join([f"{len(self)} data, nats per observation", *lines])

    def summary(self) -> dict[str, float]:
        """Return means and their standard errors over data drawn from a population, in nats per observation.

        To first order q(z) adds nothing to the errors: the influence function of a term is its integrand.
        """
        means: dict[str, float] = {"num_data": len(self), "log_num_data": math.log(len(self))}
        for name in _TERMS:
            values: Tensor = getattr(self, name)
            values = values.sum(1) if values.dim() == 2 else values
            means[name], means[f"{name}_se"] = float(values.mean()), standard_error(values)
        return means

    def table(self) -> pd.DataFrame:
        """Tabulate the dimension-wise KL of every coordinate, with its standard error over the data."""
        values = self.dimension_wise
        columns = {"kl": values.mean(0).numpy(), "kl_se": [standard_error(v) for v in values.T]}
        return pd.DataFrame(columns, index=list(self.names)).rename_axis("latent")


_TERMS = (
    "distortion", "rate", "mutual_information", "mutual_information_upper", "marginal_kl", "total_correlation",
    "dimension_wise", "prior_dependence",
)  # fmt: skip


@shared_keywords(batch_size=8 * BATCH_SIZE)
def aggregate(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_draws: int = 2,
    **options: Unpack[Options],
) -> Aggregate:
    """Split the rate into mutual information, total correlation and dimension-wise KL.

    Every draw is scored under the posterior of every observation, which takes N^2 times ``num_draws`` densities: give a
    subset of a large set. No minibatch replaces q(z), so that the only bias comes from N itself.

    Source: Hoffman and Johnson, "ELBO surgery", 2016; Chen, Li, Grosse and Duvenaud, "Isolating sources of
    disentanglement in variational autoencoders", 2018; Poole, Ozair, van den Oord, Alemi and Tucker, "On variational
    bounds of mutual information", 2019, for both bounds; Alemi et al., "Fixing a broken ELBO", 2018, for rate and
    distortion.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set; at least 2 data.
        num_draws: number of draws from every observation's posterior.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers; for a prior that differs between
            observations (there is no single p(z) to compare with), a guide that cannot score an externally supplied z,
            a guide that draws random numbers of its own before it samples, masked latents, or auxiliary sites.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> found = aggregate(model, guides.Exact(model), torch.randn(50, 5), progress=False)
        >>> parts = found.mutual_information + found.total_correlation + found.dimension_wise.sum(1)
        >>> (parts + found.prior_dependence).allclose(found.rate, atol=1e-4)
        True
    """
    num_draws = at_least("num_draws", num_draws, 1)
    data = as_data(data, model, guide).fixed()
    if len(data) < 2:
        raise ValueError("the aggregate posterior of one observation is its own posterior: give at least 2 data")
    with ask(model, guide, data, **options) as question, pyro.validation_enabled(False):
        question.layout.require_guided("divergences")
        if question.layout.auxiliary:
            raise ValueError(
                f"site {question.layout.auxiliary[0]!r} of the guide is not in the model, so q(z) has no density"
            )
        if draws_of_its_own(question, question.data.batch(slice(0, FEW))):
            raise ValueError(
                "the guide draws numbers of its own before it samples, so that q(z | x) is an average over them whose "
                "density is not known, and they would count as information: ask about the family that it starts from "
                "(of SemiAmortized, guide.family), or use another guide"
            )
        draws = _drawn(question, num_draws)
        log_q, without, single = _aggregated(question, draws)
        log_p_single = _prior_marginals(question, draws)
        log_q_single = _by_moments(question, draws) if single is None else single
    independent = log_q_single.sum(1)
    terms = {
        "distortion": -draws.log_likelihood,
        "rate": draws.log_q - draws.log_p,
        "mutual_information": draws.log_q - log_q,
        "mutual_information_upper": draws.log_q - without,
        "marginal_kl": log_q - draws.log_p,
        "total_correlation": log_q - independent,
        "dimension_wise": log_q_single - log_p_single,
        "prior_dependence": log_p_single.sum(1) - draws.log_p,
    }
    by_datum = {name: values.unflatten(0, (num_draws, len(data))) for name, values in terms.items()}
    return Aggregate(
        **{name: values.mean(0) for name, values in by_datum.items()},
        names=draws.names,
        mc_se={name: _monte_carlo_error(values) for name, values in by_datum.items()},
        estimated=single is None,
    )


def _monte_carlo_error(values: Tensor) -> float:
    """Return the error of the mean of ``[M, N]``, or ``[M, N, D]`` summed over D, given the data."""
    values = values.sum(2) if values.dim() == 3 else values
    if len(values) < 2:
        return math.nan
    return float(values.var(0).mean().div(values.numel()).sqrt())


@dataclass(frozen=True)
class _Draws:
    """M draws for each of N observations, ``[M * N]``, first draws of all data first, in float64 on the CPU.

    Attributes:
        latents: draws by site, ``[M * N, ...]``, in the dtype and on the device of the programs.
        flat: the same side by side, ``[M * N, D]``.
        log_q: log density of each draw under its own observation.
        log_p: log density under the prior.
        log_likelihood: log p(x | z).
        names: names of the D coordinates.
        plates: number of plates left of the data plate, by site.
        supports: supports of the latents, by site.
    """

    latents: dict[str, Tensor]
    flat: Tensor
    log_q: Tensor
    log_p: Tensor
    log_likelihood: Tensor
    names: tuple[str, ...]
    plates: dict[str, int]
    supports: dict[str, Any]


def _drawn(question: Question, num_draws: int) -> _Draws:
    latents: dict[str, list[Tensor]] = {name: [] for name in question.layout.latents}
    logs: dict[str, list[Tensor]] = {"log_q": [], "log_p": [], "log_likelihood": []}
    for part in question.particles(num_draws):
        if part.start:
            raise ValueError(f"num_draws must be at most {len(part.log_weight)}, got {num_draws}")
        size, sites = len(part.rows[0]), part.guide_trace.nodes
        shape = (len(part.indices), num_draws)
        refuse_masked(latents, part.guide_trace, part.model_trace)
        for name, values in latents.items():
            values.append(part.values(sites[name]))
        logs["log_q"].append(log_density(part.guide_trace, size).unflatten(0, shape).T)
        logs["log_p"].append(log_density(part.model_trace, size, observed=False).unflatten(0, shape).T)
        logs["log_likelihood"].append(log_density(part.model_trace, size, observed=True).unflatten(0, shape).T)
    joined = {name: torch.cat(values, dim=1).flatten(0, 1) for name, values in latents.items()}
    flat = torch.cat([value.reshape(len(value), -1).double().cpu() for value in joined.values()], dim=1)
    names = tuple(n for name, value in joined.items() for n in coordinates(name, value[0]))
    densities = {name: torch.cat(values, dim=1).flatten().double().cpu() for name, values in logs.items()}
    plates = {name: len(sites[name]["fn"].batch_shape) - 1 for name in joined}
    priors = {name: part.model_trace.nodes[name]["fn"] for name in joined}  # torch loses the support of some transforms
    supports = {name: support_of(prior) or constraints.real for name, prior in priors.items()}
    return _Draws(joined, flat, **densities, names=names, plates=plates, supports=supports)


def _aggregated(question: Question, draws: _Draws) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return log q(z), log q(z) without the own observation of z, and every log q(z_d) or None if not known."""
    size, count = len(question.data), len(draws.log_q)
    host: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    total, without = (torch.full((count,), -math.inf, **host) for _ in range(2))
    single: Tensor | None = torch.full(draws.flat.shape, -math.inf, **host)
    with question.bar("aggregate") as bar:
        for indices, batch in question.data.batches(question.batch_size):
            for chunk in _chunks(count, len(indices), draws.flat.shape[1]):
                latents = {name: value[chunk] for name, value in draws.latents.items()}
                logs, parts = _scores(question, latents, draws.plates, batch)
                logs = logs.double().cpu()
                total[chunk] = torch.logaddexp(total[chunk], logs.logsumexp(1))
                owner = torch.arange(chunk.start, chunk.start + len(logs), device="cpu")[:, None] % size  # per draw
                others = logs.masked_fill(owner == torch.arange(indices.start, indices.stop, device="cpu"), -math.inf)
                without[chunk] = torch.logaddexp(without[chunk], others.logsumexp(1))
                if single is None or parts is None:
                    single = None
                else:
                    single[chunk] = torch.logaddexp(single[chunk], parts.double().cpu().logsumexp(1))
            bar.update(len(indices))
    marginal = None if single is None else single - math.log(size)
    return total - math.log(size), without - math.log(size - 1), marginal


def _chunks(count: int, size: int, dim: int) -> Iterator[slice]:
    step = max(min(PAIRS, NUMBERS // dim) // size, 1)
    return (slice(start, start + step) for start in range(0, count, step))


def _scores(
    question: Question, latents: Mapping[str, Tensor], plates: Mapping[str, int], batch: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor | None]:
    """Return log q of draws under all observations, ``[draws, data]``, and of coordinates, ``[draws, data, D]``.

    A distribution that can have draws and data in separate dimensions is evaluated at once. Any other guide is run on
    every pair of a draw and an observation.
    """
    if len(latents) == 1:
        ((name, values),) = latents.items()
        with Repeated():
            site = poutine.trace(question.pair.guide).get_trace(*batch).nodes[name]
        densities = marginals(site["fn"]) if len(site["fn"].batch_shape) == 1 and site["mask"] is None else None
        if densities is not None:
            together: Tensor = site["fn"].log_prob(values[:, None])
            return together, densities(values.reshape(len(values), -1)[:, None])
    count, size = len(next(iter(latents.values()))), len(batch[0])
    rows = tuple(t.repeat(count, *[1] * (t.dim() - 1)) for t in batch)
    trace = conditioned(
        question.pair.guide, {n: v.repeat_interleave(size, 0) for n, v in latents.items()}, plates, rows
    )
    return log_density(trace, len(rows[0])).nan_to_num(nan=-math.inf).unflatten(0, (count, size)), None


def _prior_marginals(question: Question, draws: _Draws) -> Tensor:
    """Return log p(z_d) of every draw, ``[draws, D]``; NaN where it has no closed form.

    Raises:
        ValueError: for a prior that differs between observations.
    """
    for indices, batch in question.data.batches(question.batch_size):
        size = len(indices)
        first = {name: value[:1].expand(size, *value.shape[1:]) for name, value in draws.latents.items()}
        trace = conditioned(question.pair.model, first, draws.plates, batch)
        log_p = torch.stack([per_datum(trace.nodes[name], size) for name in first]).sum(0)  # conditioning observes them
        if not bool(torch.isclose(log_p, draws.log_p[:1].to(log_p), rtol=1e-4, atol=1e-4).all()):
            raise ValueError(
                "the prior of the latents differs between data (it depends on what the model is given), so that there "
                "is no one p(z) to compare q(z) with: ask about data that share it"
            )
    parts = []
    for name in question.layout.latents:
        fn = trace.nodes[name]["fn"]
        densities = marginals(fn) if len(question.layout.latents) == 1 and len(fn.batch_shape) == 1 else None
        values = draws.latents[name].reshape(len(draws.log_q), -1)
        nans = torch.full(values.shape, math.nan)
        log_p = nans if densities is None else torch.cat([densities(v[:, None])[:, 0] for v in values.split(4096)])
        parts.append(log_p.double().cpu())
    return torch.cat(parts, dim=1)


def _by_moments(question: Question, draws: _Draws) -> Tensor:
    """Return log q(z_d) of every draw, ``[draws, D]``, with a Gaussian for each q(z_d | x); NaN if discrete.

    The Gaussian is that of z_d on its unconstrained scale, u_d: log q(z_d) = log q(u_d) - log |dz_d / du_d|. Its mean
    and standard deviation come from separate draws, so that narrow posteriors stay narrow.
    """
    if any(support.is_discrete for support in draws.supports.values()):
        return torch.full_like(draws.flat, math.nan)
    again = _drawn(replace(question, seed=stream_seed("moments", question.seed)), MOMENTS)
    own = _unconstrained(again)[0].unflatten(0, (MOMENTS, -1))
    loc, scale = own.mean(0), own.std(0).clamp(min=1e-9)  # [N, D]
    free, log_jacobian = _unconstrained(draws)
    parts = []
    for chunk in _chunks(len(free), *loc.shape):
        logs = torch.distributions.Normal(loc, scale).log_prob(free[chunk][:, None])
        parts.append(logs.logsumexp(1) - math.log(len(loc)))
    return torch.cat(parts) - log_jacobian


def _unconstrained(draws: _Draws) -> tuple[Tensor, Tensor]:
    """Return every latent on its own unconstrained scale, ``[draws, D]``, and log |dz_d / du_d|."""
    free, log_jacobian = [], []
    for name, value in draws.latents.items():
        z, transform = value.reshape(len(value), -1).double().cpu(), _of_one_number(draws.supports[name])
        if transform is None:
            free.append(z)
            log_jacobian.append(torch.zeros_like(z))
        else:
            u = transform.inv(z).clamp(-MOST_FREE, MOST_FREE)  # if a value was rounded to the edge
            free.append(u)
            log_jacobian.append(transform.log_abs_det_jacobian(u, transform(u)))
    return torch.cat(free, 1), torch.cat(log_jacobian, 1)


def _of_one_number(support: Any) -> Any:
    """Return the map from the real line onto a coordinate's support; None for the real line, or if not known."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.simplex:
        support = constraints.unit_interval
    bounds = [bound for bound in vars(support).values() if isinstance(bound, Tensor) and bound.numel() > 1]
    if support.event_dim or bounds or support is constraints.real:
        return None
    try:
        transform = biject_to(support)
    except NotImplementedError:
        return None
    return None if transform.domain.event_dim else transform
