"""Which latents a pair uses: rates, information and activity by coordinate, and collapse onto the prior."""

import math
from dataclasses import dataclass
from typing import Any, Unpack

import pandas as pd
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common.checks import at_least, positive
from pyrovae.diagnostics.evidence.evaluate import standard_error
from pyrovae.diagnostics.latents.scoring import draws_of_its_own, refuse_masked
from pyrovae.diagnostics.predictive.draws import coordinates
from pyrovae.distributions.marginals import marginals
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.particles import Particles
from pyrovae.importance.question import Question, ask
from pyrovae.programs.densities import per_datum
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import is_discrete
from pyrovae.programs.types import Program

INFORMATION_OF = 500
NUMBERS = 2**25  # log densities held at once
ERRORS = 2.0  # standard errors by which a number has to be below or above the threshold
ACTIVE = 0.01  # variance of codes from which Burda and others count a unit as active


@dataclass(frozen=True)
class Usage:
    """What each latent holds of the data.

    Attributes:
        latents: one row per coordinate (``z[0]``, ...), with the columns ``layer`` (its site), ``rate``,
            ``information`` and ``activity``, each with its standard error (``rate_se``, ...), ``code_variance``,
            ``state`` and ``collapsed``; see :func:`usage`.
        layers: one row per site: ``rate`` and ``information`` of all its coordinates together, in nats per observation,
            with their standard errors; the number of coordinates (``latents``), of those in use (``used``), and of
            those that Burda and others would count as active (``active_units``); ``state`` and ``collapsed``.
    """

    latents: pd.DataFrame
    layers: pd.DataFrame

    @property
    def collapsed(self) -> list[str]:
        """Names of the collapsed coordinates."""
        return self.named("collapsed")

    def named(self, state: str) -> list[str]:
        """Return the names of the coordinates in a state: "used", "collapsed", "idle", "follows" or "unclear"."""
        return list(self.latents.index[self.latents["state"] == state])

    def __str__(self) -> str:
        lines = []
        for name, layer in self.layers.iterrows():
            own = self.latents[self.latents["layer"] == name]
            others = {state: list(own.index[own["state"] == state]) for state in _STATES}
            details = "".join(f", {state}: {', '.join(names)}" for state, names in others.items() if names)
            text = _STATES.get(layer["state"], f"{layer['used']} of {layer['latents']} latents in use{details}")
            lines.append(f"{name}: {layer['rate']:.3g} nats per observation (se {layer['rate_se']:.2g}), {text}")
        return "\n".join(lines)


_STATES = {
    "collapsed": "collapsed: no latent holds anything of the data",
    "idle": "idle: no latent moves with the data, though q is not the prior",
    "follows": "follows its prior: no latent holds more than the input of its prior",
    "unclear": "unclear: whether a latent holds anything of the data cannot be told from so few data or draws",
}


@dataclass(frozen=True)
class _Number:
    """An estimate and its standard error; NaN where not known."""

    value: float
    error: float

    def below(self, threshold: float) -> bool:
        """Whether it is below a threshold by two standard errors; false where the error is not known."""
        return abs(self.value) + ERRORS * self.error < threshold

    def above(self, threshold: float) -> bool:
        """Whether it is above a threshold by two standard errors; false where the error is not known."""
        return self.value - ERRORS * self.error > threshold

    @property
    def known(self) -> bool:
        """Whether there is an estimate at all."""
        return not math.isnan(self.value)

    def columns(self, name: str) -> dict[str, float]:
        """Return the columns of a table."""
        return {name: self.value, f"{name}_se": self.error}


def _state(rate: _Number, most: _Number, moves: _Number, threshold: float) -> str:
    """Return the state of a latent, given its rate, an upper limit of its rate, and how it moves with the data."""
    low = rate.below(threshold) or most.below(threshold)
    still = _Number(max(moves.value, 0.0), moves.error).below(threshold)  # an estimate of 0 may be negative
    if low and (still or not moves.known):
        return "collapsed"
    if still:
        return "idle"
    if low:
        return "follows"
    return "used" if moves.above(threshold) and (rate.above(threshold) or not rate.known) else "unclear"


