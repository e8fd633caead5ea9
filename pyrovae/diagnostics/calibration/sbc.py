"""Simulation-based calibration: is q(z | x) right on average over data that the model simulates?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from scipy import stats
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from pyrovae import plots
from pyrovae.common.checks import at_least
from pyrovae.diagnostics.calibration.ranks import Ranks, Tally, rank
from pyrovae.diagnostics.predictive.draws import coordinates
from pyrovae.diagnostics.predictive.simulate import Simulation, simulate
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.importance.particles import Particles
from pyrovae.importance.question import Question, ask
from pyrovae.programs.densities import log_density
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.sites import is_discrete, site_rows
from pyrovae.programs.types import Program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Quantity = Callable[..., Tensor]
JOINT, DENSITY, DISTANCE = "log p(x, z)", "log q(z | x)", "distance"


@dataclass(frozen=True)
class Calibration:
    """Ranks of the true latents among the guide's draws, for S simulated observations.

    A guide that equals the posterior makes every rank uniform on 0, ..., K. The converse needs quantities that depend
    on the data. Ranks of the latents alone are also uniform for a guide that ignores x and draws from the prior; the
    ranks of log p(x, z) and of the distance reveal such a guide.

    Attributes:
        latents: ranks of every latent coordinate, by site: ``z[0]``, ``z[1]``, ....
        joint: ranks of log p(x, z), which no single coordinate can replace.
        density: ranks of log q(z | x), which evaluate its highest-density regions; None for a guide that cannot score
            an externally supplied z, or that has auxiliary sites.
        distance: ranks of the distance to a reference point that depends on x: the latents of the most similar
            observation of another simulation (TARP).
        quantities: ranks of the caller's own quantities; None where there are none.
    """

    latents: Ranks
    joint: Ranks
    density: Ranks | None
    distance: Ranks
    quantities: Ranks | None

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def ranks(self) -> Tensor:
        """Ranks of the latents, ``[S, D]``, whole numbers from 0 to K."""
        return self.latents.values

    @property
    def num_draws(self) -> int:
        """Number of draws K."""
        return self.latents.num_draws

    @property
    def pvalue(self) -> Tensor:
        """P-value of uniformity of every latent's ranks, ``[D]``, not corrected for the number of latents."""
        return self.latents.pvalue

    @property
    def everything(self) -> Ranks:
        """Ranks of all quantities side by side."""
        parts = [self.latents, self.joint, *(r for r in (self.density, self.quantities) if r is not None)]
        parts.append(self.distance)
        names = tuple(name for part in parts for name in part.names)
        return Ranks(torch.cat([part.values for part in parts], dim=1), self.num_draws, names)

    def __str__(self) -> str:
        return f"{len(self)} simulations, {self.num_draws} draws each\n{self.table().round(4).to_string()}"

    def table(self) -> pd.DataFrame:
        """Tabulate one row per quantity, as :meth:`pyrovae.Ranks.table` does, with p-values adjusted over all rows.

        Symmetry is tested for the latents alone, and adjusted for their number. The ranks of densities are asymmetric
        for any wrong width.
        """
        table, own = self.everything.table(), self.latents.table()
        for column in ("symmetry", "symmetry_adjusted"):
            table[column] = own[column].reindex(table.index)
        return table

    def coverage(self, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> pd.DataFrame:
        """Return how often credible regions of the guide contain the true latents.

        Args:
            levels: probabilities of the regions. A level between two multiples of 1 / (K + 1) is rounded down to the
                lower one, but not below 1 / (K + 1).

        Returns:
            One row per level. ``level`` is the level after rounding. Three columns are the share of simulations in
            which the truth lies inside a region:

            - ``density``: the region of highest q(z | x) (expected coverage); NaN where the guide cannot score;
            - ``distance``: the ball around the reference point (TARP);
            - ``central``: the central interval of a coordinate, the mean over all coordinates.

            ``low`` and ``high`` are the limits within which a calibrated share of S simulations lies with probability
            0.95, level by level. A mean such as ``central`` lies within them more often.

        Source: Hermans et al., "A trust crisis in simulation-based inference? Your posterior approximations can be
        unfaithful", 2022; Lemos, Coogan, Hezaveh and Perreault-Levasseur, "Sampling-based accuracy testing of posterior
        estimators for general inference", 2023.
        """
        rows = []
        for nominal in levels:
            if not 0 < nominal < 1:
                raise ValueError(f"levels must be probabilities between 0 and 1, got {nominal!r}")
            places = max(int(np.floor(nominal * (self.num_draws + 1) + 1e-9)), 1)  # of K + 1
            level = places / (self.num_draws + 1)
            low, high = stats.binom.ppf([0.025, 0.975], len(self), level) / len(self)
            highest = None if self.density is None else self.num_draws - self.density.values
            rows.append({
                "level": level,
                "density": np.nan if highest is None else float((highest < places).double().mean()),
                "distance": float((self.distance.values < places).double().mean()),
                "central": float(self._central(places)),
                "low": low,
                "high": high,
            })  # fmt: skip
        return pd.DataFrame(rows, index=list(levels)).rename_axis("wanted")

    def _central(self, places: int) -> Tensor:
        """Return the share of ranks in the middle ``places``; a place that an end cuts in two counts in part."""
        half = (self.latents.values - self.num_draws / 2).abs()
        inside = (places / 2 - half + 0.5).clamp(0, 1)
        return inside.double().mean()

    def summary(self) -> dict[str, float]:
        """Return the smallest p-values, adjusted for the number of quantities, and the coverage of 90% regions."""
        table, coverage = self.table(), self.coverage([0.9]).iloc[0]  # symmetry is NaN but for latents
        return {
            "num_simulations": len(self),
            "num_draws": self.num_draws,
            "pvalue": float(table["adjusted"].min()),
            "symmetry": float(table["symmetry_adjusted"].min()),
            "coverage_90": float(coverage["central" if self.density is None else "density"]),
        }

    def plot(self) -> "Figure":
        """Plot the ranks with their simultaneous 95% bands, and the expected coverage."""
        return plots.calibration(self.everything, self.density, self.distance)


@shared_keywords(batch_size=BATCH_SIZE)
def sbc(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_simulations: int = 1000,
    num_draws: int = 99,
    quantities: Mapping[str, Quantity] | None = None,
    **options: Unpack[Options],
) -> Calibration:
    """Simulate latents and data from the model, and rank the latents among the guide's draws given the data.

    One set of simulations answers three questions. Are the ranks uniform (simulation-based calibration)? Do credible
    regions have the coverage that they claim (expected coverage, TARP)? Is every marginal of the guide centred (the
    diagnostic of Yao and others, the column ``symmetry``)? They are questions about the guide under this model, not
    about the model: the data are simulated from ``model`` with its present parameters and are not the user's.

    Source: Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian inference algorithms with
    simulation-based calibration", 2018; Modrák et al., "Simulation-based calibration checking for Bayesian computation:
    the choice of test quantities shapes sensitivity", 2023, for log p(x, z).

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set. Only its shapes, covariates and missing values are used, as
            in :func:`pyrovae.simulate`.
        num_simulations: number of simulations S.
        num_draws: number K of independent draws of the guide for each simulated observation.
        quantities: further functions to rank, by name. ``f(latents, *batch)`` takes a dict of latents by site,
            ``[rows, ...]``, and the batch's tensors, ``[rows, ...]``, and returns ``[rows]``.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, an observation that is not a tensor
            of the batch, or a quantity of another shape.

    Example:
        The exact posterior is calibrated.

        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> found = sbc(model, guides.Exact(model), torch.zeros(1, 5), num_simulations=200, progress=False)
        >>> found.ranks.shape, bool((found.pvalue > 1e-4).all())
        (torch.Size([200, 2]), True)
    """
    num_simulations = at_least("num_simulations", num_simulations, 2)
    num_draws = at_least("num_draws", num_draws, 2)
    own = dict(quantities or {})
    simulation_options = without(options, "batch_size")
    # the second half of the simulations gives the reference points for the distances
    simulation = simulate(model, data, num_simulations=2 * num_simulations, **simulation_options)
    if not simulation.latents:
        raise ValueError("the model has no latents that it draws, so there is nothing to calibrate")
    first, others = simulation.part(slice(0, num_simulations)), simulation.part(slice(num_simulations, None))
    points = _Points.of(first, others)
    tally, has_density = Tally(), True
    with ask(model, guide, first.data, **options) as question:
        question.layout.require_latents()
        latents = question.layout.latents
        names = [name for site in latents for name in coordinates(site, simulation.latents[site][0])]
        _see_names(own, [*names, JOINT, DENSITY, DISTANCE])
        for part in question.particles(num_draws, "sbc"):
            truth = _truth(question, part, first.latents, points, own)
            draws = _drawn(question, part, points, own)
            tally.add(part.indices.start, *rank(truth, draws, _tolerance(part, latents, truth, len(names))))
            has_density = has_density and not bool(truth[:, len(names) + 1].isnan().any())
    ranks = tally.ranks("ties of sbc", question.seed)
    labels = [*names, JOINT, DENSITY, DISTANCE, *own]
    ranks_of = lambda *subset: Ranks(ranks, num_draws, tuple(labels)).select(subset)  # noqa: E731
    return Calibration(
        latents=ranks_of(*names),
        joint=ranks_of(JOINT),
        density=ranks_of(DENSITY) if has_density else None,
        distance=ranks_of(DISTANCE),
        quantities=ranks_of(*own) if own else None,
    )


def _see_names(own: Mapping[str, Any], others: Sequence[str]) -> None:
    duplicates = [name for name in own if name in others]
    if duplicates:
        raise ValueError(f"a quantity cannot be called {duplicates[0]!r}, which is ranked anyway: rename it")


@dataclass(frozen=True)
class _Points:
    """Reference points for distances: a latent vector for every simulated observation, in units of ``scale``."""

    scale: Tensor
    points: Tensor

    @staticmethod
    def of(simulation: Simulation, others: Simulation) -> "_Points":
        """Return for every observation the latents of the most similar observation of the other simulation."""
        latents = _flat(others.latents)  # not the ranked latents: a scale that depends on them would favour them
        scale = latents.std(0).clamp(min=1e-12)
        here, there = (_standardised(one.seen, others.seen) for one in (simulation, others))
        nearest = NearestNeighbors(n_neighbors=1).fit(there).kneighbors(here, return_distance=False)[:, 0]
        return _Points(scale, latents[torch.from_numpy(nearest)] / scale)

    def distance(self, latents: Tensor, indices: Tensor) -> Tensor:
        return (latents / self.scale - self.points[indices]).norm(dim=1)


def _flat(latents: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(len(value), -1).double() for value in latents.values()], dim=1)


