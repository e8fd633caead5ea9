"""How much evidence a better prior would gain, model and guide as they are."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.common.checks import at_least
from pyrovae.data import Data, as_data
from pyrovae.diagnostics.evidence.evaluate import combined_error, standard_error
from pyrovae.diagnostics.latents.scoring import conditioned
from pyrovae.diagnostics.posterior.reprior import latent_site, reprior
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.psis import khat_limit
from pyrovae.importance.question import Question, ask, refuse_weights
from pyrovae.priors import MixtureOfGaussians, NormalizingFlow
from pyrovae.programs.densities import log_density, per_datum
from pyrovae.programs.isolation import default_device, random_state
from pyrovae.programs.sites import is_discrete, support_of
from pyrovae.programs.streams import numpy_generator, stream_seed
from pyrovae.programs.types import Program

FEWEST = 50  # observations, of which a fold still holds ten
PARTICLES = 16  # per observation, to which a prior is fitted
HELD_OUT = 0.2  # of the observations that a prior is fitted to, by which it is stopped
EVERY = 10  # steps between looks at these
BOUNDED = 400  # observations, and three times as many places, by which the gain of any prior is bounded
LITTLE = 0.1  # nats per observation, a gain that is hardly worth a search
ASCENT = 200  # gradient steps to the maxima of the likelihoods
ROWS = 4096  # pairs of an observation and a place that are scored at once


@dataclass(frozen=True, repr=False)
class PriorGain:
    """What a prior that is fitted to other observations gains on each of N observations. Nats, higher is better.

    Attributes:
        gain: log p(x) under a prior that was fitted to the other folds, minus that under the model's own, ``[N]``.
        gain_se: its Monte Carlo standard error, ``[N]``.
        khat: Pareto tail index of the weights, ``[N]``.
        limit: largest k-hat at which a gain can be trusted.
        at_most: gain on these same data of the best prior of all, with hindsight, as far as a search finds it: mass may
            be put at draws of 400 posteriors, at their means, and where their likelihoods are largest. NaN where the
            model has further latents, so that p(x | z) is not known.
        at_most_se: its standard error over observations.
        family: name of the fitted prior's class.
        index: names of the observations.
    """

    gain: Tensor
    gain_se: Tensor
    khat: Tensor
    limit: float
    at_most: float
    at_most_se: float
    family: str
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.gain)

    @property
    def reliable(self) -> Tensor:
        """Whether each observation's weights can be trusted, ``[N]``."""
        return self.khat <= self.limit

    def table(self) -> pd.DataFrame:
        """Return one row per observation: gain, gain_se, khat, reliable."""
        columns = {name: getattr(self, name).numpy() for name in ("gain", "gain_se", "khat", "reliable")}
        return pd.DataFrame(columns, index=self.index).rename_axis("datum")

    def summary(self) -> dict[str, float]:
        """Return the mean gain with its errors over observations and of Monte Carlo, its bound, and k-hat's share."""
        return {
            "num_data": len(self),
            "gain": float(self.gain.mean()),
            "gain_se": standard_error(self.gain),
            "gain_mc_se": combined_error(self.gain_se),
            "at_most": self.at_most,
            "at_most_se": self.at_most_se,
            "unreliable": float((~self.reliable).double().mean()),
        }

    def __repr__(self) -> str:
        result = self.summary()
        text = (
            f"a {self.family} prior, fitted to other observations, gains {result['gain']:+.3f} nats of evidence per "
            f"observation (standard error {result['gain_se']:.3f})"
        )
        if not math.isnan(self.at_most):
            text += f"; with hindsight the best prior that was found gains {self.at_most:.3f} ({self.at_most_se:.3f})"
        if result["gain"] > 2 * result["gain_se"]:
            text += ": a better prior is worth looking for"
        elif self.at_most < LITTLE:
            text += ": a better prior is hardly worth looking for"
        else:
            text += ": whether another prior gains more is open"
        bad = int((~self.reliable).sum())
        return text + (f"; NOT RELIABLE for {bad} of {len(self)} observations (k-hat)" if bad else "")