@shared_keywords(batch_size=BATCH_SIZE)
def usage(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_draws: int = 32,
    threshold: float = 0.01,
    **options: Unpack[Options],
) -> Usage:
    """Report which latents, and which layers of latents, hold information about the data, and which have collapsed.

    For every coordinate, given the layers that the programs draw before it, with standard errors over the data:

    - ``rate``: E[log q(z_d | ...) - log p(z_d | ...)] in nats per observation, with q's marginal. For a factorised q
      the rates of the coordinates add up to the layer's rate. For a correlated q the layer's rate also contains the
      correlation. NaN where the family's marginals have no closed form (flows); the layer's rate is then its upper
      limit.
    - ``information``: mutual information of z_d and the input of q, from q's marginals and 500 observations taken at
      random (at most the log of their number). NaN where the family's marginals have no closed form, and for a guide
      that draws numbers of its own before it samples (``guides.SemiAmortized``), because these would count as
      information.
    - ``activity``: variance over the data of the mean of q, as a share of the whole variance of z_d, corrected for the
      bias from few draws; NaN for discrete latents. ``code_variance`` is that variance itself. Burda and others call a
      unit active where it is above 0.01, which is meaningful for a standard normal prior.

    ``state`` combines the rate with the movement of z_d with the data. The movement is the information or, where that
    is not known, the activity, which depends only on means. A number counts as below or above ``threshold`` only if it
    is so by two standard errors.

    - "collapsed": both are below: q equals the prior.
    - "idle": z_d does not move with the data, but q differs from the prior, or is not known to equal it. This happens
      where the guide's family does not contain the prior (a Gaussian q and a Laplace prior).
    - "follows": z_d moves only as its prior moves with the layer above or with covariates, and holds no further
      information.
    - "used": both are above.
    - "unclear": these data and draws are too few to decide.

    ``collapsed`` says whether the state is "collapsed". A layer without used latents is classified in the same way, by
    its own rate and information and by ``threshold`` times the number of its latents, because these detect what single
    latents do not show.

    With a guide that samples the layers in another order than the model (``guides.Hierarchical``), only the rates of
    layers and those of the topmost layer's coordinates are divergences: see :func:`pyrovae.rates`.

    Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016, for active units; Lucas, Tucker,
    Grosse and Norouzi, "Understanding posterior collapse in generative latent variable models", 2019; Hoffman and
    Johnson, "ELBO surgery", 2016, for the information within the rate.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set; at least 2 observations.
        num_draws: number of draws from every observation's posterior; at least 2.
        threshold: limit in nats per observation for rates and information, and as a share of the variance for activity.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, or a guide with auxiliary sites.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> print(usage(model, guides.Exact(model), torch.randn(50, 5), progress=False).layers["latents"].to_dict())
        {'z': 2}
    """
    num_draws = at_least("num_draws", num_draws, 2)
    threshold = positive("threshold", threshold)
    parts: dict[int, dict[str, _Sums]] = {}
    with ask(model, guide, data, **options) as question:
        question.layout.require_guided("rates")
        if question.layout.auxiliary:
            raise ValueError(
                f"site {question.layout.auxiliary[0]!r} of the guide is not in the model, so it has no rate"
            )
        if len(question.data) < 2:
            raise ValueError("which latents are used cannot be told from one observation: give at least 2")
        for part in question.particles(num_draws, "usage"):
            refuse_masked(question.layout.latents, part.guide_trace, part.model_trace)
            current = {name: _Sums.of(part, name) for name in question.layout.latents}
            previous = parts.get(part.indices.start)
            parts[part.indices.start] = (
                current if previous is None else {n: previous[n] + f for n, f in current.items()}
            )
        width = max(sums.single.shape[1] for sums in next(iter(parts.values())).values())
        gains = _information(question, width)
    rows: dict[str, dict[str, Any]] = {}
    layers: dict[str, dict[str, Any]] = {}
    for site in next(iter(parts.values())):
        sums = _Sums.joined([part[site] for part in parts.values()])
        table, layers[site] = sums.tables(site, num_draws, threshold, gains[site])
        rows.update(table)
    return Usage(
        pd.DataFrame.from_dict(rows, orient="index").rename_axis("latent"),
        pd.DataFrame.from_dict(layers, orient="index").rename_axis("layer"),
    )


@dataclass(frozen=True)
class _Gains:
    """Gains of information in nats: of a site's whole draw, ``[n]``, and of each of its D coordinates, ``[n, D]``.

    Their means estimate the mutual information with the input of q; NaN where it is not known.
    """

    together: Tensor
    single: Tensor