def _standardised(values: Sequence[Tensor], reference: Sequence[Tensor]) -> np.ndarray:
    """Return each observation as a row of standardised numbers; missing or masked values become the mean."""
    rows, base = (
        torch.cat([t.reshape(len(t), -1).double() for t in tensors], dim=1).numpy() for tensors in (values, reference)
    )
    base = np.where(np.isnan(base).all(0), 0.0, base)  # a column without any value says nothing
    with np.errstate(invalid="ignore"):
        mean, deviation = np.nanmean(base, axis=0), np.nanstd(base, axis=0)
        return np.nan_to_num((rows - mean) / np.where(deviation > 0, deviation, 1))


def _truth(
    question: Question, part: Particles, latents: Mapping[str, Tensor], points: _Points, own: Mapping[str, Quantity]
) -> Tensor:
    """Return all quantities of the true latents, ``[data, quantities]``; NaN where the guide has no density."""
    indices = torch.arange(part.indices.start, part.indices.stop, device="cpu")
    repeats = len(part.log_weight)
    batch = tuple(t[::repeats] for t in part.rows)
    rows = {name: latents[name][indices].to(batch[0].device) for name in question.layout.latents}
    values = {
        name: value.movedim(0, len(part.guide_trace.nodes[name]["fn"].batch_shape) - 1) for name, value in rows.items()
    }
    with Repeated():
        model_trace = question.pair.density(poutine.condition(question.pair.model, data=values), batch)
    log_p = log_density(model_trace, len(indices))
    log_q = _score(question, values, batch)
    return _quantities(rows, batch, indices, log_p, log_q, points, own)