@shared_keywords(batch_size=BATCH_SIZE)
def prior_gain(
    model: Program,
    guide: Program,
    data: Any,
    *,
    prior: Callable[[], nn.Module] | None = None,
    site: str | None = None,
    num_folds: int = 5,
    steps: int = 500,
    num_particles: int = 1000,
    max_data: int = 2000,
    **options: Unpack[Options],
) -> PriorGain:
    """Estimate how much log evidence the best prior would gain, with model and guide as they were fitted.

    A flexible prior is fitted to the posteriors of all folds but one, by their importance-weighted evidence, and
    evaluated on that fold by reweighting (:func:`pyrovae.reprior`). This is what can be had at least. An upper bound is
    what the nonparametric maximum of the likelihood over priors gains on these very data: by concavity, no prior's mean
    log evidence exceeds that of a prior P by more than the logarithm of the largest mean of p(x | z) / p_P(x), over z.
    It is sought among draws and means of the posteriors and maxima of the likelihoods. With many latents the bound is
    far above what can be had for other data. A decoder that is fitted under the better prior
    may gain more than either.

    Source: Tomczak and Welling, "VAE with a VampPrior", 2018, for priors that are fitted to codes; Lindsay, "The
    geometry of mixture likelihoods", 1983, for the bound.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set, held out; at least 50 observations.
        prior: function that makes a prior to be fitted, such as ``lambda: priors.MixtureOfGaussians(8)``; None: a
            normalising flow, or a mixture of Gaussians for a single latent.
        site: latent site whose prior it is; required if there are several.
        num_folds: number of folds.
        steps: largest number of gradient steps per fold; a fit stops where a part of its observations gets worse.
        num_particles: number of draws of the guide per observation, for the evaluation.
        max_data: largest number of observations; of a larger set this many are taken at random.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, survey weights, a discrete latent, or
            a prior without parameters.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> result = prior_gain(model, guides.Exact(model), torch.randn(60, 5), steps=20, progress=False)
        >>> result.gain.shape
        torch.Size([60])
    """
    if prior is not None and (isinstance(prior, nn.Module) or not callable(prior)):
        raise ValueError("prior must be a function that makes a prior, such as lambda: priors.MixtureOfGaussians(8)")
    for name, number, least in (
        ("num_folds", num_folds, 2), ("steps", steps, 1), ("num_particles", num_particles, 25),
        ("max_data", max_data, FEWEST),
    ):  # fmt: skip
        at_least(name, number, least)
    whole = as_data(data, model, guide).fixed()
    refuse_weights(whole)
    if len(whole) < FEWEST:
        raise ValueError(f"at least {FEWEST} data are needed to fit a prior to some of them, got {len(whole)}")
    if num_folds > len(whole) // 5:
        raise ValueError(f"num_folds must leave 5 data or more per fold, got {num_folds} for {len(whole)} data")
    own, seed = whole.numbered(assumed=True).sampled(max_data, options["seed"]), options["seed"]
    particles = _Particles.of(model, guide, own, site, options)
    order = numpy_generator("folds of priors", seed).permutation(len(own))
    fields = {name: torch.zeros(len(own), dtype=torch.float64, device="cpu") for name in ("gain", "gain_se", "khat")}
    for number, fold in enumerate(np.array_split(order, num_folds)):
        rest = order[~np.isin(order, fold)]  # in random order, as a part of it stops the fit
        fitted = _fitted(particles, rest, prior, steps, stream_seed("priors", seed, number), options["device"])
        result = reprior(
            model, guide, own.subset(fold.tolist()), fitted, site=particles.site, num_particles=num_particles, **options
        )
        rows = torch.from_numpy(fold)
        fields["gain"][rows], fields["gain_se"][rows], fields["khat"][rows] = (
            result.difference, result.difference_se, result.khat
        )  # fmt: skip
    whole_fit = _fitted(particles, order, prior, steps, stream_seed("priors", seed, num_folds), options["device"])
    bound, bound_se = _at_most(model, guide, own, whole_fit, particles, options)
    return PriorGain(
        **fields, limit=khat_limit(num_particles), at_most=bound, at_most_se=bound_se, family=type(whole_fit).__name__,
        index=own.index,
    )  # fmt: skip