@dataclass(frozen=True)
class _Sums:
    """Sums over the draws of each of N observations, for one site.

    Attributes:
        names: names of the coordinates.
        rate: sum of the whole site's log ratio, ``[N]``.
        single: sum of every coordinate's log ratio, ``[N, D]``; NaN where it is not known.
        first: sum of the values, ``[N, D]``; NaN for discrete ones.
        second: sum of the squared values, ``[N, D]``.
    """

    names: list[str]
    rate: Tensor
    single: Tensor
    first: Tensor
    second: Tensor

    @staticmethod
    def of(part: Particles, name: str) -> "_Sums":
        size = len(part.rows[0])
        q, p = part.guide_trace.nodes[name], part.model_trace.nodes[name]
        values = part.values(q)  # [K, data, ...]
        flat = values.reshape(*values.shape[:2], -1).double()
        if is_discrete(q["fn"]):
            flat = torch.full_like(flat[..., :1] if q["fn"].event_shape else flat, torch.nan)
        densities = [marginals(site["fn"]) if len(site["fn"].batch_shape) == 1 else None for site in (q, p)]
        single = torch.full_like(flat, torch.nan)
        if densities[0] is not None and densities[1] is not None and q["mask"] is None:
            rows = q["value"].reshape(size, -1)
            ratio = (densities[0](rows) - densities[1](rows)).double()
            single = ratio.unflatten(0, (len(part.indices), -1)).transpose(0, 1)
        rate = (per_datum(q, size) - per_datum(p, size)).double().unflatten(0, (len(part.indices), -1))
        names = coordinates(name, values[0, 0]) if flat.shape[-1] > 1 or values[0, 0].numel() == 1 else [name]
        sums = (t.cpu() for t in (rate.sum(1), single.sum(0), flat.sum(0), flat.square().sum(0)))
        return _Sums(names, *sums)

    def __add__(self, other: "_Sums") -> "_Sums":
        pairs = ((getattr(self, n), getattr(other, n)) for n in ("rate", "single", "first", "second"))
        return _Sums(self.names, *(one + another for one, another in pairs))

    @staticmethod
    def joined(parts: "list[_Sums]") -> "_Sums":
        fields = (torch.cat([getattr(part, n) for part in parts]) for n in ("rate", "single", "first", "second"))
        return _Sums(parts[0].names, *fields)

    def tables(
        self, site: str, num_draws: int, threshold: float, gains: _Gains
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Return one row per coordinate, and the layer's row; a discrete vector counts as one coordinate."""
        layer_rate, size = _mean(self.rate / num_draws), len(self.names)
        single = self.rate[:, None] if size == 1 else self.single
        rates, informations = ([_mean(column) for column in t.T] for t in (single / num_draws, gains.single))
        activities, variances = self._activity(num_draws)
        rows = {}
        for name, rate, information, activity, variance in zip(
            self.names, rates, informations, activities, variances, strict=True
        ):
            state = _state(rate, layer_rate, information if information.known else activity, threshold)
            rows[name] = {
                "layer": site,
                **rate.columns("rate"),
                **information.columns("information"),
                **activity.columns("activity"),
                "code_variance": variance,
                "state": state,
                "collapsed": state == "collapsed",
            }
        used = sum(row["state"] == "used" for row in rows.values())
        together = _mean(gains.together)
        state = "used" if used else _state(layer_rate, layer_rate, together, threshold * size)
        layer = {
            **layer_rate.columns("rate"),
            **together.columns("information"),
            "latents": size,
            "used": used,
            "active_units": sum(variance > ACTIVE for variance in variances),
            "state": state,
            "collapsed": state == "collapsed",
        }
        return rows, layer

    def _activity(self, num_draws: int) -> tuple[list[_Number], list[float]]:
        """Return every coordinate's activity, its error by the delta method, and the variance of its codes."""
        means = self.first / num_draws
        within = (self.second / num_draws - means.square()).clamp(min=0) * num_draws / (num_draws - 1)
        spread = (means - means.mean(0)).square() * len(means) / (
            len(means) - 1
        ) - within / num_draws  # the part from draws
        between, total = spread.mean(0), (spread + within).mean(0).clamp(min=1e-30)
        share = between.clamp(min=0) / total
        influence = (spread - share * (spread + within)) / total
        activities = [_Number(float(s), _mean(column).error) for s, column in zip(share, influence.T, strict=True)]
        return activities, [float(variance) for variance in between.clamp(min=0)]


def _mean(values: Tensor) -> _Number:
    return _Number(float(values.mean()), standard_error(values))


def _information(question: Question, num_latents: int) -> dict[str, _Gains]:
    """Estimate the information at every site, from one draw for each of 500 random observations (fewer if too large).

    Each draw is scored under all of them: log q(z | own) - log mean_j q(z | j), on average at most the log of their
    number.
    """
    size = min(len(question.data), INFORMATION_OF, max(int(math.sqrt(NUMBERS / num_latents)), 2))
    batch = question.data.sampled(size, question.seed).batch(slice(0, size))
    noise = DatumNoise("information", question.seed, range(size), question.data.device)
    with noise, Repeated():
        trace = poutine.trace(question.pair.guide).get_trace(*batch)
    unknown = draws_of_its_own(question, batch)
    gains = {}
    for name in question.layout.latents:
        site = trace.nodes[name]
        fn, value = site["fn"], site["value"]
        whole = is_discrete(fn) and bool(fn.event_shape)  # a vector that has no separate coordinates
        single = (lambda values: fn.log_prob(values)[..., None]) if whole else marginals(fn)  # noqa: B023 called here
        count = 1 if whole else value.numel() // size
        site_gains = _Gains(torch.full((size,), torch.nan), torch.full((size, count), torch.nan))
        if single is not None and len(fn.batch_shape) == 1 and site["mask"] is None and not unknown:
            flat = value if whole else value.reshape(size, -1)
            together = fn.log_prob(value[:, None])[..., None]
            site_gains = _Gains(_gain(together)[:, 0], _gain(single(flat[:, None])))
        gains[name] = site_gains
    return gains


def _gain(logs: Tensor) -> Tensor:
    """Return log q(z | own) - log mean_j q(z | j), ``[n, D]``, from log densities ``[draws, data, D]``."""
    logs = logs.double()
    own = logs.diagonal(dim1=0, dim2=1)  # [D, n]
    return (own.T - logs.logsumexp(1) + math.log(logs.shape[1])).cpu()