def _tolerance(part: Particles, latents: Sequence[str], truth: Tensor, num_latents: int) -> Tensor | float:
    """Return the largest rounding difference that counts as a tie, ``[data, quantities]``; 0 without discrete latents.

    A draw of a discrete latent that equals the truth has the same density as the truth. But the two densities are
    computed in batches of different lengths, which round differently.
    """
    if not any(is_discrete(part.guide_trace.nodes[name]["fn"]) for name in latents):
        return 0.0
    rounding = 100 * torch.finfo(part.log_weight.dtype).eps
    tolerance = rounding * (1 + truth.abs()).nan_to_num(0)
    tolerance[:, :num_latents] = 0
    return tolerance


def _score(question: Question, latents: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
    """Return the guide's log density of externally supplied latents, ``[data]``; NaN where it has none."""
    nans = torch.full((len(batch[0]),), torch.nan, device=batch[0].device)
    if question.layout.auxiliary:
        return nans
    try:
        with Repeated():
            trace = poutine.trace(poutine.condition(question.pair.guide, data=dict(latents))).get_trace(*batch)
            return log_density(trace, len(batch[0]))
    except (RuntimeError, ValueError, KeyError, NotImplementedError):  # raised by one-way flows, for example
        return nans


def _drawn(question: Question, part: Particles, points: _Points, own: Mapping[str, Quantity]) -> Tensor:
    """Return all quantities of the guide's draws, ``[draws, data, quantities]``."""
    size, repeats = len(part.rows[0]), len(part.log_weight)
    rows = {name: site_rows(part.guide_trace.nodes[name]) for name in question.layout.latents}
    indices = torch.arange(part.indices.start, part.indices.stop, device="cpu").repeat_interleave(repeats)
    log_p, log_q = (log_density(trace, size) for trace in (part.model_trace, part.guide_trace))
    quantities = _quantities(rows, part.rows, indices, log_p, log_q, points, own)
    return quantities.unflatten(0, (len(part.indices), repeats)).transpose(0, 1)


def _quantities(
    latents: Mapping[str, Tensor],
    batch: tuple[Tensor, ...],
    indices: Tensor,
    log_p: Tensor,
    log_q: Tensor,
    points: _Points,
    own: Mapping[str, Quantity],
) -> Tensor:
    flat = _flat(latents).cpu()
    columns = [flat, log_p.double().cpu()[:, None], log_q.double().cpu()[:, None]]
    columns.append(points.distance(flat, indices)[:, None])
    for name, quantity in own.items():
        value = quantity(dict(latents), *batch[:-1])
        if not isinstance(value, Tensor) or value.shape != (len(flat),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the quantity {name!r} must return one number per row, [{len(flat)}], got {got}")
        if bool(value.isnan().any()):
            raise ValueError(f"the quantity {name!r} is NaN for some latents, which have no rank: make it a number")
        columns.append(value.double().cpu()[:, None])
    return torch.cat(columns, dim=1)