def _at_most(
    model: Program, guide: Program, data: Data, fitted: nn.Module, particles: "_Particles", options: Options
) -> tuple[float, float]:
    """Return the largest gain of any prior on some of the data, and its error; NaN for several latents.

    The fitted prior is mixed with point masses at draws of the posteriors; their weights are found by EM.
    """
    rows = np.linspace(0, len(data) - 1, min(BOUNDED, len(data))).round().astype(int)
    some = data.subset(rows.tolist())
    result = reprior(model, guide, some, fitted, site=particles.site, **options)
    own = particles.values[torch.from_numpy(rows)]
    ratios = _ratios(model, guide, some, particles.site, own, options)
    if ratios is None:
        return math.nan, math.nan
    ratios = (ratios - result.log_evidence[:, None]).exp()  # p(x_i | z_m) / p(x_i) under the fitted prior
    ratios = torch.cat([torch.ones_like(ratios[:, :1]), ratios], 1)
    weights = torch.full((ratios.shape[1],), 0.5 / (ratios.shape[1] - 1), dtype=ratios.dtype, device="cpu")
    weights[0] = 0.5
    for _ in range(500):
        weights = weights * (ratios / (ratios @ weights)[:, None]).mean(0)
    mixture = ratios @ weights
    beyond = float((ratios / mixture[:, None]).mean(0).max().log().clamp(min=0))
    gains = result.difference + mixture.log()
    return float(gains.mean()) + beyond, standard_error(gains)


def _ratios(model: Program, guide: Program, data: Data, site: str, values: Tensor, options: Options) -> Tensor | None:
    """Return log p(x_i | z_m) of all observations and places, ``[N, M]``; None for a model with further latents.

    The places are one draw of each posterior, ``values[:, 0]``, the means of all, and maxima of the likelihoods.
    """
    with ask(model, guide, data, **options) as question, pyro.validation_enabled(False):
        if question.layout.latents != (site,) or question.layout.summed:
            return None
        scored = _Scored(question, site)
        means = values.mean(1)
        places = torch.cat([values[:, 0], means, scored.maxima(means)])
        return torch.cat([scored.pairs(part) for part in places.split(max(1, ROWS // len(data)))], 1)


class _Scored:
    """Scores data given latents, log p(x | z).

    Args:
        question: the pair and the data.
        site: the only latent site.
    """

    def __init__(self, question: Question, site: str) -> None:
        self.question, self.site = question, site
        self.batch = question.data.batch(slice(0, len(question.data)))
        self.node = question.pair.traces(question.data.batch(slice(0, 1)))[0].nodes[site]
        self.plates = {site: len(self.node["fn"].batch_shape) - 1}

    def pairs(self, places: Tensor) -> Tensor:
        """Return log p(x_i | z_m) of all data and some places, ``[N, m]``."""
        count = len(self.batch[0])
        rows = tuple(t.repeat(len(places), *[1] * (t.dim() - 1)) for t in self.batch)
        density = self._density(places.to(self.node["value"]).repeat_interleave(count, 0), rows)
        return density.nan_to_num(nan=-math.inf).unflatten(0, (len(places), -1)).T.detach().double().cpu()

    def maxima(self, start: Tensor) -> Tensor:
        """Return where gradient steps from ``start``, ``[N, D]``, find the largest likelihood of each observation."""
        support = support_of(self.node["fn"])
        if support is not None and not _is_real(support):
            return start
        with torch.enable_grad():
            places = start.to(self.node["value"]).clone().requires_grad_(True)
            optimizer = torch.optim.Adam([places], lr=0.05)
            for _ in range(ASCENT):
                optimizer.zero_grad()
                (-self._density(places, self.batch).sum()).backward(inputs=[places])
                optimizer.step()
        found = places.detach().cpu()
        return torch.where(found.isfinite(), found, start)

    def _density(self, latents: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
        trace = conditioned(self.question.pair.model, {self.site: latents}, self.plates, rows)
        return log_density(trace, len(latents)) - per_datum(trace.nodes[self.site], len(latents))


def _is_real(support: Any) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector)


@dataclass(frozen=True)
class _Particles:
    """The guide's draws of a site.

    Attributes:
        site: name of the site.
        values: draws, ``[N, K, D]``.
        base: log p(x, z) - log q(z | x) - log p(z), to which log density of another prior is added, ``[N, K]``.
    """

    site: str
    values: Tensor
    base: Tensor

    @staticmethod
    def of(model: Program, guide: Program, data: Data, site: str | None, options: Options) -> "_Particles":
        values, base = [], []
        with ask(model, guide, data, **options) as question:
            question.layout.require_guided("prior density")
            name = latent_site(question, site)
            for part in question.particles(PARTICLES, "particles"):
                node, size = part.model_trace.nodes[name], len(part.rows[0])
                if is_discrete(node["fn"]) or node["fn"].event_shape != node["value"].shape[-1:]:
                    raise ValueError(f"latent site {name!r} must be a vector of real numbers, [D]")
                own = per_datum(node, size).unflatten(0, (len(part.indices), -1))
                base.append((part.log_weight.T - own).cpu())
                values.append(part.values(node).transpose(0, 1).cpu())
        return _Particles(name, torch.cat(values).float(), torch.cat(base).float())


def _fitted(
    particles: _Particles, rows: np.ndarray, make: Callable[[], nn.Module] | None, steps: int, seed: int, device: Any
) -> nn.Module:
    """Return a prior that was fitted to the evidence of some observations, stopped by a part of them."""
    place = default_device(device)
    with random_state("fit of a prior", seed, place):
        prior = (_default(particles) if make is None else make()).to(place)
        parameters = [p for p in prior.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(f"the prior, a {type(prior).__name__}, has no parameters to fit")
        _see_shape(prior, particles)
        values, base = (t[torch.from_numpy(rows)].to(place) for t in (particles.values, particles.base))
        held_out, optimizer = max(1, int(HELD_OUT * len(rows))), torch.optim.Adam(parameters, lr=1e-2)
        best, kept, since = -math.inf, copy.deepcopy(prior.state_dict()), 0
        with torch.enable_grad():
            for step in range(steps):
                some = held_out + torch.randint(len(rows) - held_out, (min(128, len(rows)),), device=place)
                loss = -_evidence(prior, values[some], base[some])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % EVERY == EVERY - 1 or step == steps - 1:
                    with torch.no_grad():
                        now = float(_evidence(prior, values[:held_out], base[:held_out]))
                    best, kept, since = (
                        (now, copy.deepcopy(prior.state_dict()), 0) if now > best else (best, kept, since + 1)
                    )
                    if since >= 10:
                        break
        prior.load_state_dict(kept)
    return prior.eval()


def _see_shape(prior: nn.Module, particles: _Particles) -> None:
    """Refuse a prior of another shape, or that gives draws of the guide no density.

    Raises:
        ValueError: saying which.
    """
    fn, size = prior(), particles.values.shape[2]
    if tuple(fn.event_shape) != (size,) or fn.batch_shape:
        raise ValueError(f"the prior must have event shape ({size},), got {tuple(fn.event_shape)}")
    support = support_of(fn)
    if support is not None and not bool(support.check(particles.values.flatten(0, 1).to(fn.sample())).all()):
        raise ValueError(f"the prior gives some draws of the guide no density: its support is {support}")


def _evidence(prior: nn.Module, values: Tensor, base: Tensor) -> Tensor:
    density = prior().log_prob(values.flatten(0, 1)).unflatten(0, base.shape)
    return (base + density).logsumexp(1).mean() - math.log(base.shape[1])


def _default(particles: _Particles) -> nn.Module:
    """Return a flow, or a mixture for a single latent, that starts at the location and scale of the draws."""
    flat = particles.values.flatten(0, 1)
    size = flat.shape[1]
    if size == 1:
        mixture = MixtureOfGaussians(1)
        with torch.no_grad():
            mixture.loc.copy_(flat.mean(0) + flat.std(0) * mixture.loc)
        return mixture
    flow = NormalizingFlow(size)
    with torch.no_grad():
        flow.loc.copy_(flat.mean(0))
    return flow
